"""Commands for those who look after code and runs: check, doctor, audit, verify, reference, readme, previews."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fdfa_cli.shared import RUNS, SECONDS, exit_with_failures, figures_of, load_experiments, options, record_of

if TYPE_CHECKING:
    from fdfa_core.testing import Report


@click.command(short_help="Check the estimators that a file of yours registers.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--estimator", "chosen", multiple=True, metavar="NAME", help="Only this one of the file's (repeatable).")
@click.option("--option", "settings", multiple=True, metavar="NAME=VALUE", help="An option of its own (repeatable).")
@click.option("--network", metavar="MODULE:FUNCTION", help="Returns (network, x, y) to check on.  [default: a small one]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of all random numbers.")
@click.option("--budget", type=click.IntRange(min=1000), metavar="DRAWS", help="Most draws of one test.  [default: 300000]")
@click.option("--junit", type=click.Path(path_type=Path), help="Also write JUnit's XML there.")
def check(
    file: Path,
    chosen: tuple[str, ...],
    settings: tuple[str, ...],
    network: str | None,
    seed: int,
    budget: int | None,
    junit: Path | None,
) -> None:
    """Check every estimator that a Python FILE registers against the contract of an estimator; docs/checking.md has its checks.

    Exit with code 1 if a check fails or cannot decide, and with code 2 if there is nothing to check.
    """
    from fdfa_core import testing
    from fdfa_core.estimators.registry import registered_in
    from fdfa_core.experiments.tables import require_known
    from fdfa_core.files import make_directory, write_atomically
    from fdfa_core.references import resolve
    from fdfa_core.testing.subject import BUDGET, Subject

    given = dict(map(_setting, settings)) | {"network": resolve("--network", network) if network else None}
    if junit:
        make_directory(junit.absolute().parent)  # before seconds of work whose result would have nowhere to go
    names = registered_in(file)
    for name in chosen:
        require_known("--estimator", name, names)
    subjects = [Subject(name, seed=seed, budget=budget or BUDGET, **given) for name in chosen or names]
    reports = []
    for subject in subjects:
        click.echo(subject.name)
        reports.append(testing.report_on(subject, lambda check, finding: click.echo(testing.row(check, finding))))
        click.echo(f"{reports[-1].summary}\n")
    if junit:
        write_atomically(junit, _junit(reports))
    if not all(report.ok for report in reports):
        click.get_current_context().exit(1)


def _setting(text: str) -> tuple[str, object]:
    """Return the name and the value of NAME=VALUE; a value that is no Python literal is a word."""
    import ast

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.UsageError(f"--option: got {text!r}; accepted: NAME=VALUE, e.g. tangents=4")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _junit(reports: list[Report]) -> bytes:
    """Return reports as JUnit's XML; what does not apply or is not declared counts as skipped."""
    from xml.etree import ElementTree

    def printable(text: str) -> str:  # XML knows no control characters
        return "".join(letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text)

    suites = ElementTree.Element("testsuites")
    for report in reports:
        skipped = {name for name, f in report.findings.items() if f.outcome in ("not declared", "does not apply")}
        counts = {"tests": len(report.findings), "failures": len(report.failed), "skipped": len(skipped), "errors": 0}
        suite = ElementTree.SubElement(suites, "testsuite", name=report.estimator, **{k: str(v) for k, v in counts.items()})
        for name, finding in report.findings.items():
            case = ElementTree.SubElement(suite, "testcase", classname=f"fdfa.{report.estimator}", name=name)
            said = printable(f"{finding.outcome}: {finding.detail}")
            if not finding.ok:
                ElementTree.SubElement(case, "failure", type=finding.outcome, message=said)
            elif name in skipped:
                ElementTree.SubElement(case, "skipped", message=said)
            else:
                ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


@click.command(short_help="Check runs or a record, and say what mends them.")
@click.argument("runs", type=click.Path(path_type=Path), default=RUNS)
def doctor(runs: Path) -> None:
    """Check every file and number of a directory of RUNS, or of a record; exit with code 1 if anything is damaged.

    Nothing is changed: for what is damaged, the command that mends it is named.
    """
    from fdfa_core.runs.doctor import examine

    report = examine(runs)
    for finding in report.damaged:
        click.echo(f"{finding.place}: {' '.join(finding.fault.split())}\n  mend it with: {finding.remedy}")
    click.echo(f"{report} (in {runs})")
    if report.damaged:
        click.get_current_context().exit(1)


@click.command(short_help="Make recorded runs anew, and compare.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option("--sample", type=click.IntRange(min=1), default=3, help="How many runs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the draw.")
@click.option("--longest", type=SECONDS, metavar="SECONDS", help="Draw no run that took longer.")
@click.option("--runs", "root", type=click.Path(path_type=Path), help="Keep the new runs there; the same command resumes.")
@options("profile", "jobs", "data_dir")
def audit(
    files: tuple[Path, ...], sample: int, seed: int, longest: float | None, root: Path | None, profile: str, jobs: int | None,
    data_dir: Path | None,
) -> None:  # fmt: skip
    """Draw recorded runs of a profile, or of the experiment FILEs, at random, make them anew, and compare.

    Each is equal in every bit, equal to rounding, equal within the noise of another machine, or different; exit with code 1 if
    one is different. Runs are drawn from as many experiments as possible, and made with the number of threads that they had.
    """
    import tempfile
    from contextlib import nullcontext

    import pandas as pd

    from analysis import audit as audits
    from fdfa_core.runs.store import open_store
    from fdfa_core.sweeps.sweep import sweep

    experiments, store = load_experiments(files, profile), open_store(record_of(profile))
    drawn = audits.draw(store, experiments, sample, seed, longest)
    of = {experiment.name: experiment for experiment in experiments}
    configs = [store.config(run) for run in drawn["run"]]
    with nullcontext(root) if root else tempfile.TemporaryDirectory(prefix="fdfa-audit-") as place:
        for threads in drawn["threads"].unique():
            alike = [config for config, own in zip(configs, drawn["threads"], strict=True) if own == threads]
            exit_with_failures(sweep(alike, place, processes=jobs, data_directory=data_dir, threads=int(threads)))
        anew = open_store(place)
        pairs = zip(configs, drawn["experiment"], strict=True)
        found = [audits.compare(store, anew, config, audits.siblings(config, of[name])) for config, name in pairs]
        machine = anew.provenance(configs[0].id)["hardware"]["processor"]
    for row, (outcome, where) in zip(drawn.itertuples(), found, strict=True):
        click.echo(f"{row.experiment:16} {row.trained_with:32} seed {row.seed:3}  {row.seconds:6.0f} s  {outcome}")
        if where:
            click.echo(f"{'':16} first: {where}")
    counts = pd.Series([outcome for outcome, _ in found]).value_counts()
    click.echo("; ".join(f"{counts.get(outcome, 0)} {outcome}" for outcome in audits.OUTCOMES))
    click.echo(f"Recorded on: {'; '.join(drawn['processor'].unique())}. Made anew on: {machine}.")
    click.echo(f"Rounding: a relative {audits.ROUNDING:g}. Noise: {audits.SPREADS:g} standard deviations over the seeds.")
    if counts.get(audits.DIFFERENT, 0):
        click.get_current_context().exit(1)


@click.command(short_help="Redraw the small pictures of the README.")
@click.option("--images", type=click.Path(path_type=Path), default=Path("docs/images"), help="Where the pictures go.")
@options("figures", "profile")
def previews(out: Path | None, images: Path, profile: str) -> None:
    """Redraw the small pictures of the README from the figures of a profile with one experiment a role (smoke, quick)."""
    from fdfa_core.experiments.loading import profiles
    from fdfa_core.experiments.tables import require_known
    from figures import render

    require_known("profile", profile, profiles())
    click.echo("\n".join(map(str, render.previews(out or figures_of(profile), images))))


@click.command(short_help="Check every estimator against its closed-form theory.")
@click.option("--light", is_flag=True, help="The short suite, of less power: seconds in place of minutes.")
@click.option("--mutants/--no-mutants", "plant", default=True, help="Also plant mistakes, and see that each is noticed.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures/out/verification"), help="Where tables go.")
@options("jobs")
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


@click.group(short_help="Check or write the moments that others test against.")
def reference() -> None:
    """Check or write the reference moments: exact means and variances that other implementations can test against."""


_directory = click.option("--directory", type=click.Path(path_type=Path), help="Of the files.  [default: reference/]")


@reference.command(name="verify", short_help="Hold the files against closed forms, sums over outcomes and draws.")
@_directory
@click.option("--draws/--no-draws", default=True, help="Also draw each estimator: a minute in place of seconds.")
@click.option("--only", default="", metavar="TEXT", help="Check only cases whose name contains this.")
@options("jobs")
def verify_reference(directory: Path | None, draws: bool, only: str, jobs: int | None) -> None:
    """Hold the reference moments against closed forms, sums over all outcomes, and draws of the estimators.

    Exit with code 1 if a number of the files is wrong.
    """
    from fdfa_core import paths
    from verification import reference as moments

    frame = moments.verify(directory or paths.REFERENCE, draws=draws, only=only, jobs=jobs)
    click.echo(moments.table(frame))
    click.echo(f"{(frame.verdict == 'pass').sum()} of {len(frame)} rows pass")
    if not moments.passed(frame):
        click.get_current_context().exit(1)


@reference.command(name="write", short_help="Write the files, after all checks.")
@_directory
@options("jobs")
def write_reference(directory: Path | None, jobs: int | None) -> None:
    """Compute the reference moments, check them, and write the files. A file whose content is still right is left as it is."""
    from fdfa_core import paths
    from verification import reference as moments

    written = moments.write(directory or paths.REFERENCE, jobs)
    click.echo("\n".join(map(str, written)) or "all files are right as they are")


@click.command(short_help="Write the recorded results into README.md and docs/reproducing.md.")
@click.option(
    "--file",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    default=[Path("README.md"), Path("docs/reproducing.md")],
    help="File with marked regions (repeatable).",
)
def readme(files: tuple[Path, ...]) -> None:
    """Write the recorded results of the paper profile into the marked regions of README.md and docs/reproducing.md."""
    from fdfa_core.errors import InvalidInput
    from fdfa_core.files import write_atomically
    from figures import report as page

    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            accepted = "a text file with marked regions"
            raise InvalidInput("--file", str(file), accepted, f"It cannot be read: {error}.") from error
        text = page.with_results(text, "paper", record_of("paper"), name="--file", of=str(file))
        write_atomically(file, text.encode())
        click.echo(f"{file}: up to date with {record_of('paper')}")
