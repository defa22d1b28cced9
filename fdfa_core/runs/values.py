"""Which values the tables of runs may hold: ranges, the order of steps, and how many rows belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.schema import LATER_COLUMNS, METRICS, QUANTITIES

LEVELS = ("parameter", "block", "hidden", "network")
_SLACK = 1e-5  # by which rounding may carry a cosine beyond one
_COSINES = ("cosine_mean", "cosine_reference_mean", "mean_cosine", "reference_stability")
_EVEN_MOMENTS = tuple(f"{quantity}_{moment}" for quantity in QUANTITIES for moment in ("m2", "m4"))
_NOT_NEGATIVE = {
    "metrics": ("step", "epoch"),
    "timing": ("step", "training_seconds", "instrument_seconds", "evaluation_seconds"),
    "probes": ("step", "epoch", "variance", "variance_se", "bias2_se", "mean_norm2", "target_norm", "reference_norm",
               "reference_variance", "deviation_mean", "norm2_mean", "error_mean", *LATER_COLUMNS, *_EVEN_MOMENTS),
    "feedback": ("step", "epoch", "jacobian_norm", "error2", "error2_se", "variance", "variance_se", "bias2_se",
                 "gradient_norm", "gradient_bias2_se", "averaging2", "lag2", "start2", "sampling2", "expected_bias2"),
}  # fmt: skip
_KEYS = {
    "metrics": ("step",),
    "timing": ("step",),
    "probes": ("step", "estimator", "level", "block", "role", "parameter"),
    "feedback": ("step", "estimator", "block"),
}


@dataclass(frozen=True)
class Fault:
    """The first fault of a table: the run that has it, and a text that says what is wrong and what is accepted."""

    run: str
    text: str


def fault(name: str, frame: pd.DataFrame, configs: Mapping[str, RunConfig]) -> Fault | None:
    """Return the first fault of a table of several runs, or None if it is sound.

    Args:
        name: "metrics", "probes", "timing" or "feedback".
        frame: the rows of all runs, run after run, with the column `run`.
        configs: configurations by run id.
    """
    if not len(frame):
        return None
    for bad, column, accepted in _rules(name, frame, configs):
        bad = np.asarray(bad)
        if bad.any():
            row = frame.iloc[int(bad.argmax())]
            value = row[column]
            shown = f"{value:.6g}" if isinstance(value, float) else repr(value.item() if hasattr(value, "item") else value)
            return Fault(row["run"], f"{column} is {shown} at step {row['step']}; accepted: {accepted}")
    return None


def _rules(name: str, frame: pd.DataFrame, configs: Mapping[str, RunConfig]) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield for every rule of a table which rows break it, the column that shows it, and what is accepted."""
    for column in _NOT_NEGATIVE[name]:
        yield frame[column].to_numpy() < 0, column, "a number that is not negative"
    follows = (frame["run"] == frame["run"].shift()).to_numpy()
    step = frame["step"].to_numpy()
    backwards = follows & (step < np.roll(step, 1))
    yield backwards, "step", "steps in ascending order"
    yield frame.duplicated(["run", *_KEYS[name]]).to_numpy(), "step", "one row for each of " + ", ".join(_KEYS[name])
    own = frame["run"].isin([run for run, config in configs.items() if config.own_loop]).to_numpy()
    if name == "metrics":
        yield from _of_metrics(frame, follows, own)
    elif name == "timing":
        yield ~follows & ~own & (step != 0), "step", "0 in the first row"
        for column in _NOT_NEGATIVE[name][1:]:
            seconds = frame[column].to_numpy()
            yield ~np.isfinite(seconds) & ~(own & np.isnan(seconds)), column, "a finite number of seconds"
            yield follows & (seconds < np.roll(seconds, 1)), column, "seconds since the start, which never fall"
    else:
        yield from _of_estimates(name, frame, configs)


def _of_metrics(frame: pd.DataFrame, follows: np.ndarray, own: np.ndarray) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield the rules of metrics. Rows of a user's `own` loop begin where it began to log, and hold NaN for what it did not."""
    silent = {column: own & np.isnan(frame[column].to_numpy()) for column in METRICS if column != "step"}
    yield ~follows & ~own & (frame["step"].to_numpy() != 0), "step", "0 in the first row, before training"
    for column in ("train_accuracy", "test_accuracy"):
        value = frame[column].to_numpy()
        yield ~((value >= 0) & (value <= 1)) & ~silent[column], column, "a share between 0 and 1"
    for column in ("epoch", "train_loss", "test_loss", "learning_rate"):
        yield ~np.isfinite(frame[column].to_numpy()) & ~silent[column], column, "a finite number"
    losses = frame["batch_loss"].to_numpy()
    wrong = np.where(frame["step"] == 0, np.isinf(losses), ~np.isfinite(losses)) & ~silent["batch_loss"]
    yield wrong, "batch_loss", "a finite number after step 0"
    yield ~(frame["learning_rate"].to_numpy() > 0) & ~silent["learning_rate"], "learning_rate", "a positive number"


def _of_estimates(name: str, frame: pd.DataFrame, configs: Mapping[str, RunConfig]) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield the rules of the tables that probes write."""
    replicates = frame["run"].map({run: config.probe.replicates for run, config in configs.items() if config.probe})
    column = "draws" if name == "probes" else "replicates"
    yield (frame[column] != replicates).to_numpy(), column, "the replicates of the run's configuration"
    if name == "feedback":
        return
    for cosine in _COSINES:
        yield (frame[cosine].abs() > 1 + _SLACK).to_numpy(), cosine, "a cosine: between -1 and 1, or NaN"
    yield ~frame["level"].isin(LEVELS).to_numpy(), "level", f"one of {', '.join(LEVELS)}"
    sampling = frame["run"].map({run: config.probe.sampling for run, config in configs.items() if config.probe})
    yield (frame["sampling"] != sampling).to_numpy(), "sampling", "the sampling of the run's configuration"
    yield (frame["size"] < 1).to_numpy(), "size", "a positive number of components"
    yield (frame["reference_batches"] < 2).to_numpy(), "reference_batches", "two batches or more"
    planned = frame["run"].map({run: len(config.probe.estimators) for run, config in configs.items() if config.probe})
    probe = frame.groupby(["run", "step"], sort=False)
    yield (probe["estimator"].transform("nunique") != planned).to_numpy(), "estimator", (
        "rows of every probed estimator of the run's configuration at every probed step"
    )
    rows = frame.groupby(["run", "step", "estimator"], sort=False)["level"].transform("size")
    most = rows.groupby(frame["run"], sort=False).transform("max")
    yield (rows != most).to_numpy(), "estimator", "equally many rows of every estimator at every probed step"
