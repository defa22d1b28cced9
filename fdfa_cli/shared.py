"""What the commands share: options, the loading of experiments, where runs and records are, errors, interruptions, exit codes.

Exit codes: 0, done; 1, a run or a check failed, or a run was not recorded; 2, the input was refused, or something that the
command needs (a file, a disk, a cluster) failed it; 130 and 143, Ctrl-C and SIGTERM interrupted the command.

Modules of the project are imported inside the functions that need them: torch takes seconds, help should not.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from types import FrameType

    from fdfa_core.experiments.loading import Experiment
    from fdfa_core.experiments.tables import RunConfig
    from fdfa_core.sweeps.outcome import Summary

RUNS = Path("runs")
OWN = "own"  # the profile of runs that no experiment file describes (`analysis.own`)
RESUMABLE = ("train", "sweep", "figures")  # commands that keep what they had done when they were interrupted


class Seconds(click.FloatRange):
    """A number of seconds that is not negative; NaN, which passes every comparison of click's, is none."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or end the command with what is accepted."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


SECONDS = Seconds(min=0)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which takes the path of Ctrl-C: what is open is closed, and workers end."""


class Commands(click.Group):
    """Turns the project's own errors into one line and exit code 2; `--debug` shows where they come from."""

    def main(self, *arguments: object, **options: object) -> object:
        """Run the command line, whatever the process was given for its standard streams."""
        prepare_streams()
        try:
            return super().main(*arguments, **options)
        finally:
            drop_unwritten()

    def invoke(self, context: click.Context) -> object:
        """Run a command."""
        debug = context.params["debug"]
        with warnings.catch_warnings(), sigterm_as_interrupt():
            if not debug:  # whose own form says where a warning comes from
                warnings.showwarning = _show_warning
            try:
                return super().invoke(context)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyboardInterrupt as interrupt:
                resumes = context.invoked_subcommand in RESUMABLE
                remedy = "The same command resumes where it stopped." if resumes else "The same command starts anew."
                click.echo(f"Interrupted. {remedy}", err=True)
                context.exit(128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT))
            except Exception as error:
                from fdfa_core.errors import FdfaError

                system = isinstance(error, OSError | MemoryError) and not isinstance(error, BrokenPipeError)
                if debug or not (system or isinstance(error, FdfaError)):
                    raise
                click.echo(f"Error: {' '.join(_said(error).split())}", err=True)
                context.exit(2)


def prepare_streams() -> None:
    """Let writing to the standard streams never fail for what they are.

    A stream that is closed becomes the null device, so that no file of the project gets its number; a character that a terminal
    cannot show (a name in bytes, a superscript in Latin 1) is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """Drop what a full disk did not take of the standard streams: Python would try again at its end, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _said(error: Exception) -> str:
    """Return what an error says; of one of the system, the file first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or "there is not enough memory"


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let the first SIGTERM raise `Terminated` in the main thread; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def options(*names: str) -> Callable:
    """Decorate a command with options that several commands share."""
    path = click.Path(path_type=Path)
    recorded_else_runs = "Directory of runs.  [default: results/PROFILE if it exists, else runs]"
    known = {
        "profile": click.option("--profile", default="quick", help="Folder of experiments: smoke, quick, …"),
        "runs": click.option("--runs", "root", type=path, default=RUNS, help="Directory of runs."),
        "recorded": click.option("--runs", "root", type=path, help="Directory of runs.  [default: results/PROFILE]"),
        "recorded or runs": click.option("--runs", "root", type=path, help=recorded_else_runs),
        "figures": click.option("--out", type=path, help="Where the figures are.  [default: figures/out/PROFILE]"),
        "jobs": click.option("--jobs", type=click.IntRange(min=1), help="Processes on this machine.  [default: one per core]"),
        "cluster": click.option("--cluster", metavar="ADDRESS", help="Dask scheduler to run on, e.g. tcp://host:8786."),
        "data_dir": click.option("--data-dir", type=path, help="Directory of data sets.  [default: $FDFA_DATA, else data]"),
    }

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            command = known[name](command)
        return command

    return decorate


experiment_files = click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")


def load_experiments(files: Iterable[Path], profile: str) -> list[Experiment]:
    """Load the files, or the whole profile where there are none."""
    from fdfa_core.experiments.loading import load_experiment, load_profile

    return [load_experiment(file) for file in files] or list(load_profile(profile).values())


def record_of(profile: str) -> Path:
    """Return where the record of a profile is, as a user would write it: relative where it lies below the working directory."""
    from fdfa_core import paths

    path = paths.RESULTS / profile
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def shown_profile(profile: str, root: Path | None) -> str:
    """Return the profile to draw: the one asked for, or "own" where none is and the directory has runs of a user's loops."""
    source = click.get_current_context().get_parameter_source("profile")
    if root is not None and source is click.core.ParameterSource.DEFAULT and root.is_dir():
        from analysis import own

        return OWN if own.has_runs(root) else profile
    return profile


def record_or_runs(root: Path | None, profile: str) -> Path:
    """Return the directory of runs asked for; by default the profile's record where there is one."""
    recorded = record_of(profile)
    return root or (recorded if recorded.is_dir() else RUNS)


def is_recorded(root: Path) -> bool:
    """Whether a directory is, or lies in, the record that goes with the code."""
    from fdfa_core import paths

    return root.resolve().is_relative_to(paths.RESULTS.resolve())


def figures_of(profile: str) -> Path:
    """Return where the figures of a profile go by default."""
    return Path("figures") / "out" / profile


def on_terminal() -> bool:
    """Whether a progress bar would be seen."""
    return sys.stderr.isatty()


def say_skipped(skipped: dict[str, str]) -> None:
    """Say what is not drawn, and why: one line per reason."""
    for reason in dict.fromkeys(skipped.values()):
        click.echo(f"Not drawn: {', '.join(name for name, why in skipped.items() if why == reason)}: {reason}", err=True)


def carry_out(
    experiments: Iterable[Experiment],
    root: Path,
    data_dir: Path | None,
    *,
    chosen: list[RunConfig] | None = None,
    without: Path | None = None,
    **how: object,
) -> Summary:
    """Check all runs to come, and carry them out; the one path of every command that trains.

    Args:
        experiments: whose runs.
        root: directory of runs.
        data_dir: directory of data sets.
        chosen: the runs, in this order; by default all, so that all estimators get a first seed before any gets a second, and
            what an interrupted sweep leaves can be compared.
        without: a record or directory of runs, whose runs are left out.
        **how: as in `fdfa_core.sweeps.sweep.sweep`.

    Raises:
        InvalidInput: `root` lies in the record, an experiment's settings are open still, or a run is impossible.
        RunError: `without` holds no runs, or cannot be read.
    """
    from tqdm import tqdm

    from fdfa_core.errors import InvalidInput
    from fdfa_core.runs.directory import is_complete
    from fdfa_core.sweeps.sweep import sweep

    if is_recorded(root):
        accepted = "a directory outside the recorded results, which only `fdfa record` writes"
        raise InvalidInput("--runs", str(root), accepted, "Carry the runs out elsewhere, and record them.")
    for experiment in experiments:
        if experiment.open:
            accepted = "an experiment whose settings are chosen"
            raise InvalidInput(f"{experiment.path}: open", experiment.open, accepted, f"Choose them with: {experiment.open}")
    if chosen is None:
        chosen = [run for experiment in experiments for run in sorted(experiment.runs(), key=lambda run: run.seed)]
    if without is not None:
        from fdfa_core.runs.store import open_store

        store = open_store(without)
        chosen = [run for run in chosen if not store.holds(run.id)]
    pending = {run.id for run in chosen if not is_complete(root, run.id)}
    if pending:
        from fdfa_core.training.check import check_experiment

        for experiment in tqdm(experiments, desc="check", unit="experiment", leave=False, disable=not on_terminal()):
            skip = [run.id for run in experiment.runs() if run.id not in pending]
            check_experiment(experiment, skip, data_directory=data_dir)
    return sweep(chosen, root, data_directory=data_dir, **how)


def carry_out_all(experiments: Iterable[Experiment], root: Path, data_dir: Path | None, **how: object) -> None:
    """Carry out all runs of the experiments, say what became of them, and exit with code 1 if one failed."""
    summary = carry_out(experiments, root, data_dir, **how)
    click.echo(f"{summary} (in {root})")
    exit_with_failures(summary)


def exit_with_failures(summary: Summary) -> None:
    """End the command with exit code 1 if a run failed."""
    if summary.failed:
        click.get_current_context().exit(1)
