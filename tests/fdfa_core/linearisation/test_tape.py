"""Tapes against torch's own forward and reverse mode, in float64, and what they must not follow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fdfa_core.errors import Unsupported
from fdfa_core.linearisation import composites, recurrence
from fdfa_core.linearisation.general import INPUT, GeneralMap
from fdfa_core.linearisation.maps import Context

MASK = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)) > 0.4
NOTHING_SEEN = MASK.clone().index_fill_(0, torch.tensor([1]), False)
INDEX = torch.tensor([[0, 3, 1], [2, 2, 0]])
SPARSE = torch.eye(4, dtype=torch.float64).to_sparse()


class Calls(nn.Module):
    """A function of the input (2, 4, 6), a matrix W (6, 6) and a vector b (6,)."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.W, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x):
        return self.function(x, self.W, self.b)


def heads(x):
    return x.view(2, 4, 2, 3).transpose(1, 2)


def attend(x, W, mask=None, dropout=0.0, causal=False, scale=None):
    return F.scaled_dot_product_attention(heads(x @ W), heads(x), heads(W[:4] * x), mask, dropout, causal, scale=scale)


def in_place(x, W, b):
    y = x @ W
    z = y * 2
    z += b
    z.mul_(x)
    z.sub_(y).div_(3.0)
    return F.relu(z, inplace=True) + F.silu(z + 1, inplace=True) + F.leaky_relu(z * 2, 0.2, inplace=True)


def image(x, W):
    return (x @ W).view(2, 4, 2, 3)


def convolutions(x, W, b):
    z = image(x, W)
    z = F.conv2d(z, W[:, :4].reshape(6, 4, 1, 1), b, padding="same")
    z = F.conv2d(z, W.reshape(6, 1, 2, 3), None, (1, 1), 1, 1, 6)
    return F.conv_transpose2d(z, W.reshape(6, 2, 1, 3), b[:2], 2, 0, 0, 1, 1)


def recurrent(x, W, b, batch_first):
    start = (x[:, :1].transpose(0, 1) if batch_first else x[:1])[..., :2].contiguous()
    biases = [b, 2 * b] if len(b) else []
    return torch.gru(x, start, [W, W[:, :2], *biases], bool(biases), 1, 0.0, True, False, batch_first)


def recurrent_in_place(x, W, b):
    states, last = recurrent(x, W, b, True)
    last.mul_(2)  # which leaves the states alone
    return states * b[:2] + last.transpose(0, 1)


def batch_norm(training):
    def call(x, W, b):
        running = torch.ones(4, dtype=x.dtype), torch.full((4,), 2.0, dtype=x.dtype)
        return F.batch_norm(image(x, W), *running, b[:4], W[0, :4], training, 0.1, 1e-3)

    return call


CASES = {
    "views": lambda x, W, b: x.permute(2, 0, 1).flatten(1).T.mT.unflatten(1, (2, 4)).unsqueeze(0)[0].swapaxes(0, 1) * b[0],
    "parts": lambda x, W, b: torch.cat([*x.chunk(2, -1), x.split(2, 1)[0].repeat(1, 2, 1), W.expand(2, 6, 6)[:, 2:]], -1),
    "joined": lambda x, W, b: torch.stack([x, W[:4].expand(2, 4, 6), torch.ones_like(x)])[1] + torch.hstack((x, x)).mean(),
    "picked": lambda x, W, b: x.gather(1, INDEX.unsqueeze(-1).expand(2, 3, 6)) + x[:, INDEX[0]] + x[:, :3].flip(1).roll(1, 0),
    "masked": lambda x, W, b: torch.where(MASK, x @ W[:, :4], 0.5) + (x @ x.mT).masked_fill(MASK, 2.0) + W[:4, :4].tril(),
    "reduced": lambda x, W, b: x.mean((0, 1)) + x.sum(1, keepdim=True).cumsum(-1) - W.mean(0) + x.double().contiguous().clone(),
    "padded": lambda x, W, b: F.pad(x, (1, 2), value=3.0) + F.pad(x * b, (1, 2), mode="reflect"),
    "sums": lambda x, W, b: torch.add(x, b, alpha=2) - torch.sub(W[:4], x, alpha=3) + (1 - x) - torch.rsub(x, b) + (-x),
    "products": lambda x, W, b: (2 * x * b) * (x * W[:4]) / (b + 3) / 2 + 1 / (x.square() + 1) + b / (2 + x.square()) + 1 / b,
    "matrices": lambda x, W, b: (x @ x.mT) @ (x @ W) + torch.bmm(x.mT, x)[:, :4] + (x[0] @ W).mm(W),
    "sparse": lambda x, W, b: SPARSE @ W[:4] * b + torch.sparse.mm(SPARSE, x[0]),
    "bias": lambda x, W, b: torch.addmm(b, x.view(-1, 6), W, alpha=2) + torch.baddbmm(x.mT @ x, x.mT, x, beta=3)[:, 0][0],
    "einsum": lambda x, W, b: torch.einsum("ntd,de,e->nte", x, W, b) + torch.einsum("ntd,nsd->nts", x, x).sum(-1, keepdim=True),
    "linear": lambda x, W, b: F.linear(F.linear(x, W, b), W),
    "activations": lambda x, W, b: sum(f(x @ W) for f in (F.gelu, F.silu, F.mish, F.hardswish, F.relu6, F.elu)),
    "more": lambda x, W, b: sum(f(x + b) for f in (torch.tanh, torch.sigmoid, torch.exp, F.softplus, F.relu, torch.sin)),
    "powers at zero": lambda x, W, b: (F.relu(x) ** 0 + F.relu(x) ** 2 + F.relu(x) ** 1) * b,
    "roots": lambda x, W, b: b.sqrt() + b.rsqrt() * b.log() + x.abs() + x**3 + b.reciprocal() + x.clamp(-0.5, 0.7),
    "options": lambda x, W, b: F.gelu(x, approximate="tanh") + F.hardtanh(x * b, -0.3, 0.4) + F.hardsigmoid(x) + x.cos(),
    "softmax": lambda x, W, b: (x @ W).softmax(-1) * b + F.softmax(x, 0) + torch.softmax(x, 1, dtype=torch.float64),
    "layer norm": lambda x, W, b: F.layer_norm(x @ W, (6,), b, W[0]) + F.layer_norm(x, (4, 6), None, W[:4]),
    "batch norm": batch_norm(True),
    "batch norm, evaluation": batch_norm(False),
    "group norm": lambda x, W, b: F.group_norm(image(x, W), 2, b[:4], W[0, :4]) + F.group_norm(image(x, W), 1),
    "convolutions": convolutions,
    "convolution of one": lambda x, W, b: F.conv1d(x[0], W.view(9, 4, 1), W.view(-1)[:9]).unsqueeze(0),
    "pooling": lambda x, W, b: F.max_pool2d(image(x, W), (1, 2), 1) + F.avg_pool2d(image(x, W), (1, 2), 1) * b[0],
    "resizing": lambda x, W, b: F.interpolate(image(x, W), scale_factor=2) * F.adaptive_avg_pool2d(image(x, W), 1),
    "embedding": lambda x, W, b: F.embedding(INDEX, W, padding_idx=2) * x[:, :3],
    "attention": lambda x, W, b: attend(x, W),
    "attention, causal": lambda x, W, b: attend(x, W, causal=True, scale=0.3),
    "attention, mask": lambda x, W, b: attend(x, W, MASK),
    "attention, bias": lambda x, W, b: attend(x, W, MASK.double().log().expand(2, 1, 4, 4)),
    "attention, nothing to see": lambda x, W, b: attend(x, W, NOTHING_SEEN),
    "attention, no heads": lambda x, W, b: F.scaled_dot_product_attention(x, x @ W, x * b, MASK.expand(2, 4, 4)),
    "attention, random": lambda x, W, b: attend(x, W, MASK | torch.eye(4, dtype=torch.bool), dropout=0.5),
    "dropout": lambda x, W, b: F.dropout(x @ W, 0.3) + F.dropout(x, 0.3, training=False) + F.dropout(x, 0.0),
    "in place": in_place,
    "weight norm": lambda x, W, b: x @ torch._weight_norm(W, b.view(6, 1), 0) + x @ torch._weight_norm(W, b[0], -1),
    "opened": lambda x, W, b: F.normalize(x @ W, dim=-1) + F.softsign(x),
    "no rule": lambda x, W, b: (x @ W).logsumexp(-1, keepdim=True) + (x * b).logcumsumexp(1) + (x @ W).var(1, keepdim=True),
    "gru": lambda x, W, b: recurrent(x, W, b, True)[0] + recurrent(x, W, b[:0], True)[1].transpose(0, 1),
    "gru, time first": lambda x, W, b: recurrent(x, W, b, False)[0],
    "gru, changed in place": recurrent_in_place,
    "gru without a start": lambda x, W, b: recurrent(x.detach(), W, b, True)[0],
    "stopped": lambda x, W, b: x.detach() * b + (x @ W).data * x + (x > 0) * b,
}


HELPED = {"no rule", "masked", "picked", "opened", "softmax"}  # operations without a rule among them
REVERSE = {"weight norm", "sparse", "embedding"}  # torch's forward mode lacks the first two, and moves the row of padding


def mapped(name, taped=True, **options):
    """The map of a case at a seeded input, its directions and a signal."""
    torch.manual_seed(0)
    module = Calls(CASES[name]).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    moved = {INPUT: torch.randn_like(x), "W": torch.randn(6, 6).double(), "b": torch.randn(6).double()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneralMap, "taped", taped)
        torch.manual_seed(1)
        made = GeneralMap(module, x, Context(module, **options))
    return made, moved, torch.randn(made.output.shape, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("name", CASES)
def test_an_operation_has_the_tangents_and_gradients_of_torch(name):
    with sdpa_kernel(SDPBackend.MATH):  # the attention that keeps its rows without keys as they are in the fused one
        made, moved, signal = mapped(name)
        other, *_ = mapped(name, taped=False)
    assert not made.tape.lost and (made.tape.bare or name in HELPED)
    torch.testing.assert_close(made.output, other.output, rtol=1e-12, atol=1e-12)
    for chosen in [] if name in REVERSE else ([INPUT], ["W", "b"], ["b"], list(moved)):
        directions = {key: moved[key] for key in chosen}
        found = made._taped(directions)
        assert found.shape == made.output.shape and found.dtype is made.output.dtype
        with other._replayed():
            torch.testing.assert_close(found, other._dual(directions), rtol=1e-11, atol=1e-11)
    gradients, below = made.pull(signal, True)
    expected, expected_below = other.pull(signal, True)
    torch.testing.assert_close((gradients, below), (expected, expected_below), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["gru", "attention, mask"])
def test_what_is_done_in_parts_is_what_is_done_at_once(name, monkeypatch):
    made, moved, _ = mapped(name)
    whole = made._taped(moved)
    for module in (composites, recurrence):
        monkeypatch.setattr(module, "CHUNK_NUMBERS", 24)
    torch.testing.assert_close(made._taped(moved), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_local_gradients_are_the_transpose_of_tangents(name):
    made, moved, signal = mapped(name)
    gradients, below = made.pull(signal, True)
    tangent = made.push(moved[INPUT], {"W": moved["W"], "b": moved["b"]})
    slope = sum((g * moved[key]).sum() for key, g in (gradients | {INPUT: below}).items())
    torch.testing.assert_close((tangent * signal).sum(), slope, rtol=1e-11, atol=1e-11)


# What a tape must not follow -------------------------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, signal):
        return 2 * signal

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


def through_a_view(x, W, b):
    y = x @ W
    part = y[:, :2]
    part.mul_(3)
    return y * b


def overwritten_value(x, W, b):
    y, shared = torch.tanh(x @ W), x * b
    z = shared.sum() + y
    shared.view(-1).add_(1)
    return z * shared


def assigned(x, W, b):
    y = torch.zeros_like(x)
    y[:, 1] = x[:, 1] @ W
    return y + b


def in_half_precision(x, W, b):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x.float() @ W.float()).double() * b


FOREIGN = {
    "custom function": lambda x, W, b: Doubled.apply(x @ W) * b,
    "script": lambda x, W, b: torch.jit.script(nn.GELU())(x @ W) * b,
    "through a view": through_a_view,
    "overwritten value": overwritten_value,
    "assigned": assigned,
    "random": lambda x, W, b: F.rrelu(x @ W, 0.1, 0.9, training=True) * b,
    "autocast": in_half_precision,
    "functorch": lambda x, W, b: torch.vmap(lambda row: row @ W)(x) * b,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_tape_cannot_follow_has_the_tangents_of_forward_mode(name, monkeypatch):
    monkeypatch.setitem(CASES, name, FOREIGN[name])
    made, moved, signal = mapped(name)
    other, *_ = mapped(name, taped=False)
    assert made.tape.lost
    directions = moved[INPUT], {"W": moved["W"], "b": moved["b"]}
    torch.testing.assert_close(made.push(*directions), other.push(*directions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.pull(signal, True), other.pull(signal, True), rtol=1e-12, atol=1e-12)


def descends(x, W, b):
    """One step down the gradient of an energy, as a block of an energy-based network takes it."""
    at = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(torch.log(torch.cosh(at @ W + b)).sum(), at, create_graph=True)
    return x - 0.1 * slope


def test_a_block_that_differentiates_inside_itself_has_the_tangents_and_gradients_of_reverse_mode(monkeypatch):
    monkeypatch.setitem(CASES, "descends", descends)
    made, moved, signal = mapped("descends")
    torch.manual_seed(0)
    module = Calls(descends).double()
    values = torch.randn(2, 4, 6, dtype=torch.float64), module.W.detach(), module.b.detach()
    directions = moved[INPUT], moved["W"], moved["b"]
    _, tangent = torch.autograd.functional.jvp(descends, values, directions)  # by two backward passes
    torch.testing.assert_close(made.push(moved[INPUT], {"W": moved["W"], "b": moved["b"]}), tangent, rtol=1e-11, atol=1e-11)
    _, (below, W, b) = torch.autograd.functional.vjp(descends, values, signal)
    torch.testing.assert_close(made.pull(signal, True), ({"W": W, "b": b}, below), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("start", [torch.zeros(1, 3, 2), torch.zeros(1, 1, 2)])
def test_a_gru_whose_start_does_not_fit_is_torchs_own_matter(start, monkeypatch):
    """Torch refuses it, or spreads it over the samples: the same happens with a tape."""

    def call(x, W, b):
        return torch.gru(x, start.to(x.dtype), [W, W[:, :2]], False, 1, 0.0, True, False, True)[0]

    monkeypatch.setitem(CASES, "gru, start", call)
    module, x = Calls(call).double(), torch.randn(2, 4, 6, dtype=torch.float64)
    try:
        expected = module(x).shape
    except RuntimeError:
        with pytest.raises((RuntimeError, Unsupported)):
            mapped("gru, start")
    else:
        assert mapped("gru, start")[0].output.shape == expected
