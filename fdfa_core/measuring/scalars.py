"""Draws of a gradient reduced to a few inner products, which add over parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdfa_core.linearisation import factored
from fdfa_core.linearisation.trace import Gradients

SMALL = 2**12  # components of a parameter that is measured together with others
KEPT_NUMBERS = 2**26  # of draws kept from the first look at them to the second; more are made again


@dataclass
class Scalars:
    """Inner products of R draws with what they are compared to, float64. They add over parameters.

    Attributes:
        values: (6, R), the rows being the properties below.
        fixed: ‖τ‖², ‖∇‖², ‖ḡ‖², ‖ḡ − τ‖² (4,).
    """

    values: Tensor
    fixed: Tensor

    norm2 = property(lambda self: self.values[0], doc="‖g_r‖² (R,).")
    deviation = property(lambda self: self.values[1], doc="‖g_r − ḡ‖² (R,).")
    error = property(lambda self: self.values[2], doc="‖g_r − τ‖² (R,).")
    target = property(lambda self: self.values[3], doc="⟨g_r, τ⟩ (R,).")
    reference = property(lambda self: self.values[4], doc="⟨g_r, ∇⟩ (R,).")
    bias = property(lambda self: self.values[5], doc="⟨g_r − τ, ḡ − τ⟩ (R,).")

    def __add__(self, other: Scalars) -> Scalars:
        """Return the scalars of two groups of parameters taken together."""
        return Scalars(self.values + other.values, self.fixed + other.fixed)


class Comparison:
    """What draws of one parameter are compared to.

    Args:
        mean: ḡ, the mean over *all* draws (1, *shape), dense or factored.
        target: τ, (*shape).
        reference: ∇, (*shape).
    """

    def __init__(self, mean: factored.Gradient, target: Tensor, reference: Tensor):
        self.mean, self.target, self.reference = mean, target, reference
        self.centre = factored.dense(mean)[0]
        self.bias = self.centre - target
        self.target_to_bias = (target.double() * self.bias.double()).sum()
        self.fixed = torch.stack([_norm2(v) for v in (target, reference, self.centre, self.bias)])

    def scalars(self, draws: factored.Gradient) -> Scalars:
        """Return the scalars of some draws (r, *shape), dense or factored."""
        if factored.constant(draws):  # all draws are one: look at it once
            one = self.scalars(factored.first(draws))
            return Scalars(one.values.expand(-1, draws.shape[0]), one.fixed)
        target2, _, centre2, _ = self.fixed
        norm2 = factored.norm2(draws)
        along = (self.target, self.reference, self.bias, self.centre)
        to_target, to_reference, to_bias, to_centre = factored.inner(draws, *along).unbind(1)
        # ‖a − b‖² = ‖a‖² − 2⟨a, b⟩ + ‖b‖², unless a and b are close: then the sum loses digits that the difference has
        error, deviation = norm2 - 2 * to_target + target2, norm2 - 2 * to_centre + centre2
        if (error < norm2 / 16).any():
            error = factored.distance2(draws, self.target)
        if (deviation < norm2 / 16).any():
            deviation = factored.norm2(factored.minus(draws, self.mean))
        values = [norm2, deviation, error, to_target, to_reference, to_bias - self.target_to_bias]
        return Scalars(torch.stack(values), self.fixed)


class JointComparison:
    """The same for several dense parameters at once: where they are small, a call costs more than its work.

    Args:
        names: the parameters.
        mean, target, reference: as for `Comparison`, by name.
    """

    def __init__(self, names: Sequence[str], mean: Gradients, target: Mapping[str, Tensor], reference: Mapping[str, Tensor]):
        self.names, self.sizes = names, [target[name].numel() for name in names]
        self.target, self.reference, self.centre = (
            torch.cat([of[name].flatten() for name in names]).double() for of in (target, reference, mean)
        )
        self.bias = self.centre - self.target
        self.fixed = self._sums(torch.stack([self.target, self.reference, self.centre, self.bias]).square())

    def scalars(self, draws: Gradients) -> dict[str, Scalars]:
        """Return the scalars of some draws (r, *shape) by name."""
        each = [draws[name] for name in self.names]
        count = len(each[0])
        same = count > 1 and all(map(factored.constant, each))
        values = torch.cat([g[: 1 if same else count].reshape(1 if same else count, -1) for g in each], 1).double()
        error, deviation = values - self.target, values - self.centre
        products = (values.square(), deviation.square(), error.square(), values * self.target, values * self.reference)
        sums = self._sums(torch.stack([*products, error * self.bias]))
        return {name: Scalars(s.expand(-1, count), f) for name, s, f in zip(self.names, sums, self.fixed, strict=True)}

    def _sums(self, products: Tensor) -> list[Tensor]:
        """Return the sums of (…, all components) per parameter, so that infinities of one do not reach another."""
        return [part.sum(-1) for part in products.split(self.sizes, -1)]


def scalars_of(draws: factored.Gradient, mean: factored.Gradient, target: Tensor, reference: Tensor) -> Scalars:
    """Return the scalars of draws of one parameter, see `Comparison`."""
    return Comparison(mean, target, reference).scalars(draws)


def remembered(produce: Callable[[], Iterator[Gradients]]) -> Callable[[], Iterator[Gradients]]:
    """Return what yields the same draws, and makes them once alone where they are few enough to be held (`KEPT_NUMBERS`)."""
    kept: list[Gradients] | None = None

    def again() -> Iterator[Gradients]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        chunks: list[Gradients] = []
        held = 0
        for chunk in produce():
            held += sum(map(factored.numbers, chunk.values()))
            chunks = [*chunks, chunk] if held <= KEPT_NUMBERS else []
            yield chunk
        kept = chunks if held <= KEPT_NUMBERS else None

    return again


def measure_draws(
    produce: Callable[[], Iterator[Gradients]],
    target: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
) -> dict[str, Scalars]:
    """Return the scalars of draws per parameter.

    Args:
        produce: yields the draws in chunks, and the same ones each time it is called: it is called twice (see `remembered`).
        target: τ per parameter.
        reference: ∇ per parameter.
    """
    mean: Gradients = {}
    seen = 0
    for chunk in produce():
        count = next(iter(chunk.values())).shape[0]
        seen += count
        for name, g in chunk.items():
            average = factored.mean(g)
            mean[name] = factored.blend(mean[name], average, count / seen) if name in mean else average
    small = [name for name, g in mean.items() if isinstance(g, Tensor) and target[name].numel() <= SMALL]
    joint = JointComparison(small, mean, target, reference) if len(small) > 1 else None
    single = {name: Comparison(g, target[name], reference[name]) for name, g in mean.items() if not joint or name not in small}
    parts_of: dict[str, list[Scalars]] = {name: [] for name in mean}
    for chunk in produce():
        measured = joint.scalars(chunk) if joint else {}
        measured |= {name: comparison.scalars(chunk[name]) for name, comparison in single.items()}
        for name, scalars in measured.items():
            parts_of[name].append(scalars)
    return {name: Scalars(torch.cat([part.values for part in parts], 1), parts[0].fixed) for name, parts in parts_of.items()}


def _norm2(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dtype=torch.float64).square()
