"""All statistics that the logs of one experiment allow, as tables by name."""

from __future__ import annotations

import json

import pandas as pd

from analysis import accuracy, alignment, bias, convergence, layers, select, statistics, variance
from analysis.logs import Logs

SETTING = ("dataset", "architecture", "width", "depth", "batch_size", "learning_rate")


def tables(log: Logs) -> dict[str, pd.DataFrame]:
    """Return every statistic over seeds, kept apart by whatever the experiment varies.

    Args:
        log: the logs of one experiment.

    Returns:
        Where networks were trained, `accuracy` (see `accuracy.table`) and `convergence` (`convergence.curves`, with the column
        `quantity`: "train_loss" or "test_accuracy"); where gradients were probed, `variance` (`variance.normalised`) and
        `bias` (`bias.split`), both over seeds, `alignment` (`alignment.angles`), `activations` (`layers.growth`; absent where
        the logs are older than what it measures), and, where each draw had a batch of its own, `agreement`
        (`layers.agreements`).
    """
    extra = select.settings(log)
    setting = [*SETTING, *extra]
    metrics = metrics_with_settings(log, extra)
    metrics = metrics[metrics["run"].isin(_trained(log))]
    written = {}
    if len(metrics):
        written["accuracy"] = accuracy.table(metrics, setting)
        curves = {q: convergence.curves(metrics, q, [*setting, "trained_with"]) for q in ("train_loss", "test_accuracy")}
        written["convergence"] = pd.concat([frame.assign(quantity=q) for q, frame in curves.items()], ignore_index=True)
    if len(log.probes):
        by = [*setting, "trained_with", "step", "source", "estimator", "level", "block", "parameter"]
        probes = log.probes.join(extra, on="run")
        written["variance"] = statistics.over_seeds(variance.normalised(probes), "nsr", by, se="nsr_se", log=True)
        written["bias"] = statistics.over_seeds(bias.split(probes), "value", [*by, "quantity"], se="se")
        written["alignment"] = alignment.angles(probes, by)
        activations = layers.growth(probes, [*setting, "trained_with", "step", "block"])
        written |= {"activations": activations} if len(activations) else {}
        if (probes["sampling"] == "fresh_batches").all():
            written["agreement"] = layers.agreements(probes, by)
    return written


def metrics_with_settings(log: Logs, extra: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the metrics with all that tells runs apart, and with the run's learning rate, not the optimiser's of the moment.

    Args:
        log: the logs of one experiment.
        extra: one row per run, by default `select.settings(log)`.
    """
    rates = log.runs.set_index("run")["learning_rate"]
    metrics = log.metrics.assign(learning_rate=log.metrics["run"].map(rates))
    return metrics.join(select.settings(log) if extra is None else extra, on="run")


def _trained(log: Logs) -> list[str]:
    """Return the runs whose weights an optimiser moved."""
    trained = [json.loads(config)["training"]["optimizer"] != "none" for config in log.runs["config"]]
    return log.runs["run"][trained].tolist()
