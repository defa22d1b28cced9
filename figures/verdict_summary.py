"""Table: what every competitor comes to over all data sets and networks, one line per question and method."""

import pandas as pd

from analysis import logs
from analysis.verdicts import protocol, record, summary
from figures import _labels, _verdicts

EXPERIMENTS = record.ROLES
OPTIONAL = EXPERIMENTS
POOLED = True
PLANNED = True
TABLE = True
CAPTION = (
    "Mean effect over data sets and networks (random effects) with the 95 % interval of Hartung and Knapp, not corrected for "
    "the number of lines; I² is the share of the scatter between settings that is not noise. Runs that are "
    "called earlier carry no verdict. " + _verdicts.UNITS
)
VARIANTS = {protocol.ON_TRIAL: "momentum rule (on trial)", protocol.BESIDE: "Adam rule"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per question, competitor and variant (`analysis.verdicts.summary.of_record`)."""
    return summary.of_record(record.record(logs_of, planned))


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    return pd.DataFrame(
        {
            "question": frame["question"].map(_verdicts.TITLES),
            "FDFA against": frame["component"].map(_verdicts.named),
            "FDFA": frame["variant"].map(VARIANTS),
            "mean effect": [_verdicts.effect(row) for row in frame.itertuples()],
            "settings": frame["settings"].astype(str),
            "I²": ["–" if share != share else f"{share:.0%}".replace("%", " %") for share in frame["heterogeneity"]],
            "runs": frame["runs"],
        }
    )
