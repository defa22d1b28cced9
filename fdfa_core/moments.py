"""Measuring estimators against the true gradient: draws → scalars → moments → rows of a table.

Each draw g_r of a parameter's gradient is reduced to a few inner products; those of a block or of the network are sums over
its parameters. Only moments of these scalars over the draws are kept (columns in docs/architecture.md). Gradients of linear
layers are never formed for it (`fdfa_core.draws`), and draws that would not fit in memory are made twice from the same random
numbers, first for their mean, then for the scalars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fdfa_core import draws as factored
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator
from fdfa_core.gradients import VANISHED, Reference, true_gradient
from fdfa_core.linearize import Gradients
from fdfa_core.network import BlockNetwork

SAMPLINGS = ("given_batch", "fresh_batches")
CHUNK_BYTES = 2**28  # of dense draws made at a time
CHUNK_NUMBERS = 2**25  # of factored draws made at a time
KEPT_NUMBERS = 2**26  # of draws kept from the first look at them to the second; more are made again


@dataclass
class Scalars:
    """Inner products of R draws with what they are compared to, float64. They add over parameters.

    Attributes:
        norm2: ‖g_r‖² (R,).
        deviation: ‖g_r − ḡ‖² (R,).
        error: ‖g_r − τ‖² (R,).
        target: ⟨g_r, τ⟩ (R,).
        reference: ⟨g_r, ∇⟩ (R,).
        bias: ⟨g_r − τ, ḡ − τ⟩ (R,).
        fixed: ‖τ‖², ‖∇‖², ‖ḡ‖², ‖ḡ − τ‖² (4,).
    """

    norm2: Tensor
    deviation: Tensor
    error: Tensor
    target: Tensor
    reference: Tensor
    bias: Tensor
    fixed: Tensor

    def __add__(self, other: Scalars) -> Scalars:
        """Return the scalars of two groups of parameters taken together."""
        return Scalars(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


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
        self.fixed = torch.stack([_norm2(v) for v in (target, reference, self.centre, self.bias)])

    def scalars(self, draws: factored.Gradient) -> Scalars:
        """Return the scalars of some draws (r, *shape), dense or factored."""
        if factored.constant(draws):  # all draws are one: look at it once, by exact differences
            first = factored.dense(draws)[:1]
            one = Comparison(first, self.target, self.reference).scalars(first)
            count = draws.shape[0]
            return Scalars(*(v if f == "fixed" else v.expand(count) for f, v in vars(one).items()))
        target2, _, centre2, _ = self.fixed
        norm2 = factored.norm2(draws)
        along = (self.target, self.reference, self.bias, self.centre)
        to_target, to_reference, to_bias, to_centre = factored.inner(draws, *along).unbind(1)
        if isinstance(draws, Tensor):
            error = factored.norm2(draws - self.target)
        else:
            error = norm2 - 2 * to_target + target2
        deviation = norm2 - 2 * to_centre + centre2
        if (deviation < norm2 / 16).any():  # draws close to their mean: there the sum would lose digits
            deviation = factored.norm2(factored.minus(draws, self.mean))
        return Scalars(
            norm2=norm2,
            deviation=deviation,
            error=error,
            target=to_target,
            reference=to_reference,
            bias=to_bias - (self.target.double() * self.bias.double()).sum(),
            fixed=self.fixed,
        )


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
    compared = {name: Comparison(mean[name], target[name], reference[name]) for name in mean}
    found: dict[str, list[Scalars]] = {name: [] for name in mean}
    for chunk in produce() if kept is None else kept:
        for name, g in chunk.items():
            found[name].append(compared[name].scalars(g))
    return {name: _concatenate(parts) for name, parts in found.items()}


def _concatenate(parts: list[Scalars]) -> Scalars:
    return Scalars(
        *(
            parts[0].fixed if f.name == "fixed" else torch.cat([getattr(part, f.name) for part in parts])
            for f in fields(Scalars)
        )
    )


def summarise(s: Scalars) -> dict[str, float]:
    """Return the columns that describe R draws: moments, variance and bias with their standard errors."""
    count = len(s.norm2)
    target2, reference2, mean2, raw_bias2 = s.fixed.tolist()
    norm = s.norm2.sqrt()
    quantities = {
        "deviation": s.deviation,
        "norm2": s.norm2,
        "error": s.error,
        "slope": s.target / target2,
        "cosine": s.target / (norm * math.sqrt(target2)),
        "cosine_reference": s.reference / (norm * math.sqrt(reference2)),
    }
    row: dict[str, float] = {}
    for quantity, values in quantities.items():
        centred = values - values.mean()
        row[f"{quantity}_mean"] = float(values.mean())
        row |= {f"{quantity}_m{k}": float((centred**k).mean()) for k in (2, 3, 4)}
    # Bessel's correction; the deviations share the mean, an effect of order 1/R on their spread that the factor covers too
    row["variance"] = row["deviation_mean"] * count / (count - 1)
    row["variance_se"] = math.sqrt(row["deviation_m2"] / (count - 1)) * count / (count - 1)
    row["bias2"], row["bias2_se"] = _unbiased_bias2(s, raw_bias2)
    row["mean_norm2"] = mean2
    row["mean_cosine"] = float(s.target.mean()) / math.sqrt(mean2 * target2) if mean2 * target2 > 0 else math.nan
    row["target_norm"], row["reference_norm"] = math.sqrt(target2), math.sqrt(reference2)
    row["valid"] = row["target_norm"] >= VANISHED
    return row


def _unbiased_bias2(s: Scalars, raw: float) -> tuple[float, float]:
    """Estimate ‖E g − τ‖² from pairs of different draws, with the jackknife standard error.

    ‖ḡ − τ‖² exceeds it by variance/R; the mean of ⟨g_r − τ, g_s − τ⟩ over r ≠ s does not.
    """
    count = len(s.error)
    total, squares = raw * count**2, s.error.sum()
    estimate = (total - squares) / (count * (count - 1))
    if count < 3:
        return float(estimate), math.nan
    left_out = (total - 2 * count * s.bias + s.error - (squares - s.error)) / ((count - 1) * (count - 2))
    spread = (left_out - left_out.mean()).square().sum() * (count - 1) / count
    return float(estimate), math.sqrt(float(spread))


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
    rows: list[dict[str, object]] = []
    for label, estimator in estimators.items():
        produce = _given(estimator, x, y, replicates) if given else _fresh(estimator, batches)
        found = measure_draws(produce, replicates, target, reference.gradient)
        if raw is not None:
            chunks = list(produce())
            raw |= {f"{label}/{name}": torch.cat([factored.dense(c[name]) for c in chunks]) for name in target}
        settings = json.dumps(dict((options or {}).get(label, {})), sort_keys=True, default=str)
        for key, names in groups.items():
            level, block, role, parameter = key
            total = found[names[0]]
            for name in names[1:]:
                total = total + found[name]
            rows.append(
                {
                    "estimator": label,
                    "method": estimator.name,
                    "options": settings,
                    "sampling": sampling,
                    "draws": replicates,
                    "level": level,
                    "block": block,
                    "role": role,
                    "parameter": parameter,
                    **about[key],
                    **summarise(total),
                }
            )
    return rows


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
    chunk = max(1, CHUNK_BYTES // (floats * estimator.dtype.itemsize))
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
