"""Recording results: finished runs are checked and added to the record that goes with the code.

Every recorded run says which commit made it, so runs of changed and uncommitted code are refused. The folder of an experiment
is written beside the old one and then takes its place as a whole: a writer that is killed leaves the old one or the new one.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import Experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import make_directory, parquet, reported, sync_directory, write_atomically
from fdfa_core.locks import held as held_lock
from fdfa_core.runs import validation
from fdfa_core.runs.directory import MARKER, RunDirectory
from fdfa_core.runs.record import ASIDE, JOINED, RUNS, THEORY, THEORY_KEYS, Record, is_experiment_folder, row_of
from fdfa_core.runs.schema import COLUMNS, TABLES
from fdfa_core.runs.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LOCK = ".lock"
_TEXTS = ("config", "provenance", "summary")
_RUN_COLUMNS = ("run", "method", "seed", "dataset", "architecture", "status", "steps", "commit", *_TEXTS)


@dataclass
class Recorded:
    """What became of a recording: ids of runs, and for the damaged ones what is wrong with them."""

    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line."""
        line = f"{len(self.copied)} runs recorded, {len(self.present)} were there already, {len(self.missing)} not finished"
        line += f", {len(self.refused)} refused (made with uncommitted code)" if self.refused else ""
        line += f", {len(self.different)} differ from the recorded ones" if self.different else ""
        return line + (f", {len(self.damaged)} damaged" if self.damaged else "")


def record(
    experiment: Experiment, source: str | Path | Store, destination: str | Path, *, allow_dirty: bool = False
) -> Recorded:
    """Add the finished runs of an experiment that are not recorded yet; what is recorded is never changed.

    Args:
        experiment: whose runs are wanted.
        source: store that they were made in.
        destination: directory of the record, new or written before.
        allow_dirty: also take runs of code that differed from its commit, or whose commit is unknown.

    Raises:
        RunError: runs in `source` are damaged (all are named, and nothing is written); `destination` cannot be used.
    """
    return _add(experiment, source, destination, allow_dirty, merging=False)


def merge(
    experiment: Experiment, source: str | Path | Store, destination: str | Path, *, allow_dirty: bool = False
) -> Recorded:
    """Add runs that were made elsewhere, as `record`, but leave out damaged runs and compare those that are recorded already.

    Two runs are equal if summary, metrics, probes and feedback are; machine and time may differ. Of runs that differ the
    recorded one stays, and `Recorded.different` names them.

    Args:
        experiment: whose runs are wanted.
        source: a directory of runs or a record.
        destination: as for `record`.
        allow_dirty: as for `record`.

    Raises:
        RunError: `source` or `destination` cannot be used.
    """
    if isinstance(source, str | Path) and not Path(source).is_dir():
        raise RunError(f"{source}: is no directory; accepted: a directory of runs, or a record, to be merged")
    return _add(experiment, source, destination, allow_dirty, merging=True)


def foreign(source: str | Path | Store, experiments: Iterable[Experiment]) -> list[str]:
    """Return the ids of the runs of a store that belong to none of the experiments."""
    planned = {config.id for experiment in experiments for config in experiment.runs()}
    return [run for run in open_store(source).ids() if run not in planned]


def made_with_uncommitted_code(provenance: Mapping[str, Any]) -> bool:
    """Return whether any part of a run was made with code that its provenance cannot name by a commit."""
    parts = [provenance["code"], *(resumed["code"] for resumed in provenance.get("resumed", []))]
    return any(code["dirty"] is not False or code["commit"] is None for code in parts)


def size(root: str | Path) -> int:
    """Return how many bytes the files of a record take."""
    return sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())


def write_theory(root: str | Path, experiment: str, frame: pd.DataFrame) -> None:
    """Write the closed forms of a recorded experiment.

    Args:
        root: directory of the record.
        experiment: its name.
        frame: `THEORY_KEYS` and the columns of the closed forms.

    Raises:
        RunError: the experiment is not recorded, or the file cannot be written.
    """
    import pyarrow as pa

    root = Path(root)
    if not is_experiment_folder(root / experiment):
        raise RunError(f"{root / experiment}: is no recorded experiment; record its runs before their closed forms")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    for i, field_ in enumerate(table.schema):
        if pa.types.is_large_string(field_.type):
            table = table.set_column(i, field_.name, table[field_.name].cast("string"))
    for key in THEORY_KEYS:
        table = table.set_column(table.column_names.index(key), key, table[key].combine_chunks().dictionary_encode())
    with _held(root):
        write_atomically(root / experiment / f"{THEORY}.parquet", _parquet(table))


def _add(
    experiment: Experiment, source: str | Path | Store, destination: str | Path, allow_dirty: bool, merging: bool
) -> Recorded:
    source, destination = open_store(source), _open_destination(Path(destination))
    outcome, added = Recorded(), []
    with _held(destination):
        _recover(destination, experiment.name)
        folder = destination / experiment.name
        held = Record(folder) if is_experiment_folder(folder) else None
        for config in experiment.runs():
            recorded = held is not None and held.holds(config.id)
            if recorded and not (merging and source.holds(config.id)):
                outcome.present.append(config.id)
                continue
            if not source.holds(config.id):
                if isinstance(source, RunDirectory) and os.path.lexists(source.root / config.id):
                    outcome.damaged[config.id] = f"{source.place(config.id)}: {validation.damage(source.root / config.id)}"
                else:
                    outcome.missing.append(config.id)
                continue
            try:
                contents = validation.checked(source, [config])
            except RunError as error:
                outcome.damaged[config.id] = str(error)
                continue
            if recorded:
                equal = _equal(contents, validation.checked(held, [config]))
                (outcome.present if equal else outcome.different).append(config.id)
            elif not allow_dirty and made_with_uncommitted_code(contents.provenances[config.id]):
                outcome.refused.append(config.id)
            else:
                added.append(config)
        if outcome.damaged and not merging:
            raise RunError("; ".join(outcome.damaged.values()) + ". Nothing was recorded: make these runs again")
        if added:
            _replace(destination, experiment.name, _files(experiment.runs(), held, source, added))
            outcome.copied = [config.id for config in added]
    return outcome


def _equal(a: validation.Contents, b: validation.Contents) -> bool:
    """Return whether two runs hold the same results; machines and seconds may differ."""
    tables = [name for name in TABLES if name != "timing" and name in a.tables]
    return a.summaries == b.summaries and all(a.tables[name].equals(b.tables[name]) for name in tables)


def _open_destination(root: Path) -> Path:
    store = open_store(root)
    if isinstance(store, RunDirectory) and root.is_dir() and ((root / MARKER).exists() or store.ids()):
        raise RunError(f"{root}: is a directory of runs; accepted: a record, or a directory that is new or empty")
    if is_experiment_folder(root):
        raise RunError(f"{root}: is the folder of one recorded experiment; accepted: the directory above it")
    make_directory(root)
    return root


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """Hold a record for one writer."""
    with held_lock(root / LOCK, f"the record {root}"):
        yield


def _recover(root: Path, name: str) -> None:
    """Clear away what a killed writer left: the old record comes back if the new one had not taken its place."""
    aside = root / ASIDE.format(name)
    with reported(root / name):
        if aside.exists() and not (root / name).exists():
            os.rename(aside, root / name)
        for leftover in (aside, *root.glob(f".{name}.*.tmp")):
            shutil.rmtree(leftover, ignore_errors=True)


def _replace(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write an experiment's folder beside its place and let it take that place."""
    folder, aside, temporary = root / name, root / ASIDE.format(name), root / f".{name}.{os.getpid()}.tmp"
    try:
        with reported(folder):
            temporary.mkdir()
            for file, content in files.items():
                write_atomically(temporary / file, content)
            sync_directory(temporary)
            if folder.exists():
                os.rename(folder, aside)
            os.rename(temporary, folder)
            sync_directory(root)
    except BaseException:
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _files(planned: Sequence[RunConfig], held: Record | None, source: Store, added: Sequence[RunConfig]) -> dict[str, bytes]:
    """Return the files of an experiment's folder with the added runs, in the order of the experiment."""
    import pyarrow as pa

    new = {config.id for config in added}
    old = held.ids() if held else []
    order = [config.id for config in planned if config.id in new or config.id in old]
    order += [run for run in old if run not in order]  # an experiment that was changed since keeps what is recorded of it
    store_of = {run: source if run in new else held for run in order}
    configs = {run: store_of[run].config(run) for run in order}
    rows = [
        row_of(json.loads(configs[run].canonical()), store_of[run].provenance(run), store_of[run].summary(run)) for run in order
    ]
    files = {f"{RUNS}.parquet": _parquet(pa.Table.from_pylist(rows, schema=_runs_schema()))}
    tables = {}
    for name in TABLES:
        writers = [run for run in order if name in validation.tables_of(configs[run])]
        if not writers:
            continue
        groups = itertools.groupby(writers, lambda run: run in new)
        table = pa.concat_tables([(source if added_ else held).arrow(name, list(runs)) for added_, runs in groups])
        tables[name] = table.set_column(0, "run", _as_dictionary(table["run"], writers))
    for name, home in JOINED.items():  # row by row: `validation.checked` compared their steps
        for column in COLUMNS[name][1:]:
            tables[home] = tables[home].append_column(column, tables[name][column])
        del tables[name]
    files |= {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    if held and (theory := held.root / f"{THEORY}.parquet").exists():
        files[theory.name] = theory.read_bytes()
    return files


def _runs_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(column, "int64" if column in ("seed", "steps") else "string") for column in _RUN_COLUMNS])


def _as_dictionary(column: pa.ChunkedArray, runs: Sequence[str]) -> pa.Array:
    """Encode run ids by their place in `runs`, so that equal records are equal bytes however they came about."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pa.array(runs, "string")
    return pa.DictionaryArray.from_arrays(pc.index_in(column.combine_chunks(), values), values)


def _parquet(table: pa.Table) -> bytes:
    return parquet(table.combine_chunks(), row_group_size=max(1, len(table)))
