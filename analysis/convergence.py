"""Convergence: loss and accuracy curves over seeds, time to a threshold, area under the curve.

Averages are over the runs that finished. A diverged run has no value at the end, and an average over those that happen to be
alive would change its sample along the way; diverged runs are returned on their own (`diverged`) and belong on the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from statsmodels.duration.survfunc import SurvfuncRight

from analysis import statistics
from fdfa_core.errors import InvalidInput

QUANTITIES = ("batch_loss", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


def curves(
    metrics: pd.DataFrame,
    quantity: str,
    by: Sequence[str] = ("trained_with",),
    x: str = "epoch",
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """Return the mean curve of the finished runs with a pointwise t-band over seeds.

    Losses are averaged on the logarithmic scale (geometric mean), accuracies on the linear one with bounds cut at [0, 1]. The
    band is pointwise: it covers the mean at each x, not the whole curve at once.

    Returns:
        Columns of `statistics.over_seeds` for each of `by` and `x`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import convergence
        >>> metrics = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 10] * 2, "epoch": [0.0, 1.0] * 2})
        >>> metrics = metrics.assign(trained_with="dfa", status="finished", test_accuracy=[0.1, 0.9, 0.1, 0.8])
        >>> convergence.curves(metrics, "test_accuracy")[["epoch", "estimate", "seeds"]].round(2)
           epoch  estimate  seeds
        0    0.0      0.10      2
        1    1.0      0.85      2
    """
    loss = is_loss(quantity)
    rows = metrics[(metrics["status"] == "finished") & np.isfinite(metrics[quantity])]
    bounds = (0, np.inf) if loss else (0, 1)
    return statistics.over_seeds(rows, quantity, [*by, x], log=loss, bounds=bounds, level=level)


def diverged(metrics: pd.DataFrame, quantity: str, by: Sequence[str] = ("trained_with",), x: str = "epoch") -> pd.DataFrame:
    """Return the curve of each diverged run up to its last finite value: `by`, `seed`, `x`, `estimate`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import convergence
        >>> metrics = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 10] * 2, "epoch": [0.0, 1.0] * 2})
        >>> metrics = metrics.assign(trained_with="dfa", status="finished", test_accuracy=[0.1, 0.9, 0.1, 0.8])
        >>> metrics.loc[metrics["run"] == "b", "status"] = "diverged"
        >>> convergence.diverged(metrics, "test_accuracy")[["seed", "epoch", "estimate"]]
           seed  epoch  estimate
        0     1    0.0       0.1
        1     1    1.0       0.8
    """
    is_loss(quantity)
    rows = metrics[(metrics["status"] == "diverged") & np.isfinite(metrics[quantity])]
    return rows[[*by, "seed", x, quantity]].rename(columns={quantity: "estimate"}).reset_index(drop=True)


def time_to(
    metrics: pd.DataFrame,
    quantity: str,
    threshold: float,
    by: Sequence[str] = ("trained_with",),
    x: str = "step",
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """Return the median time until a threshold is reached (accuracy at or above it, loss at or below it).

    A run that does not reach it is right-censored at the end of its group's longest run: this is a lower bound and not a time.
    A diverged run that has not reached it never does. The median and its interval are those of the Kaplan–Meier curve
    (statsmodels). Times are those of evaluations, so they are late by up to the distance between two.

    Returns:
        Columns `by`, `estimate`, `low`, `high`, `seeds`, `reached` (runs that got there), `censored` (no more than half did:
        `estimate` is the lower bound) and `open` (the interval has no upper end within the time observed: `high` is that time).

    Examples:
        >>> import pandas as pd
        >>> from analysis import convergence
        >>> metrics = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 10] * 2, "epoch": [0.0, 1.0] * 2})
        >>> metrics = metrics.assign(trained_with="dfa", status="finished", test_accuracy=[0.1, 0.9, 0.1, 0.8])
        >>> convergence.time_to(metrics, "test_accuracy", 0.7)[["estimate", "seeds", "reached", "censored"]].iloc[0].to_dict()
        {'estimate': 10.0, 'seeds': 2, 'reached': 2, 'censored': False}
    """
    loss = is_loss(quantity)
    hit = metrics[quantity] <= threshold if loss else metrics[quantity] >= threshold
    rows = []
    for key, group in metrics.assign(hit=hit).groupby(list(by), sort=False, dropna=False):
        end = group[x].max()
        times = group[group["hit"]].groupby("run")[x].min().reindex(group["run"].unique())
        reached = times.notna().to_numpy()
        median, low, high = end, end, np.inf
        censored = bool(2 * reached.sum() <= len(times))
        if not censored:
            survival = SurvfuncRight(times.fillna(end).to_numpy(float), reached.astype(int))
            median = survival.quantile(0.5)
            with np.errstate(divide="ignore", invalid="ignore"):  # statsmodels takes log 0 at the curve's ends
                low, high = (median if np.isnan(v) else v for v in survival.quantile_ci(0.5, alpha=1 - level))
        is_open = not np.isfinite(high)
        bounds = float(min(low, median)), float(end if is_open else high)
        rows.append((*key, float(median), *bounds, len(times), int(reached.sum()), censored, is_open))
    return pd.DataFrame(rows, columns=[*by, "estimate", "low", "high", "seeds", "reached", "censored", "open"])


def area(
    metrics: pd.DataFrame,
    quantity: str,
    by: Sequence[str] = ("trained_with",),
    x: str = "epoch",
    level: float = statistics.LEVEL,
) -> pd.DataFrame:
    """Return the area under the curve divided by its length in x: the mean height, with an interval over finished seeds.

    A loss is averaged on the logarithmic scale, along the curve and over seeds.

    Examples:
        >>> import pandas as pd
        >>> from analysis import convergence
        >>> metrics = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 10] * 2, "epoch": [0.0, 1.0] * 2})
        >>> metrics = metrics.assign(trained_with="dfa", status="finished", test_accuracy=[0.1, 0.9, 0.1, 0.8])
        >>> convergence.area(metrics, "test_accuracy")[["estimate", "seeds"]].round(3).iloc[0].to_dict()
        {'estimate': 0.475, 'seeds': 2.0}
    """
    loss = is_loss(quantity)
    return statistics.over_seeds(heights(metrics, quantity, x), "height", by, log=loss, level=level)


def heights(metrics: pd.DataFrame, quantity: str, x: str = "epoch") -> pd.DataFrame:
    """Return the finished runs' last rows with `height`, the mean height of the run's curve (geometric for a loss).

    Examples:
        >>> import pandas as pd
        >>> from analysis import convergence
        >>> metrics = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 10] * 2, "epoch": [0.0, 1.0] * 2})
        >>> metrics = metrics.assign(trained_with="dfa", status="finished", test_accuracy=[0.1, 0.9, 0.1, 0.8])
        >>> convergence.heights(metrics, "test_accuracy")[["run", "height"]].round(3)
          run  height
        1   a    0.50
        3   b    0.45
    """
    loss = is_loss(quantity)
    rows = metrics[(metrics["status"] == "finished") & np.isfinite(metrics[quantity])].sort_values(x, kind="stable")
    value = np.log(rows[quantity]) if loss else rows[quantity]
    height_of = {
        run: mean_height(curve[x], value[curve.index], curve[x].min(), curve[x].max())
        for run, curve in rows.groupby("run", sort=False)
        if curve[x].nunique() > 1
    }
    last = rows.groupby("run", sort=False).tail(1)
    last = last[last["run"].isin(height_of)]
    height = last["run"].map(height_of).astype(float)
    return last.assign(height=np.exp(height) if loss else height)


def mean_height(x: ArrayLike, y: ArrayLike, start: float, end: float) -> float:
    """Return the mean of the curve of straight lines through (x, y), x ascending, between two places; NaN if there is nothing.

    Examples:
        >>> from analysis import convergence
        >>> convergence.mean_height([0, 2, 4], [0, 2, 2], start=1, end=4)
        1.833...
    """
    if not start < end:
        return np.nan
    x, y = np.asarray(x, float), np.asarray(y, float)
    points = np.concatenate([[start], x[(x > start) & (x < end)], [end]])
    return float(np.trapezoid(np.interp(points, x, y), points) / (end - start))


def is_loss(quantity: str) -> bool:
    """Return whether a column of the metrics is a loss, which is averaged on the logarithmic scale.

    Raises:
        InvalidInput: not one of `QUANTITIES`.
    """
    if quantity not in QUANTITIES:
        raise InvalidInput("quantity", quantity, "one of " + ", ".join(QUANTITIES))
    return quantity.endswith("loss")
