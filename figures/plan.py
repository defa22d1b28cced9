"""Which figures and tables a profile has, and which of them the runs that are there allow."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pandas as pd

import figures
from analysis import benches, options, own
from analysis import logs as log_frames
from fdfa_core.errors import RunError, UnknownName
from figures import style

APART = {"tuning"}  # profiles of grids, which only figures that name them can draw
NOT_FIGURES = {"layout", "plan", "render", "report", "style"}


@dataclass(frozen=True)
class Job:
    """One figure or table to render: a module on certain experiments.

    Attributes:
        name: of its files: that of the module, with the experiment's where there is a choice of experiments.
        module: a module of this package.
        experiments: role → experiments whose logs the module gets, pooled, under that role.
        absent: experiments that belong here and are left out, since no run of them is there.
        bench: name of the recorded benchmark that the module gets in place of logs, if any.
        planned: all experiments of the profile, for a module that judges what is planned and not only what there is.
    """

    name: str
    module: ModuleType
    experiments: dict[str, list]
    absent: tuple = ()
    bench: str | None = None
    planned: tuple = ()

    @property
    def is_table(self) -> bool:
        """Whether it is shown as text."""
        return getattr(self.module, "TABLE", False)

    @property
    def endings(self) -> tuple[str, ...]:
        """What the names of its files end in."""
        return ("csv", "md", "tex", "html") if self.is_table else ("png", "pdf", "csv")

    @property
    def all_experiments(self) -> list:
        """The experiments of all roles."""
        return [experiment for group in self.experiments.values() for experiment in group]


class Coverage:
    """How many runs of an experiment there are and how many are planned; each experiment is counted once."""

    def __init__(self, root: str | Path | log_frames.Store):
        self._store = log_frames.open_store(root)
        self._counted: dict[Path, pd.DataFrame] = {}

    def __call__(self, experiment: log_frames.loading.Experiment) -> pd.DataFrame:
        """Return `analysis.logs.coverage` of an experiment."""
        if experiment.path not in self._counted:
            self._counted[experiment.path] = log_frames.coverage(self._store, experiment)
        return self._counted[experiment.path]


def discover() -> dict[str, ModuleType]:
    """Return the modules of this package that are figures or tables, by name."""
    names = [info.name for info in pkgutil.iter_modules(figures.__path__)]
    names = [name for name in names if name not in NOT_FIGURES and not name.startswith("_")]
    return {name: importlib.import_module(f"figures.{name}") for name in names}


def plan(
    profile: str,
    root: str | Path | log_frames.Store,
    only: Iterable[str] | None = None,
    *,
    experiments: str | Path = log_frames.EXPERIMENTS,
    partial: bool = False,
    coverage: Coverage | None = None,
) -> tuple[list[Job], dict[str, str]]:
    """Return what there is to render, and what cannot be, by name with the reason.

    A figure of a benchmark that is not recorded, or of an experiment that the profile does not have, cannot be rendered; that
    stops nothing unless `only` asks for the figure.

    Args:
        profile: folder of `experiments`; "own" for what a user's own runs in `root` make (`analysis.own`), shown by the modules
            that name their roles for it as `OWN`.
        root: directory of runs, or record.
        only: names of modules, or of what they render; None for all.
        experiments: directory of experiment files.
        partial: leave out experiments without any run, and figures that lack one; otherwise nothing looks at the runs.
        coverage: of `root`, where it is counted already.

    Raises:
        UnknownName: no such figure or profile.
        RunError: `only` asks for a figure that cannot be rendered (not with `partial`).
    """
    by_role: dict[str, list] = {}
    mine = profile == own.PROFILE
    for experiment in (own.experiments(root) if mine else log_frames.profile(profile, experiments)).values():
        by_role.setdefault(experiment.role, []).append(experiment)
    possible: list[Job] = []
    missing: dict[str, str] = {}
    for name, module in discover().items():
        roles = getattr(module, "OWN", ()) if mine else module.EXPERIMENTS
        if profile not in getattr(module, "PROFILES", {profile} - APART) or mine and not roles:
            continue
        lacking = [role for role in roles if role not in by_role and role not in optional(module)]
        bench = getattr(module, "BENCH", None)
        if bench and benches.path(bench).is_file():
            possible.append(Job(name, module, {}, bench=bench))
        elif bench:
            missing[name] = f"needs {benches.path(bench)}, which `make bench` writes"
        elif lacking and mine:
            missing[name] = own.LACKING[lacking[0]]
        elif lacking:
            known = ", ".join(sorted(by_role))
            missing[name] = f"needs experiment {lacking[0]!r}, which profile {profile!r} does not have (it has {known})"
        else:
            jobs = _jobs(name, module, {role: by_role[role] for role in roles if role in by_role})
            planned = tuple(e for group in by_role.values() for e in group) if getattr(module, "PLANNED", False) else ()
            possible += [replace(job, planned=planned) for job in jobs]
    if only is not None:
        only = set(only)
        for name in only - missing.keys() - {n for job in possible for n in (job.name, _module(job))}:
            raise UnknownName("figure", name, sorted({*discover(), *(job.name for job in possible)}))
        possible = [job for job in possible if {job.name, _module(job)} & only]
        missing = {name: reason for name, reason in missing.items() if name in only}
    if not partial:
        for name, reason in missing.items() if only is not None else ():
            raise RunError(f"figure {name!r} {reason}")
        return possible, missing
    jobs, coverage = [], coverage or Coverage(root)
    for job in possible:
        if job.bench:
            jobs.append(job)
            continue
        absent = [e for e in job.all_experiments if not coverage(e)["runs"].any()]
        left = {role: [e for e in group if e not in absent] for role, group in job.experiments.items()}
        left = {role: group for role, group in left.items() if group}
        named_after = [e for e in absent if job.name.endswith(f"-{e.name}")]
        if left and not named_after and (mine or set(job.module.EXPERIMENTS) - set(optional(job.module)) <= left.keys()):
            jobs.append(replace(job, experiments=left, absent=tuple(absent)))
        else:
            lacking = named_after or absent
            commands = " ".join(experiment.path.as_posix() for experiment in lacking)
            missing[job.name] = f"no run of {', '.join(e.name for e in lacking)} is there (fdfa sweep {commands})"
    return jobs, missing


def gaps(job: Job, coverage: Coverage) -> str:
    """Say how many runs of a job's experiments are missing, and of which estimators; empty if none is."""
    lines = []
    for experiment in job.all_experiments:
        found = coverage(experiment)
        short = found[found["runs"] < found["planned"]]
        if len(short):
            line = f"Partial record of {experiment.name}: {found['runs'].sum()} of {found['planned'].sum()} runs"
            groups = short.groupby(["runs", "planned"], sort=False)
            parts = [f"{_names(group)} {runs} of {planned}" for (runs, planned), group in groups]
            lines.append(line + (f" ({'; '.join(parts)})" if len(found) > 1 else ""))
    if job.absent:
        lines.append("No run yet of " + ", ".join(experiment.name for experiment in job.absent))
    return "; ".join(lines)


def optional(module: ModuleType) -> tuple[str, ...]:
    """Return the roles that a module can do without."""
    return getattr(module, "OPTIONAL", ())


def _jobs(name: str, module: ModuleType, by_role: dict[str, list]) -> list[Job]:
    """Return one job for each choice of experiments, one for each role, or a single one with all of them."""
    if getattr(module, "POOLED", False):
        return [Job(name, module, by_role)]
    jobs = []
    for choice in itertools.product(*by_role.values()):
        suffix = "".join(f"-{e.name}" for e, group in zip(choice, by_role.values(), strict=True) if len(group) > 1)
        jobs.append(Job(name + suffix, module, {role: [e] for role, e in zip(by_role, choice, strict=True)}))
    return jobs


def _module(job: Job) -> str:
    return job.module.__name__.rpartition(".")[2]


def _names(trained: pd.DataFrame) -> str:
    """Name the estimators of `logs.coverage`, or count them where they are many."""
    if len(trained) > 5:
        return f"{len(trained)} estimators"
    rows = trained[["trained_with", "method", "options"]].itertuples(index=False)
    return ", ".join(style.look(label, method, options.given(text)).name for label, method, text in rows)
