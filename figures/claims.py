"""Table: the paper's claims, each with its test, interval and verdict on these logs."""

import pandas as pd

from analysis import claims, logs
from figures import _labels, style

EXPERIMENTS = ("width", "trajectory", "convergence")
OPTIONAL = EXPERIMENTS  # a claim without evidence is inconclusive, and says so
TABLE = True
CAPTION = (
    "Claims and verdicts. The estimate is that of the weakest of the components that must all hold; p is corrected over the "
    "claims (Holm)."
)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return a row a claim; its evidence is every component in `claims_evidence`."""
    return claims.verdicts(claims.components(logs_of)).assign(evidence_file="claims_evidence.csv")


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    sign = {"greater": ">", "less": "<"}
    return pd.DataFrame(
        {
            "": frame["claim"],
            "claim": frame["statement"],
            "verdict": frame["verdict"],
            "estimate": [_estimate(row) for row in frame.itertuples()],
            "claimed": [f"{sign[row.direction]} {row.threshold:g}" for row in frame.itertuples()],
            "p (corrected)": ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in frame["p_holm"]],
            "seeds": frame["seeds"].astype(str),
            "statistic": frame["statistic"],
            "weakest of": [_weakest(row) for row in frame.itertuples()],
        }
    )


def _weakest(row) -> str:
    return f"{row.components}: {style.named(row.weakest)}" if row.components else "–"


def _estimate(row) -> str:
    if not row.components:
        return "–"
    return f"{row.estimate:.3g} [{row.low:.3g}, {row.high:.3g}]".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")
