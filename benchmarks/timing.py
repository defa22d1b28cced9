"""What a bench is, and timing on a machine that does other things too.

All that is compared takes turns, and ratios are taken turn by turn.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MODULES = ("rows", "gallery", "anchors", "waiting")  # that hold benches, in the order of the table


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        figure: what it is.
        samples: its value in each round, or the one that there is.
        limit: it must not exceed this; None for a row that stands for comparison.
        baseline: what the ratio is to, in milliseconds; None for an absolute figure.
        unit: "" for a ratio.
    """

    figure: str
    samples: Sequence[float]
    limit: float | None = None
    baseline: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Bench:
    """What measures some rows of the table.

    Attributes:
        rows: yields them.
        processes: in how many it is measured, for what memory a process gets changes its ratios for good.
    """

    rows: Callable[[], Iterator[Row]]
    processes: int


_BENCHES: dict[str, Bench] = {}


def bench(name: str, processes: int = 1) -> Callable[[Callable[[], Iterator[Row]]], Callable[[], Iterator[Row]]]:
    """Register a generator of rows as a bench."""

    def register(function: Callable[[], Iterator[Row]]) -> Callable[[], Iterator[Row]]:
        _BENCHES[name] = Bench(function, processes)
        return function

    return register


def benches() -> dict[str, Bench]:
    """Return all benches by name, in the order of the table."""
    names = [importlib.import_module(f"benchmarks.{module}").__name__ for module in MODULES]  # each registers its own
    return dict(sorted(_BENCHES.items(), key=lambda known: names.index(known[1].rows.__module__)))


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
