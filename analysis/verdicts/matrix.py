"""The matrix of verdicts: one cell per primary question and setting, for the FDFA on trial, over all components together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.verdicts import protocol
from analysis.verdicts.judgement import EQUIVALENT, INCONCLUSIVE, REFUTED, SUPPORTED
from analysis.verdicts.record import Record

NOT_PLANNED = "not in the protocol"
DECIDED = (SUPPORTED, REFUTED, EQUIVALENT, INCONCLUSIVE)
COLUMNS = (
    "question",
    "setting",
    "dataset",
    "network",
    "role",
    "epochs",
    "file_epochs",
    "verdict",
    "component",
    "estimate",
    "low",
    "high",
    "ratio",
    "interval",
    "seeds",
    "seeds_planned",
    "seeds_needed",
    "components",
    "measured",
    *DECIDED,
    "reason",
)
ORDER = {"width": 0, "trajectory": 1, "convergence": 2}


def cells(record: Record) -> pd.DataFrame:
    """Return one row per primary question and setting in which it is planned, or was measured before the protocol.

    The effect is that of the weakest component: the one whose estimate lies nearest to the wrong side, or furthest beyond it.

    Returns:
        `COLUMNS`. `verdict` is that of all `components` together (`together`), or `NOT_PLANNED`. `supported`, `refuted`,
        `equivalent` and `inconclusive` name the components with this verdict, separated by "; ". `estimate`, `low` and `high`
        (ratios where `ratio` is true) belong to `component`, the weakest of the `measured` ones. `interval` says what they are:
        "simultaneous" over the family; "own", the 95 % t-interval of runs that do not count for the protocol, `reason` says
        why; or "none", where nothing can be shown. `seeds` and `seeds_planned` are those of the weakest component where a
        verdict is given, and otherwise of the one that lacks the most; with interval "own" `seeds` counts the earlier runs.
    """
    of = record.table
    mine = of[(of["family"] == protocol.PRIMARY) & (of["variant"] == protocol.ON_TRIAL)]
    planned = dict(list(mine.groupby(["question", "setting"], sort=False)))
    before = _measured(record.earlier)
    earlier = dict(list(before.groupby(["question", "setting"], sort=False)))
    rows = []
    for place in _in_order(record.settings).to_dict("records"):
        for question in protocol.QUESTIONS:
            key = (question.key, place["setting"])
            if question.family == protocol.PRIMARY and (key in planned or key in earlier):
                cell = _cell(question, planned.get(key, mine.iloc[:0]), earlier.get(key, before.iloc[:0]))
                rows.append({"question": question.key, **place, **cell})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def together(each: Sequence[str]) -> str:
    """Return the verdict on several hypotheses that must all hold: refuted where one is, otherwise the weakest.

    Example:
        >>> from analysis.verdicts import matrix
        >>> matrix.together(["supported", "equivalent"]), matrix.together(["supported", "refuted", "3 of 10 seeds"])
        ('equivalent', 'refuted')
    """
    each = list(each)
    partial = [verdict for verdict in each if not is_judged(verdict)]
    if REFUTED in each:
        return REFUTED
    if partial:
        return min(partial, key=lambda verdict: int(verdict.split()[0]))
    if INCONCLUSIVE in each:
        return INCONCLUSIVE
    return EQUIVALENT if EQUIVALENT in each else SUPPORTED


def is_judged(verdict: str) -> bool:
    """Return whether this is a verdict, and not a number of seeds in its place."""
    return verdict in DECIDED


def _cell(question: protocol.Question, planned: pd.DataFrame, earlier: pd.DataFrame) -> dict[str, object]:
    """Return what a cell says: of the runs that count, where one of them shows an effect, and of earlier ones otherwise."""
    cell: dict[str, object] = {"verdict": NOT_PLANNED, "components": len(planned), "ratio": question.ratio, "interval": "none"}
    cell |= {"estimate": np.nan, "low": np.nan, "high": np.nan, "component": "", "measured": 0, "seeds_needed": np.nan}
    cell |= {verdict: "; ".join(planned.loc[planned["verdict"] == verdict, "component"]) for verdict in DECIDED}
    cell |= {"seeds": 0, "seeds_planned": 0}
    if len(planned):
        fewest = planned.loc[(planned["seeds"] - planned["seeds_planned"]).idxmin()]
        cell |= {"verdict": together(planned["verdict"]), "seeds": fewest["seeds"], "seeds_planned": fewest["seeds_planned"]}
        cell["seeds_needed"] = planned["seeds_needed"].max()
        earlier = earlier[earlier["component"].isin(planned["component"])]
    shown, interval = (planned, "simultaneous") if planned["estimate"].notna().any() else (earlier, "own")
    shown = shown[shown["estimate"].notna()]
    if len(shown):
        sign = 1 if question.direction == "greater" else -1
        weakest = shown.loc[(sign * shown["estimate"]).idxmin()]
        cell |= {column: weakest[column] for column in ("component", "estimate", "low", "high")}
        cell |= {"measured": len(shown), "interval": interval if weakest["low"] == weakest["low"] else "none"}
        if interval == "own":
            cell["seeds"] = weakest["seeds"]
        elif is_judged(cell["verdict"]):
            cell |= {"seeds": weakest["seeds"], "seeds_planned": weakest["seeds_planned"]}
    return cell | ({"reason": ""} if interval == "simultaneous" and len(shown) else {})


def _measured(values: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % t-interval over seeds of every hypothesis for the FDFA on trial: ratios where it is about one."""
    rows = []
    for (question, setting, component), group in values[values["variant"] == protocol.ON_TRIAL].groupby(
        ["question", "setting", "component"], sort=False
    ):
        each = group["value"].to_numpy(float)
        interval = statistics.mean_interval(each)[:3] if statistics.testable(each) else (each.mean(), np.nan, np.nan)
        shown = np.exp(interval) if protocol.BY_KEY[question].ratio else interval
        rows.append([question, setting, component, *map(float, shown), len(each)])
    return pd.DataFrame(rows, columns=["question", "setting", "component", "estimate", "low", "high", "seeds"])


def _in_order(settings: pd.DataFrame) -> pd.DataFrame:
    """Return the settings by data set, network and length, those about variance first; of one of which no file tells, last."""
    datasets = list(protocol.MARGINS)
    rank = settings["dataset"].map(lambda name: datasets.index(name) if name in datasets else len(datasets) + (name == ""))
    keys = settings.assign(kind=settings["role"].map(ORDER), rank=rank, dense=settings["network"] != "fully_connected")
    return settings.loc[keys.sort_values(["rank", "dense", "kind", "epochs"], kind="stable").index]
