"""Over data sets and networks: each method's mean disadvantage against FDFA, as a random-effects summary."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from analysis import statistics
from analysis.verdicts import protocol
from analysis.verdicts.protocol import KEYS
from analysis.verdicts.record import Record


def of_record(record: Record) -> pd.DataFrame:
    """Return the summary of a record's primary questions, one row per question, competitor and variant.

    A competitor's numbers in several hidden blocks, and with the weights of several methods, are averaged within each seed
    first: they are one setting. A competitor of whom no run counts for the protocol is summarised from the runs made before.

    Returns:
        Columns of `over_settings`, and `runs`: "protocol" or "earlier". The two are never mixed in a row.
    """
    keys = ["question", "component", "variant"]
    tables = []
    for name, values in (("protocol", record.values), ("earlier", record.earlier)):
        values = values[values["question"].map(lambda key: protocol.BY_KEY[key].family == protocol.PRIMARY).astype(bool)]
        tables.append(over_settings(by_competitor(values)).assign(runs=name))
    whole, earlier = tables
    counted = set(map(tuple, whole[keys].to_numpy()))
    tables[1] = earlier[[tuple(key) not in counted for key in earlier[keys].to_numpy()]]
    rank = {question.key: i for i, question in enumerate(protocol.QUESTIONS)}
    kinds = {protocol.ON_TRIAL: 0, protocol.BESIDE: 1}
    both = pd.concat([table for table in tables if len(table)] or [whole], ignore_index=True)
    order = both.assign(question=both["question"].map(rank), variant=both["variant"].map(kinds))
    return both.loc[order.sort_values(["question", "variant", "component"], kind="stable").index].reset_index(drop=True)


def by_competitor(values: pd.DataFrame) -> pd.DataFrame:
    """Return one number per question, setting, competitor, variant and seed: the mean over hidden blocks and weights."""
    competitor = values["component"].map(lambda text: text.partition(", hidden block")[0])
    means = values.assign(component=competitor).groupby([*KEYS, "seed"], sort=False)["value"].mean()
    return means.reset_index()


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
