"""Convergence against what it took: seconds of training, and floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import convergence, logs, statistics
from analysis.rebuilt import flops

EFFORTS = ("epoch", "seconds", "flops")


def curves(
    log: logs.Logs, quantity: str, by: Sequence[str] = ("trained_with",), level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return the mean curves of the finished runs (`convergence.curves`) with what each of their points took.

    Seconds are those of training steps alone (no instruments, no evaluation), averaged over the seeds: steps times
    the run's median seconds a step, of the intervals between evaluations, so that a pause of the process does not count. Runs
    that shared a processor with other work took more than their method needs. Operations are those of `analysis.rebuilt.flops`.

    Returns:
        Columns of `convergence.curves`, `seconds` and `flops`, both since the start of training.
    """
    by = list(by)
    keys = ["run", "step"]
    done = log.metrics[log.metrics["status"] == "finished"]
    took = done.merge(log.timing[[*keys, "training_seconds"]], on=keys, how="left", validate="one_to_one")
    per_step = {run: flops.per_step(text) for run, text in log.runs[["run", "config"]].itertuples(index=False)}
    took["seconds"] = took["step"] * took["run"].map(_seconds_per_step(took))
    took["flops"] = took["step"] * took["run"].map(per_step)
    effort = took.groupby([*by, "epoch"], sort=False, dropna=False)[["seconds", "flops"]].mean()
    return convergence.curves(log.metrics, quantity, by, level=level).merge(effort.reset_index(), on=[*by, "epoch"])


def _seconds_per_step(took: pd.DataFrame) -> pd.Series:
    """Return each run's median seconds a step, over the intervals between its evaluations."""
    ordered = took.sort_values(["run", "step"])
    change = ordered.groupby("run")[["step", "training_seconds"]].diff()
    return (change["training_seconds"] / change["step"]).groupby(ordered["run"]).median()
