"""Timing on a machine that does other things too: all that is compared takes turns, and ratios are taken turn by turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return `value`, the median, and `low` and `high`, the quartiles."""
    return dict(zip(("value", "low", "high"), np.percentile(samples, [50, 25, 75]).tolist(), strict=True))


def take_turns(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, np.ndarray]:
    """Return the seconds of each function in each round; a round calls every function once, in an order that rotates.

    What `before` holds under a function's name is called before each of its turns, untimed.
    """
    seconds = {name: np.empty(rounds) for name in functions}
    order = list(functions)
    gc.collect()
    for i in range(-warmup, rounds):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            if before and name in before:
                before[name]()
            start = time.perf_counter()
            result = functions[name]()
            del result  # to free what was made is part of its cost
            elapsed = time.perf_counter() - start
            if i >= 0:
                seconds[name][i] = elapsed
    return seconds


def ratio(seconds: np.ndarray, baseline: np.ndarray) -> list[float]:
    """Return the ratio of two series of one `take_turns`, round by round."""
    return (seconds / baseline).tolist()
