"""The table that `measure` returns, and how it is printed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import pandas as pd
from tabulate import tabulate

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import estimator_class
from fdfa_core.runs.schema import VANISHED


class Measurements(pd.DataFrame):
    """The frame that `measure` returns: a `pandas.DataFrame` that prints as a table of what matters.

    ``frame.to_string()`` prints all columns.
    """

    @property
    def _constructor(self):
        return Measurements

    def summary(self, level: str = "block") -> str:
        """Return a table for people: variance, bias² and MSE over ‖τ‖², cosine, norms, cost.

        Args:
            level: "parameter", "block" or "network".

        Raises:
            InvalidInput: another level.
        """
        parts = {"parameter": "parameter", "block": "block", "network": None}
        if level not in parts:
            raise InvalidInput("level", level, " or ".join(map(repr, parts)))
        chosen = self[self["level"].isin(["network", parts[level]])]
        lines = []
        for estimator, rows in chosen.groupby("estimator", sort=False):
            whole = rows[rows["level"] == "network"].to_dict("records")
            lines += [[estimator, *_cells(row), *_cost_cells(row)] for row in whole] or [[estimator]]
            for row in rows[rows["level"] != "network"].to_dict("records"):
                lines.append([f"  {row['parameter'] or 'block ' + str(row['block'])}", *_cells(row)])
        notes = ["τ: the true gradient, ± one standard error, ms and MB: time and peak memory of one estimate."]
        if not chosen["valid"].all():
            notes.append(f"–: ‖τ‖ is below {VANISHED:g}, so that angles and ratios mean nothing.")
        fresh = chosen[chosen["sampling"] == "fresh_batches"].drop_duplicates("estimator")
        learn = [row.estimator for row in fresh.itertuples() if estimator_class(row.method).stateful]
        if learn:
            notes.append(f"Variance, bias² and errors are those given one history of batches: {', '.join(learn)}.")
        notes += [f"{note}." for note in self.attrs.get("notes", ())]
        notes += [f"Not measured: {name}: {why}" for name, why in self.attrs.get("unsupported", {}).items()]
        return "\n".join([_aligned(lines), *(textwrap.fill(note, 100, subsequent_indent="  ") for note in notes)])

    def __repr__(self) -> str:
        return self.summary() if set(_PRINTED) <= set(self.columns) else super().__repr__()


_HEADERS = (
    ("", "variance", "bias²", "MSE", "cosine", "‖g‖", "‖τ‖", "ms", "MB"),
    ("", "÷ ‖τ‖²", "÷ ‖τ‖²", "÷ ‖τ‖²", "", "÷ ‖τ‖"),
)
_PRINTED = (
    "estimator", "level", "block", "parameter", "valid", "relative_variance", "variance_se", "relative_bias2", "bias2_se",
    "relative_mse", "cosine_mean", "norm_ratio", "target_norm", "seconds", "peak_memory",
)  # fmt: skip


def _cells(row: Mapping[str, object]) -> list[str]:
    """The numbers of one row of the printed table, cost apart."""
    size = f"{row['target_norm']:.2g}"
    if not row["valid"]:
        return ["–"] * 5 + [size]
    target2 = row["target_norm"] ** 2
    return [
        _number(row["relative_variance"], row["variance_se"] / target2),
        _number(row["relative_bias2"], row["bias2_se"] / target2),
        _number(row["relative_mse"]),
        "–" if math.isnan(row["cosine_mean"]) else f"{row['cosine_mean']:.3f}",
        _number(row["norm_ratio"]),
        size,
    ]


def _cost_cells(row: Mapping[str, object]) -> list[str]:
    megabytes = row["peak_memory"] / 1e6
    return [f"{row['seconds'] * 1e3:.2g}", f"{megabytes:.2g}" if megabytes >= 0.01 else "<0.01"]


def _number(value: float, error: float = 0.0) -> str:
    """Three digits of a value, or as many as its standard error lets stand; what is below rounding is zero."""
    if abs(value) < 1e-12:
        value = 0.0
    if not error > 1e-12:
        return f"{value:.3g}"
    error = float(f"{error:.1g}")
    if not 1e-4 <= error < 1e5:
        return f"{value:.2g} ± {error:.0e}"
    decimals = -math.floor(math.log10(error))
    return f"{round(value, decimals) + 0.0:.{max(0, decimals)}f} ± {error:g}"


def _aligned(lines: list[list[str]]) -> str:
    """Return the lines as text: the first column flush left and the others flush right, below their headers."""
    text = tabulate(
        [*_HEADERS, *lines],  # as rows: tabulate makes a column with a header of its own wider than it needs to be
        tablefmt="plain",
        colalign=("left", *["right"] * (len(_HEADERS[0]) - 1)),
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return "\n".join(line.rstrip() for line in text.split("\n"))
