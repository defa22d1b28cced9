"""The planted mistakes, by where they are, and the run of all of them.

To add one, write a function in a module here and decorate it with `verification.planting.mutant`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from fdfa_core.files import make_directory
from fdfa_core.workers import worker_processes
from verification.cases import suite
from verification.planting import MUTANTS, caught_by

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def run(jobs: int | None = None) -> pd.DataFrame:
    """Plant every mutant and return a row each: what it is, whether it was `caught`, by which `case` and how.

    Columns: `mutant`, `where`, `caught`, `case`, `quantity`, `block`, `predicted`, `measured`, `z`.
    """
    with worker_processes():
        rows = Parallel(n_jobs=jobs or -1)(delayed(_row)(i) for i in range(len(MUTANTS)))
    return pd.DataFrame(rows)


def _row(index: int) -> dict[str, object]:
    each = MUTANTS[index]
    caught = caught_by(each, suite("light"))
    case, worst = caught or ("", {})
    shown = {key: worst.get(key) for key in ("quantity", "block", "predicted", "measured", "z")}
    return {"mutant": each.name, "where": each.where, "caught": caught is not None, "case": case} | shown


def write(frame: pd.DataFrame, out_dir: str | Path) -> list[Path]:
    """Write mutants.csv and mutants.md; return their paths."""
    out = Path(out_dir)
    make_directory(out)
    table, report = out / "mutants.csv", out / "mutants.md"
    frame.to_csv(table, index=False)
    title = f"# Planted mistakes: {int(frame.caught.sum())} of {len(frame)} noticed by the light verification"
    report.write_text(f"{title}\n\n{frame.to_markdown(index=False, floatfmt='.4g')}\n", encoding="utf-8")
    return [table, report]
