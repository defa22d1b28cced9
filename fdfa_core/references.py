"""Functions of the user's that experiments name, "package.module:function": their import, and a hash of their source."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fdfa_core.errors import InvalidInput, RunError

ACCEPTED = '"module:function", a function in a module that can be imported from here'


def is_reference(name: str) -> bool:
    """Return whether a name says where a function is, and so needs no entry in a registry."""
    return ":" in name


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """Import the function that a name says where to find; modules in the working directory are found, too.

    Args:
        kind: what the function is for ("architecture", "data set"), for the error.
        name: e.g. "my_package.models:build".

    Raises:
        InvalidInput: there is no such module or function, importing it fails, or it cannot be called.

    Examples:
        >>> from fdfa_core.references import resolve
        >>> resolve("architecture", "math:hypot")(3, 4)
        5.0
        >>> resolve("architecture", "math:hypo")
        Traceback (most recent call last):
            ...
        fdfa_core.errors.InvalidInput: architecture: got 'math:hypo'; accepted: ... module 'math' has no attribute 'hypo'.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise InvalidInput(kind, name, ACCEPTED)
    _see_working_directory()
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises when it is imported
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError | AttributeError) else str(error)
        raise InvalidInput(kind, name, ACCEPTED, f"{reason}.") from error
    if not callable(found):
        raise InvalidInput(kind, name, ACCEPTED, f"It is a {type(found).__name__}, which cannot be called.")
    return found


def origin(name: str) -> dict[str, str | None]:
    """Return what a run's provenance says of such a function: name, module, and the SHA-256 of the module's source file.

    The hash is None where there is no source file. Modules that the module imports are not part of it.
    """
    module = name.partition(":")[0]
    return {"name": name, "module": module, "sha256": _hash(module)}


def require_unchanged(own_code: Iterable[Mapping[str, Any]], place: str | Path, remedy: str) -> None:
    """Raise `RunError` unless the modules of a run's functions have the source that its provenance names.

    Args:
        own_code: what `origin` said of each function when the run was made.
        place: of the run.
        remedy: what to do about it, besides taking the former source.
    """
    for function in own_code:
        if origin(function["name"])["sha256"] != function["sha256"]:
            module = function["module"]
            raise RunError(f"{place}: was made with another version of {module}; {remedy}, or take that version again")


def _hash(module: str) -> str | None:
    _see_working_directory()
    try:
        place = importlib.util.find_spec(module)
        return hashlib.sha256(Path(place.origin).read_bytes()).hexdigest() if place and place.origin else None
    except (ImportError, OSError, ValueError):
        return None


def _see_working_directory() -> None:
    """Let modules in the working directory be found, after all others; a console command does not look there."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
