"""When to measure: plain functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log

from fdfa_core.experiments.tables import At, Epochs, Every, FirstAndLast, Geometric

Schedule = Callable[[int], bool]


def every(k: int) -> Schedule:
    """Steps 0, k, 2k, …"""
    return lambda step: step % k == 0


def geometric(first: int, ratio: float) -> Schedule:
    """Steps first·ratioⁱ for i = 0, 1, …, rounded to the nearest integer."""

    def due(step: int) -> bool:
        if step < first:
            return False
        nearest = round(log(step / first, ratio))
        return any(round(first * ratio**i) == step for i in (nearest - 1, nearest, nearest + 1) if i >= 0)

    return due


def at(steps: Iterable[int]) -> Schedule:
    """The steps listed."""
    return frozenset(steps).__contains__


def either(*schedules: Schedule) -> Schedule:
    """Steps at which any of `schedules` is due."""
    return lambda step: any(due(step) for due in schedules)


def first(config: Every | Geometric | At | Epochs | FirstAndLast, last: int) -> int:
    """Return the first step at which the schedule that a configuration describes is due, without looking at each step.

    Args:
        config: one of the schedule tables.
        last: the step that counts as the last one.

    Examples:
        >>> from fdfa_core.experiments.tables import At
        >>> first(At(kind="at", steps=[70, 30]), last=99)
        30
    """
    match config:
        case Geometric():
            due = config.first
        case At():
            due = min(config.steps)
        case _:
            return 0
    return min(due, last) if config.last else due


def build(config: Every | Geometric | At | Epochs | FirstAndLast, steps_per_epoch: int, last: int) -> Schedule:
    """Return the schedule that a configuration describes.

    Args:
        config: one of the schedule tables of `fdfa_core.config`.
        steps_per_epoch: optimiser steps per epoch.
        last: the step that counts as the last one.
    """
    match config:
        case Every():
            due = every(config.k)
        case Geometric():
            due = geometric(config.first, config.ratio)
        case At():
            due = at(config.steps)
        case Epochs():
            due = every(config.every * steps_per_epoch)
        case FirstAndLast():
            return at({0, last})
    return either(due, at({last})) if config.last else due
