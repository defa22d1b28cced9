"""Commands that draw: figures, report."""

from __future__ import annotations

from pathlib import Path

import click

from fdfa_cli.shared import (
    OWN,
    carry_out_all,
    figures_of,
    is_recorded,
    load_experiments,
    on_terminal,
    options,
    record_of,
    record_or_runs,
    say_skipped,
    shown_profile,
)


@click.command(short_help="Carry out missing runs, and draw all figures and tables.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this figure or table, and its runs (repeatable).")
@click.option("--out", type=click.Path(path_type=Path), help="Where they go.  [default: figures/out/PROFILE]")
@click.option(
    "--train/--no-train",
    "may_train",
    default=True,
    help="Carry out missing runs first (never among recorded results), or draw what is there.",
)
@options("recorded or runs", "profile", "jobs", "cluster", "data_dir")
def figures(
    only: tuple[str, ...],
    out: Path | None,
    may_train: bool,
    root: Path | None,
    profile: str,
    data_dir: Path | None,
    jobs: int | None,
    cluster: str | None,
) -> None:
    """Carry out the runs of a profile that are missing, analyse the logs, and draw all figures and tables.

    Results that were recorded in results/PROFILE are drawn as far as they go, without training; what they lack is named. So are
    the runs of your own loops (fdfa_core.Monitor), which the profile "own" holds: it is the default where --runs has such runs.
    """
    profile = shown_profile(profile, root)
    root = record_or_runs(root, profile)
    may_train = may_train and not is_recorded(root) and profile != OWN
    out = out or figures_of(profile)

    from tqdm import tqdm

    from figures import render
    from figures.plan import plan

    if may_train:  # what cannot be drawn, or not written there, is refused before hours of training
        planned, unmeasured = plan(profile, root, only or None)
        render.open_directory(out)
        needed = {experiment.name for job in planned for experiment in job.all_experiments}
        experiments = [e for e in load_experiments((), profile) if not only or e.name in needed]
        carry_out_all(experiments, root, data_dir, processes=jobs, cluster=cluster)

    drawn = []
    with tqdm(desc="figures", total=len(only or render.discover()), unit="figure", disable=not on_terminal()) as bar:

        def show(name: str, new: bool) -> None:
            bar.update()
            drawn.append(name) if new else None

        skipped: dict[str, str] = unmeasured if may_train else {}
        skip = None if may_train else skipped.__setitem__
        files = render.render(profile, root, out, only=only or None, report=show, skip=skip, processes=jobs)
    say_skipped(skipped)
    click.echo(f"{len(files)} files in {out}; drawn now: {', '.join(drawn) or 'nothing, all were up to date'}")


@click.command(short_help="Write figures, tables and verdicts as one HTML page.")
@options("figures", "recorded or runs", "profile")
def report(out: Path | None, root: Path | None, profile: str) -> None:
    """Draw what is not drawn yet, and write it all into one HTML page that needs no network: OUT/report.html."""
    from figures import report as page

    root = record_or_runs(root, profile)
    skipped: dict[str, str] = {}
    skip = skipped.__setitem__ if root.resolve() == record_of(profile).resolve() else None
    path = page.write(profile, root, out or figures_of(profile), skip=skip)
    say_skipped(skipped)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
