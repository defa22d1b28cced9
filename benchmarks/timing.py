"""Timing on a machine that does other things too: all that is compared takes turns, and ratios are taken turn by turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: np.ndarray) -> Spread:
        return cls(*np.percentile(samples, [50, 25, 75]).tolist())


def take_turns(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, np.ndarray]:
    """Return the seconds of each function in each round; a round calls every function once, in an order that rotates."""
    seconds = {name: np.empty(rounds) for name in functions}
    order = list(functions)
    gc.collect()
    for i in range(-warmup, rounds):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            start = time.perf_counter()
            result = functions[name]()
            del result  # to free what was made is part of its cost
            elapsed = time.perf_counter() - start
            if i >= 0:
                seconds[name][i] = elapsed
    return seconds


def ratio(seconds: np.ndarray, baseline: np.ndarray, scale: float = 1.0) -> Spread:
    """Return the ratio of two series of one `take_turns`, round by round."""
    return Spread.of(scale * seconds / baseline)
