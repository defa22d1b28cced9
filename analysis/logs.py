"""Logs of an experiment as tidy frames: the only part of `analysis` that reads files.

Every row of every frame carries the columns of its run (`RUN_COLUMNS`), so that a statistic needs one frame and no join.
Runs that diverged are kept and say so in `status`; which statistic leaves them out is that statistic's business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import options
from fdfa_core import paths
from fdfa_core.errors import RunError
from fdfa_core.estimators.labels import label
from fdfa_core.experiments import loading, tables
from fdfa_core.runs import validation
from fdfa_core.runs.directory import RunDirectory
from fdfa_core.runs.store import Store, open_store

EXPERIMENTS = loading.EXPERIMENTS
RUN_COLUMNS = (
    "run",
    "experiment",
    "trained_with",
    "seed",
    "dataset",
    "architecture",
    "width",
    "depth",
    "batch_size",
    "learning_rate",
    "status",
)
TABLES = ("metrics", "probes", "timing", "feedback")


@dataclass(frozen=True)
class Logs:
    """The logs of one experiment.

    Attributes:
        runs: one row per run: `RUN_COLUMNS`, `diverged_step` (−1 where it did not), `steps`, `method`, `options` (of the
            estimator that trained, as in the probes), `config` (the run's configuration as canonical JSON).
        metrics: `metrics.parquet` of all runs (`learning_rate` there is the optimiser's at that step).
        probes: `probes.parquet` of all runs that have one; empty, without columns, if none has. `source` is "self" for the
            estimator that trains, with its one state, and "shadow" for any other, with R replicas of its state;
            `estimator` is the label in both cases.
        timing: `timing.parquet` of all runs.
        feedback: `feedback.parquet` of the runs that watched FDFA's feedback; empty, without columns, if none did.
        theory: recorded closed forms (`analysis.rebuilt.closed_forms`) with the columns `experiment` and `renewal`, the command
            that records them again; empty, without columns, if the runs are not from a record or nothing is recorded.

    All but `timing` have an estimator's options as columns ``option.<name>`` (`analysis.options.expand`): those of the probed
    estimator in `probes` and `feedback`, of the one that trained in `runs` and `metrics`.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    timing: pd.DataFrame
    feedback: pd.DataFrame = field(default_factory=pd.DataFrame)
    theory: pd.DataFrame = field(default_factory=pd.DataFrame)


def results(
    profile: str = "paper", experiment: str | None = None, root: str | Path | None = None
) -> dict[str, Logs] | Logs:
    """Return the recorded logs of a profile: those of every experiment that has recorded runs, or those of one experiment.

    Args:
        profile: whose record is read, such as "paper".
        experiment: the name of one experiment; None for all.
        root: directory of records, a folder for each profile; None for the one of this source tree.

    Returns:
        Experiment name → `Logs`, or the `Logs` of the one experiment. Runs that are not recorded are left out.

    Raises:
        UnknownName: there is no such profile or experiment.
        RunError: nothing is recorded there, or a file of the record is damaged.
    """
    place = Path(paths.RESULTS if root is None else root) / profile
    planned = loading.load_profile(profile)
    if experiment is not None:
        tables.require_known(f"experiment of profile {profile!r}", experiment, planned)
        planned = {experiment: planned[experiment]}
    store = open_store(place)
    recorded = {name: e for name, e in planned.items() if any(store.holds(run.id) for run in e.runs())}
    if not recorded:
        raise RunError(
            f"{place}: holds no recorded run of {experiment or f'profile {profile!r}'}. Records go with the source tree and "
            "are not part of an installed package: use a checkout, name the directory that holds them (root=...), or make the "
            f"runs and record them: fdfa sweep --profile {profile}; fdfa record --profile {profile}"
        )
    logs = {name: read(store, e, partial=True) for name, e in recorded.items()}
    return logs if experiment is None else logs[experiment]


def load(root: str | Path, experiment: str, *, profile: str = "quick", experiments: str | Path = EXPERIMENTS) -> Logs:
    """Read all runs of an experiment.

    Args:
        root: directory of runs.
        experiment: name of ``<experiments>/<profile>/<experiment>.toml``.
        profile: "smoke", "quick", …
        experiments: directory of experiment files.

    Raises:
        UnknownName: there is no such profile or experiment.
        RunError: a run is missing (the message says which command makes it), or one of its files cannot be read.
    """
    return read(root, find(experiment, profile, experiments))


def profile(name: str, experiments: str | Path = EXPERIMENTS) -> dict[str, loading.Experiment]:
    """Load all experiments of a profile, by name; raises `UnknownName` where there is no such profile."""
    return loading.load_profile(name, experiments)


def find(name: str, profile: str, experiments: str | Path = EXPERIMENTS) -> loading.Experiment:
    """Load one experiment file of a profile; raises `UnknownName` where there is no such profile or experiment."""
    tables.require_known("profile", profile, loading.profiles(experiments))
    known = sorted(path.stem for path in (Path(experiments) / profile).glob("*.toml"))
    tables.require_known(f"experiment of profile {profile!r}", name, known)
    return loading.load_experiment(Path(experiments) / profile / f"{name}.toml")


def read(root: str | Path | Store, experiment: loading.Experiment, *, partial: bool = False) -> Logs:
    """Read all runs of an experiment that is loaded already, or with `partial` those that are there (one at least).

    Args:
        root: directory of runs, record, or a store that is open already.
        experiment: whose runs are read.
        partial: leave out runs that are missing.

    Raises:
        RunError: as `load`; or a run holds what no such run writes.
    """
    store, configs = open_store(root), experiment.runs()
    missing = [config for config in configs if not store.holds(config.id)]
    if missing and not (partial and len(missing) < len(configs)):
        if isinstance(store, RunDirectory):
            validation.require_unspoilt(store.root, [config.id for config in missing])
        raise RunError(
            f"{store.root / missing[0].id}: is missing or unfinished ({len(missing)} of {len(configs)} runs of experiment "
            f"{experiment.name!r}); make them with: fdfa sweep {experiment.path.as_posix()}"
        )
    contents = validation.checked(store, [config for config in configs if config not in missing])
    rows = [_run_columns(config, experiment.name, contents.summaries[config.id]) for config in contents.configs]
    runs = pd.DataFrame([columns | outcome for columns, outcome in rows])
    about = runs[list(RUN_COLUMNS)].set_index("run", drop=False)
    frames = {name: _with_runs(name, table, about) for name, table in contents.tables.items() if len(table)}
    theory = store.theory([config.id for config in contents.configs])
    if len(theory):
        renewal = f"fdfa record {experiment.path.as_posix()} --out {store.root.as_posix()}"
        theory = theory.assign(experiment=experiment.name, renewal=renewal)
    frames = {name: pd.DataFrame() for name in TABLES} | frames
    runs = options.expand(runs)
    frames |= {name: options.expand(frames[name]) for name in ("probes", "feedback")}
    trained = runs[["run", *(c for c in runs if c.startswith(options.PREFIX))]]
    if len(frames["metrics"]):
        frames["metrics"] = frames["metrics"].merge(trained, on="run", how="left")
    return Logs(runs, **frames, theory=theory)


def _with_runs(name: str, table: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """Add to every row of a table the columns of its run that the table has not."""
    own = about.loc[table["run"]]
    if name == "probes":
        trained = table["estimator"] == "self"
        table["source"] = np.where(trained, "self", "shadow")
        table["estimator"] = table["estimator"].mask(trained, own["trained_with"].array)
    added = {column: own[column].array for column in RUN_COLUMNS if column == "run" or column not in table}
    return table.drop(columns="run").assign(**added)


def pooled(parts: Sequence[Logs]) -> Logs:
    """Return the logs of several experiments as one; the column `experiment` tells them apart."""
    if len(parts) == 1:
        return parts[0]
    frames = {f.name: [getattr(part, f.name) for part in parts if len(getattr(part, f.name))] for f in fields(Logs)}
    return Logs(**{name: pd.concat(f, ignore_index=True) if f else pd.DataFrame() for name, f in frames.items()})


def coverage(root: str | Path | Store, experiment: loading.Experiment) -> pd.DataFrame:
    """Return how many runs of each training estimator there are (`runs`) and how many there are to be (`planned`)."""
    store = open_store(root)
    rows = [
        (label(e.name, e.options), e.name, json.dumps(e.options, sort_keys=True), store.holds(config.id))
        for config in experiment.runs()
        for e in [config.estimator]
    ]
    names = ["trained_with", "method", "options"]
    frame = pd.DataFrame(rows, columns=[*names, "runs"])
    return frame.groupby(names, sort=False)["runs"].agg(runs="sum", planned="size").reset_index()


def fingerprint(root: str | Path | Store, experiment: loading.Experiment) -> str:
    """Return a hash that changes whenever anything that `read` returns changes."""
    return open_store(root).fingerprint([config.id for config in experiment.runs()])


def gradients(root: str | Path, run: str, step: int) -> dict[str, np.ndarray]:
    """Read the raw gradients of one probe: "bp/<parameter>", "reference/<parameter>", "<label>/<parameter>" (R, …).

    Args:
        root: directory of runs; a record holds no raw gradients.
        run: id of the run.
        step: of the probe.

    Raises:
        RunError: there are none for this run and step, or the file cannot be read.
    """
    return RunDirectory(root).gradients(run, step)


def _run_columns(run: tables.RunConfig, experiment: str, summary: dict) -> tuple[dict[str, object], dict[str, object]]:
    """Return what every row of a run carries, and what the frame of runs has beyond it."""
    hidden = run.network.options.get("hidden")
    values = (
        run.id,
        experiment,
        label(run.estimator.name, run.estimator.options),
        run.seed,
        run.data.name,
        run.network.architecture,
        max(hidden) if hidden else np.nan,
        len(hidden) if hidden else np.nan,
        summary.get("batch_size", np.nan) if run.own_loop else run.training.batch_size,
        np.nan if run.own_loop else run.training.learning_rate,
        summary["status"],
    )
    outcome = {
        "diverged_step": -1 if summary["diverged_step"] is None else summary["diverged_step"],
        "steps": summary["steps"],
        "method": run.estimator.name,
        "options": json.dumps(run.estimator.options, sort_keys=True),
        "config": run.canonical(),
    }
    return dict(zip(RUN_COLUMNS, values, strict=True)), outcome
