"""Tests of what an estimator's draws are said to be: their mean, their variance, and the equality of two laws.

Every test projects the draws on directions that are fixed beforehand, so that a draw costs a few numbers, and takes its number
of draws from a pilot with other random numbers. It may end in three ways: the claim holds, it fails, or the draws are too noisy
to decide within the budget. The last is said, and never passes for the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator
from fdfa_core.testing.subject import (
    ALPHA,
    BUDGET,
    DoesNotApply,
    Finding,
    Projections,
    Subject,
    check,
    constant,
    flat,
    is_random,
)

MISTAKE = 0.05  # relative mistake of a scale that is found …
POWER = 0.95  # … with this chance by the plan, so that 0.9 is left where the pilot errs
PILOT, CALL = 1_500, 1_000  # draws of the pilot; draws of one call of `sample`
SAFETY = 1.25  # a pilot is likely to miss the largest draws, and so to see too little spread
EXACT = {torch.float64: 1e-6}  # relative difference that rounding may leave between draws without noise
ROUNDING = 1e-4  # the same in any other type, float32 among them
NUMBERS = 2**25  # numbers of draws held at a time


def call_size(estimator: Estimator, most: int = CALL) -> int:
    """Return how many draws to ask for in one call: as many as fit into a quarter of a gigabyte, and at least 20."""
    return max(20, min(most, NUMBERS // sum(p.numel() for p in estimator.net.parameters())))


def mean_of(estimator: Estimator, x: Tensor, y: Tensor, n: int = CALL) -> dict[str, Tensor]:
    """Return the mean of at least n draws as a gradient per parameter, in float64."""
    size = call_size(estimator, n)
    calls = math.ceil(n / size)
    total = sum(flat(estimator.sample(x, y, size), draws=True).mean(0) for _ in range(calls)) / calls
    shapes = {name: p.shape for name, p in estimator.net.named_parameters()}
    parts = total.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def draw(estimator: Estimator, x: Tensor, y: Tensor, n: int, look: Callable[[Tensor], np.ndarray]) -> np.ndarray:
    """Return what `look` sees of n draws, (n, k), a call of `sample` after another."""
    parts, size = [], call_size(estimator)
    for first in range(0, n, size):
        parts.append(look(flat(estimator.sample(x, y, min(size, n - first)), draws=True)))
    return np.concatenate(parts)


def planned(values: np.ndarray, alpha: float, mistake: float, samples: int = 1) -> int:
    """Return the draws at which a mistake of a scale 1 is found with `POWER` in each column, judged from a pilot (n, k)."""
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(POWER)
    spread = float(values.var(axis=0, ddof=1).max())
    return math.ceil(SAFETY * samples * spread * (z / mistake) ** 2)


def p_values(values: np.ndarray, expected: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Return the two-sided p-value of each column: its mean is the expected one, or that of another sample (Welch)."""
    difference = values.mean(0) - (expected if other is None else other.mean(0))
    error2, degrees = values.var(0, ddof=1) / len(values), len(values) - 1.0
    if other is not None:
        second = other.var(0, ddof=1) / len(other)
        degrees = min(len(values), len(other)) - 1.0
        error2 = error2 + second
    error = np.sqrt(error2)
    size = 1 + np.abs(values.mean(0))
    still = error < 1e-12 * size  # no noise at all: the difference itself decides
    p = np.where(still, 0.0, 2 * stats.t.sf(np.abs(difference) / np.where(still, 1.0, error), degrees))
    return np.where(np.abs(difference) <= 1e-5 * size, 1.0, p)  # rounding, whatever its standard error


def rejected(p: np.ndarray, primary: int, alpha: float) -> np.ndarray:
    """Return which claims fall: half of alpha goes in even parts to the primary ones (Bonferroni), half to the rest (Holm)."""
    found = np.zeros(len(p), dtype=bool)
    if primary:
        found[:primary] = p[:primary] < alpha / 2 / primary
    order = primary + np.argsort(p[primary:])
    for rank, index in enumerate(order):
        if p[index] >= alpha / 2 / (len(order) - rank):
            break
        found[index] = True
    return found


def differing(found: Tensor, expected: Mapping[str, Tensor]) -> str:
    """Return the first parameter in which a gradient without noise is not the expected one, with its scale; or ""."""
    start, size = 0, float(flat(expected).norm())
    for name, g in expected.items():
        part, wanted = found[start : start + g.numel()], g.detach().flatten().double().cpu()
        start += g.numel()
        if float((part - wanted).norm()) > EXACT.get(g.dtype, ROUNDING) * max(float(wanted.norm()), 1e-3 * size):
            scale = float(part @ wanted) / max(float(wanted @ wanted), 1e-300)
            return f"{name} (there it is {scale:.4g} times the expected one along it)"
    return ""


def mean_finding(
    estimator: Estimator,
    x: Tensor,
    y: Tensor,
    target: Mapping[str, Tensor],
    *,
    alpha: float = ALPHA,
    mistake: float = MISTAKE,
    budget: int = BUDGET,
) -> Finding:
    """Compare the mean of an estimator's draws with a target; see `fdfa_core.testing.assert_unbiased`."""
    first = flat(estimator.sample(x, y, 8), draws=True)
    if constant(first):
        wrong = differing(first[0], target)
        return Finding("fails", f"without noise, and another gradient in {wrong}") if wrong else Finding("holds", "exactly")
    to = Projections(target)
    pilot = draw(estimator, x, y, min(PILOT, budget), to.of)
    primary = to.primary
    needed = planned(pilot[:, :primary], alpha / 2 / max(primary, 1), mistake) if primary else PILOT
    n = min(max(needed, PILOT), budget)
    values = draw(estimator, x, y, n, to.of)
    expected = np.concatenate([np.ones(len(to.groups)), (to.of(to.reference[None])[0, len(to.groups) :])])
    p = p_values(values, expected)
    lost = rejected(p, primary, alpha)
    error = values.std(0, ddof=1) / math.sqrt(n)
    if lost.any():
        worst = int(np.flatnonzero(lost)[0])
        what = "times the expected mean along it" if worst < len(to.groups) else f"where {expected[worst]:.4g} is expected"
        seen = f"{values[:, worst].mean():.4g} ± {error[worst]:.2g}"
        return Finding("fails", f"{to.names[worst]}: {seen} {what} (n = {n:,}, p = {p[worst]:.1g})")
    said = f"scale {values[:, 0].mean():.4f} ± {error[0]:.2g} (n = {n:,})" if primary else f"n = {n:,}"
    if needed > budget:
        return Finding("undecided", noisy(said, needed, n, mistake))
    return Finding("holds", said)


def noisy(said: str, needed: int, n: int, mistake: float) -> str:
    """Return why a test is undecided: what its draws resolve, and how many it would take."""
    resolved = f"{said} resolves a mistake of {100 * mistake * math.sqrt(needed / n):.1f} %"
    remedy = "raise the budget, or check the estimator with an option that lowers its noise"
    return f"too noisy to decide: {resolved}, and {100 * mistake:g} % needs {needed:,} draws; {remedy}"


def variance_finding(
    estimator: Estimator,
    x: Tensor,
    y: Tensor,
    law: float | Mapping[str, float],
    *,
    centre: Mapping[str, Tensor] | None = None,
    alpha: float = ALPHA,
    mistake: float = MISTAKE,
    budget: int = BUDGET,
) -> Finding:
    """Compare the total variance of an estimator's draws with a law; see `fdfa_core.testing.assert_variance`."""
    first = estimator.sample(x, y, 8)
    parts = {"the whole": float(law)} if not isinstance(law, Mapping) else {"the whole": sum(map(float, law.values())), **law}
    if any(not math.isfinite(v) or v < 0 for v in parts.values()):
        raise InvalidInput("variance", law, "a number that is not negative, or one for each parameter")
    if isinstance(law, Mapping) and law.keys() != first.keys():
        raise InvalidInput("variance: names", sorted(law), f"the parameters {sorted(first)}")
    if constant(flat(first, draws=True)) and constant(torch.stack([flat(estimator.estimate(x, y)) for _ in range(3)])):
        if parts["the whole"] == 0:
            return Finding("holds", "no noise, as declared")
        return Finding("fails", f"the draws do not vary, and a variance of {parts['the whole']:.4g} is declared")
    if parts["the whole"] == 0:
        return Finding("fails", "the draws vary, and no variance is declared")
    for name in first:
        if parts.get(name) == 0 and not constant(first[name].detach().flatten(1).double().cpu()):
            return Finding("fails", f"the draws of {name} vary, and no variance is declared for it")
    sizes = [g[0].numel() for g in first.values()]
    # The mean of n draws has noise of its own, which adds a share 1/n of the variance.
    middle = flat(mean_of(estimator, x, y, min(budget, 20_000)) if centre is None else centre)
    judged = [name for name, v in parts.items() if v > 0]

    def distances(draws: Tensor) -> np.ndarray:
        squares = torch.stack([part.square().sum(1) for part in (draws - middle).split(sizes, dim=1)])
        each = {"the whole": squares.sum(0), **dict(zip(first, squares, strict=True))}
        return np.column_stack([each[name].numpy() / parts[name] for name in judged])

    pilot = draw(estimator, x, y, min(PILOT, budget), distances)
    needed = planned(pilot[:, :1], alpha / 2 if len(judged) > 1 else alpha, mistake)
    n = min(max(needed, PILOT), budget)
    values = draw(estimator, x, y, n, distances)
    p = p_values(values, np.ones(len(judged)))
    lost = rejected(p, 1, alpha) if len(judged) > 1 else p < alpha
    error = values.std(0, ddof=1) / math.sqrt(n)
    if lost.any():
        worst = int(np.flatnonzero(lost)[0])
        return Finding(
            "fails",
            f"{judged[worst]}: {values[:, worst].mean():.4g} ± {error[worst]:.2g} times the declared variance "
            f"(n = {n:,}, p = {p[worst]:.1g})",
        )
    said = f"{values[:, 0].mean():.4f} ± {error[0]:.2g} times the declared variance (n = {n:,})"
    return Finding("undecided", noisy(said, needed, n, mistake)) if needed > budget else Finding("holds", said)


# The checks of an estimator's draws ----------------------------------------------------------------------------------

SEQUENCE, CALLS, EACH = 300, 16, 250  # single estimates; calls of `sample`, and draws of each
COMPARED = 4_000  # draws on a batch and on its like
MARGIN = 0.2  # change of scale with the size of the batch that a biased method may show: what it refines depends on noise


@check("expectation")
def expectation(subject: Subject) -> Finding:
    """The mean of the draws is the one that the class declares."""
    estimator, x, y = subject.ready()
    target = subject.target(estimator, x, y)
    if target is not None:
        return mean_finding(estimator, x, y, target, alpha=subject.share("expectation"), budget=subject.budget)
    g, truth = flat(mean_of(estimator, x, y)), subject.gradient(estimator, x, y)
    cosine = float(g @ truth / (g.norm() * truth.norm() + 1e-300))
    said = f"on the network of the check, {float(g @ truth / truth.square().sum()):.2g} times the gradient's length along it"
    said += f", at a cosine of {cosine:.2g}"
    if estimator.expectation is None:
        return Finding("not declared", f'set expectation = "gradient", "biased", or a method (x, y) → gradients; {said}')
    return Finding("reported", f"declared biased: {said}")


@check("variance")
def variance(subject: Subject) -> Finding:
    """The total variance of the draws on a batch is the one that the class declares."""
    estimator, x, y = subject.ready()
    law = estimator.variance(x, y) if callable(estimator.variance) else estimator.variance
    if law is None:
        g = flat(estimator.sample(x, y, call_size(estimator)), draws=True)
        relative = float(g.var(0).sum() / subject.gradient(estimator, x, y).square().sum())
        said = f"on the network of the check it is {relative:.3g} ‖∇ℓ‖²"
        return Finding("not declared", f"set variance = 0.0, or a method (x, y) → the trace of the covariance; {said}")
    target = subject.target(estimator, x, y)
    return variance_finding(estimator, x, y, law, centre=target, alpha=subject.share("variance"), budget=subject.budget)


@functools.lru_cache(maxsize=1)  # two checks look at the same draws
def looked_at(subject: Subject) -> tuple[Projections, np.ndarray, np.ndarray]:
    """Return projections on the draws' own mean, single estimates (m, k), and draws of several calls (calls, R, k) on them."""
    estimator, x, y = subject.ready()
    estimator.estimate(x, y)
    to = Projections(mean_of(estimator, x, y), subject.seed)
    single = np.concatenate([to.of(flat(estimator.estimate(x, y))[None]) for _ in range(SEQUENCE)])
    each = call_size(estimator, EACH)
    several = np.stack([to.of(flat(estimator.sample(x, y, each), draws=True)) for _ in range(CALLS)])
    columns = [0, *range(len(to.groups), single.shape[1])] if to.groups else list(range(single.shape[1]))
    return to, single[:, columns], several[:, :, columns]


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Return the p-values of no correlation between neighbours along the second but last axis of (…, n, k)."""
    centred = values - values.mean(axis=tuple(range(values.ndim - 1)))
    flat_ = centred.reshape(-1, values.shape[-1])
    products = (centred[..., 1:, :] * centred[..., :-1, :]).reshape(-1, values.shape[-1])
    spread = np.sqrt((products**2).sum(0))
    still = flat_.std(0) < 1e-12 * (1 + np.abs(values).reshape(flat_.shape).max(0))
    z = products.sum(0) / np.where(spread > 0, spread, 1.0)
    return np.where(still, 1.0, 2 * stats.norm.sf(np.abs(z)))


@check("independent-draws")
def independent_draws(subject: Subject) -> Finding:
    """Draws are independent from call to call, within a call, and between calls; so are the replicas of a state that learns."""
    if not is_random(subject) and not subject.cls.stateful:
        raise DoesNotApply("draws do not vary, given the state")
    to, single, several = looked_at(subject)
    p = {"successive estimates are correlated": _neighbours(single)}
    p["neighbours within a sample are correlated"] = _neighbours(several)
    p["draws of one sample have something in common"] = _common(several)
    estimator, x, y = subject.ready()
    if estimator.stateful:
        replicated = np.stack([_replicated(subject, to, seed) for seed in range(12)])
        p["replicas of the state have something in common"] = _common(replicated)
    whole = np.concatenate(list(p.values()))
    least = {what: values.min() * len(whole) for what, values in p.items()}
    worst = min(least, key=least.get)
    if least[worst] < subject.share("independent-draws"):
        return Finding("fails", f"{worst} (p = {least[worst]:.1g} after {len(whole)} comparisons)")
    said = f"{SEQUENCE} estimates, {CALLS} samples of {several.shape[1]}"
    return Finding("holds", f"{said} (least p = {min(1.0, least[worst]):.2g})")


def _replicated(subject: Subject, to: Projections, seed: int) -> np.ndarray:
    """Return the projected draws (R, k) of R replicas of the state after two steps on the batch."""
    net, x, y = subject.problem()
    estimator = subject.make(net, seed=subject.seed + 1000 + seed, replicas=20)
    for _ in range(2):
        estimator.advance(x, y)
    values = to.of(flat(estimator.sample(x, y, 20), draws=True))
    return values[:, [0, *range(len(to.groups), values.shape[1])] if to.groups else slice(None)]


def _common(values: np.ndarray) -> np.ndarray:
    """Return the p-values of no difference between groups (groups, n, k): an F-test of each column."""
    p = []
    for column in range(values.shape[-1]):
        groups = values[:, :, column]
        spread = groups.std()
        if spread < 1e-9 * (1e-30 + np.abs(groups).max()):
            p.append(1.0)
        elif groups.std(1).max() < 1e-9 * spread:
            p.append(0.0)  # nothing varies within a group
        else:
            p.append(float(stats.f_oneway(*groups).pvalue))
    return np.array(p)


@check("sample-as-estimate")
def sample_as_estimate(subject: Subject) -> Finding:
    """The draws of `sample` are distributed as those of `estimate`."""
    estimator, x, y = subject.ready()
    one, many = flat(estimator.estimate(x, y)), flat(estimator.sample(x, y, 4), draws=True)
    if not is_random(subject):
        wrong = float((many - one).norm(dim=1).max()) > EXACT[torch.float64] * float(one.norm())
        return Finding("fails", "without noise, and they differ") if wrong else Finding("holds", "exactly")
    _, single, several = looked_at(subject)
    several = several.reshape(-1, single.shape[1])
    size = np.abs(single).max(0) + np.abs(several).max(0)
    still = (single.std(0) < 1e-9 * size) & (several.std(0) < 1e-9 * size)
    p = [1.0 if still[k] else stats.ks_2samp(single[:, k], several[:, k]).pvalue for k in range(len(still))]
    least = min(p) * len(p)
    said = f"{len(single)} estimates and {len(several)} draws (least p = {min(1.0, least):.2g} after {len(p)} comparisons)"
    return Finding("fails" if least < subject.share("sample-as-estimate") else "holds", f"Kolmogorov-Smirnov: {said}")


@check("mean-loss")
def mean_loss(subject: Subject) -> Finding:
    """Gradients are those of the mean loss: a batch with every sample twice has the same mean."""
    margin = 0.0 if subject.ready()[0].expectation == "gradient" else MARGIN
    return _compared(subject, "mean-loss", lambda v: torch.cat([v, v]), "the batch taken twice", margin)


@check("order-of-samples")
def order_of_samples(subject: Subject) -> Finding:
    """The order of the samples does not matter."""
    return _compared(subject, "order-of-samples", lambda v: v.roll(1, 0), "the batch in another order")


def _compared(subject: Subject, name: str, change: Callable[[Tensor], Tensor], said: str, margin: float = 0.0) -> Finding:
    """Compare the means of draws on the batch and on a changed one, in the whole, every block and every parameter."""
    estimator, x, y = subject.ready()
    one, other = flat(estimator.sample(x, y, 8), draws=True), flat(estimator.sample(change(x), change(y), 8), draws=True)
    reference = subject.target(estimator, x, y)
    if constant(one) and constant(other):
        names = {n: p.shape for n, p in estimator.net.named_parameters()}
        wanted = dict(zip(names, one[0].split([shape.numel() for shape in names.values()]), strict=True))
        wrong = differing(other[0], wanted)
        return Finding("fails", f"{said} has another gradient in {wrong}") if wrong else Finding("holds", "exactly")
    if reference is None:
        estimator.estimate(x, y)
        reference = mean_of(estimator, x, y)
    to = Projections(reference)
    both = [draw(estimator, *batch, COMPARED, to.of) for batch in ((x, y), (change(x), change(y)))]
    shift = both[1].mean(0) - both[0].mean(0)
    p = p_values(both[1] - np.sign(shift) * np.minimum(margin * np.abs(both[0].mean(0)), np.abs(shift)), None, both[0])
    if margin:
        p[len(to.groups) :] = 1.0  # which have no scale to allow for
    lost = rejected(p, to.primary, subject.share(name))
    error = np.sqrt(sum(v.var(0, ddof=1) / len(v) for v in both))
    if lost.any():
        worst = int(np.flatnonzero(lost)[0])
        means = " and ".join(f"{v[:, worst].mean():.4g}" for v in both)
        seen = f"{to.names[worst]}: {means} ± {error[worst]:.2g} for the batch and {said}"
        return Finding("fails", f"{seen} (p = {p[worst]:.1g})")
    return Finding("holds", f"{said}: scales differ by {shift[0]:.2g} ± {error[0]:.2g} (n = {COMPARED:,} each)")
