"""A run that is not finished: files that are written one by one, and a checkpoint."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdfa_core.errors import RunError, shown
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import open_file, reported, sync_directory, write_atomically
from fdfa_core.runs.directory import read_config
from fdfa_core.runs.rows import Rows
from fdfa_core.runs.schema import TABLES, TYPES

_RUN = "run"  # the key of a checkpoint that names its run
SUFFIX = ".partial"  # of the directory of a run that is not finished


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
        import pyarrow as pa
        import pyarrow.parquet as pq

        empty = pa.schema([(column, TYPES.get(column, "float64")) for column in TABLES[name]]).empty_table()
        table = (rows if isinstance(rows, Rows) else Rows(rows)).table() or empty
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        write_atomically(self.path / f"{name}.parquet", buffer.getvalue())

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
        """Write all that a finished run holds, the summary last, and move it to its final place, which is returned."""
        for name, rows in tables.items():
            self.write_table(name, rows)
        self.write_json("provenance.json", provenance)
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
