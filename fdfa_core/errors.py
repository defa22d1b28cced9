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
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "…"
        super().__init__(f"{name}: got {shown}; accepted: {accepted}." + (f" {hint}" if hint else ""))


class UnknownName(InvalidInput):
    """A name that is not in a registry (estimator, option, activation, data set, profile, …)."""

    def __init__(self, name: str, value: object, known: Iterable[str], hint: str = ""):
        super().__init__(name, value, "one of " + ", ".join(known), hint)


class Unsupported(FdfaError, TypeError):
    """An estimator, prediction or rule that does not exist for this network."""


class DataError(FdfaError, RuntimeError):
    """A data set is missing, truncated, altered or malformed."""


class RunError(FdfaError, RuntimeError):
    """A run directory or log cannot be read, written or resumed."""
