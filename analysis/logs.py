"""Logs of an experiment as tidy frames: the only part of `analysis` that reads files.

Every row of every frame carries the columns of its run (`RUN_COLUMNS`), so that a statistic needs one frame and no join.
Runs that diverged are kept and say so in `status`; which statistic leaves them out is that statistic's business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import options
from fdfa_core.errors import RunError
from fdfa_core.estimators.registry import label
from fdfa_core.experiments import loading, tables
from fdfa_core.runs import directory as runs
from fdfa_core.runs.schema import PROBE_COLUMNS

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

    All but `timing` have an estimator's options as columns ``option.<name>`` (`analysis.options.expand`): those of the probed
    estimator in `probes` and `feedback`, of the one that trained in `runs` and `metrics`.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    timing: pd.DataFrame
    feedback: pd.DataFrame = field(default_factory=pd.DataFrame)


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


def read(root: str | Path, experiment: loading.Experiment, *, partial: bool = False) -> Logs:
    """Read all runs of an experiment that is loaded already, or with `partial` those that are there (one at least).

    Raises:
        RunError: as `load`.
    """
    root, configs = Path(root), experiment.runs()
    missing = [c for c in configs if not runs.is_complete(root, c.id)]
    if missing and not (partial and len(missing) < len(configs)):
        raise RunError(
            f"{root / missing[0].id}: is missing or unfinished ({len(missing)} of {len(configs)} runs of experiment "
            f"{experiment.name!r}); make them with: fdfa sweep {experiment.path.as_posix()}"
        )
    configs = [c for c in configs if c not in missing]
    frames: dict[str, list[pd.DataFrame]] = {"runs": [], **{name: [] for name in TABLES}}
    for run in configs:
        directory = root / run.id
        columns, outcome = _run_columns(run, experiment.name, runs.read_summary(directory))
        frames["runs"].append(pd.DataFrame([columns | outcome]))
        for name in _tables_of(run):
            table = runs.read_table(directory, name, PROBE_COLUMNS if name == "probes" else ())
            if name == "probes":
                trained = table["estimator"] == "self"
                table["source"] = np.where(trained, "self", "shadow")
                table["estimator"] = table["estimator"].mask(trained, columns["trained_with"])
            if table.empty:  # the run diverged before its first probe
                continue
            frames[name].append(table.assign(**{k: v for k, v in columns.items() if k not in table}))
    whole = {name: pd.concat(f, ignore_index=True) if f else pd.DataFrame() for name, f in frames.items()}
    whole |= {name: options.expand(whole[name]) for name in ("runs", "probes", "feedback")}
    trained = whole["runs"][["run", *(c for c in whole["runs"] if c.startswith(options.PREFIX))]]
    whole["metrics"] = whole["metrics"].merge(trained, on="run", how="left") if len(whole["metrics"]) else whole["metrics"]
    return Logs(**whole)


def pooled(parts: Sequence[Logs]) -> Logs:
    """Return the logs of several experiments as one; the column `experiment` tells them apart."""
    if len(parts) == 1:
        return parts[0]
    frames = {name: [vars(part)[name] for part in parts if len(vars(part)[name])] for name in vars(parts[0])}
    return Logs(**{name: pd.concat(f, ignore_index=True) if f else pd.DataFrame() for name, f in frames.items()})


def coverage(root: str | Path, experiment: loading.Experiment) -> pd.DataFrame:
    """Return how many runs of each training estimator there are (`runs`) and how many there are to be (`planned`)."""
    rows = [
        (label(e.name, e.options), e.name, json.dumps(e.options, sort_keys=True), runs.is_complete(root, config.id))
        for config in experiment.runs()
        for e in [config.estimator]
    ]
    names = ["trained_with", "method", "options"]
    frame = pd.DataFrame(rows, columns=[*names, "runs"])
    return frame.groupby(names, sort=False)["runs"].agg(runs="sum", planned="size").reset_index()


def files(root: str | Path, experiment: loading.Experiment) -> list[Path]:
    """Return the files that `read` reads, whether they exist or not."""
    return [
        Path(root) / run.id / name
        for run in experiment.runs()
        for name in ("config.json", "summary.json", *(f"{table}.parquet" for table in _tables_of(run)))
    ]


def gradients(root: str | Path, run: str, step: int) -> dict[str, np.ndarray]:
    """Read the raw gradients of one probe: "bp/<parameter>", "reference/<parameter>", "<label>/<parameter>" (R, …).

    Raises:
        RunError: there are none for this run and step, or the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(root) / run / "gradients" / f"step={step}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing; raw gradients are kept with raw_gradients = true in [probe]") from error
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is truncated or not a safetensors file ({error})") from error


def _tables_of(run: tables.RunConfig) -> list[str]:
    """Which tables a run writes."""
    asked = {"probes": run.probe is not None, "feedback": run.probe is not None and run.probe.feedback}
    return [name for name in TABLES if asked.get(name, True)]


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
        run.training.batch_size,
        run.training.learning_rate,
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
