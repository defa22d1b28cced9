"""Table: the verdicts at a glance, questions against data sets and networks, with a paragraph per question."""

import pandas as pd

from analysis import logs
from analysis.verdicts import matrix, record
from figures import _labels, _verdicts

EXPERIMENTS = record.ROLES
OPTIONAL = EXPERIMENTS  # a question without evidence keeps its cells, and says so
POOLED = True
PLANNED = True
TABLE = True
CAPTION = (
    "Verdicts on the three questions of the protocol (docs/protocol.md), for the FDFA on trial. "
    + "; ".join(f"{symbol} {verdict}: {_verdicts.MEANINGS[verdict]}" for verdict, symbol in _verdicts.SYMBOLS.items())
    + f"; {_verdicts.OPEN} not judged."
)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per question and setting (`analysis.verdicts.matrix.cells`)."""
    return matrix.cells(record.record(logs_of, planned))


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the matrix as texts: one row per setting and one column per question."""
    frame = _verdicts.whole(frame)
    texts = frame.assign(text=[_verdicts.cell(row) for row in frame.itertuples()])
    wide = texts.pivot(index="setting", columns="question", values="text").reindex(frame["setting"].unique()).fillna("–")
    wide = wide[[question for question in _verdicts.TITLES if question in wide]]
    first = frame.drop_duplicates("setting")
    names = [_verdicts.place(row) + _length(row) for row in first.itertuples()]
    wide.insert(0, "data and network", names)
    return wide.rename(columns=_verdicts.TITLES).reset_index(drop=True)


@_labels.understood
def explain(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what stands below the matrix: a title (empty for the first) and a paragraph each."""
    frame = _verdicts.whole(frame)
    return [("", _verdicts.lead(frame)), *_verdicts.paragraphs(frame)]


def reasons(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return, per setting, why its recorded runs carry no verdict, or that there are none."""
    return _verdicts.reasons(_verdicts.whole(frame))


def _length(row) -> str:
    """Say the experiment and its length on a line of its own, and that of recorded runs where it is another."""
    name = f"`{row.setting}`" if row.dataset else ""
    if row.role != "convergence" or not row.epochs:
        return f"\n{name}"
    length = f"{row.epochs} epochs" + (f" (earlier runs: {row.file_epochs})" if row.file_epochs not in (0, row.epochs) else "")
    return "\n" + ", ".join(filter(None, [name, length]))
