"""Experiments of a user's own runs: what the runs of a `fdfa_core.Monitor` have in common, as figures ask for it.

No file says which of these runs belong together, so their configurations do. Runs of one loop (equal in all but their seed)
are replicates of one another. Loops that were measured alike, on equal networks, are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from analysis.logs import open_store
from fdfa_core.experiments.loading import Experiment, Origin
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.store import Store

PROFILE = "own"  # what figures call the runs of a directory that belong to no experiment file
CURVES = ("train_loss", "test_accuracy")  # what a run must have logged to be drawn over epochs
LACKING = {
    "trajectory": "needs runs that have measured estimators",
    "convergence": f"needs runs that all log {' and '.join(CURVES)}, and know their steps_per_epoch",
}


def has_runs(root: str | Path | Store) -> bool:
    """Return whether a directory holds runs of a `Monitor`."""
    return bool(_runs(open_store(root)))


def experiments(root: str | Path | Store) -> dict[str, Experiment]:
    """Return the experiments that a directory's own runs make, by role and name ("trajectory/own").

    Each loop is one of the role "trajectory": its seeds. Loops with equal networks and measurements, which have all logged the
    curves, are one of the role "convergence".

    Args:
        root: directory of runs; runs of experiment files in it are left out.

    Raises:
        RunError: a run cannot be read.
    """
    store = open_store(root)
    made: dict[str, Experiment] = {}
    for alike in _grouped(_runs(store), lambda run: _without(run, "seed", "estimator")):
        loops = _grouped(alike, lambda run: _without(run, "seed"))
        for loop in loops:
            if len(store.table("probes", [run.id for run in loop])):
                _add(made, store, loop[0].estimator.name, "trajectory", loop)
        if _has_curves(store, alike):
            names = dict.fromkeys(run.estimator.name for run in alike)
            _add(made, store, "-".join(names), "convergence", alike)
    return made


def _runs(store: Store) -> list[RunConfig]:
    return [config for config in map(store.config, store.ids()) if config.own_loop]


def _without(run: RunConfig, *parts: str) -> str:
    table = json.loads(run.canonical())
    return json.dumps({key: value for key, value in table.items() if key not in parts}, sort_keys=True)


def _grouped(runs: Iterable[RunConfig], key) -> list[list[RunConfig]]:
    groups: dict[str, list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    ordered = [sorted(group, key=lambda run: (run.estimator.name, run.seed)) for group in groups.values()]
    return sorted(ordered, key=lambda group: (group[0].estimator.name, group[0].id))


def _has_curves(store: Store, runs: list[RunConfig]) -> bool:
    rows = store.table("metrics", [run.id for run in runs])
    known = rows[np.isfinite(rows[["epoch", *CURVES]].to_numpy(float)).all(axis=1)]
    return set(known["run"]) == {run.id for run in runs}


def _add(made: dict[str, Experiment], store: Store, called: str, role: str, runs: list[RunConfig]) -> None:
    """Add an experiment under a name that can be part of a file's name, and that no other has."""
    name = re.sub(r"[^\w.=+-]+", "_", called)[:48].strip("_") or PROFILE
    if f"{role}/{name}" in made:
        name += f"-{runs[0].id[:6]}"
    path = store.root / role / name  # no file: it tells experiments apart, and stands in messages
    planned = {run.id: (run, Origin(path, {}, None, {}, {})) for run in runs}
    made[f"{role}/{name}"] = Experiment(name, description="", role=role, open="", path=path, _runs=planned)
