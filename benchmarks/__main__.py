"""Measure, print, and write benchmarks/results.csv and the table of docs/performance.md.

python -m benchmarks [GROUP]...   one or more of the functions of benchmarks/rows.py; all by default
"""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from benchmarks.rows import GROUPS

ROOT = Path(__file__).resolve().parent
PAGE = ROOT.parent / "docs" / "performance.md"
START, END = "<!-- table: written by `make bench` -->", "<!-- end of table -->"


def main(chosen: list[str]) -> None:
    """Run the groups and write what they found; a subset is printed alone."""
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        sys.exit(f"unknown group {unknown[0]!r}; known: {', '.join(GROUPS)}")
    rows = []
    for name in chosen or GROUPS:
        for what, measured, limit, remark in GROUPS[name]():
            met = "yes" if measured <= limit else "no"
            rows.append({"what": what, "measured": round(measured, 3), "limit": limit, "met": met, "remark": remark})
            print(f"{measured:9.3f}  (limit {limit:g}, {met:3})  {what}  {remark}", flush=True)
    if chosen:
        return
    frame = pd.DataFrame(rows)
    frame.to_csv(ROOT / "results.csv", index=False)
    where = f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, torch {torch.__version__}, batch {64}"
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(START)], text[text.index(END) :]
    table = frame.to_markdown(index=False, disable_numparse=True)
    PAGE.write_text(f"{before}{START}\nMeasured {where}.\n\n{table}\n{after}", encoding="utf-8")
    print(f"written: {ROOT / 'results.csv'}, {PAGE}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main(sys.argv[1:])
