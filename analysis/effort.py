"""Convergence against what it took: seconds of training, and floating-point operations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import convergence, logs, statistics
from analysis.rebuilt import flops
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.labels import label

EFFORTS = ("epoch", "seconds", "flops")
POINTS = 41  # of a curve on the common range


def curves(
    log: logs.Logs, quantity: str, by: Sequence[str] = ("trained_with",), level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return the mean curves of the finished runs (`convergence.curves`) with what each of their points took.

    Seconds are those of training steps alone (no instruments, no evaluation), averaged over the seeds: steps times
    the run's median seconds a step, of the intervals between evaluations, so that a pause of the process does not count. Runs
    that shared a processor with other work took more than their method needs. Operations are those of `analysis.rebuilt.flops`.

    Returns:
        Columns of `convergence.curves`, `seconds` and `flops`, both since the start of training, and `memory`, the bytes of a
        step (`flops.memory`).
    """
    by = list(by)
    keys = ["run", "step"]
    done = log.metrics[log.metrics["status"] == "finished"]
    took = done.merge(log.timing[[*keys, "training_seconds"]], on=keys, how="left", validate="one_to_one")
    took["seconds"] = took["step"] * took["run"].map(_seconds_per_step(took))
    took["flops"] = took["step"] * took["run"].map(per_step(log.runs))
    took["memory"] = took["run"].map({run: flops.memory(text) for run, text in _configs(log.runs)})
    effort = took.groupby([*by, "epoch"], sort=False, dropna=False)[["seconds", "flops", "memory"]].mean()
    return convergence.curves(log.metrics, quantity, by, level=level).merge(effort.reset_index(), on=[*by, "epoch"])


def with_checkpoints(log: logs.Logs) -> logs.Logs:
    """Return logs in which every run of BP has a twin that checkpoints its blocks.

    The twin's gradients are the same in every bit, and so is its training; its operations and its memory are counted. How long
    it would have taken nobody has measured, so that its seconds are missing.
    """
    plain = log.runs[(log.runs["method"] == "bp") & (log.runs["options"] == "{}")]
    options = {"checkpoint": True}
    about = {"trained_with": label("bp", options), "options": json.dumps(options)}

    def checkpointed(text: str) -> str:
        config = json.loads(text)
        config["estimator"] = {"name": "bp"} | options
        return json.dumps(config, sort_keys=True)

    def twins(frame: pd.DataFrame, **changed) -> pd.DataFrame:
        mine = frame[frame["run"].isin(plain["run"])]
        changed = {name: value for name, value in changed.items() if name in mine}
        return pd.concat([frame, mine.assign(**changed, run=mine["run"] + "-checkpointed")], ignore_index=True)

    runs = twins(log.runs, **about, config=log.runs["config"].map(checkpointed))
    return replace(log, runs=runs, metrics=twins(log.metrics, **about), timing=twins(log.timing, training_seconds=np.nan))


def per_step(runs: pd.DataFrame) -> dict[str, int]:
    """Return the operations of one training step by run (columns `run`, `config`)."""
    return {run: flops.per_step(text) for run, text in _configs(runs)}


def _configs(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(runs[["run", "config"]].itertuples(index=False, name=None))


def at_equal_operations(
    metrics: pd.DataFrame, runs: pd.DataFrame, quantity: str, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return the finished runs' curves over seeds on the operations that every one of them has spent.

    Between evaluations a curve is a straight line, of the logarithm for a loss. The common range ends with the run that spent
    least, and starts where the last one has its first evaluation.

    Args:
        metrics: of runs with one data set and network (`Logs.metrics`), of the methods to compare.
        runs: which those runs are (`Logs.runs`).
        quantity: a column of the metrics ("train_loss", "test_accuracy").
        level: coverage of the intervals.

    Returns:
        Columns of `statistics.over_seeds` for each `trained_with` and `kind`, with `flops`: "curve" (`POINTS` of them), "end"
        (at the end of the common range) and "height" (the curve's mean along the range, geometric for a loss, at the end's
        `flops`). `flops_per_step`, and `spent`: the share of the method's own operations that the common range holds.

    Raises:
        InvalidInput: no run has finished, or there is no operation that all have spent.
    """
    loss = convergence.is_loss(quantity)
    rows = metrics[(metrics["status"] == "finished") & np.isfinite(metrics[quantity])]
    if rows.empty:
        raise InvalidInput("metrics", "no finished run", "a finished run for each method to compare")
    cost = per_step(runs[runs["run"].isin(rows["run"])])
    rows = rows.assign(flops=rows["step"] * rows["run"].map(cost)).sort_values("flops", kind="stable")
    value = np.log(rows[quantity]) if loss else rows[quantity]
    last = rows.groupby("run")["flops"].max()
    start, end = rows.groupby("run")["flops"].min().max(), last.min()
    if not start < end:
        given = f"runs of {last.min():g} to {last.max():g} operations, one of which begins at {start:g}"
        raise InvalidInput("metrics", given, "runs that have spent some operations in common")
    grid, parts = np.linspace(start, end, POINTS), []
    for (method, seed, run), curve in rows.groupby(["trained_with", "seed", "run"], sort=False):
        x, y = curve["flops"].to_numpy(float), value[curve.index].to_numpy(float)
        at = np.append(np.interp(grid, x, y), [np.interp(end, x, y), convergence.mean_height(x, y, start, end)])
        about = {"trained_with": method, "seed": seed, "run": run, "flops_per_step": cost[run], "spent": end / x[-1]}
        kinds = {"kind": ["curve"] * POINTS + ["end", "height"], "flops": np.append(grid, [end, end])}
        parts.append(pd.DataFrame(kinds | {quantity: np.exp(at) if loss else at}).assign(**about))
    by = ["trained_with", "kind", "flops"]
    each = pd.concat(parts, ignore_index=True)
    bounds = (0, np.inf) if loss else (0, 1)
    found = statistics.over_seeds(each, quantity, by, log=loss, bounds=bounds, level=level)
    return found.merge(each.groupby(by, sort=False)[["flops_per_step", "spent"]].mean().reset_index(), on=by)


def _seconds_per_step(took: pd.DataFrame) -> pd.Series:
    """Return each run's median seconds a step, over the intervals between its evaluations."""
    ordered = took.sort_values(["run", "step"])
    change = ordered.groupby("run")[["step", "training_seconds"]].diff()
    return (change["training_seconds"] / change["step"]).groupby(ordered["run"]).median()
