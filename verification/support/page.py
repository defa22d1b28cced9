"""The support matrix as a page of the documentation, written from its declaration."""

from __future__ import annotations

from collections.abc import Iterable

from fdfa_core.paths import TREE
from verification.support.networks import CODE, LAYERS
from verification.support.table import COLUMNS, EXCEPTIONS, VERDICTS, expected

PAGE = TREE / "docs" / "support.md"
_SIGNS = {"exact": "=", "unbiased": "E", "as defined": "✓", "biased": "b", "refused": "–"}
_HEAD = """# Which network each method can serve

This page is written by `make matrix`, which first checks every cell. The tests check a part of them each time. The networks are
in `verification/support/networks.py`; what each cell is declared to be in `verification/support/table.py`.

Each row is a layer or a habit of code, in one block of a small network. Methods that have a site act behind the block
(`site="post"`).

| sign | means |
| --- | --- |
"""


def page() -> str:
    """Return the page as Markdown."""
    legend = "".join(f"| {_SIGNS[verdict]} | **{verdict}**: {meaning} |\n" for verdict, meaning in VERDICTS.items())
    notes = _notes()
    parts = [_HEAD + legend]
    for title, rows in (("Layers", LAYERS), ("Habits of code", CODE)):
        parts.append(f"## {title}\n\n" + _table(rows, notes))
    listed = "".join(f"{number}. {note}\n" for note, number in notes.items())
    parts.append("## Notes\n\n" + listed)
    return "\n".join(parts)


def _notes() -> dict[str, int]:
    notes: dict[str, int] = {}
    for row in LAYERS | CODE:
        for cell in EXCEPTIONS.get(row, ()):
            notes.setdefault(f"{cell.note[0].upper()}{cell.note[1:]}.", len(notes) + 1)
    return notes


def _table(rows: Iterable[str], notes: dict[str, int]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "| --- |" + " :-: |" * len(COLUMNS)]
    for row in rows:
        cells = [expected(row, column) for column in COLUMNS]
        numbers = [notes.get(f"{cell.note[:1].upper()}{cell.note[1:]}.") for cell in cells]
        signs = [_SIGNS[cell.verdict] + (f" ({n})" if n else "") for cell, n in zip(cells, numbers, strict=True)]
        lines.append(f"| {row} | " + " | ".join(signs) + " |")
    return "\n".join(lines) + "\n"
