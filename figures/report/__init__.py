"""The report: everything a profile shows, on one HTML page that needs nothing but itself, and the results region of the README.

Tables are those that were rendered as HTML beside Markdown and LaTeX, from the same frame of texts.
"""

from __future__ import annotations

import base64
import functools
import html
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
import pandas as pd
from PIL import Image

from analysis import inventory, logs
from fdfa_core.errors import InvalidInput
from fdfa_core.files import write_atomically
from figures import _labels, render, style
from figures.plan import Job, gaps, plan

NAME = "report.html"
CLAIM_COLUMNS = ("", "claim", "verdict", "estimate", "claimed", "p (corrected)", "seeds")
FIRST = ("claims", "accuracy")  # tables that answer the questions; the others follow by name
BEGIN, END = "<!-- results: written by `make readme` -->", "<!-- end of results -->"


def write(
    profile: str,
    root: str | Path,
    out: str | Path,
    *,
    experiments: str | Path = logs.EXPERIMENTS,
    skip: Callable[[str, str], None] | None = None,
) -> Path:
    """Render what is not up to date (`figures.render.render`, whose arguments these are), write the page, and return its path.

    Raises:
        RunError: as `render`.
    """
    missing: dict[str, str] = {}

    def note(name: str, reason: str) -> None:
        missing[name] = reason
        skip(name, reason)

    render.render(profile, root, out, experiments=experiments, skip=note if skip else None)
    out = Path(out)
    jobs, absent = plan(profile, root, experiments=experiments, partial=skip is not None)
    missing = absent | missing
    jobs = [job for job in jobs if job.name not in missing]
    write_atomically(out / NAME, page(profile, root, out, jobs, missing, experiments).encode())
    return out / NAME


def page(profile: str, root: str | Path, out: Path, jobs: list[Job], missing: dict[str, str], experiments: str | Path) -> str:
    """Return the page.

    Args:
        profile: whose results they are.
        root: directory of runs.
        out: directory with the rendered files of all jobs.
        jobs: what is shown.
        missing: what is not shown, with the reason.
        experiments: directory of experiment files.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    planned = logs.profile(profile, experiments)
    found = inventory.inventory(root, planned.values())
    tables = sorted((job for job in jobs if job.is_table), key=lambda job: (_rank(job.name), job.name))
    return environment.get_template("page.html").render(
        profile=profile,
        runs=int(found["there"].sum()),
        planned=len(found),
        tables=[_shown(job, out, root, profile) | _table(out / f"{job.name}.html") for job in tables],
        figures=[_shown(job, out, root, profile) | _picture(out / f"{job.name}.png") for job in jobs if not job.is_table],
        missing=missing,
        experiments=[_provenance(e, found[found["experiment"] == e.name], profile) for e in planned.values()],
        hours=inventory.cost(found)["hours"].sum(),
    )


def with_results(text: str, profile: str, root: str | Path, experiments: str | Path = logs.EXPERIMENTS) -> str:
    """Return a text with the region between the two marks replaced by the recorded results.

    Raises:
        InvalidInput: the text has no such region.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InvalidInput("text", text[:40] + "…", f"a text with the lines {BEGIN!r} and {END!r}, once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{results(profile, root, experiments)}{END}{rest.split(END)[1]}"


def results(profile: str, root: str | Path, experiments: str | Path = logs.EXPERIMENTS) -> str:
    """Return the recorded accuracies, the verdicts on the claims, and the cost, as Markdown."""
    planned = logs.profile(profile, experiments)
    cost = inventory.cost(inventory.inventory(root, planned.values()))
    recorded, total = int(cost["runs"].sum()), int(cost["planned"].sum())
    parts = [f"{recorded} of {total} planned runs are recorded in `{Path(root).as_posix()}/`"]
    if recorded:
        parts[0] += f"; they took {cost['hours'].sum():.1f} hours of one process"
    parts[0] += "."
    jobs, _ = plan(profile, root, ["accuracy", "claims"], experiments=experiments, partial=True)
    order = dict(zip(cost["experiment"], cost["runs"], strict=True))
    jobs.sort(key=lambda job: -sum(order[experiment.name] for experiment in job.all_experiments))
    for name in ("accuracy", "claims"):
        several = [job for job in jobs if job.name.partition("-")[0] == name]
        for job in several[:1]:  # the one with most evidence
            parts += _summary(job, root)
        if name == "claims":
            parts += _elsewhere(several[1:], root)
    absent = cost.loc[cost["runs"] < cost["planned"], "experiment"]
    if len(absent):
        parts.append("What is missing, each by `fdfa sweep experiments/paper/NAME.toml`: " + ", ".join(absent) + ".")
    return "\n\n".join(parts) + "\n"


def _computed(job: Job, root: str | Path) -> pd.DataFrame:
    """Return what a figure or table is drawn from."""
    read = functools.partial(logs.read, root, partial=True)
    return job.module.compute({role: logs.pooled([read(e) for e in group]) for role, group in job.experiments.items()})


def _elsewhere(jobs: list[Job], root: str | Path) -> list[str]:
    """Return the paragraphs on the claims about training, tested on further data sets and networks."""
    tables, notes = [], []
    for job in jobs:
        trained = [experiment.name for experiment in job.experiments.get("convergence", [])]
        frame = _computed(job, root)
        frame = frame[(frame["evidence"] == "convergence") & (frame["components"] > 0)]
        if len(frame):
            shown = job.module.show(frame)
            shown.insert(0, "on", ", ".join(trained))
            tables.append(shown[[c for c in ("on", *CLAIM_COLUMNS, "weakest of") if c in shown and c != "claim"]])
            notes += [note] if (note := gaps(job, root)) else []
    if not tables:
        return []
    head = "The claims about training on further data sets and networks (p corrected over all claims of each such table):"
    text = pd.concat(tables).to_markdown(index=False, disable_numparse=True)
    return [head, text, *(f"{note}." for note in dict.fromkeys(notes))]


def _summary(job: Job, root: str | Path) -> list[str]:
    """Return the paragraphs that the README has of a table."""
    frame = _computed(job, root)
    if job.name == "accuracy":
        head, shown = (
            "Test accuracy (%) after the last epoch, mean ± half the 95 % t-interval over n seeds:",
            _accuracies(frame),
        )
    else:
        evidence = ", ".join(experiment.name for experiment in job.all_experiments)
        shown = job.module.show(frame)
        head, shown = f"Claims made for FDFA, tested on {evidence}:", shown[[c for c in CLAIM_COLUMNS if c in shown]]
    note = gaps(job, root)
    return [head, shown.to_markdown(index=False, disable_numparse=True), *([f"{note}."] if note else [])]


@_labels.understood
def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy table with a row an estimator and a column a setting."""

    def cell(row) -> str:
        if row.seeds == 0:
            return "diverged"
        half = f" ± {50 * (row.high - row.low):.2f}" if row.interval == "seeds" else ""
        return f"{100 * row.accuracy:.2f}{half} ({row.seeds})"

    setting = [f"{r.dataset}, {r.architecture.replace('_', ' ')}, {r.epochs} epochs" for r in frame.itertuples()]
    cells = frame.assign(setting=setting, cell=[cell(row) for row in frame.itertuples()])
    wide = cells.pivot(index="trained_with", columns="setting", values="cell").fillna("–")
    wide = wide.loc[style.ordered(wide.index), list(dict.fromkeys(setting))]
    wide.insert(0, "estimator", [style.look(label).name for label in wide.index])
    return wide.rename(columns={column: f"{column} (n)" for column in wide.columns[1:]})


def _rank(name: str) -> int:
    return next((i for i, first in enumerate(FIRST) if name == first or name.startswith(f"{first}-")), len(FIRST))


def _shown(job: Job, out: Path, root: str | Path, profile: str) -> dict[str, object]:
    """Return what the page says of any figure or table."""
    module = job.module.__name__.rpartition(".")[2]
    title, _, choice = job.name.partition("-")
    caption, *more = job.module.__doc__.strip().split("\n\n")
    caption = getattr(job.module, "CAPTION", caption)
    return {
        "name": job.name,
        "title": title.replace("_", " ") + (f": {choice}" if choice else ""),
        "caption": " ".join(caption.split()),
        "more": " ".join(" ".join(more).split()),
        "computed": " ".join((job.module.compute.__doc__ or "").split("\n\n")[0].split()),
        "module": f"figures/{module}.py",
        "experiments": [experiment.name for experiment in job.all_experiments],
        "command": f"fdfa figures --profile {profile} --only {job.name}",
        "note": gaps(job, root),
        "csv": _data_uri("text/csv", (out / f"{job.name}.csv").read_bytes()),
    }


def _table(path: Path) -> dict[str, object]:
    """Return a table, escaped by whoever rendered it."""
    return {"table": path.read_text(encoding="utf-8")}


def _picture(path: Path) -> dict[str, object]:
    """Return a picture as a data URI, with its size in pixels so that the page does not jump while it is read."""
    content = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    return {"image": _data_uri("image/png", content), "width": width, "height": height}


def _provenance(experiment, found: pd.DataFrame, profile: str) -> dict[str, object]:
    """Return what the page says of an experiment and where its runs come from."""
    there = found[found["there"]].convert_dtypes()  # runs that are missing made counts of whole things floats
    about = {
        "name": experiment.name,
        "description": experiment.description,
        "source": experiment.path.read_text(encoding="utf-8"),
        "planned": len(found),
        "runs": len(there),
        "command": f"fdfa sweep {experiment.path.as_posix()}",
        "facts": [],
    }
    if there.empty:
        return about

    def values(column: str) -> str:
        return ", ".join(str(value) for value in sorted(set(there[column].dropna())))

    commits = sorted({str(row.commit)[:12] + (" with changes" if row.dirty else "") for row in there.itertuples()})
    data = sorted({f"{row.data}, SHA-256 {row.data_sha256[:16]}…" for row in there.itertuples()})
    about["facts"] = [
        ("hours of one process", f"{there['seconds'].sum() / 3600:.2f}"),
        ("between", f"{there['started'].min()} and {there['finished'].max()}"),
        ("code", ", ".join(commits)),
        ("versions", f"Python {values('python')}, torch {values('torch')}"),
        ("machine", f"{values('processor')}, {values('cores')} cores, {values('device')}, {values('threads')} threads a run"),
        ("data", "; ".join(data) + (f" ({values('data_notes')})" if values("data_notes") else "")),
        ("diverged", f"{(there['status'] == 'diverged').sum()} runs"),
        ("resumed after an interruption", f"{(there['resumed'] > 0).sum()} runs"),
    ]
    return about


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _code(text: str) -> str:
    """Escape a text and set what stands between back-ticks as code; the result is safe to insert."""
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", html.escape(text))
