"""The command that reads grids of trials and writes what follows from them: tuned."""

from __future__ import annotations

from pathlib import Path

import click

from fdfa_cli.shared import experiment_files, load_experiments, options


@click.command(short_help="Show the best settings of each estimator in its grid.")
@experiment_files
@click.option("--extend", is_flag=True, help="Extend the grid FILE in place where a best trial stands at its edge.")
@click.option("--finalists", type=click.Path(path_type=Path), metavar="OUT", help="Write the experiment of round 2 there.")
@click.option(
    "--apply",
    "targets",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="EXPERIMENT",
    help="Write the choices of the finals FILE into this experiment file, in place (repeatable).",
)
@options("runs")
def tuned(files: tuple[Path, ...], extend: bool, finalists: Path | None, targets: tuple[Path, ...], root: Path) -> None:
    """Show the best settings of each estimator in the grids FILE, or in all of experiments/tuning (docs/protocol.md, Tuning).

    Of a grid of round 1 it names the three best trials of every method, and edges; of the finals, the choice by the
    one-standard-error rule; of an older grid, the best rate.
    """
    from analysis import logs
    from fdfa_core.errors import InvalidInput

    wanted = [name for name, given in (("--extend", extend), ("--finalists", finalists), ("--apply", targets)) if given]
    if wanted and (len(files) != 1 or len(wanted) > 1):
        raise InvalidInput(" ".join(wanted), [str(file) for file in files], "one of these options, and one FILE that it reads")
    for experiment in load_experiments(files, "tuning"):
        found = logs.coverage(root, experiment)["runs"].any()
        if not found and (wanted or not files):
            click.echo(f"{experiment.name}: no run is there (fdfa sweep {experiment.path.as_posix()})", err=bool(wanted))
            if wanted:
                click.get_current_context().exit(2)
            continue
        log = logs.read(root, experiment, partial=True)
        click.echo(f"{experiment.name}: {experiment.description}")
        shown = {"trials": _show_trials, "finals": _show_finals}.get(experiment.role)
        if shown is None and wanted:
            raise InvalidInput("FILE", experiment.path.as_posix(), 'a grid of this protocol (role = "trials" or "finals")')
        if shown is None:
            _show_rates(log)
            continue
        from analysis import tuning

        rows = tuning.trials(experiment, log)
        shown(rows)
        if extend:
            _extend(experiment, rows)
        elif finalists:
            _write_finals(experiment, rows, finalists)
        elif targets:
            _apply(experiment, rows, targets)


def _show_trials(rows) -> None:
    """Say of every method how many trials are there, which are best, what diverged, and whether the best is at an edge."""
    from analysis import tuning

    best, edges = tuning.finalists(rows), tuning.edges(rows)
    for row in tuning.progress(rows).itertuples():
        line = f"  {tuning.said(row, rows):36}{row.done:3} of {row.planned} trials"
        mine = best[tuning.same_method(best, row)]
        line += f", {row.lost} diverged" if row.lost else ""
        if not row.complete:
            click.echo(f"{line}: nothing is chosen before all are there")
            continue
        click.echo(line + ("" if len(mine) else ": none ended well"))
        for trial in mine.itertuples():
            click.echo(f"    {trial.rank}. {_pair(trial):44}accuracy {trial.accuracy:.4f}")
        for edge in edges[tuning.same_method(edges, row)].itertuples():
            more = f"to be extended {edge.side} to {edge.next:g}" if edge.next == edge.next else "extended as far as it may be"
            click.echo(f"    at the edge of its grid: {edge.setting.replace('_', ' ')} {edge.best:g}, {more}")
    _show_lost(rows)


def _show_finals(rows) -> None:
    """Say of every method's finals what their means and standard errors are, and which is chosen."""
    from analysis import tuning

    judged = tuning.choices(rows)
    for row in tuning.progress(rows).itertuples():
        mine = judged[tuning.same_method(judged, row)]
        left = "" if row.complete else ": nothing is chosen before all are there"
        left = ": none ended well, nothing is chosen" if row.complete and not mine["chosen"].any() else left
        click.echo(f"  {tuning.said(row, rows):36}{row.done:3} of {row.planned} finals{left}")
        for trial in mine.dropna(subset=["accuracy"]).itertuples():
            said = [name for name in ("best", "chosen") if getattr(trial, name)]
            spread = f"accuracy {trial.accuracy:.4f} ± {trial.se:.4f} ({trial.seeds} seeds)"
            click.echo(f"    {_pair(trial):44}{spread}{'  ' + ', '.join(said) if said else ''}")
    _show_lost(rows)


def _show_lost(rows) -> None:
    from analysis import tuning

    for trial in rows[rows["diverged"] > 0].itertuples():
        who = f"{tuning.said(trial, rows)}, {_pair(trial)}"
        click.echo(f"  out, since it diverged with {trial.diverged} of {trial.seeds} seeds: {who}")


def _show_rates(log) -> None:
    """Say the best rate of every estimator in a grid of one round."""
    from analysis import tuning

    rows = tuning.best_rates(log)
    varied = rows.columns[: rows.columns.get_loc("trained_with")]
    for row in rows.to_dict("records"):
        name = ", ".join([row["trained_with"], *(f"{key} {row[key]}" for key in varied)])
        best = f"{row['learning_rate']:8g} of {row['rates']} rates, accuracy {row['accuracy']:.4f}"
        click.echo(f"  {name:48}{best}{'  (at the edge of the grid)' if row['edge'] else ''}")


def _pair(trial) -> str:
    second = f", {trial.second.replace('_', ' ')} {trial.value:g}" if trial.second else ""
    return f"learning rate {trial.learning_rate:g}{second}"


def _extend(experiment, rows) -> None:
    from analysis import tuned_files
    from fdfa_core.files import write_atomically

    text = tuned_files.extended(experiment, rows)
    write_atomically(experiment.path, text.encode())
    click.echo(f"{experiment.path.as_posix()}: extended (fdfa sweep {experiment.path.as_posix()})")


def _write_finals(experiment, rows, out: Path) -> None:
    from analysis import tuned_files
    from fdfa_core.files import make_directory, write_atomically

    command = f"fdfa tuned {experiment.path.as_posix()} --finalists {out.as_posix()}"
    text = tuned_files.finals(experiment, rows, command)
    make_directory(out.parent)
    write_atomically(out, text.encode())
    click.echo(f"{out.as_posix()}: written (fdfa sweep {out.as_posix()})")


def _apply(experiment, rows, targets: tuple[Path, ...]) -> None:
    """Write the choices into experiment files: into all of them, or into none if one refuses."""
    from analysis import tuned_files, tuning
    from fdfa_core.errors import InvalidInput
    from fdfa_core.experiments.loading import load_experiment
    from fdfa_core.files import write_atomically

    if experiment.role != "finals":
        raise InvalidInput("--apply", experiment.path.as_posix(), 'finals (role = "finals"): nothing is chosen in round 1')
    judged = tuning.choices(rows)
    chosen, texts = judged[judged["chosen"]], {}
    for target in targets:
        load_experiment(target)  # refuses what is no experiment file
        texts[target] = tuned_files.applied(target.read_text(encoding="utf-8"), chosen, target.as_posix())
    for target, text in texts.items():
        write_atomically(target, text.encode())
        click.echo(f"{target.as_posix()}: has the settings that {experiment.path.as_posix()} chose")
