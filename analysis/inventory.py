"""What a directory of runs holds of the experiments that are planned: provenance and cost, one row per run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fdfa_core.estimators.labels import label
from fdfa_core.experiments.loading import Experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.store import Store, open_store


def inventory(root: str | Path | Store, experiments: Iterable[Experiment]) -> pd.DataFrame:
    """Return one row for each planned run, whether it is there or not.

    Returns:
        Columns `experiment`, `run`, `trained_with`, `seed`, `there`; and for the runs that are there `status`, `steps`,
        `seconds` (training, instruments and evaluation, without pauses), `commit`, `dirty`, `resumed` (how often it was taken
        up again), `python`, `torch`, `processor`, `cores`, `device`, `threads`, `data`, `data_sha256`, `data_notes`, `started`,
        `finished`.

    Raises:
        RunError: a run's files cannot be read.
    """
    store, rows = open_store(root), []
    for experiment in experiments:
        seconds = _seconds(store, [config.id for config in experiment.runs() if store.holds(config.id)])
        for config in experiment.runs():
            row = {"experiment": experiment.name, "run": config.id, "seed": config.seed}
            row["trained_with"] = label(config.estimator.name, config.estimator.options)
            row["there"] = store.holds(config.id)
            rows.append(row | (_outcome(store, config.id, seconds) if row["there"] else {}))
    return pd.DataFrame(rows)


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what the runs of each experiment take, from those that are there.

    Returns:
        Columns `experiment`, `runs` (there), `planned`, `hours` (of those that are there) and `hours_all`: the same with every
        missing run taken for an average one of its estimator, or of its experiment where its estimator has none; NaN where
        nothing is there. Hours are of one process with the threads it had, on the machine of the record, without pauses.
    """
    runs = runs if "seconds" in runs else runs.assign(seconds=np.nan)
    mean_of = runs.groupby(["experiment", "trained_with"], sort=False)["seconds"].transform("mean")
    guess = mean_of.fillna(runs.groupby("experiment", sort=False)["seconds"].transform("mean"))
    hours = runs.assign(hours=runs["seconds"] / 3600, hours_all=runs["seconds"].fillna(guess) / 3600)
    table = hours.groupby("experiment", sort=False).agg(
        runs=("there", "sum"),
        planned=("there", "size"),
        hours=("hours", "sum"),
        hours_all=("hours_all", lambda h: h.sum(skipna=False)),
    )
    return table.reset_index()


def cost_by_network(experiments: Iterable[Experiment], roots: Iterable[str | Path]) -> dict[str, float]:
    """Return the hours of experiments of which no run is there, by recorded runs of the same network and data.

    A run takes as long for each epoch (or step, where its length is given in steps) as recorded runs of its estimator do, or as
    those of all estimators where its own has none. Their instruments and evaluations count in, and need not be the same.

    Args:
        experiments: whose runs are planned.
        roots: records, or directories of runs.

    Returns:
        Hours of one process by name of the experiment; NaN where no run of some network is recorded.
    """
    rows = []
    for store in map(open_store, roots):
        seconds = _seconds(store, store.ids())
        rows += [(*_alike(config := store.config(run)), seconds[run] / _length(config)) for run in seconds]
    known = pd.DataFrame(rows, columns=["network", "method", "pace"])
    pace, any_pace = known.groupby(["network", "method"])["pace"].median(), known.groupby("network")["pace"].mean()
    hours = {}
    for experiment in experiments:
        runs = [(*_alike(config), _length(config)) for config in experiment.runs()]
        each = [pace.get((network, method), any_pace.get(network, np.nan)) * length for network, method, length in runs]
        hours[experiment.name] = sum(each) / 3600
    return hours


def _alike(config: RunConfig) -> tuple[str, str]:
    """Return what makes two runs take as long: data, network, batch and unit of length; and the method."""
    unit = "epochs" if config.training.epochs is not None else "steps"
    network = [config.data.name, config.data.train_size, config.network.architecture, config.network.options]
    return json.dumps([*network, config.training.batch_size, unit], sort_keys=True), config.estimator.name


def _length(config: RunConfig) -> int:
    return config.training.epochs if config.training.epochs is not None else config.training.steps


def _seconds(store: Store, runs: list[str]) -> dict[str, float]:
    """Return what each run took in all: training, instruments and evaluation.

    Steps and evaluations count at the run's median time for one, so that a process that stood still, or that other work starved
    for a while, takes no longer. Instruments count in full: most of their time goes into a few measurements.
    """
    if not runs:
        return {}
    timing = store.table("timing", runs).sort_values(["run", "step"], kind="stable").set_index("run")
    spent = timing - timing.groupby(level="run").shift(fill_value=0)  # from one evaluation to the next
    by_run = spent.assign(pace=spent["training_seconds"] / spent["step"].where(spent["step"] > 0)).groupby(level="run")
    training = by_run["pace"].median().fillna(0.0) * by_run["step"].sum()
    evaluation = by_run["evaluation_seconds"].median() * by_run.size()
    return (training + by_run["instrument_seconds"].sum() + evaluation).to_dict()


def _outcome(store: Store, run: str, seconds: dict[str, float]) -> dict[str, Any]:
    summary, origin = store.summary(run), store.provenance(run)
    code, hardware, data = origin["code"], origin["hardware"], origin["data"]
    return {
        "status": summary["status"],
        "steps": summary["steps"],
        "seconds": seconds.get(run, 0.0),  # a run that diverged before its first evaluation has no row
        "commit": code["commit"],
        "dirty": code["dirty"],
        "resumed": len(origin.get("resumed", [])),
        "python": origin["versions"]["python"],
        "torch": origin["versions"]["torch"],
        **{key: hardware[key] for key in ("processor", "cores", "device", "threads")},
        "data": data["name"],
        "data_sha256": data["sha256"],
        "data_notes": "; ".join(data["notes"]),
        "started": origin["started"],
        "finished": origin["finished"],
    }
