"""What `make bench` recorded of cost, as frames. Unlike logs of runs these depend on the machine, which they name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fdfa_core.errors import RunError
from fdfa_core.paths import BENCHES

RESULTS = BENCHES


def path(name: str) -> Path:
    """Return where a table of the benchmarks is recorded, whether it is there or not."""
    return RESULTS / f"{name}.csv"


def read(name: str) -> pd.DataFrame:
    """Return a table of the benchmarks; `benchmarks/cost.py` documents the columns.

    Raises:
        RunError: it is not there, is empty, or does not say what machine it is from.
    """
    if not path(name).is_file():
        raise RunError(f"{path(name)}: is missing; `make bench` writes it")
    try:
        frame = pd.read_csv(path(name))
    except (ValueError, OSError) as error:
        raise RunError(f"{path(name)}: cannot be read ({error}); `make bench` writes it anew") from error
    if frame.empty or "machine" not in frame:
        raise RunError(f"{path(name)}: has no rows or no column 'machine'; `make bench` writes it anew")
    return frame


def machine_text(frame: pd.DataFrame) -> str:
    """Say what a table was measured on."""
    threads = int(frame["threads"].max())
    return f"{frame['machine'].iloc[0]}, {threads} thread{'s' if threads > 1 else ''}"
