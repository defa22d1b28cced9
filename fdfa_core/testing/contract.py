"""The contract of an estimator: what it returns, touches, repeats, saves and refuses. Nothing here is a matter of chance."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor, nn

from fdfa_core.errors import FdfaError, Unsupported
from fdfa_core.estimators.base import Estimator
from fdfa_core.measuring.cost import peak_memory
from fdfa_core.networks.blocks import Block, BlockNetwork
from fdfa_core.networks.dense import fully_connected
from fdfa_core.testing.subject import (
    RTOL,
    DoesNotApply,
    Finding,
    Subject,
    changed,
    check,
    claim,
    close,
    host_streams,
    is_random,
    own,
    same,
    snapshot,
    step,
    story,
    streams_at,
)

# Form ----------------------------------------------------------------------------------------------------------------


@check("names-and-shapes")
def names_and_shapes(subject: Subject) -> str:
    """`estimate` and `sample` return finite tensors without a graph, in the names, order and shapes of the parameters."""
    estimator, x, y = subject.ready()
    wanted = {name: p.shape for name, p in estimator.net.named_parameters()}
    for call, found, lead in (("estimate", estimator.estimate(x, y), ()), ("sample", estimator.sample(x, y, 5), (5,))):
        claim(list(found) == list(wanted), f"{call} returns the names {list(found)}, and the parameters are {list(wanted)}")
        for name, g in found.items():
            shape = (*lead, *wanted[name])
            claim(g.shape == shape, f"{call}: {name} has the shape {tuple(g.shape)}, not {shape}")
            claim(not g.requires_grad, f"{call}: {name} carries a graph")
            claim(bool(g.isfinite().all()), f"{call}: {name} is not finite")
    return f"{len(wanted)} parameters"


@check("dtype-and-device")
def dtype_and_device(subject: Subject) -> str:
    """Gradients have the type and the place of their parameters, in float32 and in float64."""
    for dtype in (torch.float32, torch.float64):
        net, x, y = subject.problem(dtype)
        estimator = subject.make(net)
        for call, found in (("estimate", estimator.estimate(x, y)), ("sample", estimator.sample(x, y, 2))):
            for name, p in net.named_parameters():
                g = found[name]
                claim(g.dtype == dtype, f"{call}: {name} is {g.dtype} in a network of {dtype}")
                claim(g.device == p.device, f"{call}: {name} is on {g.device}, and its parameter on {p.device}")
        loss = estimator.backward(x, y)
        claim(loss.dtype == dtype, f"the loss that backward returns is {loss.dtype} in a network of {dtype}")
    return "float32, float64"


# Random numbers ------------------------------------------------------------------------------------------------------


@check("same-seed-same-bits")
def same_seed_same_bits(subject: Subject) -> str:
    """Equal seeds give equal bits, whatever the global random streams are at."""
    stories = []
    for at in (1, 1, 2):
        with streams_at(at):
            estimator, x, y = subject.ready()
            stories.append(story(estimator, x, y))
    claim(same(stories[0], stories[1]), "two estimators with one seed differ: their draws are not seeded")
    claim(same(stories[0], stories[2]), "draws depend on a global random stream: draw from self.generator")
    return "estimate, sample, three steps"


@check("other-seed-other-draws")
def other_seed_other_draws(subject: Subject) -> str:
    """Another seed gives other draws."""
    if not is_random(subject):
        raise DoesNotApply("draws do not vary, given the state")
    first, second = (estimator.estimate(x, y) for estimator, x, y in (subject.ready(), subject.ready(subject.seed + 1)))
    claim(not same(first, second), "two seeds give the same draw")
    return "seeds tell draws apart"


@check("global-random-streams")
def global_random_streams(subject: Subject) -> str:
    """No call moves the global random streams of torch, NumPy or Python, and none is used behind the back of the base class."""
    with streams_at(3):
        net, x, y = subject.problem()
        before = host_streams()
        estimator = subject.make(net)
        calls = {
            "its constructor": lambda: None,
            "estimate": lambda: estimator.estimate(x, y),
            "sample": lambda: estimator.sample(x, y, 3),
            "advance": lambda: estimator.advance(x, y),
            "backward": lambda: estimator.backward(x, y),
        }
        for _ in range(2):  # the base class may watch over a first call more closely
            for call, run in calls.items():
                run()
                for name, a, b in zip(("torch", "NumPy", "Python"), before, host_streams(), strict=True):
                    claim(same(a, b), f"{call} moves the global random stream of {name}")
    drawn = []
    for at in (4, 5):
        net, x, y = subject.problem()
        estimator = subject.make(net)
        with streams_at(at):
            drawn.append([estimator.estimate(x, y) for _ in range(2)])
    claim(same(*drawn), "estimate draws from a global random stream, which the base class puts back")
    return "torch, NumPy, Python"


# What stays as it is -------------------------------------------------------------------------------------------------


@check("network-untouched")
def network_untouched(subject: Subject) -> str:
    """`estimate`, `sample` and `advance` touch no parameter, buffer, `.grad`, mode or hook, and not the batch."""
    met = []
    for normalised in (False, True) if subject.own_network is None else (False,):
        net, x, y = subject.problem(normalised=normalised)
        try:
            untouched(subject.make(net), x, y)
        except Unsupported:
            if not normalised:
                raise
            continue
        met.append("with running statistics" if normalised else "plain")
    return ", ".join(met)


def untouched(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Raise `AssertionError` if `estimate`, `sample` or `advance` touches the network, its gradients, the batch or a stream."""
    held = [(p, p.grad) for p in estimator.net.parameters()]
    stream = torch.Generator().manual_seed(0)
    for p in estimator.net.parameters():
        p.grad = torch.randn(p.shape, generator=stream, dtype=torch.float64).to(p.device, p.dtype)
    try:
        before = snapshot(estimator.net, x, y)
        for call, run in {
            "estimate": lambda: estimator.estimate(x, y),
            "sample": lambda: estimator.sample(x, y, estimator.replicas or 3),
            "advance": lambda: estimator.advance(x, y),
        }.items():
            run()
            what = changed(before, snapshot(estimator.net, x, y))
            claim(not what, f"{call} changes {what}")
    finally:
        for p, grad in held:
            p.grad = grad


@check("state-at-rest")
def state_at_rest(subject: Subject) -> str:
    """`estimate` and `sample` move nothing but the estimator's random stream."""
    estimator, x, y = subject.ready()
    step(estimator, x, y), estimator.estimate(x, y)
    looked, before = copy.deepcopy(estimator), own(estimator)
    stream = looked.generator.get_state()
    looked.estimate(x, y), looked.estimate(x, y), looked.sample(x, y, 3)
    claim(same(before, own(looked)), "estimate or sample moves the state")
    looked.generator.set_state(stream)
    claim(
        same(story(estimator, x, y), story(looked, x, y)),
        "what follows depends on whether estimate was called before: it moves something that own_state does not hold",
    )
    return "the state rests"


@check("declared-state")
def declared_state(subject: Subject) -> str:
    """A state that training moves is declared: `stateful = True`."""
    estimator, x, y = subject.ready()
    estimator.estimate(x, y)
    before = own(estimator)
    for _ in range(3):
        step(estimator, x, y)
    moves = not same(before, own(estimator))
    claim(estimator.stateful or not moves, "backward moves the state, and the class does not say stateful = True")
    return "moves, as declared" if moves else "rests"


@check("state-round-trip")
def state_round_trip(subject: Subject) -> str:
    """What `state_dict` returns, loaded into another estimator, lets it go on to the same bits."""
    estimator, x, y = subject.ready()
    for _ in range(2):
        step(estimator, x, y)
    saved, net = copy.deepcopy(estimator.state_dict()), copy.deepcopy(estimator.net)
    expected = story(estimator, x, y)
    other = subject.make(net, seed=subject.seed + 99)
    other.load_state_dict(saved)
    found = story(other, x, y)
    claim(same(found[0], expected[0]), "an estimate after load_state_dict has other bits: state is missing from own_state")
    claim(same(found, expected), "training after load_state_dict goes on to other bits: state is missing from own_state")
    return "three steps to the same bits"


@check("backward-writes-gradients")
def backward_writes_gradients(subject: Subject) -> str:
    """`backward` writes what `estimate` would have returned, replaces what was there, and returns the mean loss."""
    estimator, x, y = subject.ready()
    for _ in range(2):
        wanted = copy.deepcopy(estimator).estimate(x, y)
        for p in estimator.net.parameters():
            p.grad = torch.full_like(p, 3.0)
        expected = float(estimator.loss(estimator.net(x), y).detach()) if subject.own_network is None else None
        loss = estimator.backward(x, y)
        written = {name: p.grad for name, p in estimator.net.named_parameters()}
        missing = [name for name, g in written.items() if g is None]
        claim(not missing, f"backward leaves .grad of {', '.join(missing)} empty")
        wrong = close(written, wanted)
        claim(not wrong, f"backward writes for {wrong} what estimate would not have returned")
        claim(isinstance(loss, Tensor) and loss.dim() == 0 and not loss.requires_grad, "backward returns no 0-d detached loss")
        if expected is not None:
            right = abs(float(loss) - expected) <= RTOL * (1 + abs(expected))
            claim(right, f"backward returns {float(loss):.6g}, and the mean loss is {expected:.6g}")
    return "as estimate"


# What it is given ----------------------------------------------------------------------------------------------------


@check("uses-the-batch")
def uses_the_batch(subject: Subject) -> str:
    """Other inputs, and other targets, give other gradients."""
    (first, x, y), (second, *_), (third, *_) = (subject.ready() for _ in range(3))
    found = first.estimate(x, y)
    claim(not same(found, second.estimate(x.flip(-1) + 0.5, y)), "estimate does not depend on the inputs")
    claim(not same(found, third.estimate(x, y.roll(1, 0))), "estimate does not depend on the targets")
    return "inputs and targets"


@check("last-smaller-batch")
def last_smaller_batch(subject: Subject) -> str:
    """A smaller batch after a larger one gives what it would have given by itself: nothing is kept of the batch's size."""
    for many in (3, 1):
        (after, x, y), (alone, *_) = subject.ready(), subject.ready()
        alone.estimate(x[:many], y[:many])
        state = copy.deepcopy(alone.state_dict())
        after.estimate(x, y), after.sample(x, y, 2)
        after.load_state_dict(state)
        found, wanted = after.estimate(x[:many], y[:many]), alone.estimate(x[:many], y[:many])
        claim(same(found, wanted), f"{many} samples after {len(x)} give other bits than {many} alone")
        after.backward(x, y), after.backward(x[:many], y[:many])
    return "three samples, and one, after four"


class Offset(nn.Module):
    """Add `reach` times a parameter at zero: the value is that of the input, and the slope along the parameter is `reach`."""

    def __init__(self, units: int, reach: float):
        super().__init__()
        self.offset, self.reach = nn.Parameter(torch.zeros(units)), reach

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shifted by nothing."""
        return x + self.reach * self.offset


def with_offset(reach: float) -> BlockNetwork:
    """Return a network in which a parameter that does not train has no effect and a slope of a given size."""
    net = fully_connected([3, 4, 2], activation="tanh", seed=13)
    first = Block(nn.Sequential(net[0].affine, Offset(4, reach)), net[0].activation)
    net = BlockNetwork(first, net[1], input_shape=(3,)).double()
    first.affine[1].offset.requires_grad_(False)
    return net


@check("frozen-parameters")
def frozen_parameters(subject: Subject) -> str:
    """A parameter that does not train gets no gradient, keeps its value, and is not perturbed: its slope leaves no trace."""
    net, x, y = subject.problem()
    net[0].requires_grad_(False)
    frozen = {n: p.detach().clone() for n, p in net.named_parameters() if not p.requires_grad}
    estimator = subject.make(net)
    wanted = copy.deepcopy(estimator).estimate(x, y)
    estimator.backward(x, y)
    for name, p in net.named_parameters():
        if name in frozen:
            claim(p.grad is None, f"backward writes a gradient for {name}, which does not train")
            claim(same(p.detach(), frozen[name]), f"{name}, which does not train, has moved")
        else:
            claim(p.grad is not None, f"backward writes no gradient for {name}, which trains while others do not")
    written = {name: p.grad for name, p in net.named_parameters() if name not in frozen}
    wrong = close(written, {name: wanted[name] for name in written})
    claim(not wrong, f"with frozen parameters, backward writes for {wrong} what estimate would not have returned")
    stream = torch.Generator().manual_seed(6)
    x, y = torch.randn(4, 3, generator=stream, dtype=torch.float64), torch.arange(4) % 2
    try:
        flat_, steep = (subject.make(with_offset(reach)).estimate(x, y) for reach in (0.0, 1e3))
    except FdfaError as refusal:
        return f"no gradient, no move (whether they are perturbed cannot be seen: {refusal})"
    trained = [name for name in flat_ if "offset" not in name]
    wrong = close({n: steep[n] for n in trained}, {n: flat_[n] for n in trained})
    claim(not wrong, f"the slope along a parameter that does not train shows in {wrong}: it is perturbed")
    return "no gradient, no move, no perturbation"


@check("refusals")
def refusals(subject: Subject) -> str:
    """An unknown option, a batch that does not fit and a number of draws below one are refused by name."""
    estimator, x, y = subject.ready()
    attempts = {
        "an option that it does not have": lambda: subject.make(estimator.net, no_such_option=1),
        "fewer targets than inputs": lambda: estimator.estimate(x, y[:-1]),
        "inputs that are not finite": lambda: estimator.estimate(torch.full_like(x, torch.nan), y),
        "no draws": lambda: estimator.sample(x, y, 0),
        "another network's parameters": lambda: _exchanged(estimator, x, y),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except (FdfaError, TypeError) as error:
            if what == "an option that it does not have":
                claim("no_such_option" in str(error), f"refuses {what}, and does not name it: {error}")
        except Exception as error:
            raise AssertionError(f"stumbles over {what}: {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"takes {what}")
    return ", ".join(attempts)


def _exchanged(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Estimate after the network's last layer got a new parameter in the place of one."""
    module = next(m for m in reversed(list(estimator.net.modules())) if m._parameters)
    name, before = next((n, p) for n, p in module._parameters.items() if p is not None)
    try:
        module._parameters[name] = nn.Parameter(before.detach().clone())
        estimator.estimate(x, y)
    finally:
        module._parameters[name] = before


# What it costs -------------------------------------------------------------------------------------------------------


@check("cost")
def cost(subject: Subject) -> Finding:
    """Time and memory of a step beside backpropagation's; reported, and never a failure."""
    if subject.own_network is None:
        net, where = fully_connected([64, 128, 128, 10], batch_norm=False, seed=0), "64-128-128-10, N = 32, float32"
        stream = torch.Generator().manual_seed(0)
        x, y = torch.randn(32, 64, generator=stream), torch.arange(32) % 10
    else:
        net, x, y = subject.problem()
        where = f"the network given, N = {len(x)}"
    found = []
    for estimator in (subject.make(net), Subject("bp", network=subject.own_network, loss=subject.loss).make(net)):
        estimator.backward(x, y)
        memory, times = peak_memory(lambda e=estimator: e.backward(x, y)), []
        for _ in range(7):
            start = time.perf_counter()
            estimator.backward(x, y)
            times.append(time.perf_counter() - start)
        found.append((statistics.median(times), memory))
    seconds, memory = (a / max(b, 1e-12) for a, b in zip(*found, strict=True))
    return Finding("reported", f"{seconds:.2g} × the time and {memory:.2g} × the memory of a step of bp ({where})")
