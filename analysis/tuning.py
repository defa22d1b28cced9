"""The learning rate that suits each estimator, from runs of one grid that were judged on held-out training samples."""

from __future__ import annotations

import pandas as pd

from analysis import accuracy

SETTING = ("dataset", "architecture", "trained_with")


def chosen(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the best rate of each estimator: the highest mean accuracy at the last evaluation, ties to the lower loss.

    A rate at which a run diverged is out, however well its other seeds did.

    Args:
        metrics: rows of `metrics.parquet` of all runs of the grid, with the run's rate as `learning_rate`.

    Returns:
        Columns `dataset`, `architecture`, `trained_with`, `learning_rate`, `accuracy`, `train_loss`, `seeds`, `rates` (tried),
        `edge` (the best is the smallest or the largest rate that was tried, so that a better one may lie outside).
        An estimator whose runs all diverged is left out.
    """
    final = accuracy.final(metrics)
    by = [*SETTING, "learning_rate"]
    grid = final.groupby(by, sort=False).agg(
        accuracy=("test_accuracy", "mean"),
        train_loss=("train_loss", "mean"),
        seeds=("seed", "nunique"),
        sound=("status", lambda s: (s == "finished").all()),
    )
    grid = grid.reset_index()
    tried = grid.groupby(list(SETTING), sort=False)["learning_rate"].agg(["min", "max", "nunique"]).reset_index()
    best = grid[grid["sound"]].sort_values(["accuracy", "train_loss"], ascending=[False, True], kind="stable")
    best = best.groupby(list(SETTING), sort=False).head(1).drop(columns="sound").merge(tried, on=list(SETTING))
    best["edge"] = (best["learning_rate"] == best["min"]) | (best["learning_rate"] == best["max"])
    order = {key: i for i, key in enumerate(final["trained_with"].unique())}
    best = best.sort_values("trained_with", key=lambda s: s.map(order), kind="stable")
    return best.rename(columns={"nunique": "rates"}).drop(columns=["min", "max"]).reset_index(drop=True)
