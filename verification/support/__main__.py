"""Check every cell of the support matrix, and write its page if all are as declared: ``python -m verification.support``."""

from __future__ import annotations

import sys
import warnings

from tqdm import tqdm

from fdfa_core.files import write_atomically
from verification.support.networks import ROWS
from verification.support.outcomes import fault
from verification.support.page import PAGE, page
from verification.support.table import COLUMNS

DRAWS = 4000  # of fg-a in each cell: enough to see a bias of a tenth of the gradient


def main() -> int:
    """Check and write; returns the exit code."""
    warnings.simplefilter("ignore")  # torch's, of layers that it calls old
    cells = [(row, column) for row in ROWS for column in COLUMNS]
    faults = [text for cell in tqdm(cells, desc="support", unit="cell") if (text := fault(*cell, DRAWS))]
    for text in faults:
        print(text, file=sys.stderr)
    if faults:
        return 1
    write_atomically(PAGE, page().encode())
    print(f"{PAGE}: {len(cells)} cells, all as declared")
    return 0


if __name__ == "__main__":
    sys.exit(main())
