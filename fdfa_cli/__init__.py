"""The console command `fdfa`.

Modules of the project are imported inside the commands that need them: torch takes seconds, help should not.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from tqdm import tqdm

RUNS = Path("runs")
RESULTS = Path("results")  # recorded runs, a folder a profile


class Commands(click.Group):
    """Turns the project's own errors into one line and exit code 2; `--debug` shows where they come from."""

    def invoke(self, context: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from fdfa_core.errors import FdfaError

            if context.params["debug"] or not isinstance(error, FdfaError):
                raise
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            context.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(package_name="fdfa")
def main(debug: bool) -> None:
    """Measure how noisy and how biased gradients without backpropagation are."""
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)


def options(*names: str) -> Callable:
    """Decorate a command with options that several commands share."""
    known = {
        "profile": click.option("--profile", default="quick", help="Folder of experiments: smoke, quick, …"),
        "runs": click.option("--runs", "root", type=click.Path(path_type=Path), default=RUNS, help="Directory of runs."),
        "jobs": click.option("--jobs", type=click.IntRange(min=1), help="Processes on this machine.  [default: one a core]"),
        "cluster": click.option("--cluster", metavar="ADDRESS", help="Dask scheduler to run on, e.g. tcp://host:8786."),
        "data_dir": click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Directory of data sets.  [default: $FDFA_DATA, else data]"
        ),
    }

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            command = known[name](command)
        return command

    return decorate


experiment_files = click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "chosen", multiple=True, metavar="ID", help="Only the runs whose ids begin so (repeatable).")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes CUDA where there is one.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads of torch.")
@options("runs", "data_dir")
def train(file: Path, chosen: tuple[str, ...], device: str, threads: int, root: Path, data_dir: Path | None) -> None:
    """Carry out the runs of an experiment FILE one after another, or take up what was interrupted."""
    from fdfa_core.experiments.loading import load_experiment
    from fdfa_core.experiments.tables import require_known
    from fdfa_core.runs.directory import is_complete, read_summary
    from fdfa_core.training.allocator import keep_freed_memory
    from fdfa_core.training.check import check_experiment
    from fdfa_core.training.run import train as carry_out

    keep_freed_memory()
    experiment = load_experiment(file)
    runs = [r for r in experiment.runs() if not chosen or r.id.startswith(chosen)]
    if not runs:
        require_known("run", " ".join(chosen), [r.id for r in experiment.runs()])
    skip = [r.id for r in experiment.runs() if r not in runs or is_complete(root, r.id)]
    check_experiment(experiment, skip, data_directory=data_dir)
    for number, run in enumerate(runs, 1):
        name = f"run {number} of {len(runs)}: {run.estimator.name}, seed {run.seed}"
        with tqdm(desc=name, unit="step", leave=False, disable=not sys.stderr.isatty()) as bar:

            def show(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            directory = carry_out(run, root, progress=show, device=device, threads=threads, data_directory=data_dir)
        outcome = read_summary(directory)
        final = outcome["final"]
        figures = f"test accuracy {final['test_accuracy']:.4f}, loss {final['test_loss']:.4f}" if final else "no evaluation"
        click.echo(f"{name}: {outcome['status']} after {outcome['steps']} steps, {figures} -> {directory}")


@main.command()
@experiment_files
@click.option("--checkpoint-seconds", type=click.FloatRange(min=0), default=20.0, help="Work that a kill may cost.")
@options("profile", "runs", "jobs", "cluster", "data_dir")
def sweep(files: tuple[Path, ...], profile: str, root: Path, data_dir: Path | None, **how) -> None:
    """Carry out all runs of a profile, or of the experiment FILEs, that are not there yet."""
    _sweep(_experiments(files, profile), root, data_dir, **how)


@main.command()
@experiment_files
@click.option("--out", type=click.Path(path_type=Path), help="Write the tables there, as <experiment>/<table>.csv.")
@options("profile", "runs")
def analyse(files: tuple[Path, ...], out: Path | None, profile: str, root: Path) -> None:
    """Show final accuracies of a profile's experiments, or of FILEs, and write all measured statistics as CSV."""
    import pandas as pd

    from analysis import logs
    from fdfa_core.errors import InvalidInput
    from fdfa_core.files import make_directory, write_atomically

    experiments = _experiments(files, profile)
    for experiment in experiments if out else ():
        same = [str(other.path) for other in experiments if other.name == experiment.name]
        if len(same) > 1:
            raise InvalidInput("files", same, "experiments of different names, a folder of tables each")
        make_directory(out / experiment.name)
    for experiment in experiments:
        tables = _statistics(experiment, logs.read(root, experiment))
        click.echo(f"{experiment.name}: {experiment.description}")
        if "accuracy" in tables:
            with pd.option_context("display.float_format", "{:.4g}".format):
                click.echo(tables["accuracy"].dropna(axis="columns", how="all").to_string(index=False))
        for name, table in tables.items() if out else ():
            write_atomically(out / experiment.name / f"{name}.csv", table.to_csv(index=False).encode())
            click.echo(f"  {out / experiment.name / name}.csv: {len(table)} rows")


@main.command()
@click.option("--only", multiple=True, metavar="NAME", help="Only this figure or table, and its runs (repeatable).")
@click.option("--out", type=click.Path(path_type=Path), help="Where they go.  [default: figures/out/PROFILE]")
@click.option(
    "--train/--no-train",
    "may_train",
    default=True,
    help="Carry out missing runs first (never among recorded results), or draw what is there.",
)
@click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    help="Directory of runs.  [default: results/PROFILE if it exists, else runs]",
)
@options("profile", "jobs", "cluster", "data_dir")
def figures(
    only: tuple[str, ...],
    out: Path | None,
    may_train: bool,
    root: Path | None,
    profile: str,
    data_dir: Path | None,
    **how,
) -> None:
    """Carry out the runs of a profile that are missing, analyse the logs, and draw all figures and tables.

    Results that were recorded in results/PROFILE are drawn as far as they go, without training; what they lack is named.
    """
    recorded = RESULTS / profile
    root = root or (recorded if recorded.is_dir() else RUNS)
    may_train = may_train and not root.resolve().is_relative_to(RESULTS.resolve())
    out = out or Path("figures") / "out" / profile

    from figures import render
    from figures.plan import plan

    if may_train:  # what cannot be drawn, or not written there, is refused before hours of training
        jobs, _ = plan(profile, root, only or None)
        render.open_directory(out)
        needed = {experiment.name for job in jobs for experiment in job.all_experiments}
        _sweep([e for e in _experiments((), profile) if not only or e.name in needed], root, data_dir, **how)

    drawn = []
    with tqdm(desc="figures", total=len(only or render.discover()), unit="figure", disable=not sys.stderr.isatty()) as bar:

        def show(name: str, new: bool) -> None:
            bar.update()
            drawn.append(name) if new else None

        skipped: dict[str, str] = {}
        skip = None if may_train else skipped.__setitem__
        files = render.render(profile, root, out, only=only or None, report=show, skip=skip)
    _say_skipped(skipped)
    click.echo(f"{len(files)} files in {out}; drawn now: {', '.join(drawn) or 'nothing, all were up to date'}")


@main.command()
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
        found = load(name, data_dir, download)
        size = " x ".join(map(str, found.shape))
        click.echo(
            f"{name}: {len(found.train)} training and {len(found.test)} test images, {size}, {len(found.classes)} classes, "
            f"SHA-256 {found.sha256}"
        )


@main.command()
@experiment_files
@click.option("--out", type=click.Path(path_type=Path), help="Where the record is.  [default: results/PROFILE]")
@click.option("--merge", type=click.Path(path_type=Path), metavar="DIR", help="Add runs made elsewhere: runs or a record.")
@click.option("--allow-dirty", is_flag=True, help="Also take runs that were made with uncommitted code.")
@options("profile", "runs")
def record(
    files: tuple[Path, ...], out: Path | None, merge: Path | None, allow_dirty: bool, profile: str, root: Path
) -> None:
    """Add the finished runs of a profile, or of the experiment FILEs, to the record that goes with the code.

    Every run is checked first. Raw gradients stay out. What is recorded already stays as it is. Where all runs of an experiment
    are recorded, their closed forms are recorded too, so that its figures need no data set.
    """
    from fdfa_core.runs import recording

    out, experiments = out or RESULTS / profile, _experiments(files, profile)
    problems, refused = [], 0
    for experiment in experiments:
        add = recording.record if merge is None else recording.merge
        outcome = add(experiment, root if merge is None else merge, out, allow_dirty=allow_dirty)
        refused += len(outcome.refused)
        problems += [f"damaged, not recorded: {reason}" for reason in outcome.damaged.values()]
        problems += [f"differs from the recorded run, which stays: {merge / run}" for run in outcome.different]
        click.echo(f"{experiment.name}: {outcome}")
        _record_theory(experiment, outcome, out)
    if merge is not None:
        problems += [f"belongs to none of these experiments: {merge / run}" for run in recording.foreign(merge, experiments)]
    click.echo(f"{out} holds {recording.size(out) / 1e6:.1f} MB")
    for problem in problems:
        click.echo(problem, err=True)
    if refused:
        click.echo("Make the refused runs again with the code committed, or take them with --allow-dirty.", err=True)
    if refused or problems:
        click.get_current_context().exit(1)


def _record_theory(experiment, outcome, out: Path) -> None:
    """Record the closed forms of an experiment that is recorded whole."""
    from analysis import logs
    from analysis.rebuilt import closed_forms

    if not (outcome.missing or outcome.refused or outcome.damaged):
        count = closed_forms.record(logs.read(out, experiment), out)
        click.echo(f"{experiment.name}: closed forms of {count} networks") if count else None


@main.command()
@experiment_files
@click.option("--runs", "root", type=click.Path(path_type=Path), help="Directory of runs.  [default: results/PROFILE]")
@options("profile")
def cost(files: tuple[Path, ...], root: Path | None, profile: str) -> None:
    """Show how long the runs of a profile, or of the experiment FILEs, take, judged by those that are recorded."""
    from analysis import inventory

    table = inventory.cost(inventory.inventory(root or RESULTS / profile, _experiments(files, profile)))
    for row in table.itertuples():
        hours = f"{row.hours_all:7.2f} h" if row.hours_all == row.hours_all else "unknown"
        click.echo(f"{row.experiment:16}{row.runs:4} of {row.planned:3} runs recorded; all take {hours:>9}")
    known = table["hours_all"].notna()
    more = "" if known.all() else f", without the {(~known).sum()} experiments that nothing is recorded of"
    total = f"{table['hours_all'].sum():.1f} h of one process" if known.any() else "unknown"
    click.echo(f"Together {total}, on the machine of the record as busy as it was{more}.")


@main.command()
@experiment_files
@options("runs")
def tuned(files: tuple[Path, ...], root: Path) -> None:
    """Show the best learning rate of each estimator in the grids of the experiment FILEs, or of all of experiments/tuning."""
    from analysis import logs, select, tuning

    for experiment in _experiments(files, "tuning"):
        if not files and not logs.coverage(root, experiment)["runs"].any():
            click.echo(f"{experiment.name}: no run is there (fdfa sweep {experiment.path.as_posix()})")
            continue
        found = logs.read(root, experiment, partial=True)
        extra = select.settings(found)
        rows = tuning.chosen(_with_run_settings(found, extra), [*tuning.SETTING, *extra])
        varied = [c for c in rows.columns[: rows.columns.get_loc("trained_with")] if rows[c].nunique(dropna=False) > 1]
        click.echo(f"{experiment.name}: {experiment.description}")
        for row in rows.to_dict("records"):
            name = ", ".join([row["trained_with"], *(f"{key} {row[key]}" for key in varied)])
            best = f"{row['learning_rate']:8g} of {row['rates']} rates, accuracy {row['accuracy']:.4f}"
            click.echo(f"  {name:48}{best}{'  (at the edge of the grid)' if row['edge'] else ''}")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where the figures are.  [default: figures/out/PROFILE]")
@click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    help="Directory of runs.  [default: results/PROFILE if it exists, else runs]",
)
@options("profile")
def report(out: Path | None, root: Path | None, profile: str) -> None:
    """Draw what is not drawn yet, and write it all into one HTML page that needs no network: OUT/report.html."""
    from figures import report as page

    recorded = RESULTS / profile
    root = root or (recorded if recorded.is_dir() else RUNS)
    out = out or Path("figures") / "out" / profile
    skipped: dict[str, str] = {}
    path = page.write(profile, root, out, skip=skipped.__setitem__ if root.resolve() == recorded.resolve() else None)
    _say_skipped(skipped)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where the figures are.  [default: figures/out/PROFILE]")
@click.option("--images", type=click.Path(path_type=Path), default=Path("docs/images"), help="Where the pictures go.")
@options("profile")
def previews(out: Path | None, images: Path, profile: str) -> None:
    """Redraw the small pictures of the README from the figures of a profile with one experiment a role (smoke, quick)."""
    from figures import render

    click.echo("\n".join(map(str, render.previews(out or Path("figures") / "out" / profile, images))))


@main.command()
@click.option("--light", is_flag=True, help="The short suite, of less power: seconds in place of minutes.")
@click.option("--mutants/--no-mutants", "plant", default=True, help="Also plant mistakes, and see that each is noticed.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures/out/verification"), help="Where tables go.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes.  [default: one a core]")
def verify(light: bool, plant: bool, out: Path, jobs: int | None) -> None:
    """Check every estimator against its closed-form theory, with all tests fixed beforehand; exit with code 1 if one fails."""
    import verification
    from fdfa_core.files import make_directory
    from figures import _verification, render
    from verification import mutants

    make_directory(out)  # before minutes of work whose results would have nowhere to go
    frame = verification.run("light" if light else "full", jobs)
    written = [*verification.write(frame, out), *render.write_figure(_verification.draw(frame), out, "verification")]
    passed = verification.passed(frame)
    click.echo(f"{(frame.verdict == 'pass').sum()} of {len(frame)} comparisons pass")
    if plant:
        planted = mutants.run(jobs)
        written += mutants.write(planted, out)
        passed &= bool(planted.caught.all())
        click.echo(f"{planted.caught.sum()} of {len(planted)} planted mistakes are noticed")
    click.echo("\n".join(map(str, written)))
    if not passed:
        click.get_current_context().exit(1)


@main.command()
@click.option("--file", type=click.Path(path_type=Path), default=Path("README.md"), help="File with the marked region.")
def readme(file: Path) -> None:
    """Write the recorded results of the paper profile into the marked region of the README."""
    from fdfa_core.errors import InvalidInput
    from fdfa_core.files import write_atomically
    from figures import report as page

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("--file", str(file), "a text file with a marked region", f"It cannot be read: {error}.") from error
    write_atomically(file, page.with_results(text, "paper", RESULTS / "paper").encode())
    click.echo(f"{file}: up to date with {RESULTS / 'paper'}")


@main.command("list")
def list_() -> None:
    """List estimators with their options, architectures, data sets, and experiments."""
    from fdfa_core.data import available_datasets
    from fdfa_core.estimators import available_estimators, estimator_options
    from fdfa_core.experiments.loading import load_profile, profiles
    from fdfa_core.networks.registry import ARCHITECTURES

    click.echo("estimators")
    for name in available_estimators():
        settings = ", ".join(f"{option}={default!r}" for option, default in estimator_options(name).items())
        click.echo(f"  {name:16}{settings}")
    click.echo("architectures\n  " + ", ".join(ARCHITECTURES))
    click.echo("data sets\n  " + ", ".join(available_datasets()))
    for profile in profiles():
        click.echo(f"experiments of profile {profile}")
        for name, experiment in load_profile(profile).items():
            click.echo(f"  {name:20}{len(experiment.runs()):4} runs  {experiment.description}")


def _say_skipped(skipped: dict[str, str]) -> None:
    """Say what is not drawn, and why, one line a reason."""
    for reason in dict.fromkeys(skipped.values()):
        click.echo(f"Not drawn: {', '.join(name for name, why in skipped.items() if why == reason)}: {reason}", err=True)


def _experiments(files: Iterable[Path], profile: str) -> list:
    """Load the files, or the whole profile where there are none."""
    from fdfa_core.experiments.loading import load_experiment, load_profile

    return [load_experiment(file) for file in files] or list(load_profile(profile).values())


def _sweep(experiments: list, root: Path, data_dir: Path | None, jobs: int | None, cluster: str | None, **how) -> None:
    """Check all runs to come, carry them out, and exit with code 1 if one failed."""
    from fdfa_core.runs.directory import is_complete
    from fdfa_core.sweeps.sweep import sweep
    from fdfa_core.training.check import check_experiment

    for experiment in tqdm(experiments, desc="check", unit="experiment", leave=False, disable=not sys.stderr.isatty()):
        done = [run.id for run in experiment.runs() if is_complete(root, run.id)]
        check_experiment(experiment, skip=done, data_directory=data_dir)
    # All estimators get a first seed before any gets a second, so that what an interrupted sweep leaves can be compared.
    runs = [run for experiment in experiments for run in sorted(experiment.runs(), key=lambda run: run.seed)]
    try:
        summary = sweep(runs, root, processes=jobs, cluster=cluster, data_directory=data_dir, **how)
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command takes the sweep up where it stopped.", err=True)
        raise
    click.echo(f"{summary} (in {root})")
    if summary.failed:
        click.get_current_context().exit(1)


def _with_run_settings(found, extra):
    """Return the metrics with all that tells runs apart; the optimiser's momentary rate gives way to the run's."""
    rates = found.runs.set_index("run")["learning_rate"]
    return found.metrics.assign(learning_rate=found.metrics["run"].map(rates)).join(extra, on="run")


def _statistics(experiment, found) -> dict:
    """Return the frames of all statistics that the logs of one experiment allow, by name."""
    import pandas as pd

    from analysis import accuracy, alignment, bias, convergence, select, statistics, variance

    extra = select.settings(found)
    setting = ["dataset", "architecture", "width", "depth", "batch_size", "learning_rate", *extra]
    trained = [run.id for run in experiment.runs() if run.training.optimizer != "none"]
    tables = {}
    if trained:
        metrics = _with_run_settings(found, extra)
        metrics = metrics[metrics["run"].isin(trained)]
        tables["accuracy"] = accuracy.table(metrics, setting)
        curves = {q: convergence.curves(metrics, q, [*setting, "trained_with"]) for q in ("train_loss", "test_accuracy")}
        tables["convergence"] = pd.concat([frame.assign(quantity=q) for q, frame in curves.items()], ignore_index=True)
    if len(found.probes):
        by = [*setting, "trained_with", "step", "source", "estimator", "level", "block", "parameter"]
        probes = found.probes.join(extra, on="run")
        noise = variance.normalised(probes)
        tables["variance"] = statistics.over_seeds(noise, "nsr", by, se="nsr_se", log=True)
        tables["bias"] = statistics.over_seeds(bias.split(probes), "value", [*by, "quantity"], se="se")
        tables["alignment"] = alignment.angles(probes, by)
    return tables


if __name__ == "__main__":
    main()
