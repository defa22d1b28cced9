"""Table: every hypothesis of the protocol with its effect, simultaneous interval, tests and verdict."""

import pandas as pd

from analysis import logs
from analysis.verdicts import matrix, record
from figures import _labels, _verdicts

EXPERIMENTS = record.ROLES
OPTIONAL = EXPERIMENTS  # a hypothesis without evidence keeps its row, and says so
POOLED = True
PLANNED = True  # `compute` gets the profile's experiments too: what is planned counts, not only what is there
TABLE = True
CAPTION = (
    "Verdicts by the protocol (docs/protocol.md). Intervals are simultaneous over the family; p is two-sided and corrected "
    "once over the family (Holm); p (flips) is that of the sign-flip test, uncorrected. Both stand where all planned seeds do."
)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per hypothesis."""
    return record.record(logs_of, planned).table


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    return pd.DataFrame(
        {
            "question": frame["question"],
            "setting": frame["setting"],
            "FDFA against": frame["component"].map(_verdicts.named),
            "variant": frame["variant"],
            "verdict": frame["verdict"].map(_verdicts.marked),
            "estimate": [_verdicts.effect(row) for row in frame.itertuples()],
            "p (corrected)": _ps(frame, "p_holm"),
            "p (flips)": _ps(frame, "p_permutation"),
            "seeds": [f"{row.seeds} of {row.seeds_planned}" for row in frame.itertuples()],
            "seeds needed": frame["seeds_needed"].map(_verdicts.needed),
            "family": frame["family"],
        }
    )


def _ps(frame: pd.DataFrame, column: str) -> list[str]:
    """Return p-values as texts; – where not all seeds are there, for what is not judged is not tested either."""
    each = zip(frame["verdict"], frame[column], strict=True)
    return [_verdicts.p_value(p).removeprefix("= ") if matrix.is_judged(verdict) else "–" for verdict, p in each]
