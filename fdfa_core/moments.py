"""Measuring estimators against the true gradient: draws → scalars → moments → rows of a table.

Each draw g_r of a parameter's gradient is reduced to a few inner products; those of a block or of the network are sums over
its parameters. Only moments of these scalars over the draws are kept (columns in docs/architecture.md). Gradients of linear
layers are never formed for it (`fdfa_core.draws`), and draws that would not fit in memory are made twice from the same random
numbers, first for their mean, then for the scalars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fdfa_core import draws as factored
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator
from fdfa_core.gradients import VANISHED, Reference, true_gradient
from fdfa_core.linearize import Gradients
from fdfa_core.network import BlockNetwork

SAMPLINGS = ("given_batch", "fresh_batches")
CHUNK_BYTES = 2**28  # of dense draws held at a time
FRESH_BYTES = 2**24  # the same for draws made one by one, where more at a time gain nothing
CHUNK_NUMBERS = 2**25  # of factored draws made at a time
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
        values = torch.cat([g[: 1 if same else count].flatten(1) for g in each], 1).double()
        error, deviation = values - self.target, values - self.centre
        products = (values.square(), deviation.square(), error.square(), values * self.target, values * self.reference)
        sums = self._sums(torch.stack([*products, error * self.bias]))
        return {name: Scalars(s.expand(-1, count), f) for name, s, f in zip(self.names, sums, self.fixed, strict=True)}

    def _sums(self, products: Tensor) -> list[Tensor]:
        """Return the sums of (…, all components) over those of each parameter, which another's infinities leave alone."""
        return [part.sum(-1) for part in products.split(self.sizes, -1)]


def scalars_of(draws: factored.Gradient, mean: factored.Gradient, target: Tensor, reference: Tensor) -> Scalars:
    """Return the scalars of draws of one parameter, see `Comparison`."""
    return Comparison(mean, target, reference).scalars(draws)


def measure_draws(
    produce: Callable[[], Iterator[Gradients]],
    replicates: int,
    target: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
) -> dict[str, Scalars]:
    """Return the scalars of R draws per parameter.

    Args:
        produce: yields the draws in chunks, and the same ones each time it is called.
        replicates: R, the number of draws in all chunks together.
        target: τ per parameter.
        reference: ∇ per parameter.
    """
    mean: Gradients = {}
    seen, held, kept = 0, 0, []
    for chunk in produce():
        count = next(iter(chunk.values())).shape[0]
        seen += count
        held += sum(map(factored.numbers, chunk.values()))
        kept = [*kept, chunk] if kept is not None and held <= KEPT_NUMBERS else None
        for name, g in chunk.items():
            average = factored.mean(g)
            mean[name] = factored.blend(mean[name], average, count / seen) if name in mean else average
    small = [name for name, g in mean.items() if isinstance(g, Tensor) and target[name].numel() <= SMALL]
    joint = JointComparison(small, mean, target, reference) if len(small) > 1 else None
    single = {name: Comparison(g, target[name], reference[name]) for name, g in mean.items() if not joint or name not in small}
    found: dict[str, list[Scalars]] = {name: [] for name in mean}
    for chunk in produce() if kept is None else kept:
        measured = joint.scalars(chunk) if joint else {}
        measured |= {name: comparison.scalars(chunk[name]) for name, comparison in single.items()}
        for name, scalars in measured.items():
            found[name].append(scalars)
    return {name: Scalars(torch.cat([part.values for part in parts], 1), parts[0].fixed) for name, parts in found.items()}


QUANTITIES = ("deviation", "norm2", "error", "slope", "cosine", "cosine_reference")
MOMENTS = [f"{quantity}_{moment}" for quantity in QUANTITIES for moment in ("mean", "m2", "m3", "m4")]


def summarise(s: Scalars) -> dict[str, float]:
    """Return the columns that describe R draws: moments, variance and bias with their standard errors."""
    return summarise_all(s.values.numpy(force=True)[None], s.fixed.numpy(force=True)[None])[0]


def summarise_all(values: np.ndarray, fixed: np.ndarray) -> list[dict[str, float]]:
    """Return the columns of several groups of parameters, `Scalars` as arrays (groups, 6, R) and (groups, 4).

    In numpy and all at once, since a probe makes hundreds of rows of short arrays, and a call costs more than its work.
    """
    norm2, deviation, error, to_target, to_reference, along_bias = values.swapaxes(0, 1)
    target2, reference2, mean2, raw_bias2 = fixed.T
    count = norm2.shape[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a gradient that is zero has no angle: NaN
        norm, target_norm, reference_norm = np.sqrt(norm2), np.sqrt(target2), np.sqrt(reference2)
        slope, cosine = to_target / target2[:, None], to_target / (norm * target_norm[:, None])
        cosine_reference = to_reference / (norm * reference_norm[:, None])
        quantities = np.stack([deviation, norm2, error, slope, cosine, cosine_reference], 1)  # (groups, quantities, R)
        mean = quantities.mean(2)
        centred = quantities - mean[..., None]
        square = centred**2
        moments = np.stack([mean, square.mean(2), (square * centred).mean(2), (square**2).mean(2)], 2)
        columns = dict(zip(MOMENTS, moments.reshape(len(moments), -1).T, strict=True))
        # Bessel's correction; the deviations share the mean, an effect of order 1/R on their spread that the factor covers too
        columns["variance"] = columns["deviation_mean"] * count / (count - 1)
        columns["variance_se"] = np.sqrt(columns["deviation_m2"] / (count - 1)) * count / (count - 1)
        columns["bias2"], columns["bias2_se"] = _unbiased_bias2(error, along_bias, raw_bias2)
        columns["mean_norm2"] = mean2
        columns["mean_cosine"] = np.where(mean2 * target2 > 0, columns["slope_mean"] * np.sqrt(target2 / mean2), np.nan)
    columns |= {"target_norm": target_norm, "reference_norm": reference_norm, "valid": target_norm >= VANISHED}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(column.tolist() for column in columns.values()), strict=True)]


def _unbiased_bias2(error: np.ndarray, bias: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate ‖E g − τ‖² of several groups from pairs of different draws, with the jackknife standard error.

    ‖ḡ − τ‖² exceeds it by variance/R; the mean of ⟨g_r − τ, g_s − τ⟩ over r ≠ s does not.

    Args:
        error: ‖g_r − τ‖² (groups, R).
        bias: ⟨g_r − τ, ḡ − τ⟩ (groups, R).
        raw: ‖ḡ − τ‖² (groups,).
    """
    count = error.shape[1]
    total, squares = raw * count**2, error.sum(1)
    estimate = (total - squares) / (count * (count - 1))
    if count < 3:
        return estimate, np.full_like(estimate, np.nan)
    pairs = total[:, None] - 2 * count * bias + error - (squares[:, None] - error)
    left_out = pairs / ((count - 1) * (count - 2))
    spread = ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1) * (count - 1) / count
    return estimate, np.sqrt(spread)


def probe(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    estimators: Mapping[str, Estimator],
    reference: Reference,
    *,
    replicates: int,
    sampling: str = "given_batch",
    generator: torch.Generator | None = None,
    loss="cross_entropy",
    options: Mapping[str, Mapping[str, object]] | None = None,
    raw: dict[str, Tensor] | None = None,
) -> list[dict[str, object]]:
    """Measure estimators on the network as it is; nothing of it changes, estimators' random streams apart.

    Args:
        net: the network.
        x: the current batch (N, …); its size is the batch size of "fresh_batches" too.
        y: its targets.
        estimators: by label.
        reference: the reference gradient at the present weights.
        replicates: R ≥ 2, draws of each estimator (and the number of replicas of those that have them).
        sampling: "given_batch" draws on (x, y), with its BP gradient as the target; "fresh_batches" gives each draw a batch of
            its own, drawn with replacement from the reference set, with the reference gradient as the target.
        generator: draws the fresh batches.
        loss: as in `make_estimator`.
        options: per label, the options that were given (for the table).
        raw: filled with the gradients themselves if given: "bp/…", "reference/…" and "<label>/…" (R, *shape).

    Returns:
        Rows of probes.parquet (docs/architecture.md) without step and epoch.

    Raises:
        InvalidInput: R below 2, or unknown sampling.
    """
    if not isinstance(replicates, int) or replicates < 2:
        raise InvalidInput("replicates", replicates, "an integer of at least 2: a variance needs two draws")
    if sampling not in SAMPLINGS:
        raise InvalidInput("sampling", sampling, " or ".join(map(repr, SAMPLINGS)))
    given = sampling == "given_batch"
    target = true_gradient(net, x, y, loss) if given else reference.gradient
    if raw is not None:
        raw |= {f"bp/{name}": g for name, g in target.items()} if given else {}
        raw |= {f"reference/{name}": g for name, g in reference.gradient.items()}
    batches = None if given else _fresh_batches(reference, len(x), replicates, generator)
    groups = _groups(net)
    about = {
        key: {
            "reference_variance": sum(reference.variance[name] for name in names),
            "reference_stability": reference.stability(names),
            "reference_batches": reference.batches,
            "size": sum(target[name].numel() for name in names),
        }
        for key, names in groups.items()
    }
    place = {name: i for i, name in enumerate(target)}
    members = [[place[name] for name in names] for names in groups.values()]
    heads: list[dict[str, object]] = []
    values, fixed = [], []
    for label, estimator in estimators.items():
        produce = _given(estimator, x, y, replicates) if given else _fresh(estimator, batches)
        found = measure_draws(produce, replicates, target, reference.gradient)
        if raw is not None:
            chunks = list(produce())
            raw |= {f"{label}/{name}": torch.cat([factored.dense(c[name]) for c in chunks]) for name in target}
        of_each = torch.stack([found[name].values for name in place]).numpy(force=True)
        fixed_of_each = torch.stack([found[name].fixed for name in place]).numpy(force=True)
        values += [of_each[some].sum(0) for some in members]
        fixed += [fixed_of_each[some].sum(0) for some in members]
        settings = json.dumps(dict((options or {}).get(label, {})), sort_keys=True, default=str)
        head = {"estimator": label, "method": estimator.name, "options": settings, "sampling": sampling, "draws": replicates}
        heads += [head | dict(zip(_KEYS, key, strict=True)) | about[key] for key in groups]
    return [head | columns for head, columns in zip(heads, summarise_all(np.stack(values), np.stack(fixed)), strict=True)]


_KEYS = ("level", "block", "role", "parameter")


def _groups(net: BlockNetwork) -> dict[tuple[str, int, str, str], list[str]]:
    """What rows sum over: (level, block, role, parameter) → parameter names."""
    names = [name for name, _ in net.named_parameters()]
    last = len(net) - 1
    groups: dict[tuple[str, int, str, str], list[str]] = {}
    for name in names:
        block = net.block_of(name)
        groups["parameter", block, "readout" if block == last else "hidden", name] = [name]
    for block in range(len(net)):
        members = [name for name in names if net.block_of(name) == block]
        if members:
            groups["block", block, "readout" if block == last else "hidden", ""] = members
    hidden = [name for name in names if net.block_of(name) != last]
    if hidden:
        groups["hidden", -1, "hidden", ""] = hidden
    groups["network", -1, "network", ""] = names
    return groups


def _given(estimator: Estimator, x: Tensor, y: Tensor, replicates: int) -> Callable[[], Iterator[Gradients]]:
    """All draws on one batch, in chunks; replicated states come all at once."""
    floats = sum(p.numel() for p in estimator.net.parameters())
    start = estimator.generator.get_state()

    def produce() -> Iterator[Gradients]:
        estimator.generator.set_state(start)
        # as if all draws were dense, until the first of them show how much they hold
        size = replicates if estimator.replicas is not None else max(1, CHUNK_BYTES // (floats * estimator.dtype.itemsize))
        made = 0
        while made < replicates:
            count = min(size, replicates - made)
            chunk = estimator.draws(x, y, count)
            yield chunk
            made += count
            size = max(size, CHUNK_NUMBERS * count // max(1, sum(map(factored.numbers, chunk.values()))))

    return produce


def _fresh(estimator: Estimator, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], Iterator[Gradients]]:
    """One draw on each batch, draw r by replica r where there are replicas; dense, since layer inputs differ."""
    floats = sum(p.numel() for p in estimator.net.parameters())
    chunk = max(1, FRESH_BYTES // (floats * estimator.dtype.itemsize))
    start = estimator.generator.get_state()

    def produce() -> Iterator[Gradients]:
        estimator.generator.set_state(start)
        for first in range(0, len(batches), chunk):
            each = [
                estimator.draws(*batch, 1, replica=first + i if estimator.replicas is not None else None)
                for i, batch in enumerate(batches[first : first + chunk])
            ]
            yield {name: torch.cat([factored.dense(g[name]) for g in each]) for name in each[0]}

    return produce


def _fresh_batches(
    reference: Reference, batch_size: int, count: int, generator: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    index = torch.randint(len(reference.x), (count, batch_size), generator=generator).to(reference.x.device)
    return [(reference.x[i], reference.y[i]) for i in index]


def _norm2(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dtype=torch.float64).square()
