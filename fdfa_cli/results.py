"""Commands on what runs left: record, cost, analyse, power."""

from __future__ import annotations

from pathlib import Path

import click

from fdfa_cli.shared import experiment_files, load_experiments, options, record_of


@click.command(short_help="Show final accuracies, and write all statistics as CSV.")
@experiment_files
@click.option("--out", type=click.Path(path_type=Path), help="Write the tables there, as <experiment>/<table>.csv.")
@options("profile", "runs")
def analyse(files: tuple[Path, ...], out: Path | None, profile: str, root: Path) -> None:
    """Show final accuracies of a profile's experiments, or of FILEs, and write all measured statistics as CSV."""
    import pandas as pd

    from analysis import logs, summary
    from fdfa_core.errors import InvalidInput
    from fdfa_core.files import make_directory, write_atomically

    experiments = load_experiments(files, profile)
    for experiment in experiments if out else ():
        same = [str(other.path) for other in experiments if other.name == experiment.name]
        if len(same) > 1:
            raise InvalidInput("files", same, "experiments of different names, a folder of tables each")
        make_directory(out / experiment.name)
    for experiment in experiments:
        tables = summary.tables(logs.read(root, experiment))
        click.echo(f"{experiment.name}: {experiment.description}")
        if "accuracy" in tables:
            with pd.option_context("display.float_format", "{:.4g}".format):
                click.echo(tables["accuracy"].dropna(axis="columns", how="all").to_string(index=False))
        for name, table in tables.items() if out else ():
            write_atomically(out / experiment.name / f"{name}.csv", table.to_csv(index=False).encode())
            click.echo(f"  {out / experiment.name / name}.csv: {len(table)} rows")


@click.command(short_help="Add finished runs to the record of the code.")
@experiment_files
@click.option("--out", type=click.Path(path_type=Path), help="Where the record is.  [default: results/PROFILE]")
@click.option("--merge", type=click.Path(path_type=Path), metavar="DIR", help="Add runs made elsewhere: runs or a record.")
@click.option("--allow-dirty", is_flag=True, help="Also take runs that were made with uncommitted code.")
@options("profile", "runs")
def record(files: tuple[Path, ...], out: Path | None, merge: Path | None, allow_dirty: bool, profile: str, root: Path) -> None:
    """Add the finished runs of a profile, or of the experiment FILEs, to the record that goes with the code.

    Every run is checked first. Raw gradients stay out. What is recorded already stays as it is. Where all runs of an experiment
    are recorded, their closed forms are recorded too, so that its figures need no data set.
    """
    from fdfa_core.runs import recording

    out, experiments = out or record_of(profile), load_experiments(files, profile)
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


@click.command(short_help="Show how long runs take, judged by the recorded ones.")
@experiment_files
@options("recorded", "profile")
def cost(files: tuple[Path, ...], root: Path | None, profile: str) -> None:
    """Show how long the runs of a profile, or of the experiment FILEs, take, judged by those that are recorded.

    Where none is, recorded runs of other experiments with the same network and data take their place ("about").
    """
    from analysis import inventory
    from fdfa_core import paths

    experiments = load_experiments(files, profile)
    table = inventory.cost(inventory.inventory(root or record_of(profile), experiments))
    unknown = set(table.loc[table["hours_all"].isna(), "experiment"])
    records = sorted(folder for folder in paths.RESULTS.glob("*") if folder.is_dir()) if unknown else ()
    alike = inventory.cost_by_network([e for e in experiments if e.name in unknown], records) if records else {}
    hours = table["hours_all"].fillna(table["experiment"].map(alike).astype(float))
    for row, each in zip(table.itertuples(), hours, strict=True):
        shown = "unknown" if each != each else _duration(each)
        shown = f"about {shown}" if row.experiment in unknown and each == each else shown
        click.echo(f"{row.experiment:16}{row.runs:4} of {row.planned:3} runs recorded; all take {shown:>13}")
    more = f", not counting {hours.isna().sum()} of unknown length" if hours.isna().any() else ""
    total = "unknown" if hours.isna().all() else f"{_duration(hours.sum())} of one process"
    click.echo(f"Together {total}, on the machine of the record, without pauses{more}.")


def _duration(hours: float) -> str:
    """Return a time in the largest unit of which there is one, at least a second."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if 60 * hours >= 1 else f"{max(1, round(3600 * hours))} s"


@click.command(short_help="Show how many seeds each verdict needs.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the simulated powers there, as CSV.")
@click.option("--families", type=click.IntRange(min=100), default=2000, help="Simulated families for each number of seeds.")
@options("recorded", "profile")
def power(out: Path | None, families: int, root: Path | None, profile: str) -> None:
    """Show how many seeds each hypothesis of a profile needs to be decided, by simulation of the very tests that judge.

    Means and spreads are those of the recorded runs, also of those that do not count for a verdict: as observed, and with each
    spread at its 80 % upper bound.
    """
    import pandas as pd

    from analysis import logs
    from analysis.verdicts import plan
    from analysis.verdicts import power as simulation
    from analysis.verdicts import record as judged
    from fdfa_core.files import make_directory, write_atomically

    experiments = load_experiments((), profile)
    store = logs.open_store(root or record_of(profile))
    by_role: dict[str, list] = {}
    for experiment in experiments:
        if experiment.role in judged.ROLES and logs.coverage(store, experiment)["runs"].any():
            by_role.setdefault(experiment.role, []).append(logs.read(store, experiment, partial=True))
    found = judged.record({role: logs.pooled(group) for role, group in by_role.items()}, experiments)
    values = pd.concat([part for part in (found.values, found.earlier) if len(part)] or [found.values], ignore_index=True)
    table = simulation.both(values, plan.datasets(experiments), families=families)
    if table.empty:
        raise click.ClickException(f"{store.root}: holds two seeds of no comparison, and without a spread there is no power")
    if out is not None:
        make_directory(out.parent)
        write_atomically(out, table.to_csv(index=False).encode())
    click.echo(simulation.shown(table).to_string(index=False))
