"""Rows of the benches measured now against those that are recorded: which got worse by more than their spreads.

A row got worse if its lower quartile is above the recorded upper quartile by more than a margin, and better if the same holds
with the two exchanged. The margin is for what quartiles do not show: all rounds of a process share the memory that it got, and
what was measured once has no quartiles at all (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from benchmarks.report import line

MARGIN = 0.03  # as a share of the recorded quartile
# Of benches that take a time, or what a whole process holds, once.
MARGINS = {"sweep": 0.25, "theory": 0.25, "waiting": 0.25, "memory": 0.15}
Row = Mapping[str, object]


def plan(old: pd.DataFrame, only: Sequence[str] | None, threads: Sequence[int]) -> dict[int, list[str]]:
    """Return the benches to measure by number of threads: those named, or all of which rows are recorded with that number."""
    benches = {n: list(only or dict.fromkeys(old["bench"][old["threads"] == n])) for n in threads}
    return {n: names for n, names in benches.items() if names}


def verdict(new: Row, old: Row) -> str:
    """Say "worse", "better" or "same" of a row measured now and the one recorded; of every figure, less is better."""
    factor = 1 + MARGINS.get(old["bench"], MARGIN)
    if not new["low"] <= old["high"] * factor:  # so that what is no number counts as worse
        return "worse"
    return "better" if old["low"] > new["high"] * factor else "same"


def compare(new: Sequence[Row], old: pd.DataFrame, asked: Iterable[tuple[str, int]]) -> dict[str, list[str]]:
    """Return what the rows measured now come to: by verdict, a line of text for each row.

    Args:
        new: rows as `benchmarks.report.pooled` returns them.
        old: what is recorded.
        asked: the benches that were measured, with the number of threads; what is recorded of them should be found again.

    Returns:
        "worse", "better" and "same"; "not recorded", rows that only the new ones have; "not found", those that only the record
        has.
    """
    found: dict[str, list[str]] = {key: [] for key in ("worse", "better", "same", "not recorded", "not found")}
    asked = set(asked)
    before = {_key(row): row for row in old.to_dict("records") if (row["bench"], row["threads"]) in asked}
    for row in new:
        was = before.pop(_key(row), None)
        if was is None:
            found["not recorded"].append(line(row))
        else:
            found[verdict(row, was)].append(f"{line(row)}; recorded on {was['date']}: {_spread(was)}")
    found["not found"] = [f"{threads} thread{'s' * (threads > 1)}  {figure} ({name})" for name, figure, threads in before]
    return found


def summary(found: Mapping[str, Sequence[str]]) -> str:
    """Return the text that the check ends with: the rows to look at, and how many there are of each verdict."""
    titles = {
        "not recorded": "Not recorded, and so not compared:",
        "not found": "Recorded, but not measured now:",
        "better": "Better than recorded:",
        "worse": "Worse than recorded:",
    }
    lines = [text for key, title in titles.items() if found[key] for text in (title, *(f"  {row}" for row in found[key]))]
    counts = {key: len(found[key]) for key in ("worse", "better", "same")}
    return "\n".join([*lines, f"{sum(counts.values())} compared: {', '.join(f'{n} {key}' for key, n in counts.items())}."])


def _key(row: Row) -> tuple[str, str, int]:
    return row["bench"], row["figure"], row["threads"]


def _spread(row: Row) -> str:
    return f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
