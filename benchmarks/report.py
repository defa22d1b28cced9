"""What the benches found, as CSV files, lines on the terminal and the table of docs/performance.md.

performance.csv:

| column | meaning |
| --- | --- |
| `bench` | name for `python -m benchmarks --only` |
| `figure` | what was measured |
| `threads` | of torch |
| `value`, `low`, `high` | median over rounds and quartiles; of a ratio taken round by round |
| `unit` | empty for a ratio |
| `limit`, `met` | it must not exceed this, and whether the median does not; empty for a row that stands for comparison |
| `baseline_milliseconds` | median of what the ratio is to |
| `machine` | what it was measured on (a column of the tables of `benchmarks/cost.py`, too) |
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pandas as pd

BEGIN, END = "<!-- table: written by `make bench` -->", "<!-- end of table -->"


def benches(tables: bool) -> list[str]:
    """Names of all benches; the figures' tables are measured once."""
    from benchmarks.cost import TABLES
    from benchmarks.rows import BENCHES

    return [*BENCHES, *(TABLES if tables else [])]


def flat(row, bench: str, threads: int) -> dict[str, object]:
    """One row of performance.csv."""
    return {
        "bench": bench,
        "figure": row.figure,
        "threads": threads,
        "value": row.spread.value,
        "low": row.spread.low,
        "high": row.spread.high,
        "unit": row.unit,
        "limit": row.limit,
        "met": None if row.limit is None else row.spread.value <= row.limit,
        "baseline_milliseconds": row.baseline,
    }


def line(row: dict) -> str:
    """One row for the terminal."""
    verdict = "" if row["limit"] is None else f"  (≤ {row['limit']:g}: {'met' if row['met'] else 'NOT MET'})"
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}  {row['figure']}: {_value(row)}{verdict}"


def _value(row: dict) -> str:
    digits = 0 if row["value"] >= 30 else 1 if row["unit"] == "s" else 3 if row["value"] < 0.2 else 2
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
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def write(root: Path, rows: list[dict], tables: dict[str, list[dict]], about: dict[str, object]) -> None:
    """Write benchmarks/results and the table in docs/performance.md."""
    results = root / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    where = f"{about['cores']} cores of {about['cpu']}, torch {about['torch']}"
    for name, table in {"performance": rows, **tables}.items():
        pd.DataFrame(table).assign(machine=where).to_csv(results / f"{name}.csv", index=False, float_format="%.6g")
    page = root / "docs" / "performance.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{_table(rows, about)}\n{END}{after}", encoding="utf-8")


def _table(rows: list[dict], about: dict[str, object]) -> str:
    """The table in Markdown: a line a figure, a column a number of threads."""
    threads = sorted({row["threads"] for row in rows})
    lines = [
        f"Measured on {about['cores']} cores of {about['cpu']} with torch {about['torch']} and Python {about['python']}, in "
        f"{about['minutes']:.0f} minutes; load before it began: {about['load']:.2f}.",
        "",
        "| figure | must reach | " + " | ".join(f"{n} thread{'s' * (n > 1)}" for n in threads) + " | baseline | bench |",
        "| --- | --- |" + " --- |" * (len(threads) + 2),
    ]
    figures = dict.fromkeys(row["figure"] for row in rows)
    for figure in figures:
        found = {row["threads"]: row for row in rows if row["figure"] == figure}
        first = next(iter(found.values()))
        limit = "" if first["limit"] is None else f"≤ {first['limit']:g} {first['unit']}".strip()
        cells = [_cell(found[n]) if n in found else "" for n in threads]
        base = "" if first["baseline_milliseconds"] is None else f"{first['baseline_milliseconds']:.3g} ms"
        lines.append(f"| {figure} | {limit} | {' | '.join(cells)} | {base} | `{first['bench']}` |")
    return "\n".join(lines) + "\n"
