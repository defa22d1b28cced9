"""Table: every hypothesis of the protocol with its effect, simultaneous interval, tests and verdict."""

import pandas as pd

from analysis import logs
from analysis.verdicts import evidence, judgement, plan, protocol
from figures import _labels, style

EXPERIMENTS = ("width", "trajectory", "convergence")
OPTIONAL = EXPERIMENTS  # a hypothesis without evidence keeps its row, and says so
POOLED = True
PLANNED = True  # `compute` gets the profile's experiments too: what is planned counts, not only what is there
TABLE = True
CAPTION = (
    "Verdicts by the protocol (docs/protocol.md). Intervals are simultaneous over the family; p is two-sided and corrected "
    "once over the family (Holm); p (flips) is that of the sign-flip test, uncorrected."
)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per hypothesis."""
    settings = protocol.SETTINGS if any(e.path.parent.name in protocol.PROFILES for e in planned) else ()
    hypotheses = plan.hypotheses(planned, settings)
    kept = {role: plan.conforming(log, planned, settings) for role, log in logs_of.items()}
    return judgement.verdicts(evidence.values(kept), hypotheses, plan.datasets(planned))


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    return pd.DataFrame(
        {
            "question": frame["question"],
            "setting": frame["setting"],
            "FDFA against": frame["component"].map(_shown),
            "variant": frame["variant"],
            "verdict": frame["verdict"],
            "estimate": [_estimate(row) for row in frame.itertuples()],
            "p (corrected)": frame["p_holm"].map(_p),
            "p (flips)": frame["p_permutation"].map(_p),
            "seeds": [f"{row.seeds} of {row.seeds_planned}" for row in frame.itertuples()],
            "seeds needed": [_needed(row.seeds_needed) for row in frame.itertuples()],
            "family": frame["family"],
        }
    )


def _shown(component: str) -> str:
    """Name the method that FDFA is compared with, or the estimators in a text."""
    method, comma, rest = component.partition(", ")
    return style.look(method).name + comma + style.named(rest)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _needed(seeds: float) -> str:
    if seeds != seeds:
        return "–"
    return f"> {judgement.MOST_SEEDS}" if seeds == float("inf") else f"{seeds:.0f}"


def _estimate(row) -> str:
    if row.estimate != row.estimate:
        return "–"
    in_points = not row.ratio and row.margin == row.margin  # differences of accuracy
    scale, form = (100, "{:+.2f}") if in_points else (1, "{:.3g}")
    text = form.format(scale * row.estimate)
    if row.low == row.low:
        text += f" [{form.format(scale * row.low)}, {form.format(scale * row.high)}]"
    return text.replace("-", "−")
