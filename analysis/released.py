"""Our runs beside those of the paper's released code: equal network, data and settings must give equal results.

The two share no random numbers, so that they agree within the noise of their seeds and no better.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from analysis import statistics
from fdfa_core.errors import RunError
from fdfa_core.paths import RESULTS

RECORD = RESULTS / "released_code.csv"
LABELS = {"BP": "bp", "DFA": "dfa", "FDFA": "fdfa(feedback_lr=0.0001, feedback_rule=adam)"}
QUANTITIES = ("test_accuracy", "test_loss")
COLUMNS = ("mode", "seed", "epoch", *QUANTITIES)


def write(rows: Iterable[dict[str, object]], path: Path = RECORD) -> None:
    """Record what the released code reported; `benchmarks/released_code.py` runs it."""
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.8g")


def read(path: Path = RECORD) -> pd.DataFrame:
    """Return the record: a row for each mode, seed and epoch.

    Raises:
        RunError: there is none, or it lacks columns.
    """
    if not path.is_file():
        raise RunError(f"{path}: is missing; `python -m benchmarks.released_code CHECKOUT` writes it")
    try:
        rows = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not a CSV file: {error}") from error
    if missing := [column for column in COLUMNS if column not in rows]:
        raise RunError(f"{path}: lacks {', '.join(missing)}; `python -m benchmarks.released_code CHECKOUT` writes it anew")
    return rows


def compare(metrics: pd.DataFrame, theirs: pd.DataFrame, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Compare means over seeds at the end of every epoch: Welch's t-test, Holm's correction over all rows.

    Args:
        metrics: rows of `metrics.parquet` of our runs.
        theirs: the record.
        level: coverage of the interval of the difference.

    Returns:
        Columns `trained_with`, `quantity`, `epoch`, `ours`, `theirs`, `seeds`, `seeds_theirs`, `difference` (ours − theirs)
        with `low` and `high`, `p`, `p_holm`. Whoever both have not run twice at least is left out.
    """
    rows = []
    for mode, label in LABELS.items():
        mine, other = metrics[metrics["trained_with"] == label], theirs[theirs["mode"] == mode]
        for epoch in sorted(set(other["epoch"])):
            a, b = mine[mine["epoch"].round(6) == epoch], other[other["epoch"] == epoch]
            if min(len(a), len(b)) < 2:
                continue
            for quantity in QUANTITIES:
                test = statistics.difference(a[quantity], b[quantity], level=level)
                rows.append(
                    {
                        "trained_with": label,
                        "quantity": quantity,
                        "epoch": int(epoch),
                        "ours": a[quantity].mean(),
                        "theirs": b[quantity].mean(),
                        "seeds": len(a),
                        "seeds_theirs": len(b),
                        "difference": test.estimate,
                        "low": test.low,
                        "high": test.high,
                        "p": test.p,
                    }
                )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=statistics.holm(frame["p"])) if len(frame) else frame
