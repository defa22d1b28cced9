"""What the reference moments are of: small problems as plain arrays, and the list of cases, fixed before any number is seen.

Arrays have three decimals and come from Python's own `random`, whose stream is the same on every machine. So the files hold the
problems exactly, and writing them again gives the same arrays.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

Options = dict[str, object]


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine map and what follows it: the last layer of a network is its readout.

    Attributes:
        kind: "dense" or "convolution" (cross-correlation, stride one, no padding).
        activation: "tanh", "relu" or "linear".
        weight: (outputs, inputs), or (channels out, channels in, height, width).
        bias: (outputs,) or (channels out,), or None.
    """

    kind: str
    activation: str
    weight: np.ndarray
    bias: np.ndarray | None

    def affine(self, weight: np.ndarray, bias: np.ndarray | None, h: np.ndarray) -> np.ndarray:
        """Return the affine map of one sample's input at a weight and a bias."""
        if self.kind == "dense":
            value = weight @ h.ravel()
            return value if bias is None else value + bias
        (rows, columns), (height, width) = h.shape[1:], weight.shape[2:]
        value = np.zeros((len(weight), rows - height + 1, columns - width + 1))
        for r, c in itertools.product(range(value.shape[1]), range(value.shape[2])):
            value[:, r, c] = np.tensordot(weight, h[:, r : r + height, c : c + width], 3)
        return value if bias is None else value + bias[:, None, None]

    def value(self, a: np.ndarray) -> np.ndarray:
        """Return the activation of affine values."""
        return {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "linear": lambda a: a}[self.activation](a)

    def slope(self, a: np.ndarray) -> np.ndarray:
        """Return the activation's derivative."""
        if self.activation == "tanh":
            return 1 - np.tanh(a) ** 2
        return (a > 0).astype(float) if self.activation == "relu" else np.ones_like(a)


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, its loss and a population of M samples.

    Attributes:
        name: by which cases call it.
        loss: "cross_entropy" of the softmax, or "mse", the mean over outputs of squared differences.
        layers: from the input to the readout.
        x: (M, *input shape).
        y: class indices (M,) for "cross_entropy", targets (M, O) for "mse".
    """

    name: str
    loss: str
    layers: tuple[Layer, ...]
    x: np.ndarray
    y: np.ndarray

    @cached_property
    def parameters(self) -> dict[str, np.ndarray]:
        """Weights and biases by name: the number of the layer, a dot, and "weight" or "bias"."""
        both = ((f"{i}.{what}", getattr(layer, what)) for i, layer in enumerate(self.layers) for what in ("weight", "bias"))
        return {name: value for name, value in both if value is not None}

    @cached_property
    def units(self) -> list[int]:
        """Number of units of every hidden layer."""
        shape, found = self.x.shape[1:], []
        for layer in self.layers[:-1]:
            if layer.kind == "convolution":
                (rows, columns), (height, width) = shape[1:], layer.weight.shape[2:]
                shape = (len(layer.weight), rows - height + 1, columns - width + 1)
            else:
                shape = (len(layer.weight),)
            found.append(math.prod(shape))
        return found

    @property
    def outputs(self) -> int:
        """O."""
        return len(self.layers[-1].weight)

    def loss_at(self, index: int, values: dict[str, np.ndarray]) -> float:
        """Return the loss of one sample at other weights and biases, by name as in `parameters`."""
        h = self.x[index]
        for i, layer in enumerate(self.layers):
            h = layer.value(layer.affine(values[f"{i}.weight"], values.get(f"{i}.bias"), h))
        if self.loss == "mse":
            return float(((h - self.y[index]) ** 2).mean())
        return float(np.log(np.exp(h - h.max()).sum()) + h.max() - h[self.y[index]])

    def loss_gradient(self, outputs: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the gradient of one sample's loss with respect to its outputs, (O,)."""
        if self.loss == "mse":
            return 2 * (outputs - target) / len(outputs)
        grown = np.exp(outputs - outputs.max())
        return grown / grown.sum() - target


def unit_arrays(shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    """Yield every array of a shape with a single one among zeros."""
    for i in range(math.prod(shape)):
        yield np.eye(1, math.prod(shape), i).reshape(shape)


class Source:
    """Random numbers of three decimals, uniform with a given standard deviation."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def array(self, *shape: int, spread: float) -> np.ndarray:
        """Return an array of this shape and standard deviation."""
        numbers = [self._random.random() for _ in range(math.prod(shape))]
        return np.round((2 * np.array(numbers).reshape(shape) - 1) * math.sqrt(3) * spread, 3)


# Seeds chosen so that every hidden layer has a gradient, that ReLUs leave units idle and units active, and that no ReLU stands
# nearer than 0.02 to its kink, where implementations may differ.
# name → seed, activation, shapes of weights, whether there are biases, loss, samples, side of a square input (0: vectors)
_RECIPES: dict[str, tuple[int, str, list[tuple[int, ...]], bool, str, int, int]] = {
    "tiny-tanh": (1, "tanh", [(2, 2), (2, 2)], True, "cross_entropy", 3, 0),
    "tiny-plain": (2, "tanh", [(2, 2), (1, 2)], False, "mse", 2, 0),
    "one-relu": (1, "relu", [(5, 3), (2, 5)], True, "cross_entropy", 4, 0),
    "two-tanh": (4, "tanh", [(3, 3), (2, 3), (2, 2)], True, "cross_entropy", 3, 0),
    "two-relu": (2, "relu", [(4, 4), (3, 4), (3, 3)], True, "cross_entropy", 4, 0),
    "two-linear": (6, "linear", [(3, 3), (2, 3), (2, 2)], False, "mse", 3, 0),
    "three-tanh": (7, "tanh", [(3, 3), (2, 3), (2, 2), (2, 2)], True, "mse", 3, 0),
    "three-relu": (2, "relu", [(3, 3), (3, 3), (3, 3), (2, 3)], False, "cross_entropy", 3, 0),
    "convolution-tanh": (9, "tanh", [(2, 1, 2, 2), (3, 8)], True, "cross_entropy", 3, 3),
    "convolution-relu": (1, "relu", [(1, 1, 2, 2), (3, 4), (2, 3)], False, "cross_entropy", 3, 3),
    "wide-tanh": (11, "tanh", [(8, 6), (6, 8), (3, 6)], True, "cross_entropy", 6, 0),
}
PROBLEMS = tuple(_RECIPES)

# The options that a case states, by estimator: those that its moments depend on. An estimator may get further options whose
# defaults leave it as it is; the files then stay as they are.
_DIRECTIONS = ("perturbation", "tangents", "combine")
_RESPONSES = ("site", "perturbation", "joint", "tangents", "directions")
OPTIONS: dict[str, tuple[str, ...]] = {
    "bp": (),
    "fa": (),
    "dfa": ("site",),
    "drtp": ("site",),
    "fg-w": (*_DIRECTIONS, "per_sample"),
    "zo": ("perturbation", "tangents", "epsilon", "clip"),
    "fg-a": ("perturbation", "site", "readout", "joint", "tangents", "combine", "slope", "mask"),
    "guess": ("perturbation", "rank", "tangents"),
    "lg-fg-w": _DIRECTIONS,
    "lg-fg-a": (*_DIRECTIONS, "site", "mask"),
    "fdfa": (*_RESPONSES, "feedback_rule", "feedback_lr", "warmup"),
    "grape": (*_RESPONSES, "order", "cosine", "normalise", "feedback_lr"),
}


@cache
def problem(name: str) -> Problem:
    """Return a problem; weights have the spread √2/√(inputs), so that activations bend and Jacobians differ between samples."""
    seed, activation, shapes, biases, loss, samples, side = _RECIPES[name]
    source, layers = Source(seed), []
    for i, shape in enumerate(shapes):
        kind = "dense" if len(shape) == 2 else "convolution"
        weight = source.array(*shape, spread=math.sqrt(2 / math.prod(shape[1:])))
        bias = source.array(shape[0], spread=0.3) if biases else None
        layers.append(Layer(kind, activation if i < len(shapes) - 1 else "linear", weight, bias))
    x = source.array(samples, *((1, side, side) if side else shapes[0][1:]), spread=1.0)
    outputs = shapes[-1][0]
    y = np.arange(samples) % outputs if loss == "cross_entropy" else source.array(samples, outputs, spread=1.0)
    return Problem(name, loss, tuple(layers), x, y)


@dataclass(frozen=True, eq=False)
class ReferenceCase:
    """One estimator on one problem.

    Attributes:
        estimator: registered name.
        problem: a name in `PROBLEMS`.
        batch_size: N, samples drawn with replacement.
        given: the options that differ from the estimator's defaults.
        steps: updates of FDFA's feedback before its use, from zero; None for the limit of many.
        draws: how many draws (or chains of feedback) the Monte Carlo check takes; 0 where there is none.
        tuning: seed of the state (feedback, random weights, local readouts) that the case holds.
    """

    estimator: str
    problem: str
    batch_size: int = 2
    given: Options = field(default_factory=dict)
    steps: int | None = 0
    draws: int = 60_000
    tuning: int = 1

    @property
    def name(self) -> str:
        """A unique name of letters, digits, dots and hyphens."""
        shown = dict(self.given)
        if self.estimator == "fdfa":
            shown["steps"] = "limit" if self.steps is None else self.steps
        parts = [f"{key}-{value}".lower().replace("_", "-") for key, value in shown.items()]
        return "/".join([self.estimator, self.problem, f"n-{self.batch_size}", *parts])

    @cached_property
    def options(self) -> Options:
        """The options of the estimator that its moments depend on, defaults included, and all that are given."""
        from fdfa_core.estimators.registry import filled_options

        filled = filled_options(self.estimator, self.given)
        return {name: filled[name] for name in (*OPTIONS[self.estimator], *self.given)}

    @cached_property
    def state(self) -> dict[str, list]:
        """The state that the moments are given: arrays by name, a list with one item per hidden layer."""
        p, source = problem(self.problem), Source(1000 + self.tuning)
        if self.estimator in ("dfa", "drtp", "grape"):
            feedback = [source.array(p.outputs, units, spread=1.0) for units in p.units]
            if self.estimator == "grape":
                feedback = [b / np.sqrt((b**2).sum(0)) for b in feedback]
            return {"feedback": feedback}
        if self.estimator == "fa":
            return {"weights": [source.array(*layer.weight.shape, spread=0.8) for layer in p.layers[1:]]}
        if self.estimator.startswith("lg-"):
            pairs = [(source.array(p.outputs, n, spread=0.8), source.array(p.outputs, spread=0.3)) for n in p.units[:-1]]
            return {"readout_weights": [w for w, _ in pairs], "readout_biases": [b for _, b in pairs]}
        return {}

    def average_weights(self, updates: int | None) -> np.ndarray:
        """Return the weight of every update's estimate in FDFA's feedback, oldest first, by going through the updates."""
        rate, weights = self.options["feedback_lr"], np.zeros(0)
        for t in range(1, 1 + (math.ceil(60 / rate) if updates is None else updates)):  # e⁻⁶⁰ is far below rounding
            newest = max(rate, 1 / t) if self.options["warmup"] else rate
            weights = np.append((1 - newest) * weights, newest)
        return weights


GAUSSIAN, RADEMACHER, SPHERE = ({"perturbation": law} for law in ("gaussian", "rademacher", "sphere"))


def _weights() -> list[ReferenceCase]:
    def case(problem: str, batch_size: int, draws: int = 120_000, **given) -> ReferenceCase:
        return ReferenceCase("fg-w", problem, batch_size, given, draws=draws)

    return [
        case("tiny-tanh", 2, **GAUSSIAN),
        case("tiny-tanh", 2, **RADEMACHER),
        case("tiny-tanh", 2, **SPHERE),
        case("tiny-tanh", 2, **RADEMACHER, per_sample=True),
        case("tiny-tanh", 4, **GAUSSIAN, tangents=3),
        case("tiny-plain", 2, 1_500_000, perturbation="low-rank-1"),  # products of four normal numbers: heavy tails
        case("tiny-plain", 2, 1_500_000, perturbation="low-rank-2"),
        case("tiny-plain", 3, **GAUSSIAN, per_sample=True),
        case("two-tanh", 2, **GAUSSIAN, tangents=4, combine="projection"),
        case("convolution-relu", 2, **GAUSSIAN, tangents=2),
        case("wide-tanh", 2, **RADEMACHER, tangents=8),
    ]


def _activities() -> list[ReferenceCase]:
    def case(problem: str, batch_size: int, draws: int = 120_000, **given) -> ReferenceCase:
        return ReferenceCase("fg-a", problem, batch_size, given, draws=draws)

    return [
        case("one-relu", 2, **GAUSSIAN, site="pre"),
        case("one-relu", 2, **RADEMACHER, site="post"),
        case("one-relu", 2, **GAUSSIAN, site="pre", mask="active"),
        case("two-tanh", 2, 150_000, **GAUSSIAN, site="post"),
        case("two-tanh", 1, **RADEMACHER, site="pre"),
        case("two-tanh", 2, **SPHERE, site="post", readout="perturbed"),
        case("two-tanh", 2, 150_000, **GAUSSIAN, site="pre", slope="batch"),
        case("two-tanh", 2, **RADEMACHER, site="post", slope="batch"),
        case("two-tanh", 2, **GAUSSIAN, site="pre", tangents=2, combine="projection"),
        case("two-relu", 2, **GAUSSIAN, site="pre", joint=False),
        case("two-relu", 3, **RADEMACHER, site="pre", tangents=3),
        case("two-linear", 4, **GAUSSIAN, site="post"),
        case("three-tanh", 2, **GAUSSIAN, site="pre"),
        case("three-relu", 2, **RADEMACHER, site="pre", mask="active"),
        case("convolution-tanh", 2, **GAUSSIAN, site="pre"),
        case("convolution-relu", 2, **RADEMACHER, site="post"),
        case("wide-tanh", 2, **RADEMACHER, site="pre"),
    ]


def _feedback() -> list[ReferenceCase]:
    def case(problem: str, steps: int | None, rate: float, batch_size: int = 2, draws: int = 80_000, **given):
        options = {**given, "feedback_lr": rate}
        return ReferenceCase("fdfa", problem, batch_size, options, steps=steps, draws=draws)

    return [
        case("one-relu", 1, 1.0, **GAUSSIAN),
        case("two-tanh", 1, 0.3, **GAUSSIAN),
        case("two-tanh", 2, 0.3, **RADEMACHER),
        case("two-tanh", 2, 0.6, **SPHERE, joint=False),
        case("two-tanh", 2, 0.1, **GAUSSIAN, warmup=True),
        case("two-tanh", 25, 0.1, draws=0, **GAUSSIAN, warmup=True),
        case("two-relu", 2, 0.5, **GAUSSIAN, site="pre"),
        case("two-linear", 5, 0.2, draws=0, **GAUSSIAN, tangents=2),
        case("three-tanh", 2, 0.5, **RADEMACHER),
        case("three-tanh", 7, 0.3, draws=0, **GAUSSIAN, joint="cyclic"),
        case("three-tanh", None, 0.05, draws=0, **GAUSSIAN),
        case("convolution-tanh", 1, 0.5, **GAUSSIAN),
        case("convolution-relu", 2, 0.5, **RADEMACHER),
        case("wide-tanh", 1, 1.0, draws=60_000, **RADEMACHER),
    ]


def _others() -> list[ReferenceCase]:
    """Difference quotients, guessed directions, and feedback of low rank."""

    def case(name: str, problem: str, batch_size: int, draws: int, **given) -> ReferenceCase:
        return ReferenceCase(name, problem, batch_size, given, draws=draws)

    return [
        case("zo", "tiny-tanh", 2, 130_000, **RADEMACHER, epsilon=0.1),
        case("zo", "tiny-tanh", 2, 130_000, **RADEMACHER, epsilon=0.001),
        case("zo", "tiny-plain", 2, 40_000, **RADEMACHER, epsilon=0.5, tangents=2),
        case("zo", "tiny-plain", 3, 40_000, **RADEMACHER, epsilon=0.1, clip=2.0),
        case("guess", "one-relu", 2, 120_000, **GAUSSIAN),
        case("guess", "two-tanh", 2, 150_000, **GAUSSIAN, rank=1, tangents=2),
        case("guess", "wide-tanh", 3, 120_000, **GAUSSIAN, rank=2),
        case("guess", "wide-tanh", 2, 120_000, **GAUSSIAN),
        case("dfa", "two-tanh", 2, 0, rank=1),
        case("drtp", "two-relu", 3, 0, rank=2),
        case("grape", "two-tanh", 2, 40_000, **RADEMACHER, feedback_lr=3.0, rank=1),
    ]


CASES: tuple[ReferenceCase, ...] = (
    ReferenceCase("bp", "tiny-tanh", draws=0),
    ReferenceCase("bp", "convolution-tanh", 4, draws=0),
    *_weights(),
    *_activities(),
    *_feedback(),
    ReferenceCase("dfa", "two-tanh", draws=0),
    ReferenceCase("dfa", "convolution-relu", given={"site": "pre"}, draws=0),
    ReferenceCase("drtp", "two-relu", 3, draws=0),
    ReferenceCase("fa", "two-tanh", draws=0),
    ReferenceCase("fa", "three-relu", 3, draws=0),
    ReferenceCase("lg-fg-w", "two-tanh", given=GAUSSIAN, draws=140_000),
    ReferenceCase("lg-fg-a", "two-relu", given=GAUSSIAN, draws=120_000),
    ReferenceCase("lg-fg-a", "three-tanh", given=RADEMACHER | {"site": "post", "tangents": 2}, draws=120_000),
    ReferenceCase("grape", "tiny-tanh", given=RADEMACHER | {"feedback_lr": 2.0}, draws=40_000),
    ReferenceCase("grape", "two-tanh", given=RADEMACHER | {"feedback_lr": 3.0}, draws=40_000),
    *_others(),
)
