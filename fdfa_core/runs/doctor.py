"""What is damaged in a directory of runs or in a record, and how it is mended. Nothing is changed; no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fdfa_core.errors import FdfaError, RunError
from fdfa_core.runs import seal, validation
from fdfa_core.runs.directory import is_run_id, read_config
from fdfa_core.runs.partial import SUFFIX
from fdfa_core.runs.record import Record
from fdfa_core.runs.store import Store, open_store


@dataclass(frozen=True)
class Finding:
    """One thing that is damaged: where, what is wrong with it, and what mends it."""

    place: str
    fault: str
    remedy: str


@dataclass
class Report:
    """What a directory holds: ids of sound and of unfinished runs, names of what stands aside, and what is damaged."""

    sound: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line."""
        line = f"{len(self.sound)} runs are sound, {len(self.damaged)} are damaged"
        line += f", {len(self.unfinished)} are unfinished" if self.unfinished else ""
        return line + (f", {len(self.aside)} were set aside before" if self.aside else "")


def examine(root: str | Path) -> Report:
    """Check all that a directory of runs, or a record, holds: every file of every run, and every number in it.

    Args:
        root: a directory of runs, a record, or the folder of one recorded experiment.

    Raises:
        RunError: `root` is not there, or holds neither runs nor a record.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root}: is no directory; accepted: a directory of runs, or a record of experiments")
    store, report = open_store(root), Report()
    if isinstance(store, Record):
        _examine_record(store, report)
    else:
        _examine_directory(root, store, report)
    return report


def _examine_record(store: Record, report: Report) -> None:
    for experiment in store.experiments.values():
        folder = experiment.folder
        remedy = f"git checkout -- {folder}, where the record is kept in git; or remove the folder and record its runs again"
        try:
            runs = list(experiment.rows)
            own = Record(folder)
            validation.checked(own, [own.config(run) for run in runs])
            _ = experiment.theory
        except (FdfaError, ValueError, KeyError, TypeError) as error:
            report.damaged.append(Finding(str(folder), str(error).removeprefix(f"{folder}: "), remedy))
        else:
            report.sound += runs


def _examine_directory(root: Path, store: Store, report: Report) -> None:
    for name in sorted(os.listdir(root)):
        place = root / name
        if is_run_id(name):
            if finding := _fault_of_run(place, store):
                report.damaged.append(finding)
            else:
                report.sound.append(name)
        elif name.endswith(SUFFIX) and is_run_id(name.removesuffix(SUFFIX)):
            fault = _fault_of_partial(place)
            remedy = f"remove {place}, and the next sweep starts the run anew"
            report.damaged.append(Finding(str(place), fault, remedy)) if fault else report.unfinished.append(name)
        elif ".damaged-" in name:
            report.aside.append(name)


def _fault_of_run(place: Path, store: Store) -> Finding | None:
    if fault := validation.damage(place):
        return Finding(str(place), fault, f"fdfa sweep FILE --runs {place.parent}, which sets the run aside and makes it again")
    try:
        contents = validation.checked(store, [store.config(place.name)])
        for file in (contents.provenances[place.name].get("seal") or {"files": ()})["files"]:  # raw gradients among them
            seal.require_file(place, file, contents.provenances[place.name])
    except (FdfaError, OSError, ValueError) as error:  # in a table, which no sweep reads
        remedy = f"mv {place} {place}.damaged-0; fdfa sweep FILE --runs {place.parent}, which makes the run again"
        return Finding(str(place), str(error).removeprefix(f"{place}{os.sep}"), remedy)
    return None


def _fault_of_partial(place: Path) -> str:
    run = place.name.removesuffix(SUFFIX)
    if place.is_symlink():
        return f"is a link to {os.path.realpath(place)}"
    if not place.is_dir():
        return "is no directory"
    if not os.path.lexists(place / "config.json"):
        return ""  # killed before its first file
    try:
        own = read_config(place).id
    except RunError as error:
        return str(error).removeprefix(f"{place}{os.sep}")
    if own != run:
        return f"its config.json is that of another run, {own}"
    return validation.damage(place, run) if os.path.lexists(place / "summary.json") else ""

