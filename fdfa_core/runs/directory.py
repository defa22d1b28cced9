"""Run directories: complete or absent, never something in between.

An unfinished run lives in ``<id>.partial/`` and is renamed to ``<id>/`` once all its files are on the disk. Each file is
written beside its place and moved there, so that a process killed at any moment, or a full disk, leaves whole files only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fdfa_core.errors import RunError
from fdfa_core.experiments.own import configuration
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import read_arrow, read_file, reported, write_atomically
from fdfa_core.locks import held
from fdfa_core.runs import seal, validation
from fdfa_core.runs.schema import TABLES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

MARKER = ".fdfa-runs"
_LOCKS = ".locks"
_ID = re.compile(r"[0-9a-f]{16}")
_RUN = re.compile(r"[0-9a-f]{16}(\.partial|\.damaged-\d+)?")


class RunDirectory:
    """The store of runs where they are made: a directory for each finished run, named by its id.

    It implements `fdfa_core.runs.store.Store`, which documents the methods.

    Args:
        root: directory of runs; it may be missing, and then holds none.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def ids(self) -> list[str]:
        """See `Store`."""
        entries = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [entry.name for entry in entries if is_run_id(entry.name) and self.holds(entry.name)]

    def holds(self, run: str) -> bool:
        """See `Store`; one look at the file system."""
        return is_complete(self.root, run)

    def config(self, run: str) -> RunConfig:
        """See `Store`."""
        config = read_config(self.root / run)
        if (target := (self.root / run).resolve().name) != run:
            raise RunError(f"{self.root / run}: is a link to {target}, another run; accepted: a directory of its own")
        if config.id != run:
            raise RunError(
                f"{self.root / run}: its config.json is not that of run {run}; move it away and make the run again"
            )
        return config

    def summary(self, run: str) -> dict[str, Any]:
        """See `Store`."""
        return validation.check_summary(read_summary(self.root / run), self.root / run / "summary.json")

    def provenance(self, run: str) -> dict[str, Any]:
        """See `Store`."""
        return validation.check_provenance(read_provenance(self.root / run), self.root / run / "provenance.json")

    def arrow(self, name: str, runs: Sequence[str]) -> pa.Table:
        """See `Store`."""
        import pyarrow as pa

        parts = []
        for run in runs:
            part = validation.conform(_read_arrow(self.root / run, name), name, self.root / run / f"{name}.parquet")
            parts.append(part.add_column(0, "run", pa.array([run] * len(part), "string")))
        return pa.concat_tables(parts)

    def table(self, name: str, runs: Sequence[str]) -> pd.DataFrame:
        """See `Store`."""
        return self.arrow(name, runs).to_pandas()

    def theory(self, runs: Sequence[str]) -> pd.DataFrame:
        """See `Store`; closed forms are kept of recorded runs only."""
        import pandas as pd

        return pd.DataFrame()

    def gradients(self, run: str, step: int) -> dict[str, np.ndarray]:
        """Return the raw gradients of one probe, by name.

        Raises:
            RunError: there are none for this run and step, or the file cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.root / run / "gradients" / f"step={step}.safetensors"
        try:
            tensors = load_file(path)
            seal.require_file(self.root / run, f"gradients/{path.name}", self.provenance(run))
            return tensors
        except FileNotFoundError as error:
            raise RunError(f"{path}: is missing; raw gradients are kept with raw_gradients = true in [probe]") from error
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path}: is truncated or not a safetensors file ({error})") from error

    def fingerprint(self, runs: Sequence[str]) -> str:
        """See `Store`."""
        names = ("config.json", "summary.json", *(f"{table}.parquet" for table in TABLES))
        digest = hashlib.sha256()
        for path in (self.root / run / name for run in runs for name in names):
            digest.update(f"{path.parent.name}/{path.name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"absent")
        return digest.hexdigest()

    def place(self, run: str, table: str = "") -> str:
        """See `Store`."""
        return str(self.root / run / f"{table}.parquet" if table else self.root / run)


def open_root(root: str | Path) -> Path:
    """Make `root` a directory of runs, or see that it is one and can be written to.

    Raises:
        RunError: it is a file, cannot be written to, or holds files of something else; nothing in it is changed then.
    """
    root = Path(root)
    with reported(root):
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARKER).exists():
            known = (entry.name for entry in root.iterdir() if entry.name != _LOCKS and not _RUN.fullmatch(entry.name))
            others = sorted(name for name in known if MARKER not in name)  # where only the marker was lost, it is written anew
            if others and not (root / MARKER).exists():  # by now another process may have made it one
                raise RunError(
                    f"{root}: holds files that no run wrote (such as {others[0]!r}); accepted: a new or an empty directory, "
                    "or one made for runs"
                )
            write_atomically(root / MARKER, b"Logs of runs: a directory each, named by the hash of its configuration.\n")
        (root / _LOCKS).mkdir(exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write")
    return root


def is_complete(root: str | Path, run_id: str) -> bool:
    """Whether the run is there; one look at the file system, nothing is read."""
    return os.path.exists(os.path.join(root, run_id, "summary.json"))


@contextmanager
def claim(root: Path, run_id: str, wait: bool = True) -> Iterator[bool]:
    """Hold the run for this process; yields False, if not to `wait`, when another process holds it.

    The operating system frees the claim of a process that dies. Who waits is told whom for (`fdfa_core.locks`).
    """
    with held(root / _LOCKS / run_id, f"run {run_id} in {root}", wait) as ours:
        yield ours


def read_config(directory: str | Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        RunError: the file is missing or is not a configuration.
    """
    path = Path(directory) / "config.json"
    try:
        return configuration(_read_json(path))
    except ValidationError as error:
        raise RunError(f"{path}: is not the configuration of a run ({validation.first_fault(error)})") from error


def read_summary(directory: str | Path) -> dict[str, Any]:
    """Read the outcome of a run: status, step of divergence, steps, final metrics (None where one is not finite).

    Raises:
        RunError: as `read_config`.
    """
    return _read_json(Path(directory) / "summary.json")


def read_provenance(directory: str | Path) -> dict[str, Any]:
    """Read where the numbers of a run come from; raises `RunError` as `read_config`."""
    return _read_json(Path(directory) / "provenance.json")


def read_table(directory: str | Path, name: str, columns: Iterable[str] = ()):
    """Read ``<name>.parquet`` of a run as a data frame.

    Args:
        directory: of the run.
        name: "metrics", "probes", "timing" or "feedback".
        columns: columns that must be there beyond those that every such table has, if it has rows.

    Raises:
        RunError: the file is missing, truncated, not Parquet, or lacks a column; names the file and what was expected.
    """
    frame = _read_arrow(Path(directory), name).to_pandas()
    path = Path(directory) / f"{name}.parquet"
    wanted = (*TABLES[name], *(columns if len(frame) else ()))
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise RunError(f"{path}: lacks the column {missing[0]!r} of a {name} table; it has {', '.join(frame.columns)}")
    return frame


def is_run_id(name: str) -> bool:
    """Return whether a name can be that of a run."""
    return _ID.fullmatch(name) is not None


def set_aside(root: str | Path, run: str) -> Path:
    """Rename a damaged run to ``<id>.damaged-<n>``, so that the run can be made again; nothing is deleted.

    Raises:
        RunError: it cannot be renamed.
    """
    root, number = Path(root), 1
    while os.path.lexists(place := root / f"{run}.damaged-{number}"):
        number += 1
    with reported(place):
        os.rename(root / run, place)
    return place


def _read_arrow(directory: Path, name: str) -> pa.Table:
    return read_arrow(directory / f"{name}.parquet", f"expected the {name} table of a run")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(read_file(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); expected a file of a run") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is not JSON ({error})") from error
