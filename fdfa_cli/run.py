"""Commands that carry out runs, and that list what there is to run: train, sweep, data, list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fdfa_cli.shared import (
    SECONDS,
    carry_out,
    carry_out_all,
    exit_with_failures,
    experiment_files,
    load_experiments,
    on_terminal,
    options,
)

if TYPE_CHECKING:
    from fdfa_core.experiments.tables import RunConfig
    from fdfa_core.sweeps.outcome import Outcome


@click.command(short_help="Carry out the runs of one experiment, one after another.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "chosen", multiple=True, metavar="ID", help="Only the runs whose ids begin so (repeatable).")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes CUDA where there is one.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads of torch.")
@options("runs", "data_dir")
def train(file: Path, chosen: tuple[str, ...], device: str, threads: int, root: Path, data_dir: Path | None) -> None:
    """Carry out the runs of an experiment FILE one after another, or resume those that were interrupted.

    This is a sweep in one process that shows every step, and a line for every run.
    """
    from fdfa_core.experiments.loading import load_experiment
    from fdfa_core.experiments.tables import require_known
    from fdfa_core.training.run import choose_device

    experiment = load_experiment(file)
    for beginning in chosen:
        if not any(run.id.startswith(beginning) for run in experiment.runs()):
            require_known("--run", beginning, [run.id for run in experiment.runs()])
    runs = [run for run in experiment.runs() if not chosen or run.id.startswith(chosen)]
    choose_device(device)  # an unknown one is refused before anything is written
    with Steps(runs, root) as steps:
        summary = carry_out(
            [experiment],
            root,
            data_dir,
            chosen=runs,
            processes=1,
            device=device,
            threads=threads,
            quiet=True,
            report=steps.report,
            watch=steps.watch,
        )
    exit_with_failures(summary)


class Steps:
    """What `train` shows: a bar of the steps of the run of the moment, and a line for each run that has ended.

    Args:
        runs: all runs, as they are numbered.
        root: directory of runs.
    """

    def __init__(self, runs: list[RunConfig], root: Path):
        from tqdm import tqdm

        self.runs, self.root = {run.id: run for run in runs}, root
        numbered = enumerate(self.runs.values(), 1)
        self.names = {r.id: f"run {i} of {len(self.runs)}: {r.estimator.name}, seed {r.seed}" for i, r in numbered}
        self.bar = tqdm(unit="step", leave=False, disable=not on_terminal())
        self.shown = ""  # the run that the bar shows

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def watch(self, run: RunConfig, done: int, total: int) -> None:
        """Move the bar to a step of a run."""
        if run.id != self.shown:
            self.shown = run.id
            self.bar.set_description(self.names[run.id], refresh=False)
            self.bar.reset(total)  # which shows it
        self.bar.update(done - self.bar.n)

    def report(self, outcome: Outcome) -> None:
        """Say what became of a run."""
        from fdfa_core.runs.directory import read_summary
        from fdfa_core.sweeps.display import show_failure
        from fdfa_core.training.run import train as existing

        if outcome.status == "failed":
            show_failure(outcome)
            return
        if outcome.status == "skipped":
            existing(self.runs[outcome.run], self.root)  # refuses another run's directory in its place
        directory = self.root / outcome.run
        summary = read_summary(directory)
        final = summary["final"]
        figures = f"test accuracy {final['test_accuracy']:.4f}, loss {final['test_loss']:.4f}" if final else "no evaluation"
        self.bar.clear()
        click.echo(f"{self.names[outcome.run]}: {summary['status']} after {summary['steps']} steps, {figures} -> {directory}")


@click.command(short_help="Carry out all missing runs of a profile or of files.")
@experiment_files
@click.option("--checkpoint-seconds", type=SECONDS, default=20.0, help="Work that a kill may cost.")
@click.option("--without", type=click.Path(exists=True, path_type=Path), help="Leave out the runs that this record holds.")
@options("profile", "runs", "jobs", "cluster", "data_dir")
def sweep(
    files: tuple[Path, ...],
    profile: str,
    root: Path,
    without: Path | None,
    data_dir: Path | None,
    jobs: int | None,
    cluster: str | None,
    checkpoint_seconds: float,
) -> None:
    """Carry out all runs of a profile, or of the experiment FILEs, that are missing.

    What was recorded on one machine need not be made again on another: --without names that record, or directory of runs.
    """
    experiments = load_experiments(files, profile)
    how = {"without": without, "processes": jobs, "cluster": cluster, "checkpoint_seconds": checkpoint_seconds}
    carry_out_all(experiments, root, data_dir, **how)


@click.command(short_help="Fetch data sets, check them, and say what they hold.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listing", is_flag=True, help="List the data sets that are known, and stop.")
@click.option("--download/--no-download", default=True, help="Fetch missing files.")
@options("data_dir")
def data(names: tuple[str, ...], listing: bool, download: bool, data_dir: Path | None) -> None:
    """Fetch data sets where they are missing, check them, and say what they hold."""
    from fdfa_core.data import available_datasets, load

    if listing:
        click.echo("\n".join(available_datasets()))
        return
    if not names:
        raise click.UsageError("name one or more data sets, or use --list")
    for name in names:
        dataset = load(name, data_dir, download)
        size = " x ".join(map(str, dataset.shape))
        click.echo(
            f"{name}: {len(dataset.train)} training and {len(dataset.test)} test images, {size}, "
            f"{len(dataset.classes)} classes, SHA-256 {dataset.sha256}"
        )


@click.command("list", short_help="List estimators, architectures, data sets, experiments.")
def list_() -> None:
    """List estimators with their options, architectures, data sets, and experiments."""
    from fdfa_core.data.registry import available_datasets
    from fdfa_core.estimators.registry import available_estimators, estimator_options
    from fdfa_core.experiments.loading import load_profile, profiles
    from fdfa_core.networks.registry import available_architectures

    click.echo("estimators")
    for name in available_estimators():
        settings = ", ".join(f"{option}={default!r}" for option, default in estimator_options(name).items())
        click.echo(f"  {name:16}{settings}")
    click.echo("architectures\n  " + ", ".join(available_architectures()))
    click.echo("data sets\n  " + ", ".join(available_datasets()))
    for profile in profiles():
        click.echo(f"experiments of profile {profile}")
        for name, experiment in load_profile(profile).items():
            click.echo(f"  {name:20}{len(experiment.runs()):4} runs  {experiment.description}")
