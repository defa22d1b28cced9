"""A run that is not finished: tables that grow, files that are written one by one, and a checkpoint."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdfa_core.errors import RunError, shown
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import open_file, parquet, reported, sync_directory, write_atomically
from fdfa_core.runs import seal, validation
from fdfa_core.runs.directory import read_config
from fdfa_core.runs.schema import TABLES, TYPES

if TYPE_CHECKING:
    import pyarrow as pa

_RUN = "run"  # the key of a checkpoint that names its run
SUFFIX = ".partial"  # of the directory of a run that is not finished


class Rows:
    """The rows of a table that grows, held as Arrow: a checkpoint of it copies bytes where a list would be pickled anew."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()):
        self._parts: list[Any] = []
        if rows:
            self.add(rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, with the keys and types of those before; a key that those lack reads as missing in them."""
        import pyarrow as pa

        self._parts.append(pa.Table.from_pylist(list(rows)))

    def table(self):
        """Return all rows as one Arrow table, or None without any."""
        import pyarrow as pa

        # one chunk, whatever the parts were: so the same rows give the same bytes of Parquet
        # a checkpoint of an earlier version holds rows that lack the columns that were added since
        return pa.concat_tables(self._parts, promote_options="default").combine_chunks() if self._parts else None

    def state_dict(self) -> dict[str, Any]:
        """Return the rows as a tensor of bytes."""
        import pyarrow as pa
        import torch

        if (table := self.table()) is None:
            return {}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return {"arrow": torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        import pyarrow as pa

        self._parts = [pa.ipc.open_stream(state["arrow"].numpy()).read_all()] if state else []


class PartialRun:
    """The directory of a run that is not finished.

    Args:
        root: directory of runs, from `open_root`.
        config: what runs. A partial directory that is there already is taken up again.

    Raises:
        RunError: the place is taken by something that is not this run, or cannot be written to.
    """

    def __init__(self, root: Path, config: RunConfig):
        self.run, self.final = config.id, root / config.id
        self.path = root / f"{config.id}{SUFFIX}"
        if os.path.lexists(self.final):
            raise RunError(f"{self.final}: is in the way; it has the name of a run and holds none (no summary.json)")
        if self.path.is_symlink():
            raise RunError(
                f"{self.path}: is a link to {os.path.realpath(self.path)}, where this run would write; accepted: a directory "
                "of its own. Remove the link"
            )
        with reported(self.path):
            self.path.mkdir(exist_ok=True)
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
        if not os.path.lexists(self.path / "config.json"):
            self.write_json("config.json", json.loads(config.canonical()))
        elif read_config(self.path) != config:
            raise RunError(f"{self.path}: its config.json is not that of run {config.id}; remove the directory")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, readable by eye; NaN and infinity, which JSON lacks, are refused with a `ValueError`."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / name, text.encode() + b"\n")

    def write_table(self, name: str, rows: Rows | Sequence[Mapping[str, Any]]) -> None:
        """Write rows as ``<name>.parquet``; a table without rows keeps its columns."""
        write_atomically(self.path / f"{name}.parquet", parquet(_arrow(name, rows)))

    def write_gradients(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Write raw gradients as ``gradients/step=<step>.safetensors``."""
        from safetensors.torch import save

        with reported(self.path):
            (self.path / "gradients").mkdir(exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomically(self.path / "gradients" / f"step={step}.safetensors", content)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: nested dicts and lists of tensors and plain values. It names the run that it is of."""
        import torch

        buffer = io.BytesIO()
        # in memory first: torch reports a full disk as an internal error of its own
        torch.save({_RUN: self.run, **state}, buffer)
        write_atomically(self.path / "checkpoint.pt", buffer.getbuffer())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None before the first.

        Raises:
            RunError: it cannot be read, or is that of another run.
        """
        import torch

        path = self.path / "checkpoint.pt"
        remedy = f"remove {self.path} to start the run anew"
        if not os.path.lexists(path):
            return None
        try:
            with open_file(path) as file:
                state = torch.load(file, weights_only=True)
        except Exception as error:  # torch raises whatever its unpickler and zip reader raise
            raise RunError(f"{path}: not a readable checkpoint; {remedy}") from error
        if not isinstance(state, dict):
            raise RunError(f"{path}: holds a {type(state).__name__}, no checkpoint; {remedy}")
        if (run := state.pop(_RUN, self.run)) != self.run:
            raise RunError(f"{path}: is the checkpoint of another run, {shown(run, 40)}; {remedy}")
        return state

    def finish(
        self,
        tables: Mapping[str, Rows | Sequence[Mapping[str, Any]]],
        provenance: Mapping[str, Any],
        summary: Mapping[str, Any],
    ) -> Path:
        """Write all that a finished run holds, the summary last, and move it to its final place, which is returned.

        The provenance gets the seal of the run (`fdfa_core.runs.validation.sealed`).
        """
        written = {}
        for name, rows in tables.items():
            self.write_table(name, rows)
            written[name] = validation.conform(_arrow(name, rows), name, self.path / f"{name}.parquet")
        files = {f"{name}.parquet": self.path / f"{name}.parquet" for name in tables}
        files |= {f"gradients/{path.name}": path for path in sorted((self.path / "gradients").glob("*.safetensors"))}
        self.write_json("provenance.json", seal.sealed(provenance, summary, written, files))
        self.write_json("summary.json", summary)
        return self.publish()

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


def _arrow(name: str, rows: Rows | Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table, which without rows has its columns all the same."""
    import pyarrow as pa

    empty = pa.schema([(column, TYPES.get(column, "float64")) for column in TABLES[name]]).empty_table()
    return (rows if isinstance(rows, Rows) else Rows(rows)).table() or empty
