"""Run directories: complete or absent, never something in between.

An unfinished run lives in ``<id>.partial/`` and is renamed to ``<id>/`` once all its files are on the disk. Each file is
written beside its place and moved there, so that a process killed at any moment, or a full disk, leaves whole files only.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fdfa_core.errors import RunError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import reported, sync_directory, unwritable, write_atomically
from fdfa_core.runs.rows import Rows
from fdfa_core.runs.schema import TABLES, TYPES

MARKER = ".fdfa-runs"
_LOCKS = ".locks"


def open_root(root: str | Path) -> Path:
    """Make `root` a directory of runs, or see that it is one and can be written to.

    Raises:
        RunError: it is a file, cannot be written to, or holds files of something else; nothing in it is changed then.
    """
    root = Path(root)
    with reported(root):
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARKER).exists():
            others = sorted(e.name for e in root.iterdir() if MARKER not in e.name and e.name != _LOCKS)
            if others:
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

    The operating system frees the claim of a process that dies.
    """
    lock = FileLock(root / _LOCKS / run_id)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise unwritable(lock.lock_file, error) from error
    try:
        yield True
    finally:
        lock.release()


class PartialRun:
    """The directory of a run that is not finished.

    Args:
        root: directory of runs, from `open_root`.
        config: what runs. A partial directory that is there already is taken up again.

    Raises:
        RunError: the place is taken by something that is not this run, or cannot be written to.
    """

    def __init__(self, root: Path, config: RunConfig):
        self.final = root / config.id
        self.path = root / f"{config.id}.partial"
        if self.final.exists():
            raise RunError(f"{self.final}: is in the way; it has the name of a run and holds none (no summary.json)")
        with reported(self.path):
            self.path.mkdir(exist_ok=True)
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
        if not (self.path / "config.json").exists():
            self.write_json("config.json", json.loads(config.canonical()))
        elif read_config(self.path) != config:
            raise RunError(f"{self.path}: its config.json is not that of run {config.id}; remove the directory")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, readable by eye; NaN and infinity, which JSON lacks, are refused with a `ValueError`."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / name, text.encode() + b"\n")

    def write_table(self, name: str, rows: Rows | Sequence[Mapping[str, Any]]) -> None:
        """Write rows as ``<name>.parquet``; a table without rows keeps its columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        empty = pa.schema([(column, TYPES.get(column, "float64")) for column in TABLES[name]]).empty_table()
        table = (rows if isinstance(rows, Rows) else Rows(rows)).table() or empty
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomically(self.path / f"{name}.parquet", buffer.getvalue())

    def write_gradients(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Write raw gradients as ``gradients/step=<step>.safetensors``."""
        from safetensors.torch import save

        with reported(self.path):
            (self.path / "gradients").mkdir(exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomically(self.path / "gradients" / f"step={step}.safetensors", content)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: nested dicts and lists of tensors and plain values."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)  # in memory first: torch reports a full disk as an internal error of its own
        write_atomically(self.path / "checkpoint.pt", buffer.getbuffer())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None before the first.

        Raises:
            RunError: it cannot be read.
        """
        import torch

        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:  # torch raises whatever its unpickler and zip reader raise
            raise RunError(f"{path}: not a readable checkpoint; remove {self.path} to start the run anew") from error

    @property
    def is_written(self) -> bool:
        """Whether the last file, the summary, is there, and the run only wants its final name."""
        return (self.path / "summary.json").exists()

    def publish(self) -> Path:
        """Drop the checkpoint and move the directory to its final place, which is returned."""
        with reported(self.path):
            (self.path / "checkpoint.pt").unlink(missing_ok=True)
            sync_directory(self.path)
            os.rename(self.path, self.final)
            sync_directory(self.final.parent)
        return self.final


def read_config(directory: str | Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        RunError: the file is missing or is not a configuration.
    """
    path = Path(directory) / "config.json"
    try:
        return RunConfig.model_validate(_read_json(path))
    except ValueError as error:
        raise RunError(f"{path}: is not the configuration of a run ({error})") from error


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
    import pandas as pd
    import pyarrow as pa

    path = Path(directory) / f"{name}.parquet"
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing; expected the {name} table of a run") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise RunError(f"{path}: is truncated or not Parquet ({reason}); expected the {name} table of a run") from error
    wanted = (*TABLES[name], *(columns if len(frame) else ()))
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise RunError(f"{path}: lacks the column {missing[0]!r} of a {name} table; it has {', '.join(frame.columns)}")
    return frame


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); expected a file of a run") from error
    except ValueError as error:
        raise RunError(f"{path}: is not JSON ({error})") from error
