"""The record: finished runs that go with the code, one small Parquet data set for each experiment.

``<root>/<experiment>/`` holds `runs.parquet` with one row per run (configuration, provenance and summary as canonical JSON, and
columns to select by), and `metrics.parquet`, `probes.parquet` and `feedback.parquet` with the rows of all runs, told apart by
the dictionary column `run`. The seconds of the table `timing` stand in `metrics.parquet`, whose rows they belong to. Runs stand
in the order of the experiment. `theory.parquet` holds closed forms of the runs. What is large (raw gradients) is not recorded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdfa_core.errors import RunError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import read_arrow
from fdfa_core.runs import validation
from fdfa_core.runs.schema import COLUMNS, TABLES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RUNS, THEORY = "runs", "theory"
JOINED = {"timing": "metrics"}  # a table whose columns stand in the file of another, row by row
FILES = tuple(f"{name}.parquet" for name in (RUNS, *(table for table in TABLES if table not in JOINED), THEORY))
# Of theory.parquet, before the columns of the closed forms: the run that stands for all that share its network and samples, the
# hash of what was asked, and the hash of the code that answered.
THEORY_KEYS = ("run", "question", "code")
ASIDE = ".{}.old"  # where an experiment's folder is for the moment in which a new one takes its place


class Record:
    """The store of recorded runs. It implements `fdfa_core.runs.store.Store`, which documents the methods.

    Args:
        root: a folder of recorded experiments, or one of these.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        folders = {self.root.name: self.root} if is_experiment_folder(self.root) else experiment_folders(self.root)
        self.experiments = {name: RecordedExperiment(folder) for name, folder in folders.items()}

    def ids(self) -> list[str]:
        """See `Store`; in the order of the experiments."""
        return list(self._holder)

    def holds(self, run: str) -> bool:
        """See `Store`."""
        return run in self._holder

    def config(self, run: str) -> RunConfig:
        """See `Store`."""
        return RunConfig.from_json(self._of(run).rows[run]["config"])

    def summary(self, run: str) -> dict[str, Any]:
        """See `Store`."""
        return json.loads(self._of(run).rows[run]["summary"])

    def provenance(self, run: str) -> dict[str, Any]:
        """See `Store`."""
        return json.loads(self._of(run).rows[run]["provenance"])

    def arrow(self, name: str, runs: Sequence[str]) -> pa.Table:
        """See `Store`."""
        import pyarrow as pa

        whole = next((e for e in self.experiments.values() if set(runs) <= e.rows.keys()), None)
        groups = [(whole, runs)] if whole else itertools.groupby(runs, self._of)
        return pa.concat_tables([experiment.table(name, list(ids)) for experiment, ids in groups])

    def table(self, name: str, runs: Sequence[str]) -> pd.DataFrame:
        """See `Store`."""
        return self.arrow(name, runs).to_pandas()

    def theory(self, runs: Sequence[str]) -> pd.DataFrame:
        """See `Store`."""
        import pandas as pd

        frames = [e.theory for e in self.experiments.values() if not e.rows.keys().isdisjoint(runs)]
        frames = [frame[frame["run"].isin(runs)] for frame in frames if len(frame)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def fingerprint(self, runs: Sequence[str]) -> str:
        """See `Store`; of the whole files of the experiments that hold these runs."""
        digest = hashlib.sha256("\0".join(run for run in runs if self.holds(run)).encode())
        for experiment in self.experiments.values():
            if not experiment.rows.keys().isdisjoint(runs):
                digest.update(experiment.fingerprint.encode())
        return digest.hexdigest()

    def place(self, run: str, table: str = "") -> str:
        """See `Store`."""
        folder = self._holder[run].folder if self.holds(run) else self.root
        return f"{folder / f'{JOINED.get(table, table) or RUNS}.parquet'}, run {run}"

    @cached_property
    def _holder(self) -> dict[str, RecordedExperiment]:
        """Run id → the first experiment that holds it."""
        holder: dict[str, RecordedExperiment] = {}
        for experiment in self.experiments.values():
            for run in experiment.rows:
                holder.setdefault(run, experiment)
        return holder

    def _of(self, run: str) -> RecordedExperiment:
        if not self.holds(run):
            raise RunError(f"{self.root}: does not hold the run {run}")
        return self._holder[run]


class RecordedExperiment:
    """The folder of one recorded experiment.

    Args:
        folder: with `runs.parquet` and the tables of its runs.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Run id → row of `runs.parquet`, checked to hold together.

        Raises:
            RunError: the file cannot be read, or a row is not what a run makes it.
        """
        path = self.folder / f"{RUNS}.parquet"
        rows = _read(path).to_pylist()
        for number, row in enumerate(rows):
            where = f"{path}, row {number}"
            try:
                config, provenance, summary = (json.loads(row[key]) for key in ("config", "provenance", "summary"))
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{where}: has no config, provenance and summary as JSON ({error!r})") from error
            validation.check_summary(summary, f"{where}, summary")
            validation.check_provenance(provenance, f"{where}, provenance")
            try:
                expected = row_of(config, provenance, summary)
            except (KeyError, TypeError) as error:
                raise RunError(f"{where}: is not the configuration of a run (lacks {error})") from error
            if wrong := [key for key in expected if row.get(key) != expected[key]]:
                raise RunError(f"{where}: {wrong[0]} is {row.get(wrong[0])!r}; accepted: {expected[wrong[0]]!r}, as its "
                               "configuration, provenance and summary say")  # fmt: skip
        by_id = {row["run"]: row for row in rows}
        if len(by_id) < len(rows):
            raise RunError(f"{path}: holds a run twice; accepted: one row per run")
        return by_id

    def table(self, name: str, runs: Sequence[str]) -> pa.Table:
        """Return the rows of some runs, in their order, with the column `run` first.

        Raises:
            RunError: the file is missing or cannot be read, or its rows are not in the order of the runs.
        """
        import numpy as np
        import pyarrow as pa

        file = JOINED.get(name, name)
        path = self.folder / f"{file}.parquet"
        content = _read(path)
        if "run" not in content.column_names:
            raise RunError(f"{path}: lacks the column 'run' of a recorded table; it has {', '.join(content.column_names)}")
        here = {column for table in TABLES if JOINED.get(table, table) == file for column in COLUMNS[table]}
        beside = [column for column in content.column_names if column in here - {*COLUMNS[name]}]
        rows = validation.conform(content.drop_columns(["run", *beside]), name, path)
        column = content["run"].combine_chunks()
        column = column.dictionary_encode() if not pa.types.is_dictionary(column.type) else column
        position = {run: i for i, run in enumerate(self.rows)}
        names = column.dictionary.to_pylist()
        if foreign := [run for run in names if run not in position]:
            raise RunError(f"{path}: has rows of the run {foreign[0]}, which runs.parquet beside it does not have")
        places = np.array([position[run] for run in names], dtype=np.int64)[column.indices.to_numpy(zero_copy_only=False)]
        if (np.diff(places) < 0).any():
            raise RunError(f"{path}: its rows are not in the order of runs.parquet; record the experiment again")
        wanted = np.array([position[run] for run in runs], dtype=np.int64)
        first, last = np.searchsorted(places, wanted, "left"), np.searchsorted(places, wanted, "right")
        rows = rows.add_column(0, "run", column.cast("string"))
        if list(runs) == list(self.rows):
            return rows
        return pa.concat_tables([rows.slice(a, b - a) for a, b in zip(first, last, strict=True)] or [rows.slice(0, 0)])

    @cached_property
    def theory(self) -> pd.DataFrame:
        """The recorded closed forms: `THEORY_KEYS` and their columns; empty if none are recorded.

        Raises:
            RunError: the file cannot be read or lacks a key.
        """
        import pandas as pd

        path = self.folder / f"{THEORY}.parquet"
        if not path.exists():
            return pd.DataFrame()
        frame = _read(path).to_pandas()
        for key in THEORY_KEYS:
            if key not in frame:
                raise RunError(f"{path}: lacks the column {key!r} of recorded closed forms; remove it and record them again")
        return frame.astype(dict.fromkeys(THEORY_KEYS, "str"))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all files."""
        digest = hashlib.sha256()
        for name in FILES:
            path = self.folder / name
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"absent")
        return digest.hexdigest()


def row_of(config: Mapping[str, Any], provenance: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of `runs.parquet` of a run.

    Args:
        config: as `RunConfig.canonical` writes it, read as plain JSON.
        provenance: content of `provenance.json`.
        summary: content of `summary.json`.
    """
    return {
        "run": validation.configuration_id(config),
        "method": config["estimator"]["name"],
        "seed": config["seed"],
        "dataset": config["data"]["name"],
        "architecture": config["network"]["architecture"],
        "status": summary["status"],
        "steps": summary["steps"],
        "commit": provenance["code"]["commit"],
        "config": _canonical(config),
        "provenance": _canonical(provenance),
        "summary": _canonical(summary),
    }


def is_experiment_folder(folder: Path) -> bool:
    """Return whether a folder is that of a recorded experiment, whole or damaged."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return False
    return any((folder / name).exists() for name in FILES)


def experiment_folders(root: Path, skip: Collection[str] = ()) -> dict[str, Path]:
    """Return the folders of the experiments that are recorded in a directory, by name.

    A folder that stands aside because the writer of its successor was killed counts under its old name.
    """
    entries = [entry for entry in sorted(root.iterdir()) if entry.name not in skip] if root.is_dir() else []
    folders = {entry.name: entry for entry in entries if not entry.name.startswith(".") and is_experiment_folder(entry)}
    for entry in entries:
        name = entry.name[1:].removesuffix(".old")
        if entry.name == ASIDE.format(name) and name not in folders and is_experiment_folder(entry):
            folders[name] = entry
    return dict(sorted(folders.items()))


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: Path) -> pa.Table:
    return read_arrow(path, "the record of the experiment is damaged. Restore the file")
