"""FDFA's feedback as logged: its distance to the mean Jacobian, and the parts of the gradient's bias that it makes.

Rows are those of `feedback.parquet`: one per probe step, shadow and hidden block. Everything is relative: to ‖J̄‖² for the
feedback, to the block's ‖∇‖² for the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import statistics
from fdfa_core.runs import schema

PARTS = ("averaging", "lag", "start", "sampling")


def error(feedback: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return E‖B − J̄‖² / ‖J̄‖² over seeds (geometric mean), and `theory`, that of the column `predicted`.

    Args:
        feedback: of `closed_forms.feedback_errors`.
        by: columns that name a group.
    """
    rows = feedback.assign(se=feedback["error2_se"] / feedback["jacobian_norm"] ** 2)
    curves = statistics.over_seeds(rows, "relative", by, se="se", log=True)
    theory = statistics.over_seeds(rows, "predicted", by, log=True)
    return curves.merge(theory[[*by, "estimate"]].rename(columns={"estimate": "theory"}), on=list(by))


def bias_parts(feedback: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the squared bias of FDFA's hidden gradients ÷ ‖∇‖² over seeds, measured, expected, and part by part.

    The parts are vectors that add up to the bias, so that their squared norms add up only where they are orthogonal.

    Args:
        feedback: rows of `Logs.feedback`.
        by: columns that name a group.

    Returns:
        Columns of `statistics.over_seeds` (arithmetic means) and `quantity`: "measured" from the replicas, "expected" from
        averages of exact Jacobians, or a part (`fdfa_core.feedback_watch`). `detected` is whether the interval lies above 0.
    """
    norm2 = feedback["gradient_norm"] ** 2
    kept = feedback[norm2 > schema.VANISHED**2]
    columns = {"measured": "gradient_bias2", "expected": "expected_bias2", **{part: f"{part}2" for part in PARTS}}
    frames = []
    for quantity, column in columns.items():
        rows = kept.assign(value=kept[column] / norm2, se=kept["gradient_bias2_se"] / norm2)
        se = "se" if quantity == "measured" else None
        frames.append(statistics.over_seeds(rows, "value", by, se=se).assign(quantity=quantity))
    return pd.concat(frames, ignore_index=True).assign(detected=lambda frame: frame["low"] > 0)
