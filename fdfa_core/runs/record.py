"""Recorded results: finished runs, copied from where they were made into a directory that goes with the code.

A directory of recorded runs is a directory of runs like any other, without what is large (raw gradients). Every run in it says
which commit it was made with, so runs of changed and uncommitted code are refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fdfa_core.errors import RunError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.directory import is_complete, open_root, read_config, read_provenance
from fdfa_core.runs.schema import TABLES

FILES = ("config.json", "provenance.json", "summary.json", *(f"{table}.parquet" for table in TABLES))


@dataclass
class Recorded:
    """What became of a recording: ids of runs."""

    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line."""
        line = f"{len(self.copied)} runs recorded, {len(self.present)} were there already, {len(self.missing)} not finished"
        return line + (f", {len(self.refused)} refused (made with uncommitted code)" if self.refused else "")


def record(
    configs: Iterable[RunConfig], source: str | Path, destination: str | Path, *, allow_dirty: bool = False
) -> Recorded:
    """Copy the finished runs that are not recorded yet; what is recorded is never changed.

    Args:
        configs: the runs wanted.
        source: directory of runs that they were made in.
        destination: directory of runs to copy them to.
        allow_dirty: also take runs of code that differed from its commit, or whose commit is unknown.

    Raises:
        RunError: a run in `source` is not what its name says, or cannot be read; `destination` cannot be used.
    """
    source, destination = Path(source), open_root(destination)
    outcome = Recorded()
    for config in configs:
        if is_complete(destination, config.id):
            outcome.present.append(config.id)
        elif not is_complete(source, config.id):
            outcome.missing.append(config.id)
        elif not allow_dirty and made_with_uncommitted_code(source / config.id):
            outcome.refused.append(config.id)
        else:
            _copy(source / config.id, destination, config)
            outcome.copied.append(config.id)
    return outcome


def made_with_uncommitted_code(run: str | Path) -> bool:
    """Return whether any part of a run was made with code that its provenance cannot name by a commit."""
    origin = read_provenance(run)
    parts = [origin["code"], *(resumed["code"] for resumed in origin.get("resumed", []))]
    return any(code["dirty"] is not False or code["commit"] is None for code in parts)


def size(root: str | Path) -> int:
    """Return how many bytes the files of a directory of runs take."""
    return sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())


def _copy(run: Path, destination: Path, config: RunConfig) -> None:
    """Copy beside the final place and rename, so that a recorded run is whole or absent."""
    if read_config(run) != config:
        raise RunError(f"{run}: its config.json is not that of run {config.id}; move it away and make the run again")
    temporary = destination / f"{config.id}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name in FILES:
            if (run / name).exists():
                shutil.copyfile(run / name, temporary / name)
        os.rename(temporary, destination / config.id)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"{destination / config.id}: cannot be written ({error.strerror or error})") from error
