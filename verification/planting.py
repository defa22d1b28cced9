"""Mistakes planted one at a time, in estimators, instruments and theory: a verification is worth what it notices.

Each mutant is a realistic slip that gives gradients of the right shape and no error. It is put in by replacing one attribute
for the time of a `with`, and must make some row of the light suite fail. A row counts only at p < 0.01/1000, below Holm's
first step for any suite of up to 1,000 rows, so that cases can be tried one by one until the mistake is noticed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import verification
from verification.cases import Case

THRESHOLD = verification.FAMILY_LEVEL / 1000


@dataclass(frozen=True)
class Mutant:
    """One planted mistake.

    Attributes:
        name: what is wrong.
        where: "estimator", "instrument" or "theory".
        watch: substrings of case labels (`Case.label`), most likely to notice first; other cases are not tried.
        plant: returns a context manager inside which the mistake is in.
    """

    name: str
    where: str
    watch: tuple[str, ...]
    plant: Callable[[], contextlib.AbstractContextManager]


MUTANTS: list[Mutant] = []
FG_A, FG_W, FDFA = "fg-a on small,", "fg-w on small,", "fdfa(feedback_lr=0.4, steps=2) on small,"


def mutant(name: str, where: str, *watch: str):
    """Register a function as a mutant; it yields inside the patches, or returns (object, attribute, replacement)."""

    def register(function):
        @contextlib.contextmanager
        def plant() -> Iterator[None]:
            owner, attribute, replacement = function()
            with patch.object(owner, attribute, replacement):
                yield

        MUTANTS.append(Mutant(name, where, watch, plant))
        return function

    return register


def after(owner, attribute: str, change):
    """Replace a function by itself followed by `change(result, *arguments)`."""
    original = getattr(owner, attribute)
    return owner, attribute, lambda *args, **kwargs: change(original(*args, **kwargs), *args, **kwargs)


def caught_by(each: Mutant, cases: list[Case]) -> tuple[str, dict[str, object]] | None:
    """Return the first case that notices a mutant and its worst row, or None."""
    watched = [case for text in each.watch for case in cases if text in case.label]
    with each.plant():
        for case in watched:
            worst = min(verification.rows(case), key=lambda row: row["p"])
            if worst["p"] < THRESHOLD:
                return case.label, worst
    return None
