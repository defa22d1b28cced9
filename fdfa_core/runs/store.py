"""Where finished runs are kept: in a directory of runs, or in a record. Readers ask a store and know neither layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fdfa_core.errors import RunError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.directory import MARKER, RunDirectory
from fdfa_core.runs.record import Record, experiment_folders, is_experiment_folder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_RUN = re.compile(r"[0-9a-f]{16}(\.partial|\.damaged-\d+)?")


class Store(Protocol):
    """Finished runs, by id. Every method raises `RunError` for a run that is missing or cannot be read."""

    root: Path

    def ids(self) -> list[str]:
        """Return the ids of all runs."""

    def holds(self, run: str) -> bool:
        """Return whether the run is here, without reading it."""

    def config(self, run: str) -> RunConfig:
        """Return the configuration of a run; its hash is the run's id."""

    def summary(self, run: str) -> dict[str, Any]:
        """Return the outcome of a run, as `summary.json` holds it."""

    def provenance(self, run: str) -> dict[str, Any]:
        """Return where the numbers of a run come from, as `provenance.json` holds it."""

    def arrow(self, name: str, runs: Sequence[str]) -> pa.Table:
        """Return a table of several runs as Arrow: the column `run`, then those of `fdfa_core.runs.schema.COLUMNS`."""

    def table(self, name: str, runs: Sequence[str]) -> pd.DataFrame:
        """Return a table of several runs, run after run as they are given.

        Args:
            name: "metrics", "probes", "timing" or "feedback".
            runs: ids of runs that write this table.

        Returns:
            The column `run`, then those of `fdfa_core.runs.schema.COLUMNS`.
        """

    def theory(self, runs: Sequence[str]) -> pd.DataFrame:
        """Return the recorded closed forms of these runs (`fdfa_core.runs.record.THEORY`); empty where there are none."""

    def fingerprint(self, runs: Sequence[str]) -> str:
        """Return a hash that changes whenever what the store holds of these runs changes."""

    def place(self, run: str, table: str = "") -> str:
        """Say where a run, or a table of it, is; for messages."""


def open_store(root: str | Path | Store) -> Store:
    """Return the store that a directory is: a `Record` if experiments are recorded in it, otherwise a `RunDirectory`.

    Args:
        root: a directory; a missing or an empty one holds no run. A store is returned as it is.

    Raises:
        RunError: `root` is a file, holds other files, or holds run directories beside recorded experiments.
    """
    if not isinstance(root, str | Path):
        return root
    root = Path(root)
    if root.is_file():
        raise RunError(f"{root}: is a file; accepted: a directory of runs, or a record of experiments")
    if not root.is_dir():
        return RunDirectory(root)
    if is_experiment_folder(root):
        return Record(root)
    entries = sorted(entry.name for entry in root.iterdir())
    runs = [name for name in entries if _RUN.fullmatch(name)]
    recorded = experiment_folders(root, skip=runs)
    if runs and recorded:
        raise RunError(
            f"{root}: holds run directories (such as {runs[0]!r}) and recorded experiments (such as {next(iter(recorded))!r}); "
            "accepted: one kind. Move the run directories elsewhere and add them with: fdfa record --merge DIRECTORY"
        )
    if recorded:
        return Record(root)
    others = [name for name in entries if not name.startswith(".")]
    if others and not runs and MARKER not in entries:
        raise RunError(
            f"{root}: holds neither runs nor recorded experiments, but other files (such as {others[0]!r}); accepted: a "
            "directory of runs, a record of experiments, or a directory that is new or empty"
        )
    return RunDirectory(root)
