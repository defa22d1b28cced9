"""Over data sets and networks: each method's mean disadvantage against FDFA, as a random-effects summary."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from analysis import statistics
from analysis.verdicts import protocol
from analysis.verdicts.protocol import KEYS


def over_settings(values: pd.DataFrame, level: float = 1 - protocol.LEVEL) -> pd.DataFrame:
    """Return one row per question, component and variant: the mean effect over settings and its interval.

    Settings differ in their true effects; the model takes these for draws of one normal law (DerSimonian–Laird, iterated). The
    interval is that of Hartung and Knapp, a t-interval which few settings widen. Within a setting the effect is the mean over
    seeds with its standard error.

    Returns:
        Columns `question`, `component`, `variant`, `estimate`, `low`, `high` (ratios where the question's numbers are logs of
        ratios), `settings`, `heterogeneity` (I², the share of the scatter between settings that is not noise), `ratio`. With
        one setting the interval is its own t-interval and `heterogeneity` is NaN.
    """
    rows = []
    effects = _effects(values)
    for (question, component, variant), group in effects.groupby(["question", "component", "variant"], sort=False):
        if len(group) == 1:
            one = group.iloc[0]
            half = stats.t.ppf(0.5 + level / 2, one["seeds"] - 1) * one["se"]
            estimate, low, high, shared = one["mean"], one["mean"] - half, one["mean"] + half, np.nan
        else:
            found = combine_effects(group["mean"].to_numpy(), group["se"].to_numpy() ** 2, method_re="iterated", use_t=True)
            *_, (low, high) = found.conf_int(alpha=1 - level)  # random effects at Hartung and Knapp's scale
            estimate, shared = found.mean_effect_re, max(0.0, float(found.i2))
        ratio = protocol.BY_KEY[question].ratio
        shown = np.exp([estimate, low, high]) if ratio else np.array([estimate, low, high])
        rows.append([question, component, variant, *map(float, shown), len(group), shared, ratio])
    columns = ["question", "component", "variant", "estimate", "low", "high", "settings", "heterogeneity", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def _effects(values: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard error over seeds of every hypothesis that can be tested."""
    rows = []
    for key, group in values.groupby(KEYS, sort=False):
        each = group["value"].to_numpy(float)
        if statistics.testable(each):
            rows.append([*key, each.mean(), each.std(ddof=1) / np.sqrt(len(each)), len(each)])
    return pd.DataFrame(rows, columns=[*KEYS, "mean", "se", "seeds"])
