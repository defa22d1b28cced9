"""The report: everything a profile shows, on one HTML page that needs nothing but itself, and the regions of
documents that are written from the record.

Tables are those that were rendered as HTML beside Markdown and LaTeX, from the same frame of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
import pandas as pd

from analysis import inventory, logs
from fdfa_core.files import write_atomically
from figures import render
from figures.plan import Coverage, Job, plan
from figures.report import items
from figures.report.readme import BEGIN, END, results, with_results

__all__ = ["BEGIN", "END", "page", "results", "with_results", "write"]
NAME = "report.html"
MATRIX = "verdict_matrix"
BEHIND = ("verdict_summary", "verdicts")  # tables that the matrix rests on; with it they open the page


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

    out, coverage = Path(out), Coverage(root)
    render.render(profile, root, out, experiments=experiments, skip=note if skip else None, coverage=coverage)
    jobs, absent = plan(profile, root, experiments=experiments, partial=skip is not None, coverage=coverage)
    missing = absent | missing
    jobs = [job for job in jobs if job.name not in missing]
    write_atomically(out / NAME, page(profile, root, out, jobs, missing, experiments, coverage).encode())
    return out / NAME


def page(
    profile: str,
    root: str | Path,
    out: Path,
    jobs: list[Job],
    missing: dict[str, str],
    experiments: str | Path,
    coverage: Coverage,
) -> str:
    """Return the page.

    Args:
        profile: whose results they are.
        root: directory of runs, or record.
        out: directory with the rendered files of all jobs.
        jobs: what is shown.
        missing: what is not shown, with the reason.
        experiments: directory of experiment files.
        coverage: of `root`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = items.code
    planned = logs.profile(profile, experiments)
    found = inventory.inventory(root, planned.values())
    shown = [items.shown(job, out, coverage, profile) for job in sorted(jobs, key=lambda job: (not job.is_table, job.name))]
    verdicts = _verdicts(jobs, shown, out)
    opening = {MATRIX, *BEHIND} if verdicts else set()
    return environment.get_template("page.html").render(
        profile=profile,
        runs=int(found["there"].sum()),
        planned=len(found),
        verdicts=verdicts,
        tabs=items.tabs([item for item in shown if item["name"] not in opening]),
        missing=missing,
        experiments=[items.provenance(e, found[found["experiment"] == e.name], profile) for e in planned.values()],
        hours=inventory.cost(found)["hours"].sum(),
    )


def _verdicts(jobs: list[Job], shown: list[dict], out: Path) -> dict[str, object] | None:
    """Return what the page opens with: the matrix, what it means, why runs do not count, and the tables behind it."""
    job = next((job for job in jobs if job.name == MATRIX), None)
    if job is None:
        return None
    frame = pd.read_csv(out / f"{MATRIX}.csv")
    (_, lead), *paragraphs = job.module.explain(frame)
    table = job.module.show(frame)
    of = {item["name"]: item for item in shown}
    behind = [of[name] for name in BEHIND if name in of]
    reasons = job.module.reasons(frame)
    rows = table.map(render.html_cell).to_numpy().tolist()
    matrix = of[MATRIX] | {"columns": list(table), "cells": rows}
    return {"matrix": matrix, "lead": lead, "paragraphs": paragraphs, "reasons": reasons, "behind": behind}
