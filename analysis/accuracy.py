"""Accuracy at the end of training, over seeds, and the differences from one method.

The number of a run is its test accuracy at the *last* evaluation. The best over training is chosen on the test set, hence
too high; it is given beside it, under its own name, and never compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.logs import Logs

SETTING = ("dataset", "architecture")


def final(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the last evaluation of every run, with `best_test_accuracy`, the highest of all its evaluations."""
    ordered = metrics.sort_values("step", kind="stable")
    last = ordered.groupby("run", sort=False).tail(1).set_index("run")
    best = ordered.groupby("run", sort=False)["test_accuracy"].max().rename("best_test_accuracy")
    return last.join(best).reset_index()


def with_setting(log: Logs) -> pd.DataFrame:
    """Return the metrics with what must be equal where accuracies are compared, besides data and network.

    Returns:
        `log.metrics` with `epochs`, the length of their experiment's longest run, and `optimizer`, the weights' optimiser
        ("own" in a loop of your own, of which no configuration tells).
    """
    optimizers = {run.run: json.loads(run.config)["training"].get("optimizer", "own") for run in log.runs.itertuples()}
    epochs = log.metrics.groupby("experiment", sort=False)["epoch"].transform("max").round().astype(int)
    return log.metrics.assign(epochs=epochs, optimizer=log.metrics["run"].map(optimizers))


def table(
    metrics: pd.DataFrame, setting: Sequence[str] = SETTING, against: str | None = None, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return one row for each setting and training estimator.

    Args:
        metrics: rows of `metrics.parquet`.
        setting: columns that name what is compared like with like.
        against: label of the estimator that the others are compared with.
        level: coverage of the t-intervals over seeds.

    Returns:
        Columns `setting`, `trained_with`, `seeds` (finished), `diverged`, `accuracy`, `low`, `high`, `interval`,
        `best_accuracy`, `train_loss`; and, with `against`, those of `differences`. A method whose runs all diverged has
        `seeds` = 0 and no accuracy (NaN).
    """
    by = [*setting, "trained_with"]
    runs = final(metrics)
    counts = runs.groupby(by, sort=False, dropna=False)["status"].agg(diverged=lambda s: int((s == "diverged").sum()))
    done = runs[runs["status"] == "finished"]
    accuracy = statistics.over_seeds(done, "test_accuracy", by, level=level)
    accuracy = accuracy.rename(columns={"estimate": "accuracy"}).set_index(by)
    means = done.groupby(by, sort=False, dropna=False).agg(
        best_accuracy=("best_test_accuracy", "mean"), train_loss=("train_loss", "mean")
    )
    # merged by columns: an index with NaN (the width of a network without one) finds no partner
    out = counts.reset_index().merge(accuracy.reset_index(), on=by, how="left").merge(means.reset_index(), on=by, how="left")
    out["seeds"] = out["seeds"].fillna(0).astype(int)
    out["interval"] = out["interval"].fillna("none")
    columns = [*by, "seeds", "diverged", "accuracy", "low", "high", "interval", "best_accuracy", "train_loss"]
    if against is None:
        return out[columns]
    compared = differences(metrics, against, setting, level)
    return out[columns].merge(compared, on=by, how="left", validate="one_to_one")


def differences(
    metrics: pd.DataFrame, against: str, setting: Sequence[str] = SETTING, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Compare final test accuracies with those of one estimator, within each setting.

    A paired t-test over the seeds both finished (equal seeds share initialisation and batches), and Holm's correction over
    the estimators of a setting. Fewer than two common seeds allow no test: `p_holm` is then 1, which is no evidence.

    Returns:
        Columns `setting`, `trained_with`, `difference`, `difference_low`, `difference_high` (estimator − `against`), `p_holm`.
    """
    done = final(metrics).query("status == 'finished'")
    rows = []
    for key, group in done.groupby(list(setting), sort=False, dropna=False):
        wide = group.pivot(index="seed", columns="trained_with", values="test_accuracy")
        if against not in wide:
            continue
        block = []
        for name in group["trained_with"].unique():
            pair = wide[[name, against]].dropna() if name != against else None
            if pair is None or not statistics.testable(pair[name] - pair[against]):
                gap = 0.0 if pair is None or pair.empty else float((pair[name] - pair[against]).mean())
                block.append([*key, name, gap, gap, gap, np.nan])
            else:
                test = statistics.difference(pair[name], pair[against], paired=True, level=level)
                block.append([*key, name, test.estimate, test.low, test.high, test.p])
        p = np.array([row[-1] for row in block])
        tested = np.isfinite(p)
        p[tested], p[~tested] = statistics.holm(p[tested]), 1.0
        rows += [[*row[:-1], float(corrected)] for row, corrected in zip(block, p, strict=True)]
    names = ["difference", "difference_low", "difference_high", "p_holm"]
    return pd.DataFrame(rows, columns=[*setting, "trained_with", *names])
