"""Intervals and tests: which one fits where, over scipy and statsmodels.

Two sources of scatter occur in the logs, and an interval speaks of one of them:

* **draws**: an estimate from R independent draws of one estimator at one network and batch. Draws are products of
  random factors and so heavy-tailed: a chi-square interval for a variance is too narrow by a factor of two or more, and
  is never used here. The total variance is a *mean* of R squared deviations, so its standard error follows from their
  spread, fourth moments included, and the interval is taken on the logarithmic scale (`log_interval`). It needs R of
  about 100 to be calibrated; at R = 30 a nominal 95 % interval covers about 90 %. It says nothing of other networks.
* **seeds**: other initialisations, batches and histories. Everything within one seed is dependent, so a seed counts
  once: its values are averaged first, then a t-interval is taken over seeds (`over_seeds`), on the log scale for
  what is positive and varies by factors (variances, losses). This is the interval of all figures wherever there are two
  or more seeds. With few seeds a t-interval is wide, and it should be: five seeds leave four degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from fdfa_core.errors import InvalidInput

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with its two-sided confidence interval and the number of independent values behind it."""

    estimate: float
    low: float
    high: float
    n: int


class Test(NamedTuple):
    """A comparison: `estimate` is a difference, or a ratio on the logarithmic scale, with its two-sided interval."""

    statistic: float
    p: float
    df: float
    estimate: float
    low: float
    high: float

    __test__ = False  # not a test case, whatever pytest makes of the name


# --- one sample ------------------------------------------------------------------------------------------------------


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean of independent values with its t-interval.

    Exact for normal values, good for values without heavy tails; use `geometric_interval` for positive values that
    vary by factors.

    Raises:
        InvalidInput: fewer than two values, or one that is not finite.

    Examples:
        >>> [round(value, 2) for value in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    values = _finite("values", values, at_least=2)
    half = stats.t.ppf(0.5 + level / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    mean = values.mean()
    return Interval(float(mean), float(mean - half), float(mean + half), values.size)


def geometric_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the geometric mean of positive independent values with the t-interval of their logarithms.

    Raises:
        InvalidInput: fewer than two values, or one that is not finite and positive.
    """
    values = _finite("values", values, at_least=2)
    if (values <= 0).any():
        raise InvalidInput("values", float(values.min()), "positive numbers (the interval is on the logarithmic scale)")
    estimate, low, high, n = mean_interval(np.log(values), level)
    return Interval(float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high)), n)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., np.ndarray] = np.mean,
    level: float = LEVEL,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return a statistic of independent values with its BCa bootstrap interval (Efron 1987; `scipy.stats.bootstrap`).

    For statistics without a standard error of their own (median, quantile, trimmed mean) and twenty or more values;
    with five seeds a bootstrap resamples five numbers and is too narrow, where `mean_interval` is not.

    Args:
        values: independent values (n,).
        statistic: a function that takes `axis`.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    values = _finite("values", values, at_least=2)
    options = {"n_resamples": resamples, "confidence_level": level, "method": "BCa"}
    result = stats.bootstrap((values,), statistic, rng=np.random.default_rng(seed), **options).confidence_interval
    return Interval(float(statistic(values, axis=0)), float(result.low), float(result.high), values.size)


# --- from moments over draws -----------------------------------------------------------------------------------------


def mean_se(m2: ArrayLike, draws: ArrayLike) -> np.ndarray:
    """Return the standard error of a mean over R draws from their second central moment (divided by R)."""
    return np.sqrt(np.asarray(m2, float) / (np.asarray(draws, float) - 1))


def linear_interval(
    estimate: ArrayLike, se: ArrayLike, draws: ArrayLike | None = None, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds estimate ∓ q·se, q a quantile of t with R − 1 degrees of freedom (normal without `draws`).

    For what may take either sign: a squared bias corrected for noise, a cosine, a slope.
    """
    estimate, half = np.asarray(estimate, float), _quantile(draws, level) * np.asarray(se, float)
    return estimate - half, estimate + half


def log_interval(
    estimate: ArrayLike, se: ArrayLike, draws: ArrayLike | None = None, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds for a positive mean over draws from ln T ± q·se/T (delta method), q as in `linear_interval`.

    For a total variance T = Σ_r ‖g_r − ḡ‖²/(R − 1) and its standard error sd(‖g_r − ḡ‖²)/√R, which holds the fourth
    moments of the draws, so nothing is assumed of their law or of dependence between components. An estimate of exactly
    zero (a deterministic estimator) has the bounds (0, 0).

    Raises:
        InvalidInput: a negative estimate.

    Examples:
        >>> np.round(log_interval(1.0, 0.1, draws=100), 2)
        array([0.82, 1.22])
    """
    estimate, se = np.asarray(estimate, float), np.asarray(se, float)
    if (estimate < 0).any():
        raise InvalidInput("estimate", float(np.nanmin(estimate)), "numbers ≥ 0, for an interval on the log scale")
    relative = np.divide(se, estimate, out=np.zeros(np.broadcast(estimate, se).shape), where=estimate > 0)
    factor = np.exp(np.minimum(_quantile(draws, level) * relative, 700))  # a hopeless interval is wide, not an overflow
    return estimate / factor, estimate * factor


def variance_z(variance: ArrayLike, se: ArrayLike, expected: ArrayLike) -> np.ndarray:
    """Return z = ln(T̂/T)·T̂/se, standard normal for large R where T is the true total variance."""
    variance, se, expected = (np.asarray(a, float) for a in (variance, se, expected))
    return np.log(variance / expected) * variance / se


def slope_t(slope_mean: ArrayLike, slope_m2: ArrayLike, draws: ArrayLike, null: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return t and the two-sided p of H0: E⟨g, τ⟩/‖τ‖² = `null` from the logged moments of `slope`.

    One scalar whose power does not fall with the number of parameters: the first test of unbiasedness (null = 1).
    """
    t = (np.asarray(slope_mean, float) - null) / mean_se(slope_m2, draws)
    return t, 2 * stats.t.sf(np.abs(t), np.asarray(draws, float) - 1)


def _quantile(draws: ArrayLike | None, level: float) -> np.ndarray:
    if draws is None:
        return stats.norm.ppf(0.5 + level / 2)
    return stats.t.ppf(0.5 + level / 2, np.asarray(draws, float) - 1)


# --- over seeds ------------------------------------------------------------------------------------------------------


def over_seeds(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    *,
    se: str | None = None,
    log: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    level: float = LEVEL,
) -> pd.DataFrame:
    """Return one row per group with the mean over seeds and its interval.

    A seed's rows in a group (probe steps, say) are dependent and averaged first; the seeds' averages are the values of
    a t-interval, on the logarithmic scale (geometric mean) if asked.

    Args:
        frame: one row per observation with columns `by`, `seed`, `value` and, where it has one, `run`.
        value: the column to average.
        by: columns that name a group.
        se: column with the standard errors over draws, which serve where there is one seed.
        log: average logarithms. Groups of zeros (a deterministic estimator has no variance) give zeros. Where only some seeds
            are exactly zero (no unit of a block was alive), which no geometric mean can take in, they are left out and counted.
        bounds: the range that is possible (e.g. [−1, 1] for a cosine); intervals are cut there.
        level: coverage.

    Returns:
        Columns `by`, `estimate`, `low`, `high`, `seeds` (averaged), `interval`: "seeds" (two or more), "draws" (one seed and
        its standard error over draws: it does not cover other seeds), or "none" (one seed without: low = high = estimate).
        Where an average of logarithms left out seeds, also `zeros`: how many are zero in a group where others are not.

    Raises:
        InvalidInput: a column is missing, values are not finite, or one group holds several runs of a seed (then `by`
            mixes settings).

    Examples:
        >>> frame = pd.DataFrame({"by": "dfa", "seed": [0, 1, 2], "accuracy": [0.90, 0.92, 0.94]})
        >>> over_seeds(frame, "accuracy", ["by"])[["estimate", "low", "high"]].round(2).values
        array([[0.92, 0.87, 0.97]])
    """
    by = list(by)
    columns = [*by, "seed", value, *([se] if se else [])]
    if missing := [c for c in columns if c not in frame]:
        raise InvalidInput("frame", missing, f"a frame with the columns {', '.join(columns)}", "These are missing.")
    _finite(value, frame[value], at_least=0)
    if log and (frame[value] < 0).any():
        raise InvalidInput(value, float(frame[value].min()), "numbers ≥ 0 for an average of logarithms")
    keys = frame.groupby([*by, "seed"], sort=False, dropna=False)
    if "run" in frame and (keys["run"].nunique() > 1).any():
        raise InvalidInput("by", by, "columns that tell all settings apart", "A group holds several runs of one seed.")

    per_seed = keys[value].mean().rename("x").to_frame()
    # The draws behind a seed's rows are independent, so the squares of their standard errors add.
    per_seed["se"] = keys[se].agg(np.linalg.norm) / keys.size() if se else np.nan
    if log:
        per_seed["zero"] = per_seed["x"] == 0
        per_seed["x"] = per_seed["x"].where(~per_seed["zero"])
        per_seed["se"], per_seed["x"] = per_seed["se"] / per_seed["x"], np.log(per_seed["x"])
    groups = per_seed.groupby(by, sort=False, dropna=False)
    out = groups["x"].agg(estimate="mean", spread="std").assign(seeds=groups.size(), se=groups["se"].first(), zeros=0)
    if log:
        zeros = groups["zero"].sum()
        out["zeros"] = zeros.where(zeros < out["seeds"], 0)
        out["seeds"] -= out["zeros"]

    several = out["seeds"] > 1
    t = stats.t.ppf(0.5 + level / 2, np.maximum(out["seeds"] - 1, 1)) / np.sqrt(out["seeds"])
    half = np.where(several, t * out["spread"].fillna(0), stats.norm.ppf(0.5 + level / 2) * out["se"].fillna(0))
    out["low"], out["high"] = out["estimate"] - half, out["estimate"] + half
    if log:  # logarithms of zero were left out above and come back as zero
        out[["estimate", "low", "high"]] = np.exp(out[["estimate", "low", "high"]].clip(upper=700)).fillna(0.0)
    out[["low", "high"]] = out[["low", "high"]].clip(*bounds)
    out["interval"] = np.select([several, out["se"].notna()], ["seeds", "draws"], "none")
    return out[["estimate", "low", "high", "seeds", "interval", *(["zeros"] if out["zeros"].any() else [])]].reset_index()


def slopes(frame: pd.DataFrame, x: str, y: str, by: Sequence[str], level: float = LEVEL) -> pd.DataFrame:
    """Return the log–log slope of `y` against `x`: one fit per seed, then a t-interval over the seeds' slopes.

    The seeds' fits are independent, the points within a fit need not be; so the interval needs no model of the
    residuals. With one seed it is that of the straight-line fit (`interval` = "fit"), which assumes them independent.

    Args:
        frame: positive columns `x` and `y`, columns `by` and `seed`.
        x: e.g. "width".
        y: e.g. "nsr".
        by: columns that name a group.
        level: coverage.

    Returns:
        Columns `by`, `slope`, `low`, `high`, `seeds`, `points` (distinct x), `interval`, and `curvature`, the mean over
        seeds of the quadratic coefficient in ln x (0 with fewer than three points): a power law has none.

    Raises:
        InvalidInput: a value that is not finite and positive, or a group with fewer than two distinct x.
    """
    for column in (x, y):
        if (_finite(column, frame[column], at_least=1) <= 0).any():
            raise InvalidInput(column, float(frame[column].min()), "positive numbers for a log–log slope")
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        if group[x].nunique() < 2:
            raise InvalidInput(x, group[x].unique().tolist(), f"two or more distinct values for a slope (group {key})")
        group = group[group.groupby("seed")[x].transform("nunique") > 1]  # a seed that lost its other widths has no slope
        lines, curvatures, points = [], [], group[x].nunique()
        for _, one in group.groupby("seed"):
            lines.append(stats.linregress(np.log(one[x]), np.log(one[y])))
            if one[x].nunique() > 2:
                curvatures.append(np.polyfit(np.log(one[x]), np.log(one[y]), 2)[0])
        if not lines:
            raise InvalidInput(x, "one value a seed", f"a seed with two or more distinct values for a slope (group {key})")
        if len(lines) > 1:
            slope, low, high, _ = mean_interval([line.slope for line in lines], level)
            interval = "seeds"
        else:
            slope, degrees = lines[0].slope, len(group) - 2
            half = stats.t.ppf(0.5 + level / 2, degrees) * lines[0].stderr if degrees > 0 else 0.0
            low, high, interval = slope - half, slope + half, "fit" if degrees > 0 else "none"
        curvature = float(np.mean(curvatures)) if curvatures else 0.0
        rows.append((*key, slope, low, high, len(lines), points, interval, curvature))
    return pd.DataFrame(rows, columns=[*by, "slope", "low", "high", "seeds", "points", "interval", "curvature"])


# --- tests -----------------------------------------------------------------------------------------------------------


def testable(values: ArrayLike) -> bool:
    """Return whether a t-test over seeds can say anything: two values at least, which differ by more than rounding."""
    values = np.asarray(values, float)
    return len(values) > 1 and bool(np.ptp(values) > 1e-9 * max(1.0, np.abs(values).max()))


def difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    paired: bool = False,
    log: bool = False,
    alternative: str = "two-sided",
    level: float = LEVEL,
) -> Test:
    """Compare independent values: Welch's t-test, or the paired t-test where a[i] and b[i] share a seed and batch.

    Args:
        a: values of the first group (one per seed).
        b: values of the second group; with `paired`, in the same order of seeds.
        paired: common seeds cancel what they share; use it wherever they exist.
        log: compare logarithms of positive values; the estimate and its bounds are then the ratio a/b.
        alternative: "two-sided", "greater" (a > b) or "less".
        level: of the two-sided interval that comes with the estimate, whatever the alternative.

    Raises:
        InvalidInput: fewer than two values in a group, a value not finite (or not positive with `log`), unequal lengths
            with `paired`.

    Examples:
        >>> round(difference([0.90, 0.92, 0.94], [0.89, 0.90, 0.93], paired=True).estimate, 4)
        0.0133
    """
    a, b = _finite("a", a, at_least=2), _finite("b", b, at_least=2)
    if paired and a.size != b.size:
        raise InvalidInput("b", f"{b.size} values", f"{a.size} values, one for each of a, for a paired test")
    if log:
        if min(a.min(), b.min()) <= 0:
            raise InvalidInput("a and b", float(min(a.min(), b.min())), "positive numbers for a test on logarithms")
        a, b = np.log(a), np.log(b)
    if alternative not in ("two-sided", "greater", "less"):
        raise InvalidInput("alternative", alternative, '"two-sided", "greater" or "less"')

    test, options = (stats.ttest_rel, {}) if paired else (stats.ttest_ind, {"equal_var": False})
    result = test(a, b, alternative=alternative, **options)
    bounds = test(a, b, **options).confidence_interval(level)
    estimate = a.mean() - b.mean()
    shown = [float(np.exp(v) if log else v) for v in (estimate, bounds.low, bounds.high)]
    return Test(float(result.statistic), float(result.pvalue), float(result.df), *shown)


def equivalence(values: ArrayLike, target: float, margin: float) -> float:
    """Return the p-value of TOST: small where the mean lies within `target` ∓ `margin` (Schuirmann 1987).

    The null hypothesis is that it does not: a wide interval is no evidence of agreement.

    Raises:
        InvalidInput: fewer than two values, or a margin that is not positive.

    Examples:
        >>> round(equivalence([0.1, -0.1, 0.0, 0.05], target=0, margin=0.5), 4)
        0.0007
    """
    values = _finite("values", values, at_least=2)
    if not margin > 0:
        raise InvalidInput("margin", margin, "a positive number")
    return float(DescrStatsW(values).ttost_mean(target - margin, target + margin)[0])


def holm(p: ArrayLike) -> np.ndarray:
    """Return Holm's corrected p-values (Holm 1979): family-wise error control under any dependence.

    The k-th smallest of m is multiplied by m − k + 1, and none may fall below one that is smaller. This is not left to
    `statsmodels.stats.multitest`, which starts a full garbage collection at every call: a second, in a large process.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    p = _finite("p", p, at_least=0)
    if p.size and not (0 <= p.min() and p.max() <= 1):
        raise InvalidInput("p", p.tolist(), "probabilities in [0, 1]")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return corrected


def _finite(name: str, values: ArrayLike | Iterable[float], at_least: int) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size < at_least:
        raise InvalidInput(name, f"{values.size} values", f"{at_least} or more values")
    if not np.isfinite(values).all():
        raise InvalidInput(name, f"{int((~np.isfinite(values)).sum())} of {values.size} not finite", "finite numbers")
    return values
