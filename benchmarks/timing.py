"""Ratios of times, measured so that a busy machine disturbs both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

Work = Callable[[], object]


def compare(work: dict[str, Work], repetitions: int, warm_up: int = 3) -> dict[str, float]:
    """Return the median seconds of each piece of work, all run in turn `repetitions` times in one process.

    In turn, so that a slow second of the machine falls on all of them; medians, so that a few such seconds do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repetition in range(warm_up + repetitions):
        for name, do in work.items():
            start = time.perf_counter()
            do()
            if repetition >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextmanager
def threads(count: int):
    """Let torch use this many threads inside a `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
