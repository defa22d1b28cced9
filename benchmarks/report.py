"""What the benches found, as CSV files, lines on the terminal and the table of docs/performance.md.

performance.csv:

| column | meaning |
| --- | --- |
| `bench` | name for `python -m benchmarks --only` |
| `figure` | what was measured |
| `threads` | of torch |
| `value`, `low`, `high` | median over the rounds of all processes and quartiles; of a ratio taken round by round |
| `processes` | how many it was measured in |
| `unit` | empty for a ratio |
| `limit`, `met` | it must not exceed this, and whether the median does not; empty for a row that stands for comparison |
| `baseline_milliseconds` | median of what the ratio is to |
| `machine` | what it was measured on (a column of the tables of `benchmarks/cost.py`, too) |
| `load` | cores that other processes kept busy in the minute before the benches began |
| `date` | of the measurement |
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median

import pandas as pd

from benchmarks import timing

BEGIN, END = "<!-- table: written by `make bench` -->", "<!-- end of table -->"


def benches(tables: bool) -> list[str]:
    """Names of all benches; the figures' tables are measured once."""
    from benchmarks.cost import TABLES

    return [*timing.benches(), *(TABLES if tables else [])]


def pooled(rows: Sequence[Mapping[str, object]], bench: str, threads: int) -> list[dict[str, object]]:
    """Return the rows of performance.csv of one bench.

    Args:
        rows: fields of `benchmarks.timing.Row`, once for each process that measured the figure.
        bench: its name.
        threads: of torch.
    """
    by_figure: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        by_figure.setdefault(row["figure"], []).append(row)
    flat = []
    for figure, same in by_figure.items():
        value = timing.spread([sample for row in same for sample in row["samples"]])
        limit, baselines = same[0]["limit"], [row["baseline"] for row in same]
        flat.append(
            {"bench": bench, "figure": figure, "threads": threads, **value, "processes": len(same)}
            | {"unit": same[0]["unit"], "limit": limit, "met": None if limit is None else value["value"] <= limit}
            | {"baseline_milliseconds": None if None in baselines else median(baselines)}
        )
    return flat


def line(row: dict) -> str:
    """One row for the terminal."""
    verdict = "" if row["limit"] is None else f"  (≤ {row['limit']:g}: {'met' if row['met'] else 'NOT MET'})"
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}  {row['figure']}: {_value(row)}{verdict}"


def _value(row: dict) -> str:
    digits = 0 if row["value"] >= 30 else 1 if row["unit"] == "s" and row["value"] >= 1 else 3 if row["value"] < 0.2 else 2
    unit = f" {row['unit']}" if row["unit"] else ""
    if row["low"] == row["high"]:
        return f"{row['value']:.{digits}f}{unit}"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]{unit}"


def _cell(row: dict) -> str:
    """A value in the table; bold if it misses its limit."""
    return f"**{_value(row)}**" if row["met"] is False else _value(row)


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [text.split(":", 1)[1].strip() for text in info.read_text().splitlines() if text.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__.split("+")[0],
        "load": os.getloadavg()[0],
        "date": date.today().isoformat(),
    }


def place(about: Mapping[str, object]) -> str:
    """Return the machine in words, as the records name it."""
    return f"{about['cores']} cores of {about['cpu']}, torch {about['torch']}"


def recorded(root: Path) -> pd.DataFrame:
    """Return the rows of performance.csv."""
    return pd.read_csv(root / "benchmarks" / "results" / "performance.csv")


def write(root: Path, rows: list[dict], tables: dict[str, list[dict]], about: dict[str, object]) -> None:
    """Write benchmarks/results and the table in docs/performance.md.

    Args:
        root: of the project.
        rows: of performance.csv. What is recorded of the same bench and threads gives way to them, and the rest stays.
        tables: those of the figures that were measured, whole.
        about: what `machine` returned before the benches began.
    """
    results = root / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    where = {"machine": place(about)}
    for name, contents in tables.items():
        pd.DataFrame(contents).assign(**where).to_csv(results / f"{name}.csv", index=False, float_format="%.6g")
    if not rows:
        return
    page = root / "docs" / "performance.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    new = pd.DataFrame(rows).assign(**where, load=about["load"], date=about["date"])
    record = results / "performance.csv"
    merged(record, new).to_csv(record, index=False, float_format="%.6g")
    page.write_text(f"{before}{BEGIN}\n\n{table(recorded(root))}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def merged(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """Return what is recorded with new rows in place of those of the same bench and threads, in the order of the benches."""
    keys = ["threads", "bench"]
    old = pd.read_csv(path) if path.exists() else new.iloc[:0]
    order = {name: i for i, name in enumerate(benches(tables=False))}
    stays = old["bench"].isin(list(order)) & ~old.set_index(keys).index.isin(new.set_index(keys).index)
    parts = [part for part in (old[stays], new) if len(part)]
    return pd.concat(parts, ignore_index=True).sort_values(keys, key=lambda c: c.map(order).fillna(c), kind="stable")


def table(recorded: pd.DataFrame) -> str:
    """Return the rows of performance.csv as a table in Markdown: one line per figure, one column per number of threads."""
    # NaN stands for nothing
    rows = [{k: None if v != v else v for k, v in row.items()} for row in recorded.to_dict("records")]
    rows = [row | {"unit": row["unit"] or "", "met": row["limit"] is None or row["value"] <= row["limit"]} for row in rows]
    threads = sorted({row["threads"] for row in rows})
    machines, dates = (sorted({row[key] for row in rows}) for key in ("machine", "date"))
    lines = [
        f"Measured on {'; '.join(machines)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; cores that other processes "
        f"kept busy before: at most {max(row['load'] for row in rows):.1f}.",
        "",
        "| figure | must reach | " + " | ".join(f"{n} thread{'s' * (n > 1)}" for n in threads) + " | baseline | bench |",
        "| --- | --- |" + " --- |" * (len(threads) + 2),
    ]
    for figure in dict.fromkeys(row["figure"] for row in rows):
        found = {row["threads"]: row for row in rows if row["figure"] == figure}
        first = next(iter(found.values()))
        limit = "" if first["limit"] is None else f"≤ {first['limit']:.3g} {first['unit']}".strip()
        cells = [_cell(found[n]) if n in found else "" for n in threads]
        base = "" if first["baseline_milliseconds"] is None else f"{first['baseline_milliseconds']:.3g} ms"
        lines.append(f"| {figure} | {limit} | {' | '.join(cells)} | {base} | `{first['bench']}` |")
    return "\n".join(lines) + "\n"
