"""The look at a network at the first batch: what it finds, and that it leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fdfa_core import BlockNetwork, diagnose, make_estimator, unchecked
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import consistency
from fdfa_core.losses import make_loss
from habits import BLOCKS, Operations, Own, batch, flat, linear, network


class Exponential(torch.autograd.Function):
    """exp with a tangent that is not its derivative."""

    @staticmethod
    def forward(ctx, x):
        value = x.exp()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx, signal):
        return signal * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


STREAM = torch.Generator()


def hidden_stream(self, x):
    return self.a(x) * torch.rand((), generator=STREAM, dtype=x.dtype)


def counting(self, x):
    self.calls += 1
    return self.a(x) * (1 + self.calls % 2)


def by_gradient_mode(self, x):
    return self.a(x) if torch.is_grad_enabled() else 2 * self.a(x)


def rewriting(self, x):
    self.a.weight.data.mul_(0.5)
    return self.a(x)


def by_history(self, x):
    return self.a(x) if x.is_leaf else 2 * self.a(x) - self.a(x).detach()


FAULTS = {
    "wrong tangent": (lambda: Own(lambda self, x: Exponential.apply(self.a(x)), a=linear()), "fg-w", "its tangent is not"),
    "hidden stream": (lambda: Own(hidden_stream, a=linear()), "dfa", "a second run on the same input returns other values"),
    "state between calls": (lambda: Own(counting, a=linear(), calls=0), "dfa", "a second run on the same input"),
    "gradient mode": (lambda: Own(by_gradient_mode, a=linear()), "fg-w", "depends on whether gradients are enabled"),
    "rewritten weight": (lambda: Own(rewriting, a=linear()), "fdfa", "running the network changes 1.a.weight"),
    "history": (lambda: Own(by_history, a=linear()), "dfa", "its local gradient of 1.a.weight is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_disagreement_is_refused_with_its_block(name):
    block, method, message = FAULTS[name]
    net = network(block)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(Unsupported, match=rf"block 1 \(Own\): .*{message}"):
        make_estimator(method, net).backward(*batch())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_wrong_tangent_does_not_concern_methods_without_tangents():
    make_estimator("dfa", network(FAULTS["wrong tangent"][0])).backward(*batch())


@pytest.mark.parametrize("off", ["argument", "context", "environment"])
def test_it_can_be_switched_off(off, monkeypatch):
    net, looked = network(FAULTS["wrong tangent"][0]), []
    monkeypatch.setattr(consistency, "check", lambda *args, **options: looked.append(args) or [])
    if off == "argument":
        make_estimator("fg-w", net, check=False).backward(*batch())
    elif off == "context":
        with unchecked():
            make_estimator("fg-w", net).backward(*batch())
    else:
        monkeypatch.setenv("FDFA_CHECK", "0")
        make_estimator("fg-w", net).backward(*batch())
    assert not looked
    with pytest.raises(InvalidInput, match="check: got 'no'; accepted: True or False"):
        make_estimator("fg-w", net, check="no")


def test_it_looks_once_in_each_mode(monkeypatch):
    net, looked = network(BLOCKS["checkpoint"]), []
    monkeypatch.setattr(consistency, "check", lambda net, *args, **options: looked.append(net.training) or [])
    estimator = make_estimator("fdfa", net)
    for mode in (True, True, False, True, False):
        net.train(mode)
        estimator.backward(*batch())
    assert looked == [True, False]


def test_blocks_that_rules_serve_cost_nothing(monkeypatch):
    monkeypatch.setattr(consistency, "_graph", None)
    net = BlockNetwork(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)).double()
    make_estimator("fdfa", net).backward(*batch())


@pytest.mark.parametrize("method", ["bp", "fg-w", "fg-a", "fdfa", "dfa", "dkp", "pepita", "fa", "lg-fg-a"])
@pytest.mark.parametrize("name", [name for name in BLOCKS if "generator" not in name and "bound" not in name])
def test_it_changes_no_number_and_no_stream(name, method):
    """Training with the check gives the bits of training without it."""
    if (name, method) == ("torch.func.grad inside", "fa"):
        pytest.skip("fa refuses it")
    found = []
    for check in (True, False):
        net = network(BLOCKS[name])
        torch.manual_seed(7), random.seed(7), np.random.seed(7)
        options = {"site": "post"} if "fg-a" in method else {}
        estimator = make_estimator(method, net, check=check, loss=lambda o, t: (o.sum(1) - t).square(), **options)
        for _ in range(2):
            estimator.backward(*batch())
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.01 * p.grad if p.grad is not None else 0
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        state = [torch.get_rng_state(), *net.state_dict().values(), *gradients]
        found.append((state, random.getstate(), np.random.get_state()[1].tolist()))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1:] == found[1][1:]


def test_it_leaves_attributes_gradients_and_buffers_alone():
    def keep(self, x):
        self.calls += 1
        self.last = self.a(x)
        return self.n(self.last)

    net = network(lambda: Own(keep, a=linear(), n=nn.BatchNorm1d(8), calls=0))
    kept = net[2].weight.grad = torch.ones(3, 8, dtype=torch.float64)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    x, y = batch()
    consistency.examine(net, x, y, make_estimator("bp", net).loss, every=True)
    assert net[1].calls == 0 and not hasattr(net[1], "last") and net[2].weight.grad is kept
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())


def test_a_diverged_network_is_left_to_training():
    net = network(lambda: Own(lambda self, x: self.a(x), a=linear()))
    net[1].a.weight.data[0] = torch.nan
    assert make_estimator("fdfa", net).backward(*batch()).isnan()


def test_dead_units_at_zero_are_no_disagreement():
    net = network(lambda: Own(lambda self, x: torch.relu(self.a(x)) + torch.relu(x * 0), a=linear()))
    net[1].a.bias.data.zero_(), net[0].bias.data.zero_()
    x, y = batch()
    make_estimator("fdfa", net).backward(x * 0, y)


# diagnose() ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_diagnosis_of_a_network_that_is_served(name):
    found = diagnose(network(BLOCKS[name]), *batch())
    assert found.ok and all(each.tangent_error < 1e-9 and each.gradient_error < 1e-9 for each in found.blocks)


def test_diagnosis_compares_with_a_central_difference():
    found = diagnose(network(BLOCKS["weight norm"]), *batch())
    assert found.difference == pytest.approx(found.slope, rel=1e-6) and found.coupled is False
    straight = network(lambda: Own(lambda self, x: x + (self.a(x).round() - x).detach() + 0 * self.a(x), a=linear()))
    found = diagnose(straight, *batch())
    assert found.ok and found.difference != pytest.approx(found.slope, rel=1e-3)


@pytest.mark.parametrize("name", FAULTS)
def test_diagnosis_names_the_fault(name):
    found = diagnose(network(FAULTS[name][0]), *batch())
    assert not found.ok and "block 1 (Own)" in found.problems[0] and f"problem: {found.problems[0]}" in str(found)


def test_diagnosis_tells_that_samples_are_coupled():
    net = network(lambda: Own(lambda self, x: self.a(x) - x.mean(0), a=linear()))
    assert diagnose(net, *batch()).coupled and "samples are coupled" in str(diagnose(net, *batch()))


def test_diagnosis_of_what_is_refused_at_once():
    net = network(linear)
    net[1].register_full_backward_hook(lambda *_: None)
    assert "backward hook" in diagnose(net, *batch()).problems[0]


def test_diagnosis_leaves_the_network_as_it_was():
    net = network(lambda: nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Dropout()))
    before, stream = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    diagnose(net, *batch())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())


def test_estimates_do_not_depend_on_the_check():
    x, y = batch()
    a, b = (make_estimator("fg-w", network(BLOCKS["lstm"]), check=check, seed=4).estimate(x, y) for check in (True, False))
    assert torch.equal(flat(a), flat(b))


class _Large(TorchDispatchMode):
    """Notes operations whose result has as many numbers as a parameter: normal numbers, and tensors in float64."""

    def __init__(self, size):
        super().__init__()
        self.size, self.noted = size, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor) and value.numel() >= self.size:
            if value.dtype is torch.float64 or "randn" in str(function) or "normal_" in str(function):
                self.noted.add(str(function))
        return value


def test_the_check_is_cheap_where_parameters_are_many():
    """Normal numbers, or copies in float64, of millions of parameters would take longer than a step on a small batch."""
    net = BlockNetwork(nn.Linear(6, 300), Own(lambda self, x: torch.tanh(self.a(x)), a=nn.Linear(300, 300)), nn.Linear(300, 3))
    with _Large(300 * 300) as large:
        consistency.check(net, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), make_loss("cross_entropy"))
    assert large.noted == set()


def test_the_check_computes_at_most_what_three_steps_do():
    def own():
        return Own(lambda self, x: x + torch.tanh(self.a(x) * self.b(x)), a=nn.Linear(30, 30), b=nn.Linear(30, 30))

    net, x, y = BlockNetwork(nn.Linear(6, 30), own(), own(), own(), nn.Linear(30, 3)), torch.randn(8, 6), torch.arange(8) % 3
    estimator = make_estimator("fdfa", net, check=False)
    with Operations() as step:
        estimator.backward(x, y)
    with Operations() as check:
        consistency.check(net, x, y, estimator.loss)
    assert 0 < check.total <= 3 * step.total
