"""The regions of documents that are written from the record: verdicts, accuracies and what is missing, and the findings."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from analysis import inventory, logs
from fdfa_core.errors import InvalidInput
from figures import _labels, render
from figures.plan import Coverage, Job, gaps, plan
from figures.report.findings import findings, settings, wide

BEGIN, END = "<!-- {}: written by `make readme` -->", "<!-- end of {} -->"
ACCURACY = (
    "Test accuracy (%) after the last epoch, mean ± half the 95 % t-interval over n seeds. Where experiments have tuned a "
    "method each by itself, its settings are not part of its name:"
)


def with_results(
    text: str, profile: str, root: str | Path, experiments: str | Path = logs.EXPERIMENTS, *, name: str = "text", of: str = ""
) -> str:
    """Return a text with its regions, each between two marks, replaced by what the recorded runs show.

    Args:
        text: with the two marks of "results" (`results`), of "findings" (`findings.findings`), or of both.
        profile: whose results they are.
        root: directory of runs, or record.
        experiments: directory of experiment files.
        name, of: what an error calls the text: the argument that it came by, and its file; by default its beginning.

    Raises:
        InvalidInput: the text has no region, or one without its beginning or end.
    """
    marks = {region: (BEGIN.format(region), END.format(region)) for region in REGIONS}
    there = {region: pair for region, pair in marks.items() if any(mark in text for mark in pair)}
    for begin, end in (there or marks).values():
        begins, ends = text.count(begin), text.count(end)
        if begins != 1 or ends != 1 or text.index(begin) > text.index(end):
            accepted = f"a file with the lines {begin!r} and {end!r}, once each, in this order"
            counts = f"It has the first {begins} times, the second {ends} times; put the lines where they shall stand."
            raise InvalidInput(name, of or text[:40] + "…", accepted, counts)
    for region, (begin, end) in there.items():
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{REGIONS[region](profile, root, experiments)}{end}{rest.split(end)[1]}"
    return text


def results(profile: str, root: str | Path, experiments: str | Path = logs.EXPERIMENTS) -> str:
    """Return the matrix of verdicts with a paragraph per question, the recorded accuracies, and the cost, as Markdown.

    Every experiment is read once, whatever shows it.
    """
    store = logs.open_store(root)
    planned, coverage = logs.profile(profile, experiments), Coverage(store)
    cost = inventory.cost(inventory.inventory(store, planned.values()))
    recorded, total = int(cost["runs"].sum()), int(cost["planned"].sum())
    parts = [f"{recorded} of {total} planned runs are recorded in `{Path(root).as_posix()}/`"]
    if recorded:
        parts[0] += f"; they took {cost['hours'].sum():.1f} hours of one process, without pauses"
    parts[0] += "."
    read = functools.cache(lambda name: logs.read(store, planned[name], partial=True))
    wanted = ("verdict_matrix", "accuracy")
    jobs, _ = plan(profile, store, wanted, experiments=experiments, partial=True, coverage=coverage)
    for job in sorted(jobs, key=lambda job: wanted.index(job.name)):
        read_of = {role: logs.pooled([read(e.name) for e in group]) for role, group in job.experiments.items()}
        parts += _paragraphs(job, render.computed(job, read_of))
    notes = dict.fromkeys(note for job in jobs if job.name == "accuracy" and (note := gaps(job, coverage)))
    parts += [f"{note}." for note in notes]
    absent = cost.loc[cost["runs"] < cost["planned"], "experiment"]
    if len(absent):
        parts.append(f"What is missing, each by `fdfa sweep experiments/{profile}/NAME.toml`: " + ", ".join(absent) + ".")
    return "\n\n".join(parts) + "\n"


def _paragraphs(job: Job, frame: pd.DataFrame) -> list[str]:
    """Return what the README has of a table."""
    if job.name == "accuracy":
        return [ACCURACY, render.markdown(_accuracies(frame))]
    lead, *questions = render.paragraphs(job.module.explain(frame))
    return [lead, render.markdown(job.module.show(frame)), *questions]


@_labels.understood
def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy table with one row per estimator and one column per setting."""

    def cell(row) -> str:
        if row.seeds == 0:
            return "diverged"
        half = f" ± {50 * (row.high - row.low):.2f}" if row.interval == "seeds" else ""
        return f"{100 * row.accuracy:.2f}{half} ({row.seeds})"

    table = wide(frame, "trained_with", settings(frame), cell)
    return table.rename(columns={column: f"{column} (n)" for column in table.columns[1:]})


REGIONS = {"results": results, "findings": findings}
