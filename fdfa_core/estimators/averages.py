"""Moving averages: the weight that one gives to its newest item. No torch: theory and figures use it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def weight(rate: float, item: int, warmup: bool = True) -> float:
    """Return the weight of the newest item of a moving average B ← (1 − w) B + w D.

    Args:
        rate: α in (0, 1], the weight in the long run.
        item: number of the newest item, counted from one.
        warmup: begin as a plain mean, with max(α, 1/t) for item t, which forgets the average's start at once; False gives α
            throughout.
    """
    return max(rate, 1 / item) if warmup else rate


def plain_items(rate: float, warmup: bool = True) -> int:
    """Return how many items make a plain mean before `weight` stays at α: ⌊1/α⌋ with warm-up, 0 without it."""
    return int(1 / rate + 1e-9) if warmup else 0  # 1/0.1 and its like may fall short of their integer


@dataclass(frozen=True)
class JacobianAverage:
    """What an estimator says of its feedback where that is a moving average of output Jacobians, B ← (1 − w_t) B + w_t D_t.

    Attributes:
        site: the site that the Jacobians belong to and that the errors e B enter at, "pre" or "post".
        weight: w_t of step t, counted from one; every step updates every block's feedback.
    """

    site: str
    weight: Callable[[int], float]
