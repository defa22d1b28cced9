"""An estimator on trial: what it is made on, what is looked at before and after, and what a check may say of it.

Each check is a function of a `Subject` that returns what it has found and raises `AssertionError` with the fault.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.registry import estimator_class, make_estimator
from fdfa_core.gradients import true_gradient
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.dense import fully_connected
from fdfa_core.signatures import check_options

ALPHA = 0.01  # chance that an estimator that is right fails any of the checks
BUDGET = 300_000  # draws of one test
# How the statistical checks share these false alarms: they add up to one.
SHARES = {
    "expectation": 0.3,
    "variance": 0.2,
    "independent-draws": 0.2,
    "sample-as-estimate": 0.1,
    "mean-loss": 0.1,
    "order-of-samples": 0.1,
}
DIRECTIONS = 4  # random directions in which a mean is looked at besides its own
RTOL = 1e-9  # of numbers in float64 that two ways of summing give
Problem = tuple[BlockNetwork, Tensor, Tensor]


class DoesNotApply(Exception):
    """A check has nothing to look at in this estimator; the message says why."""


def claim(holds: bool, fault: str) -> None:
    """Raise `AssertionError` with the fault unless a claim holds. The statement `assert` is nothing under `python -O`."""
    if not holds:
        raise AssertionError(fault)


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        outcome: "holds", "fails", "undecided", "not declared", "does not apply" or "reported".
        detail: the numbers, or the reason.
    """

    outcome: str
    detail: str

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the estimator, and nothing was left undecided."""
        return self.outcome not in ("fails", "undecided")


def flat(gradients: Mapping[str, Tensor], draws: bool = False) -> Tensor:
    """Return gradients as one float64 vector (P,) on the CPU, or with `draws` as (R, P)."""
    start = 1 if draws else 0
    return torch.cat([g.detach().flatten(start).double().cpu() for g in gradients.values()], dim=-1)


def constant(draws: Tensor) -> bool:
    """Whether draws (R, P) are the same up to rounding."""
    return bool(((draws - draws[0]).abs().amax(0) <= 1e-9 * (1e-30 + draws[0].abs().max())).all())


class Projections:
    """Directions over all parameters on which draws are projected: one for each parameter along a reference, and random ones.

    Args:
        reference: a gradient per parameter; the scale of draws is told along it.
        seed: of the random directions.

    Attributes:
        groups: what is told apart: "the whole", every block, every parameter → the columns that add up to it, and the squared
            length of the reference there. Parameters where the reference is nothing are left to the random directions.
        primary: how many of the groups come first, the whole and the blocks: the power is planned for these.
    """

    def __init__(self, reference: Mapping[str, Tensor], seed: int = 0):
        sizes = {name: g.numel() for name, g in reference.items()}
        whole = flat(reference)
        parts = dict(zip(sizes, whole.split(list(sizes.values())), strict=True))
        length2 = {name: float(part.square().sum()) for name, part in parts.items()}
        total = sum(length2.values())
        told = [name for name in sizes if length2[name] > 1e-12 * total > 0]
        stream = torch.Generator().manual_seed(seed)
        around = torch.randn(DIRECTIONS, len(whole), generator=stream, dtype=torch.float64)
        along = torch.zeros(len(told), len(whole), dtype=torch.float64)
        starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
        for row, name in enumerate(told):
            along[row, starts[name] : starts[name] + sizes[name]] = parts[name]
        self.matrix = torch.cat([along, around / math.sqrt(len(whole))]).T.contiguous()
        blocks: dict[str, list[int]] = {}
        for column, name in enumerate(told):
            blocks.setdefault(name.partition(".")[0], []).append(column)
        members = {"the whole": list(range(len(told)))} if told else {}
        members |= {f"block {block}": columns for block, columns in blocks.items()}
        self.primary = len(members)
        members |= {name: [column] for column, name in enumerate(told)}
        self.groups = {group: (columns, sum(length2[told[c]] for c in columns)) for group, columns in members.items()}
        self.size, self.length, self.reference = len(told), math.sqrt(total), whole

    def of(self, draws: Tensor) -> np.ndarray:
        """Return what draws (n, P) are along each group (scale: 1 for the reference) and each random direction, (n, k)."""
        products = (draws @ self.matrix).numpy()
        scales = [products[:, columns].sum(1) / length2 for columns, length2 in self.groups.values()]
        others = products[:, self.size :] / (self.length or 1.0)
        return np.column_stack([*scales, *others.T])

    @property
    def names(self) -> list[str]:
        """The name of every column of `of`."""
        return [*self.groups, *(f"random direction {k + 1}" for k in range(DIRECTIONS))]


def problem(normalised: bool = False) -> Problem:
    """Return a network (float64, 39 parameters, three blocks whose gradients are about equally long) and four samples.

    Args:
        normalised: with batch normalisation in training mode, whose running statistics an estimate must not move.
    """
    net = fully_connected([3, 4, 3, 2], activation="tanh", batch_norm=normalised, seed=13).double()
    for p in net.parameters():
        p.data.mul_(1.6)
    stream = torch.Generator().manual_seed(5)
    return net, torch.randn(4, 3, generator=stream, dtype=torch.float64), torch.arange(4) % 2


class Subject:
    """An estimator on trial, and the networks and batches that it is tried on.

    Args:
        estimator: a registered name, or a class.
        network: a function without arguments that returns a float64 network and a batch of at least four samples (x, y), always
            the same; None for small ones of this project.
        loss, seed: as for `make_estimator`; all random numbers of the checks follow from the seed.
        false_alarms, budget: chance that a run of all checks fails an estimator that is right; most draws of one test.
        **options: the estimator's own.

    Raises:
        InvalidInput: no estimator, an option that it does not have or that cannot be, or a network that does not fit.
    """

    def __init__(
        self,
        estimator: str | type[Estimator],
        *,
        network: Callable[[], Problem] | None = None,
        loss="cross_entropy",
        seed: int = 0,
        false_alarms: float = ALPHA,
        budget: int = BUDGET,
        **options,
    ):
        if not isinstance(estimator, str) and not (inspect.isclass(estimator) and issubclass(estimator, Estimator)):
            raise InvalidInput("estimator", estimator, "a registered name, or a subclass of fdfa_core.Estimator")
        self.cls = estimator_class(estimator) if isinstance(estimator, str) else estimator
        self.name = estimator if isinstance(estimator, str) else getattr(estimator, "name", estimator.__name__)
        for option in options:
            if option not in self.cls.options():
                raise UnknownName(f"option of {self.name}", option, self.cls.options() or ["none: it has no options"])
        check_options(self.cls.options(), options)
        self.given, self.loss, self.seed, self.options = estimator, loss, seed, options
        self.false_alarms, self.budget, self.own_network = false_alarms, budget, network
        if len(self.problem()[1]) < 4:
            raise InvalidInput("network: samples", len(self.problem()[1]), "at least four")

    def problem(self, dtype: torch.dtype = torch.float64, normalised: bool = False) -> Problem:
        """Return a new copy of the network, and the batch."""
        net, x, y = problem(normalised) if self.own_network is None else self.own_network()
        return net.to(dtype), *(v.to(dtype) if v.is_floating_point() else v for v in (x, y))

    def make(self, net: BlockNetwork, seed: int | None = None, **more) -> Estimator:
        """Return the estimator on a network; by default with the seed of the subject."""
        options = {"loss": self.loss, "seed": self.seed if seed is None else seed, **self.options, **more}
        return make_estimator(self.given, net, **options) if isinstance(self.given, str) else self.given(net, **options)

    def ready(self, seed: int | None = None) -> tuple[Estimator, Tensor, Tensor]:
        """Return the estimator on a new copy of the network, and the batch."""
        net, x, y = self.problem()
        return self.make(net, seed), x, y

    def share(self, check: str) -> float:
        """Return the chance of a false alarm that a check may have."""
        return self.false_alarms * SHARES[check]

    def gradient(self, estimator: Estimator, x: Tensor, y: Tensor) -> Tensor:
        """Return the true gradient as one vector."""
        return flat(true_gradient(estimator.net, x, y, estimator.loss))

    def target(self, estimator: Estimator, x: Tensor, y: Tensor) -> dict[str, Tensor] | None:
        """Return the mean that the estimator declares; None where it declares none or a bias."""
        declared = estimator.expectation
        if declared is None or declared == "biased":
            return None
        if declared == "gradient":
            return true_gradient(estimator.net, x, y, estimator.loss)
        if not callable(declared):
            raise AssertionError(f"expectation is {declared!r}; accepted: 'gradient', 'biased', a callable (x, y) → gradients")
        found = declared(x, y)
        names = [name for name, _ in estimator.net.named_parameters()]
        claim(isinstance(found, Mapping) and list(found) == names, "the declared expectation has other names than the network")
        return dict(found)


CHECKS: dict[str, Callable[[Subject], Finding | str]] = {}


def check(name: str) -> Callable[[Callable], Callable]:
    """Register a check under its name."""

    def decorate(function: Callable[[Subject], Finding | str]) -> Callable[[Subject], Finding | str]:
        CHECKS[name] = function
        return function

    return decorate


def examine(name: str, subject: Subject) -> Finding:
    """Carry out one check, whatever the estimator does in it."""
    try:
        found = CHECKS[name](subject)
    except DoesNotApply as reason:
        return Finding("does not apply", str(reason))
    except AssertionError as fault:
        return Finding("fails", str(fault) or "an assertion without a message")
    except Exception as error:  # whatever foreign code raises
        return Finding("fails", f"stumbles: {type(error).__name__}: {error}")
    return found if isinstance(found, Finding) else Finding("holds", found)


# What two runs have in common ----------------------------------------------------------------------------------------


def same(a: object, b: object) -> bool:
    """Whether two nested values of tensors and numbers have the same bits."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b or (a != a and b != b)


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Return the first parameter in which two gradients differ by more than rounding, or ""."""
    size = float(flat(b).norm())
    differing = [n for n in b if float((a[n].double() - b[n].double()).norm()) > RTOL * (float(b[n].norm()) + size) + 1e-300]
    return differing[0] if differing else ""


def host_streams() -> tuple:
    """Return the states of the global random streams of torch, NumPy and Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


@contextmanager
def streams_at(seed: int) -> Iterator[None]:
    """Put the global random streams to a place, and back afterwards."""
    before = host_streams()
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0]), np.random.set_state(before[1]), random.setstate(before[2])


def step(estimator: Estimator, x: Tensor, y: Tensor, rate: float = 0.1) -> dict[str, Tensor]:
    """Take one step of descent; return the gradients that it wrote."""
    estimator.backward(x, y)
    written = {n: p.grad.clone() for n, p in estimator.net.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for p in estimator.net.parameters():
            p -= rate * p.grad if p.grad is not None else 0
    return written


def story(estimator: Estimator, x: Tensor, y: Tensor, steps: int = 3) -> list[dict[str, Tensor]]:
    """Return estimates and the gradients of steps, as one use of an estimator brings them."""
    return [part for _ in range(steps) for part in (estimator.estimate(x, y), estimator.sample(x, y, 2), step(estimator, x, y))]


def snapshot(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, object]:
    """Return copies of what no estimate may touch: the network's tensors, flags, modes and hooks, the batch, global streams."""
    tensors = {f"parameter {n}": p.detach().clone() for n, p in net.named_parameters()}
    tensors |= {f"buffer {n}": b.clone() for n, b in net.named_buffers()}
    tensors |= {f".grad of {n}": None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
    tensors |= {f"requires_grad of {n}": p.requires_grad for n, p in net.named_parameters()}
    tensors |= {f"mode of {n or 'the network'}": m.training for n, m in net.named_modules()}
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in net.named_modules()}
    tensors |= {f"hooks of {n or 'the network'}": count for n, count in hooks.items()}
    streams = zip(("torch", "NumPy", "Python"), host_streams(), strict=True)
    tensors |= {f"the global random stream of {name}": state for name, state in streams}
    return {**tensors, "the inputs x": x.clone(), "the targets y": y.clone()}


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return the first thing that differs between two snapshots, or ""."""
    return next((name for name in before if not same(before[name], after.get(name))), "")


def own(estimator: Estimator) -> dict[str, object]:
    """Return a deep copy of the estimator's state, its random stream left out."""
    return {key: copy.deepcopy(value) for key, value in estimator.state_dict().items() if key != "generator"}


def is_random(subject: Subject) -> bool:
    """Whether draws differ, given the state."""
    estimator, x, y = subject.ready()
    calls = torch.stack([flat(estimator.estimate(x, y)) for _ in range(3)])
    return not (constant(flat(estimator.sample(x, y, 8), draws=True)) and constant(calls))
