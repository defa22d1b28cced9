"""The files of the reference moments: what they hold, how it is written and read, and when two contents are the same."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from analysis.rebuilt import cache
from fdfa_core.errors import InvalidInput
from fdfa_core.files import read_file, write_atomically
from verification.reference.cases import PROBLEMS, Problem, ReferenceCase, problem
from verification.reference.enumeration import Moments

SCHEMA = 1
FILES = ("problems", "cases")  # names of the files, and of what each holds
UNCHANGED = 1e-12  # of numbers that are written again
SOURCES = dict.fromkeys(("grape", "fa", "zo"), "estimator")  # run on every outcome, where there is no closed form
MOMENTS = ("mean", "bias", "variance", "data_noise")
REMEDY = "restore it with git, or remove it and run `fdfa reference write`"
_DESCRIPTIONS = {
    "problems": "Networks, losses and populations of the reference cases. README.md describes every key.",
    "cases": "Exact mean, bias and variance of gradient estimators. README.md describes every key and the rule of acceptance.",
}


def problem_entry(p: Problem) -> dict[str, object]:
    """Return a problem as the file holds it."""
    layers = [
        {
            "kind": layer.kind,
            "activation": layer.activation,
            "weight": layer.weight.tolist(),
            "bias": None if layer.bias is None else layer.bias.tolist(),
        }
        for layer in p.layers
    ]
    return {"loss": p.loss, "input_shape": list(p.x.shape[1:]), "layers": layers, "x": p.x.tolist(), "y": p.y.tolist()}


def problem_entries() -> dict[str, object]:
    """Return the problems as the file holds them."""
    return {name: problem_entry(problem(name)) for name in PROBLEMS}


def case_frame(case: ReferenceCase) -> dict[str, object]:
    """Return what a case is: everything that the file says of it but its moments."""
    entry: dict[str, object] = {"name": case.name, "problem": case.problem, "estimator": case.estimator}
    entry |= {"batch_size": case.batch_size, "options": case.options}
    if case.estimator == "fdfa":
        entry["steps"] = case.steps
    if case.state:
        entry["state"] = {name: [array.tolist() for array in arrays] for name, arrays in case.state.items()}
    return entry | {"source": SOURCES.get(case.estimator, "closed form")}


def moments_of(case: ReferenceCase, found: dict[str, np.ndarray | list[Moments]]) -> dict[str, object]:
    """Return the moments of a derivation as the file holds them: totals, per parameter, and those of FDFA's feedback."""
    found = {**found, "bias": found["mean"] - found["gradient"]}
    moments, start = {}, 0
    for name, value in problem(case.problem).parameters.items():
        mine = slice(start, start + value.size)
        moments[name] = {what: found[what][mine].reshape(value.shape).tolist() for what in MOMENTS}
        start += value.size
    squares = {"gradient": "gradient_squared", "mean": "mean_squared", "bias": "bias_squared"}
    totals = {name: float((found[what] ** 2).sum()) for what, name in squares.items()}
    totals |= {what: float(found[what].sum()) for what in ("variance", "data_noise")}
    entry: dict[str, object] = {"totals": totals, "moments": moments}
    if case.estimator == "fdfa":
        entry["feedback"] = [{"mean": mean.tolist(), "variance": spread.tolist()} for mean, spread in found["feedback"]]
    return entry


def provenance() -> dict[str, object]:
    """Return how and with what the files are made."""
    return {
        "command": "fdfa reference write",
        "project": f"fdfa {version('fdfa')}",
        "code": cache.code("verification.reference", prose=False),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": version("torch")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def same(found: object, expected: object) -> bool:
    """Return whether two contents are equal, every number to |a − b| ≤ 1e-12 (1 + |b|)."""
    if isinstance(expected, dict):
        equal = isinstance(found, dict) and found.keys() == expected.keys()
        return equal and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        equal = isinstance(found, list) and len(found) == len(expected)
        return equal and all(map(same, found, expected))
    if isinstance(expected, float) and isinstance(found, float):
        return abs(found - expected) <= UNCHANGED * (1 + abs(expected))
    return type(found) is type(expected) and found == expected


def difference(found: object, expected: object, scale: float = 0.0) -> float:
    """Return the largest |found − expected| / (|expected| + scale) of two arrays; infinite for other shapes and for NaN.

    Args:
        found, expected: nested lists or arrays of numbers.
        scale: the largest number of the kind in the network, so that rounding in a number that is zero is no difference.
    """
    try:
        found, expected = np.asarray(found, float), np.asarray(expected, float)
    except (TypeError, ValueError):
        return math.inf
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf
    size = np.abs(expected) + scale
    return float(np.divide(np.abs(found - expected), size, out=np.zeros_like(size), where=size > 0).max(initial=0.0))


def read(directory: Path, names: Sequence[str] = FILES) -> dict[str, object]:
    """Return what the files, or some of them, hold, {"problems": …, "cases": …}.

    Raises:
        InvalidInput: a file cannot be read, or is of another schema.
    """
    found = {}
    for name in names:
        path = directory / f"{name}.json"
        try:
            file = json.loads(read_file(path))
            schema, found[name] = file["schema"], file[name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or f"no reference moments: {error!r}"
            hint = f"{path.name}: {reason}; {REMEDY}."
            raise InvalidInput("--directory", str(directory), "a directory with the reference moments", hint) from error
        if schema != SCHEMA:
            raise InvalidInput(f"{path}: schema", schema, f"{SCHEMA}, that of this version; {REMEDY}")
        if not _FORMS[name](found[name]):
            raise InvalidInput(f"{path}: {name}", "another form", f"what README.md beside it describes; {REMEDY}")
    return found


def _form_of_case(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("moments"), dict) or not isinstance(entry.get("totals"), dict):
        return False
    tables = [*entry["moments"].values(), *(held if isinstance(held := entry.get("feedback", []), list) else [None])]
    return all(isinstance(table, dict) for table in tables)


_FORMS = {
    "problems": lambda found: isinstance(found, dict),
    "cases": lambda found: isinstance(found, list) and all(map(_form_of_case, found)),
}


def save(directory: Path, name: str, content: object) -> Path:
    """Write one file with its provenance; return its path."""
    path = directory / f"{name}.json"
    head = {"schema": SCHEMA, "licence": "MIT", "description": _DESCRIPTIONS[name], "provenance": provenance()}
    write_atomically(path, (formatted(head | {name: content}) + "\n").encode())
    return path


def formatted(content: object, indent: int = 0) -> str:
    """Return JSON with dictionaries over lines and arrays in one; every float is written such that it reads back exactly."""
    shift = "\n" + " " * (indent + 1)
    if isinstance(content, dict) and content and len(json.dumps(content)) > 96 - indent:
        inner = [f"{json.dumps(key)}: {formatted(value, indent + 1)}" for key, value in content.items()]
        return "{" + shift + f",{shift}".join(inner) + shift[:-1] + "}"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return "[" + shift + f",{shift}".join(formatted(each, indent + 1) for each in content) + shift[:-1] + "]"
    return json.dumps(content, ensure_ascii=False, allow_nan=False)
