"""What the page says of one table, picture or experiment."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import pandas as pd
from PIL import Image

from figures import style
from figures.plan import Coverage, Job, gaps

LONG = 20  # rows of a table beyond which it is folded
EVERYWHERE, COST = "All data sets", "Cost"


def shown(job: Job, out: Path, coverage: Coverage, profile: str) -> dict[str, object]:
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
        "note": gaps(job, coverage),
        "csv": _data_uri("text/csv", (out / f"{job.name}.csv").read_bytes()),
        "tab": tab(job),
    } | (_table(out / f"{job.name}.html") if job.is_table else _picture(out / f"{job.name}.png"))


def tab(job: Job) -> str:
    """Return the heading that a figure or table stands under: its one data set, all data sets, or cost, which has none."""
    names = {run.data.name for experiment in job.all_experiments for run in experiment.runs()}
    if job.bench:
        return COST
    return style.dataset(names.pop()) if len(names) == 1 else EVERYWHERE


def tabs(items: list[dict]) -> list[tuple[str, list[dict]]]:
    """Return the items by heading, tables before pictures: all data sets first, cost last."""
    order = {EVERYWHERE: -1, COST: len(style.DATASETS) + 1}
    order |= {style.dataset(name): i for i, name in enumerate(style.DATASETS)}
    names = sorted({item["tab"] for item in items}, key=lambda name: (order.get(name, len(style.DATASETS)), name))
    return [(name, [item for item in items if item["tab"] == name]) for name in names]


def _table(path: Path) -> dict[str, object]:
    """Return a table, escaped by whoever rendered it, and whether it is long."""
    text = path.read_text(encoding="utf-8")
    rows = text.count("<tr") - 1
    return {"table": text, "rows": rows, "folded": rows > LONG}


def _picture(path: Path) -> dict[str, object]:
    """Return a picture as a data URI, with its size in pixels so that the page does not jump while it is read."""
    content = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    return {"image": _data_uri("image/png", content), "width": width, "height": height}


def provenance(experiment, found: pd.DataFrame, profile: str) -> dict[str, object]:
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


def code(text: str) -> str:
    """Escape a text and set what stands between back-ticks as code; the result is safe to insert."""
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", html.escape(text))
