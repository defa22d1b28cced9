"""Table: every component of every claim, the evidence behind `claims`."""

import pandas as pd

from analysis import claims, logs, options
from figures import _labels, style

EXPERIMENTS = ("width", "trajectory", "convergence")
OPTIONAL = EXPERIMENTS  # a claim without evidence is inconclusive, and says so
TABLE = True
CAPTION = "Components of the claims: estimate with its 95 % t-interval over seeds, and one-sided p (uncorrected)."


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return a row a component."""
    return claims.components(logs_of)


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    numbers = {c: frame[c].map("{:.3g}".format) for c in ("estimate", "low", "high", "p", "p_opposite")}
    texts = numbers | {"component": frame["component"].map(style.named), "seeds": frame["seeds"].astype(str)}
    return frame.drop(columns=options.KNOWN).assign(**texts).rename(columns={"p_opposite": "p (opposite)"})
