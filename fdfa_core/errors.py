"""Errors that name the input, the value given and what would be accepted.

All derive from `FdfaError`, so that a caller can tell a refused input from a bug, and each also derives from the built-in
exception that a caller would expect.
"""

from __future__ import annotations

from collections.abc import Iterable


class FdfaError(Exception):
    """Base class of every error that this project raises on purpose."""


class InvalidInput(FdfaError, ValueError):
    """An argument has a value that cannot be used."""

    def __init__(self, name: str, value: object, accepted: str, hint: str = ""):
        self.name, self.value, self.accepted = name, value, accepted
        super().__init__(f"{name}: got {shown(value)}; accepted: {accepted}." + (f" {hint}" if hint else ""))

    def __reduce__(self):  # a pickle holds the text, which no argument of a class of errors is
        return _with_text, (type(self), self.args), vars(self)


def _with_text(kind: type[InvalidInput], args: tuple) -> InvalidInput:
    error = kind.__new__(kind)
    error.args = args
    return error


class UnknownName(InvalidInput):
    """A name that is not in a registry (estimator, option, activation, data set, profile, …)."""

    def __init__(self, name: str, value: object, known: Iterable[str], hint: str = ""):
        known = list(known)
        super().__init__(name, value, "one of " + ", ".join(known) if known else "none, since there are none", hint)


class UnknownKey(UnknownName):
    """A key or an option that a table does not have; `value` is what was written for it."""

    def __init__(self, name: str, value: object, known: Iterable[str], what: str = "key", hint: str = ""):
        known = list(known)
        InvalidInput.__init__(
            self,
            f"{name} (unknown {what})",
            value,
            f"the {what}s {', '.join(known)}" if known else f"no {what}, since there are none",
            hint,
        )


class Unsupported(FdfaError, TypeError):
    """An estimator, prediction or rule that does not exist for this network."""


class DataError(FdfaError, RuntimeError):
    """A data set is missing, truncated, altered or malformed."""


class OutOfMemory(MemoryError, FdfaError):  # in this order, since what unpickles may call `OutOfMemory.__new__`
    """What was asked for needs more memory than there is."""


class RunError(FdfaError, RuntimeError):
    """A run directory or log cannot be read, written or resumed."""


def shown(value: object, most: int = 200) -> str:
    """Return a value as an error shows it: its `repr`, cut off where it is long, or its type where there is none."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of thousands of digits
        return f"a value of the type {type(value).__name__}, too large to show"
    return text if len(text) <= most else text[:most] + "…"
