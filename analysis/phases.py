"""FDFA against FG-A over batch size and feedback rate: whose gradient has less variance, whose less squared error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import logs, options, select, statistics
from analysis.rebuilt import closed_forms
from analysis.theory.laws import Contest
from fdfa_core.errors import InvalidInput

CRITERIA = {"variance": "variance", "mse": "error_mean"}
WAY = ["joint", "tangents"]
FIELDS = ["bp", "perturbation", "data", "feedback", "cross", "bias2"]


def diagram(log: logs.Logs, batch_sizes: np.ndarray, feedback_lrs: np.ndarray) -> pd.DataFrame:
    """Return FDFA ÷ FG-A (post site), summed over the hidden blocks, on a grid by closed form and where it was measured.

    Args:
        log: an experiment of frozen weights and fresh batches with both methods, perturbing in the same way.
        batch_sizes, feedback_lrs: the grid.

    Returns:
        Rows of `kind` "grid" (`estimate`: geometric mean over seeds of the closed form) and "measured" (with `low` and `high`
        of the t-interval over seeds of the log ratio), per `joint`, `tangents` and `criterion` ("variance" or "mse");
        `batch_limit` is the geometric mean over seeds of N*, above which FG-A has the lower MSE at every α.

    Raises:
        InvalidInput: no run measured both.
    """
    contests, frames = closed_forms.contests(log), []
    for way, group in contests.groupby(WAY, sort=False):
        seeds = [Contest(**row) for row in group[FIELDS].to_dict("records")]
        tables = [contest.table(batch_sizes, feedback_lrs) for contest in seeds]
        ratio = np.exp(np.mean([np.log(table["ratio"]) for table in tables], axis=0))
        grid = tables[0][["batch_size", "feedback_lr", "criterion"]].assign(estimate=ratio, low=ratio, high=ratio)
        limit = float(np.exp(np.log(group["batch_limit"]).mean()))
        frames.append(grid.assign(**dict(zip(WAY, way, strict=True)), seeds=len(seeds), interval="none", batch_limit=limit))
    grid = pd.concat(frames, ignore_index=True).assign(kind="grid")
    measured = _measured(log.probes).merge(grid.drop_duplicates(WAY)[[*WAY, "batch_limit"]], on=WAY)
    return pd.concat([grid, measured.assign(kind="measured")], ignore_index=True)


def _measured(probes: pd.DataFrame) -> pd.DataFrame:
    rows = select.last_step(probes[probes["level"] == "hidden"])
    rows = rows[(rows["method"] == "fdfa") | ((rows["method"] == "fg-a") & options.column(rows, "site").eq("post"))]
    way = {"joint": options.column(rows, "joint").infer_objects(), "tangents": options.numbers(rows, "tangents").astype(int)}
    rows = rows.assign(feedback_lr=options.alpha(rows), **way)
    keys = ["seed", "batch_size", *WAY]
    fdfa, fg_a = (rows[rows["method"] == method] for method in ("fdfa", "fg-a"))
    both = fdfa.merge(fg_a[[*keys, *CRITERIA.values()]], on=keys, suffixes=("", "_fg_a"))
    if both.empty:
        raise InvalidInput("probes", "no FDFA beside FG-A at the post site", "both, perturbing in the same way")
    by = ["batch_size", "feedback_lr", *WAY]
    ratios = []
    for criterion, column in CRITERIA.items():
        ratio = both.assign(ratio=both[column] / both[f"{column}_fg_a"])
        ratios.append(statistics.over_seeds(ratio, "ratio", by, log=True).assign(criterion=criterion))
    return pd.concat(ratios, ignore_index=True)
