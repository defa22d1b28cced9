"""What the labels of estimators in a figure's frame stand for: the method, and the options that were given.

Logs say it in columns; `labelled` carries it into the frame that a figure computes, and so into its CSV, and `reading` takes it
from there. A label itself is for people: nothing is read out of it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pandas as pd

from analysis import coupling, options

Meanings = Mapping[str, tuple[str, Mapping[str, Any]]]  # label → method and options
_MEANINGS: ContextVar[Meanings | None] = ContextVar("meanings", default=None)
_BIASED: ContextVar[frozenset[str]] = ContextVar("biased", default=frozenset())


def meaning(label: str) -> tuple[str, Mapping[str, Any]]:
    """Return the method and the given options that a label stands for in the frame at hand.

    A label that the frame says nothing of is the name of a method.
    """
    return (_MEANINGS.get() or {}).get(label, (label, {}))


def with_biased_slopes() -> frozenset[str]:
    """Return the labels in the frame at hand of estimators with a slope that is biased there (`analysis.coupling`)."""
    return _BIASED.get()


def network(architecture: str, optimizer: str, layers: str = "") -> str:
    """Return the name of a network in print; the optimiser of its weights stands behind it, unless that is Adam."""
    name = f"{architecture.replace('_', ' ')} {layers}".rstrip()
    return name if optimizer in ("adam", "own") else f"{name}, {optimizer.upper()}"


@contextmanager
def reading(meanings: Meanings, biased: Iterable[str] = ()) -> Iterator[None]:
    """Let labels mean this, inside a `with`; `biased` are those `with_biased_slopes`."""
    tokens = [(_MEANINGS, _MEANINGS.set(meanings)), (_BIASED, _BIASED.set(frozenset(biased)))]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def labelled(compute: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Make a compute function say, in columns beside the labels of its frame, what they stand for in the logs it was given."""

    @functools.wraps(compute)
    def wrapper(logs_of: Mapping[str, Any], *planned: Any) -> pd.DataFrame:
        held = [vars(source).values() if hasattr(source, "runs") else [source] for source in logs_of.values()]
        known = options.meanings(frame for frames in held for frame in frames)
        with reading(known):
            frame = options.described(compute(logs_of, *planned), known)
        return coupling.marked(frame, coupling.biased_slopes(v for v in logs_of.values() if hasattr(v, "runs")))

    return wrapper


def understood(show: Callable[[pd.DataFrame], Any]) -> Callable[[pd.DataFrame], Any]:
    """Make a function that shows a frame know what the frame's labels stand for."""

    @functools.wraps(show)
    def wrapper(frame: pd.DataFrame) -> Any:
        with reading(options.labels_of(frame), coupling.labels_of(frame)):
            return show(frame)

    return wrapper
