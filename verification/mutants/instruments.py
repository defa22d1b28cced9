"""Mistakes in what measures."""

from __future__ import annotations

from fdfa_core.measuring import summary
from verification import checks
from verification.planting import after, mutant


@mutant("variance divided by n, not n − 1", "instrument", "[instruments]")
def _():
    return after(checks, "summarise", lambda row, s: row | {"variance": row["variance"] * (1 - 1 / len(s.norm2))})


@mutant("squared bias without the correction for its own noise", "instrument", "[instruments]")
def _():
    return summary, "_unbiased_bias2", lambda error, bias, raw: (raw, 0 * raw)
