"""The learning rate that suits each estimator, from runs of one grid that were judged on held-out training samples."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import accuracy, select, summary
from analysis.logs import Logs

SETTING = ("dataset", "architecture", "width", "depth", "batch_size")


def chosen(metrics: pd.DataFrame, setting: Sequence[str] = SETTING) -> pd.DataFrame:
    """Return the best rate of each estimator in each setting.

    It has the highest mean accuracy at the last evaluation; ties go to the lower loss. A rate at which a run diverged is out,
    however well its other seeds did.

    Args:
        metrics: rows of `metrics.parquet` of all runs of the grid, with the run's rate as `learning_rate`.
        setting: columns that tell networks and ways of training apart, each of which has a best rate of its own.

    Returns:
        Columns `setting`, `trained_with`, `learning_rate`, `accuracy`, `train_loss`, `seeds`, `rates` (tried),
        `edge` (the best is the smallest or the largest rate that was tried, so that a better one may lie outside).
        An estimator whose runs all diverged is left out.
    """
    final = accuracy.final(metrics)
    by = [*setting, "trained_with"]
    grid = final.groupby([*by, "learning_rate"], sort=False, dropna=False).agg(
        accuracy=("test_accuracy", "mean"),
        train_loss=("train_loss", "mean"),
        seeds=("seed", "nunique"),
        sound=("status", lambda s: (s == "finished").all()),
    )
    grid = grid.reset_index()
    tried = grid.groupby(by, sort=False, dropna=False)["learning_rate"].agg(["min", "max", "nunique"]).reset_index()
    best = grid[grid["sound"]].sort_values(["accuracy", "train_loss"], ascending=[False, True], kind="stable")
    best = best.groupby(by, sort=False, dropna=False).head(1).drop(columns="sound")
    best = tried.merge(best, on=by)  # settings in the order of the runs
    best["edge"] = (best["learning_rate"] == best["min"]) | (best["learning_rate"] == best["max"])
    order = {key: i for i, key in enumerate(final["trained_with"].unique())}
    best = best.sort_values("trained_with", key=lambda s: s.map(order), kind="stable")
    columns = [*by, "learning_rate", "accuracy", "train_loss", "seeds", "rates", "edge"]
    return best.rename(columns={"nunique": "rates"})[columns].reset_index(drop=True)


def best_rates(log: Logs) -> pd.DataFrame:
    """Return the best rate of each estimator in each setting of one experiment's grid.

    Returns:
        The columns of `chosen`; of the settings, those that the grid varies.
    """
    extra = select.settings(log)
    setting = [*SETTING, *extra]
    rows = chosen(summary.metrics_with_settings(log, extra), setting)
    return rows.drop(columns=[name for name in setting if rows[name].nunique(dropna=False) < 2])
