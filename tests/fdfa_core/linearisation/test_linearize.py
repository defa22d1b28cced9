"""Linearisations against torch's automatic differentiation, factored draws against their dense form, in float64."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import make_estimator
from fdfa_core.linearisation import factored as draws
from fdfa_core.linearisation.factored import Outer, dense
from fdfa_core.linearisation.general import GeneralMap
from fdfa_core.linearisation.maps import RULES, Context, linearize
from fdfa_core.linearisation.trace import Trace
from fdfa_core.networks.blocks import Block, BlockNetwork
from fdfa_core.networks.decorrelation import Decorrelation
from fdfa_core.networks.dense import fully_connected

R = 3  # directions at once


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))

    def forward(self, x):
        return x + self.inner(x)


class InplaceFirst(nn.Module):
    """Overwrites its input, as torch allows and as pre-activation networks do."""

    def __init__(self):
        super().__init__()
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.act(x)) + x


class HookedWeight(nn.Module):
    """A weight made of two parameters before each call, by a hook, as `torch.nn.utils.weight_norm` does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.inner.direction, self.inner.length = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.rand(4, 1))
        del self.inner.weight
        self.inner.weight = self.inner.direction.detach()
        self.inner.register_forward_pre_hook(self.compose)

    @staticmethod
    def compose(layer, inputs):
        layer.weight = layer.length * layer.direction / layer.direction.square().sum(1, keepdim=True).sqrt()

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class InplaceAfter(nn.Module):
    """Works in place on what a normalisation returned, as residual networks do."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.linear(x))
        y += x
        return self.act(y)


class Functional(nn.Module):
    """No layers, only functions."""

    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        y = 1 + 2 * x / 3 + self.shift
        y = torch.add(y, x.detach(), alpha=2) * self.weight[0] + self.weight[1] / (x.detach().square() + 1)
        y = (1 - y) - (x - self.shift) + torch.sub(x, y) * y + x / (1 + y * y)
        y = y - 1 / (1 + x.detach().square()) / (y.square() + 2)
        y = y + ((y[:, :, None] @ y[:, None]) @ self.weight @ torch.bmm(y[:, :, None], x[:, None])).sum(1)
        y = F.softmax(y, -1) + y.softmax(0) + torch.softmax(y, 1, dtype=torch.float64)
        y = (y @ self.weight) / (1 + y.square()) - x.float() * 0.5 + torch.ones(1, 4, dtype=torch.float64)
        z = y * y
        z += y  # in place, on a value that was kept
        w = y + 1
        w += z  # in place, on a tangent that was passed on
        y = y * w
        return z.softmax(-1) + self.shift * self.weight[:1] + (y.mean(0) + y.sum(0, keepdim=True)) * torch.ones(2, 1, 1)[0, 0]


def shared_twice():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU(), layer)


def tied_weights():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def tied_across_paths():
    """One weight met by a rule and by the general path: factored and dense gradients add up."""
    first, second = nn.Linear(4, 4), InplaceFirst()
    second.linear.weight = first.weight
    return nn.Sequential(first, second)


def parametrised():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).mT

    return nn.utils.parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric())


def batch_norm(cls=nn.BatchNorm1d, training=True, channels=4, **options):
    module = cls(channels, **options).train(training)
    with torch.no_grad():
        for buffer in (module.running_mean, module.running_var):
            if buffer is not None:
                buffer.uniform_(0.5, 2)
        for p in module.parameters():
            p.uniform_(0.5, 2)
    return module


def decorrelation(features):
    module = Decorrelation(features, 0.1)
    module.matrix += torch.randn(features, features)
    return module


def layer_norm(*shape, **options):
    module = nn.LayerNorm(shape, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(0.5, 2)
    return module


FLAT, TOKENS, IMAGE = (5, 4), (5, 3, 4), (3, 4, 7, 6)
RULED = {  # modules whose every layer has a rule: name → (factory, shape of the input)
    "identity": (nn.Identity, FLAT),
    "flatten": (nn.Flatten, IMAGE),
    "flatten-part": (lambda: nn.Flatten(2), IMAGE),
    "unflatten": (lambda: nn.Unflatten(1, (2, 2)), FLAT),
    "linear": (lambda: nn.Linear(4, 3), FLAT),
    "linear-no-bias": (lambda: nn.Linear(4, 3, bias=False), FLAT),
    "linear-tokens": (lambda: nn.Linear(4, 2), TOKENS),
    "relu": (nn.ReLU, IMAGE),
    "relu-inplace": (lambda: nn.ReLU(inplace=True), FLAT),
    "tanh": (nn.Tanh, FLAT),
    "sigmoid": (nn.Sigmoid, TOKENS),
    "gelu": (nn.GELU, FLAT),
    "silu-inplace": (lambda: nn.SiLU(inplace=True), FLAT),
    "leaky-relu": (lambda: nn.LeakyReLU(0.2), FLAT),
    "softplus": (nn.Softplus, FLAT),
    "dropout-eval": (lambda: nn.Dropout(0.5).eval(), FLAT),
    "batch-norm-train": (batch_norm, FLAT),
    "batch-norm-eval": (lambda: batch_norm(training=False), FLAT),
    "batch-norm-no-affine": (lambda: batch_norm(affine=False), FLAT),
    "batch-norm-no-bias": (lambda: batch_norm(bias=False), FLAT),
    "batch-norm-no-statistics": (lambda: batch_norm(track_running_stats=False), FLAT),
    "batch-norm-no-statistics-eval": (lambda: batch_norm(training=False, track_running_stats=False), FLAT),
    "batch-norm-momentum-none": (lambda: batch_norm(momentum=None), FLAT),
    "batch-norm-1d-positions": (batch_norm, (5, 4, 3)),
    "batch-norm-2d-train": (lambda: batch_norm(nn.BatchNorm2d), IMAGE),
    "batch-norm-2d-eval": (lambda: batch_norm(nn.BatchNorm2d, training=False, affine=False), IMAGE),
    "layer-norm": (lambda: layer_norm(4), TOKENS),
    "decorrelation": (lambda: decorrelation(4), TOKENS),
    "layer-norm-two-axes": (lambda: layer_norm(3, 4), TOKENS),
    "layer-norm-no-affine": (lambda: layer_norm(4, elementwise_affine=False), FLAT),
    "layer-norm-no-bias": (lambda: layer_norm(4, bias=False), FLAT),
    "conv": (lambda: nn.Conv2d(4, 3, 3), IMAGE),
    "conv-no-bias": (lambda: nn.Conv2d(4, 3, (3, 2), bias=False), IMAGE),
    "conv-strided": (lambda: nn.Conv2d(4, 3, 3, stride=2, padding=(1, 2)), IMAGE),
    "conv-dilated": (lambda: nn.Conv2d(4, 3, 2, dilation=2), IMAGE),
    "conv-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), IMAGE),
    "conv-depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), IMAGE),
    "conv-1d": (lambda: nn.Conv1d(3, 2, 2), TOKENS),
    "max-pool": (lambda: nn.MaxPool2d(2), IMAGE),
    "max-pool-overlapping": (lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), IMAGE),
    "avg-pool": (lambda: nn.AvgPool2d(2, ceil_mode=True), IMAGE),
    "avg-pool-adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "sequential": (lambda: nn.Sequential(nn.Linear(4, 4), batch_norm(), nn.ReLU(), nn.Linear(4, 2)), FLAT),
    "sequential-images": (
        lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        IMAGE,
    ),
    "sequential-empty": (nn.Sequential, FLAT),
    "shared-layer": (shared_twice, FLAT),
    "tied-weights": (tied_weights, FLAT),
}
GENERAL = {  # modules that need the general path, in whole or in part
    "residual": (lambda: Residual(), (3, 2, 4, 4)),
    "residual-eval": (lambda: Residual().eval(), (3, 2, 4, 4)),
    "inplace-first": (InplaceFirst, FLAT),
    "inplace-after": (InplaceAfter, FLAT),
    "tied-across-paths": (tied_across_paths, FLAT),
    "functional": (Functional, FLAT),
    "parametrised": (parametrised, FLAT),
    "weight-by-hook": (HookedWeight, FLAT),
    "conv-same": (lambda: nn.Conv2d(4, 3, 2, padding="same"), IMAGE),
    "conv-circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "prelu": (nn.PReLU, FLAT),
    "group-norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "softmax": (lambda: nn.Softmax(-1), TOKENS),
    "encoder-layer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), TOKENS),
    "encoder-layer-eval": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(), TOKENS),
    "block": (lambda: Block(nn.Linear(4, 3), nn.ReLU()), FLAT),
}
MODULES = RULED | GENERAL


def problem(name):
    """A module, an input, and the module as a function of (x, parameters)."""
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module = make().double()
    twin = copy.deepcopy(module)  # torch.func.functional_call does not always give shared parameters back
    x = torch.randn(shape, dtype=torch.float64)

    def call(x, parameters):
        buffers = {key: b.clone() for key, b in twin.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH), no_fast_encoder():  # the attention that has forward-mode derivatives
            return functional_call(twin, {**parameters, **buffers}, (x.clone(),))

    return module, x, call, {key: p.detach() for key, p in module.named_parameters()}


def linearized(module, x, path, **options):
    """The module's map: by its rule, by the general path, or by the general path without a tape."""
    context = Context(module, **options)
    if path == "fast":
        return linearize(module, x, context)
    with pytest.MonkeyPatch.context() as patch:
        if path == "bare":
            patch.setattr(GeneralMap, "taped", False)
        return GeneralMap(module, x, context)


@contextlib.contextmanager
def no_fast_encoder():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def randn_like(values, lead):
    return {key: torch.randn(lead + p.shape, dtype=p.dtype) for key, p in values.items()}


def at(values, r):
    """Direction r of a tensor or a dict of tensors."""
    return values[r] if isinstance(values, torch.Tensor) else {key: v[r] for key, v in values.items()}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


every_module = pytest.mark.parametrize("name", MODULES)
every_path = pytest.mark.parametrize("path", ["fast", "general", "bare"])


@every_module
@every_path
def test_value_is_the_modules_own(name, path):
    module, x, call, parameters = problem(name)
    close(linearized(module, x.clone(), path).output, call(x, parameters))


@every_module
@every_path
def test_tangent_of_the_input_equals_forward_mode(name, path):
    module, x, call, parameters = problem(name)
    t = torch.randn_like(x)
    close(linearized(module, x, path).push(t, None), jvp(lambda x: call(x, parameters), (x,), (t,))[1])


@every_module
@every_path
def test_tangent_of_input_and_parameters_equals_forward_mode(name, path):
    module, x, call, parameters = problem(name)
    t, v = torch.randn_like(x), randn_like(parameters, ())
    close(linearized(module, x, path).push(t, v), jvp(call, (x, parameters), (t, v))[1])


@every_module
@every_path
def test_signal_equals_reverse_mode(name, path):
    module, x, call, parameters = problem(name)
    value, backward = vjp(call, x, parameters)
    s = torch.randn_like(value)
    gradients, below = linearized(module, x, path).pull(s, True)
    expected_below, expected = backward(s)
    close(below, expected_below)
    close(gradients, expected)


@every_module
@every_path
def test_many_tangents_are_each_direction_by_itself(name, path):
    module, x, call, parameters = problem(name)
    t, v = torch.randn(R, *x.shape, dtype=x.dtype), randn_like(parameters, (R,))
    alone = torch.stack([jvp(call, (x, parameters), (at(t, r), at(v, r)))[1] for r in range(R)])
    close(linearized(module, x, path).push(t, v), alone)


@pytest.mark.parametrize("name", [name for name, (make, _) in MODULES.items() if any(True for _ in make().parameters())])
@every_path
def test_many_parameter_tangents_from_an_input_that_stands_still(name, path):
    module, x, call, parameters = problem(name)
    v = randn_like(parameters, (R,))
    alone = torch.stack([jvp(lambda p: call(x, p), (parameters,), (at(v, r),))[1] for r in range(R)])
    close(linearized(module, x, path).push(None, v), alone)


@every_module
@every_path
def test_many_signals_are_each_signal_by_itself(name, path):
    module, x, call, parameters = problem(name)
    value, backward = vjp(call, x, parameters)
    s = torch.randn(R, *value.shape, dtype=x.dtype)
    gradients, below = linearized(module, x, path).pull(s, True)
    for r in range(R):
        expected_below, expected = backward(s[r])
        close(below[r], expected_below)
        close({key: dense(g)[r] for key, g in gradients.items()}, expected)


@pytest.mark.parametrize("name", RULED)
def test_no_input_signal_is_computed_where_none_is_needed(name):
    module, x, _, _ = problem(name)
    mapped = linearize(module, x, Context(module))
    s = torch.randn_like(mapped.output)
    close(mapped.pull(s, False)[0], mapped.pull(s, True)[0])


@pytest.mark.parametrize("name", RULED)
def test_modules_with_rules_take_them(name):
    module, x, _, _ = problem(name)
    mapped = linearize(module, x, Context(module))
    assert not any(isinstance(link, GeneralMap) for link in [mapped, *getattr(mapped, "maps", [])])


# What must not take a rule -----------------------------------------------------------------------------------------------


def test_a_subclass_takes_the_general_path():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module, x = Doubled(4, 3).double(), torch.randn(FLAT, dtype=torch.float64)
    close(linearize(module, x, Context(module)).push(x, None), 2 * F.linear(x, module.weight.detach()))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_takes_the_general_path(register):
    module, x = nn.Linear(4, 4).double(), torch.randn(FLAT, dtype=torch.float64)
    hooks = {
        "register_forward_hook": lambda module, args, value: 2 * value,
        "register_forward_pre_hook": lambda module, args: (2 * args[0],),
    }
    getattr(module, register)(hooks[register])
    close(linearize(module, x, Context(module)).push(x, None), 2 * F.linear(x, module.weight.detach()))


def test_a_hook_on_a_block_counts():
    block, x = Block(nn.Linear(4, 4), nn.Identity()).double(), torch.randn(FLAT, dtype=torch.float64)
    block.register_forward_hook(lambda module, args, value: 2 * value)
    net = BlockNetwork(block, nn.Linear(4, 2).double())
    close(Trace(net, x).hidden[0].output, 2 * block.affine(x).detach())


def test_a_hook_on_a_block_leaves_it_without_a_pre_site():
    net = BlockNetwork(Block(nn.Linear(4, 4), nn.Identity()), nn.Linear(4, 2))
    net[0].register_forward_hook(lambda module, args, value: 2 * value)
    with pytest.raises(Unsupported, match=r'block 0 \(Block\) has no "pre" site'):
        Trace(net, torch.randn(FLAT), site="pre")


# Running statistics ------------------------------------------------------------------------------------------------------

STATISTICS = {
    "default": {},
    "momentum-none": {"momentum": None},
    "momentum-zero": {"momentum": 0.0},
    "no-affine": {"affine": False},
    "no-statistics": {"track_running_stats": False},
}


@every_path
@pytest.mark.parametrize("options", STATISTICS.values(), ids=STATISTICS.keys())
@pytest.mark.parametrize("cls, shape", [(nn.BatchNorm1d, FLAT), (nn.BatchNorm2d, IMAGE)])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_move_as_torch_moves_them(cls, shape, options, path, training):
    module = batch_norm(cls, training, **options)
    twin = copy.deepcopy(module)
    for _ in range(3):
        x = torch.randn(shape)
        mapped = linearized(module, x, path, update_buffers=True)
        mapped.push(x, None)
        mapped.pull(x, True)
        twin(x)
    assert all(torch.equal(b, twin.get_buffer(key)) for key, b in module.named_buffers())


@every_path
def test_running_statistics_stand_still_unless_a_step_is_taken(path):
    module, x = batch_norm(), torch.randn(FLAT)
    before = copy.deepcopy(module.state_dict())
    mapped = linearized(module, x, path)
    mapped.push(x, None)
    mapped.pull(x, True)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_batch_normalisation_of_one_value_is_refused():
    module = nn.BatchNorm1d(4)
    with pytest.raises(InvalidInput, match="more than one value per channel"):
        linearize(module, torch.randn(1, 4), Context(module))


# Dropout -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls, shape", [(nn.Dropout, FLAT), (nn.Dropout1d, TOKENS), (nn.Dropout2d, IMAGE)])
@every_path
@pytest.mark.parametrize("lead", [(), (R,)])
def test_dropout_has_one_mask_for_values_tangents_and_signals(cls, shape, path, lead):
    module, x = cls(0.5), torch.randn(shape)
    mapped = linearized(module, x, path)
    mask = mapped.output / x
    t = torch.randn(lead + shape)
    close(mapped.push(t, None), t * mask)
    close(mapped.pull(t, True)[1], t * mask)


@every_path
def test_dropout_takes_the_random_numbers_that_the_layer_takes(path):
    module, x = nn.Dropout(0.3), torch.randn(FLAT)
    torch.manual_seed(1)
    expected = module(x), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(linearized(module, x, path).output, expected[0])
    assert torch.equal(torch.rand(1), expected[1])


def test_a_tangent_through_dropout_leaves_the_random_stream_where_it_was():
    module, x = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), torch.randn(TOKENS)
    mapped = linearize(module, x, Context(module))
    before = torch.get_rng_state()
    mapped.push(torch.randn(R, *TOKENS, generator=torch.Generator().manual_seed(0)), None)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_with_dropout_has_the_same_masks_in_value_and_tangent():
    """A central difference at equal random numbers is the derivative at those masks."""
    module = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True, activation=F.gelu).double()
    x, t = torch.randn(2, *TOKENS, dtype=torch.float64)

    def value(x):
        torch.manual_seed(3)
        return module(x).detach()

    torch.manual_seed(3)
    mapped = linearize(module, x, Context(module))
    difference = (value(x + 1e-5 * t) - value(x - 1e-5 * t)) / 2e-5
    torch.testing.assert_close(mapped.push(t, None), difference, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(mapped.push(t.expand(R, *t.shape), None)[1], difference, rtol=1e-7, atol=1e-8)


# Whole networks ----------------------------------------------------------------------------------------------------------


def shared_between_blocks():
    layer = nn.Linear(4, 4)
    return BlockNetwork(Block(layer, nn.Tanh()), Block(nn.Sequential(layer, nn.BatchNorm1d(4)), nn.Tanh()), layer)


def small_cnn():
    return BlockNetwork(
        Block(nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), nn.ReLU()),
        Residual3(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
    )


class Residual3(Residual):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))


NETWORKS = {"shared": (shared_between_blocks, FLAT), "images": (small_cnn, IMAGE)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lead", [(), (R,)])
def test_local_signals_from_the_true_errors_add_up_to_the_gradient(name, lead):
    """Reverse-mode errors at every block's output, pulled through the blocks one by one, give backpropagation."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net, x = make().double(), torch.randn(shape, dtype=torch.float64)
    values, h = [], x
    for block in net:
        h = block(h)
        values.append(h)
    for value in values:
        value.retain_grad()
    values[-1].sin().sum().backward()
    trace, found = Trace(net, x), {}
    for block, value in zip(trace.blocks, values, strict=True):
        for key, g in block.pull(value.grad.expand(*lead, *value.shape)).items():
            found[key] = found[key] + g if key in found else g
    expected = {key: p.grad.expand(*lead, *p.shape) for key, p in net.named_parameters()}
    close({key: dense(g) for key, g in found.items()}, expected)


def test_a_tangent_through_the_network_is_the_sum_over_perturbed_blocks():
    torch.manual_seed(0)
    net, x = small_cnn().double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    trace = Trace(net, x)
    us = [torch.randn_like(block.output) for block in trace.hidden]
    _, above = jvp(net[1], (trace.hidden[0].output,), (us[0],))
    _, expected = jvp(net[2], (trace.hidden[1].output,), (above + us[1],))
    close(trace.push(us, "post"), expected)


def separate():
    """A network of every kind of layer that keeps samples apart."""
    return BlockNetwork(
        Block(nn.Sequential(nn.Conv2d(4, 3, 3), batch_norm(nn.BatchNorm2d, channels=3, training=False)), nn.GELU()),
        Block(nn.Conv2d(3, 2, 2, groups=1), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2))),
        Block(nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4)), nn.Tanh()),
        nn.Linear(4, 2),
    )


MANY = {"separate": separate, "coupled": lambda: small_cnn()}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("directions", [2, 5])  # fewer and more than outputs
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("shortcuts", [False, True])
def test_many_tangents_through_a_network_are_each_direction_by_itself(name, directions, alone, shortcuts):
    torch.manual_seed(0)
    trace = Trace(MANY[name]().double(), torch.randn(IMAGE, dtype=torch.float64))
    us = [torch.randn(directions, *block.output.shape, dtype=torch.float64) for block in trace.hidden]
    if alone:
        us[0] = None
    each = [trace.push([None if u is None else u[r] for u in us], "post") for r in range(directions)]
    trace.shortcuts = shortcuts
    close(trace.push(us, "post"), torch.stack(each))


@pytest.mark.parametrize("site", ["pre", "post"])
@pytest.mark.parametrize("lead", [(), (1,), (5,)])
def test_slopes_are_errors_times_tangents(site, lead):
    torch.manual_seed(0)
    trace = Trace(separate().double(), torch.randn(IMAGE, dtype=torch.float64), site=site)
    us = [torch.randn(lead + block.shapes[site], dtype=torch.float64) for block in trace.hidden]
    error, outputs = torch.randn_like(trace.output), torch.randn(lead + trace.output.shape, dtype=torch.float64)
    each = zip(*us, strict=True) if lead else [us]
    trace.shortcuts = True
    tangents = torch.stack([trace.push(list(u), site) for u in each]).view(lead + trace.output.shape)
    close(trace.slopes(us, site, error, outputs), ((tangents + outputs) * error).sum(-1))
    close(trace.slopes([None] * 3, site, error, outputs), (outputs * error).sum(-1))


def test_no_reverse_mode_graph_leaves_a_block():
    trace = Trace(small_cnn(), torch.randn(IMAGE))
    kept = [block.output for block in trace.blocks]
    pulled = [g for block in trace.blocks for g in block.pull(torch.ones_like(block.output)).values()]
    assert not any(t.requires_grad for t in kept + pulled)


def test_parameters_that_do_not_train_have_gradients_too():
    net = small_cnn()
    for p in net.parameters():
        p.requires_grad_(False)
    trace = Trace(net, torch.randn(IMAGE))
    found = [g for block in trace.blocks for g in block.pull(torch.ones_like(block.output)).values()]
    assert len(found) == len(list(net.parameters()))
    assert not any(p.requires_grad for p in net.parameters())


def test_integer_inputs_serve_an_embedding():
    net = BlockNetwork(nn.Sequential(nn.Embedding(7, 4), nn.Flatten()), nn.Linear(12, 2))
    trace = Trace(net, torch.randint(7, (5, 3)))
    signal = torch.randn(5, 12)
    expected = torch.zeros(7, 4).index_add_(0, trace.input.flatten(), signal.view(15, 4))
    torch.testing.assert_close(trace.hidden[0].pull(signal)["0.0.weight"], expected)


# What automatic differentiation cannot follow ----------------------------------------------------------------------------


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad


class OpaqueBlock(nn.Module):
    def forward(self, x):
        return Opaque.apply(x)


class ByValue(nn.Module):
    """Chooses a branch by the value of a tensor, which vmap cannot."""

    def forward(self, x):
        return 2 * x if (x * x).sum().item() > 0 else x


class OverwritesInput(nn.Module):
    def forward(self, x):
        return x.add_(1)


class ReturnsPair(nn.Module):
    def forward(self, x):
        return x, x


def test_an_operation_without_tangents_is_named_with_its_block():
    trace = Trace(BlockNetwork(nn.Linear(4, 4), OpaqueBlock(), nn.Linear(4, 2)), torch.randn(FLAT))
    with pytest.raises(Unsupported, match=r"block 1 \(OpaqueBlock\).*forward-mode AD.*`return Opaque.apply\(x\)`"):
        trace.push([torch.randn(FLAT), None], "post")


def test_many_tangents_pass_one_by_one_where_vmap_cannot():
    mapped = linearize(ByValue(), torch.randn(FLAT), Context(ByValue()))
    t = torch.randn(R, *FLAT)
    torch.testing.assert_close(mapped.push(t, None), 2 * t)


@pytest.mark.parametrize("need_pull", [True, False])
def test_overwriting_the_output_of_the_block_below_is_refused(need_pull):
    net = BlockNetwork(nn.Linear(4, 4), OverwritesInput(), nn.Linear(4, 2))
    with pytest.raises(Unsupported, match=r"block 1 \(OverwritesInput\).*in.place"):
        Trace(net, torch.randn(FLAT), need_pull=need_pull)


def test_a_block_that_returns_no_tensor_is_named():
    with pytest.raises(Unsupported, match=r"block 0 \(ReturnsPair\).*tuple"):
        Trace(BlockNetwork(ReturnsPair(), nn.Linear(4, 2)), torch.randn(FLAT))


def test_a_block_that_changes_the_number_of_samples_is_named():
    with pytest.raises(Unsupported, match=r"block 0 \(Flatten\) changes the batch dimension from 5"):
        Trace(BlockNetwork(nn.Flatten(0, 1), nn.Linear(4, 2)), torch.randn(TOKENS))


def test_an_error_of_the_block_itself_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Trace(BlockNetwork(InplaceFirst(), nn.Linear(4, 2)), torch.randn(5, 7))


def test_every_rule_is_of_a_module_that_torch_or_this_project_defines():
    assert all(cls.__module__.startswith(("torch.nn", "fdfa_core.networks")) for cls in RULES)


# Shortcuts ---------------------------------------------------------------------------------------------------------------


SHORT = [("fg-a", {}), ("fg-a", {"readout": "perturbed", "tangents": 2}), ("fdfa", {}), ("fg-w", {}), ("fg-w", {"tangents": 3})]


@pytest.mark.parametrize("name, options", SHORT)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_draws_are_the_same_with_and_without_shortcuts(name, options, batch_norm):
    net = fully_connected([4, 6, 5, 2], batch_norm=batch_norm, seed=0).double()
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = []
    for shortcuts in (False, True):
        estimator = make_estimator(name, net, seed=3, replicas=5, **options)
        estimator.shortcuts = shortcuts
        estimator.advance(x, y)
        found.append(estimator.sample(x, y, 5))
    close(found[0], found[1])


@pytest.mark.parametrize("name", ["fg-a", "fdfa", "fg-w"])
def test_training_takes_no_shortcut(monkeypatch, name):
    """The method has no backward pass through the blocks, however many directions it takes a step or an estimate."""
    monkeypatch.setattr(Trace, "back", None)
    monkeypatch.setattr(Trace, "gradient", None)
    net, x, y = fully_connected([4, 6, 5, 2], seed=0), torch.randn(3, 4), torch.tensor([0, 1, 1])
    estimator = make_estimator(name, net, tangents=5)
    estimator.backward(x, y)
    estimator.estimate(x, y)


@pytest.mark.parametrize("name", ["separate", "coupled", "inplace-first", "functional", "tied-across-paths"])
def test_gradient_of_a_trace_is_that_of_backpropagation(name):
    torch.manual_seed(0)
    if name in MANY:
        net, x = MANY[name]().double(), torch.randn(IMAGE, dtype=torch.float64)
    else:
        net = BlockNetwork(nn.Linear(4, 4), MODULES[name][0](), nn.Linear(4, 2)).double()
        x = torch.randn(FLAT, dtype=torch.float64)
    error = torch.randn(len(x), 2, dtype=torch.float64)
    torch.manual_seed(1)  # dropout draws the same masks both times
    found = Trace(net, x, shortcuts=True).gradient(error)
    torch.manual_seed(1)
    expected = torch.autograd.grad(net(x), list(net.parameters()), error)
    for (key, _), value in zip(net.named_parameters(), expected, strict=True):
        close(dense(found[key]), value)


SHAPES = {  # R, summands M, n_out, n_in
    "few-summands": (5, 3, 4, 6),
    "many-summands": (5, 9, 4, 6),
    "more-outputs": (4, 6, 8, 7),
    "one-draw": (1, 3, 4, 6),
    "one-sample": (5, 1, 4, 6),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def outer(shape, seed=0):
    r, m, n_out, n_in = shape
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(r, m, 2 * n_out, generator=generator, dtype=torch.float64)[..., :n_out]  # strided
    return Outer(left, torch.randn(m, n_in, generator=generator, dtype=torch.float64))


def naive(gradient):
    return torch.stack([sum(torch.outer(u, h) for u, h in zip(left, gradient.right, strict=True)) for left in gradient.left])


def closer(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_shape
def test_dense_form_is_the_sum_of_outer_products(shape):
    gradient = outer(shape)
    closer(draws.dense(gradient), naive(gradient))
    assert gradient.shape == tuple(gradient.dense().shape)


@every_shape
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_norms_need_no_dense_form(shape, chunk, monkeypatch):
    monkeypatch.setattr(draws, "CHUNK_NUMBERS", chunk)
    gradient = outer(shape)
    closer(draws.norm2(gradient), naive(gradient).square().sum((1, 2)))


@every_shape
def test_inner_products_need_no_dense_form(shape):
    gradient = outer(shape)
    others = torch.randn(3, *shape[2:], dtype=torch.float64)
    closer(draws.inner(gradient, *others), torch.einsum("roi,koi->rk", naive(gradient), others))


@every_shape
def test_dense_draws_have_the_same_norms_and_inner_products(shape):
    gradient = naive(outer(shape))
    others = torch.randn(3, *shape[2:], dtype=torch.float64)
    closer(draws.norm2(gradient), gradient.square().sum((1, 2)))
    closer(draws.inner(gradient, *others), torch.einsum("roi,koi->rk", gradient, others))


@every_shape
def test_mean_difference_and_running_mean_stay_factored(shape):
    gradient = outer(shape)
    mean = draws.mean(gradient)
    assert isinstance(mean, Outer)
    closer(draws.dense(mean), naive(gradient).mean(0, keepdim=True))
    closer(draws.dense(draws.minus(gradient, mean)), naive(gradient) - naive(gradient).mean(0))
    other = Outer(gradient.left[:1], gradient.right)
    closer(draws.dense(draws.blend(mean, other, 0.25)), 0.75 * naive(mean) + 0.25 * naive(other))


@every_shape
def test_sums_with_factored_and_with_dense_draws(shape):
    one, two = outer(shape, 1), outer(shape, 2)
    closer(draws.dense(one + two), naive(one) + naive(two))
    closer(draws.dense(one + naive(two)), naive(one) + naive(two))
    closer(draws.dense(naive(two) + one), naive(one) + naive(two))


def test_a_draw_that_is_repeated_without_copies_is_known_as_constant():
    gradient = torch.randn(4, 3)
    assert draws.constant(gradient[:1].expand(4, 3))
    assert not draws.constant(gradient)
    assert draws.numbers(gradient[:1].expand(4, 3)) == 0


def test_float32_norms_are_summed_in_float64():
    gradient = Outer(torch.full((1, 4096, 2), 1e-4), torch.full((4096, 5000), 1e-4))
    expected = 2 * 5000 * (4096 * 1e-8) ** 2
    assert draws.norm2(gradient).item() == pytest.approx(expected, rel=1e-6)


@every_shape
def test_distances_come_from_differences(shape):
    gradient, other = outer(shape), torch.randn(shape[2:], dtype=torch.float64)
    closer(draws.distance2(gradient, other), (naive(gradient) - other).square().sum((1, 2)))
    closer(draws.distance2(naive(gradient), other), (naive(gradient) - other).square().sum((1, 2)))


def test_the_mean_of_equal_draws_is_one_of_them():
    gradient = torch.rand(1, 3).expand(7, 3)
    assert torch.equal(draws.mean(gradient), gradient[:1])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3), (5, 2, 3, 4, 4)])
def test_norms_and_inner_products_of_parameters_of_any_shape(shape):
    gradient, other = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1:], dtype=torch.float64)
    flat = gradient.reshape(5, -1)
    closer(draws.norm2(gradient), flat.square().sum(1))
    closer(draws.inner(gradient, other)[:, 0], flat @ other.flatten())


def test_inner_products_over_a_million_components_keep_six_digits():
    """As long as those of a hidden layer of the paper; a single product of matrices would keep three."""
    draw = torch.randn(800, 784, generator=torch.Generator().manual_seed(0))
    norm2 = draw.double().square().sum()
    torch.testing.assert_close(draws.inner(draw.unsqueeze(0), draw, -draw)[0] / norm2, torch.tensor([1.0, -1.0]).double(),
                               rtol=1e-6, atol=0)  # fmt: skip


@pytest.mark.parametrize("window", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}])
def test_pooling_of_many_channels_is_torchs_to_the_bit(window):
    """Also where entries are equal, as zeros after ReLU are, and where one is no number."""
    x = torch.relu(torch.randn(8, 16, 24, 24, generator=torch.Generator().manual_seed(0)))
    x[0, 0, 2:4, 2:4] = torch.nan
    x[1] = -torch.inf
    expected, index = F.max_pool2d(x, **window, return_indices=True)
    module = nn.MaxPool2d(**window)
    found = linearize(module, x, Context(module))
    torch.testing.assert_close(found.output, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.index, index) and found.output.is_contiguous() and found.index.is_contiguous()
