"""Experiment files: TOML, validated as a whole before anything runs.

An experiment file is a base run, `cases` (overrides of it) and a `grid` (dotted key → values); its runs are cases × grid.
What only the registries know (estimators and their options, architectures, data sets) is checked by
`fdfa_core.training.check`, for the runs to come.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fdfa_core.errors import InvalidInput, UnknownKey
from fdfa_core.experiments.tables import NAMING, At, Epochs, Every, FirstAndLast, Geometric, RunConfig, require_known, suggest
from fdfa_core.files import read_file
from fdfa_core.paths import EXPERIMENTS
from fdfa_core.signatures import in_words

MOST_BYTES = 2**20  # of an experiment file
OF_FILE = ("description", "role", "open", "cases", "grid")  # keys of a file that are none of a run
DEEPEST = 16  # tables and lists within one another
MOST_RUNS = 100_000  # of one experiment: validating as many takes a minute


@dataclass(frozen=True)
class Origin:
    """Where the values of a run were written, so that an error can point there."""

    file: Path
    base: Mapping[str, Any]
    case: int | None
    override: Mapping[str, Any]
    grid: Mapping[str, str]  # swept key → where its values stand

    def locate(self, key: str) -> str:
        """Return "file: key", with the key as it stands in the file; for a table that a swept name makes, that name's."""
        for swept, place in self.grid.items():
            makes = swept in {f"{key}.{name}" for name in NAMING}
            if key == swept or makes or key.startswith((f"{swept}.", f"{swept}[")):
                return f"{self.file}: {place}"
            if swept.startswith(f"{key}.") and not (_is_table(self.base, key) or _is_table(self.override, key)):
                return f"{self.file}: {place.removesuffix(swept)}{key}"  # a table of the grid alone
        # what is written nowhere (a missing key, a default) belongs to the table that could hold it, in the case first
        in_case = _writes(self.override, key) or not _writes(self.base, key) and _writes(self.override, key.split(".")[0])
        return f"{self.file}: cases[{self.case}].{key}" if in_case else f"{self.file}: {key}"


@dataclass(frozen=True)
class Experiment:
    """A named set of runs, as one TOML file describes them.

    `role` is what figures know it by: a profile may have several experiments of one role (a data set each, say). `open` is the
    command that settles what the file leaves open, as learning rates before they are tuned; "" where nothing is.
    """

    name: str
    description: str
    role: str
    open: str
    path: Path
    _runs: dict[str, tuple[RunConfig, Origin]] = field(repr=False)

    def runs(self) -> list[RunConfig]:
        """The runs in the order of the file: cases in turn, the grid's last key fastest. Their ids are distinct."""
        return [config for config, _ in self._runs.values()]

    def planned(self) -> list[tuple[RunConfig, Origin]]:
        """The runs with the places in the file that their values come from."""
        return list(self._runs.values())


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file.

    Raises:
        InvalidInput: the file cannot be read, is not TOML, or holds an unknown key, a wrong type, an impossible value.
    """
    path = _shown(Path(path))
    if path.stem.startswith("."):  # a folder of results has the experiment's name, and that of "...toml" would be ".."
        raise InvalidInput("experiment", str(path), "a file whose name does not begin with a dot")
    tables = _read_toml(path)
    defaults = {"description": "", "role": path.stem, "open": ""}
    about = {key: tables.pop(key, default) for key, default in defaults.items()}
    for key, text in about.items():
        if not isinstance(text, str):
            raise InvalidInput(f"{path}: {key}", text, "a string")
    cases = tables.pop("cases", None)
    if cases is not None and not (cases and isinstance(cases, list) and all(isinstance(c, dict) for c in cases)):
        raise InvalidInput(f"{path}: cases", cases, "a list of one or more tables, each written [[cases]]")
    grid = _flat_grid(tables.pop("grid", {}), f"{path}: grid")

    planned = 0
    runs: dict[str, tuple[RunConfig, Origin]] = {}
    for index, case in [(None, {})] if cases is None else enumerate(cases):
        override = dict(case)
        own = _flat_grid(override.pop("grid", {}), f"{path}: cases[{index}].grid")
        swept = grid | own
        _check_grid(swept, path)
        planned += math.prod(map(len, swept.values()))
        if planned > MOST_RUNS:
            raise InvalidInput(f"{path}: grid", f"{planned:,} runs", f"at most {MOST_RUNS:,} runs in an experiment")
        places = {key: f"cases[{index}].grid.{key}" if key in own else f"grid.{key}" for key in swept}
        origin = Origin(path, tables, index, override, places)
        for values in itertools.product(*swept.values()):
            point = dict(zip(swept, values, strict=True))
            table = merge(tables, override)
            # a name replaces its table with all options, so that names come before the options that are swept beside them
            for key, value in sorted(point.items(), key=lambda item: item[0].rpartition(".")[2] not in NAMING):
                table = merge(table, _nested(key, value))
            config = validated(table, origin)
            if config.id in runs:
                where = f"{path}: " + ("grid" if index is None else f"cases[{index}]")
                raise InvalidInput(where, point or case, "runs that differ; this one is there already")
            runs[config.id] = (config, origin)
    return Experiment(path.stem, **about, path=path, _runs=runs)


def load_profile(profile: str, directory: str | Path = EXPERIMENTS) -> dict[str, Experiment]:
    """Load all experiments of a profile, by name.

    Raises:
        UnknownName: there is no such profile.
        InvalidInput: as `load_experiment`.
    """
    require_known("profile", profile, profiles(directory))
    return {path.stem: load_experiment(path) for path in sorted((Path(directory) / profile).glob("*.toml"))}


def profiles(directory: str | Path = EXPERIMENTS) -> list[str]:
    """Names of the folders of `directory` that hold experiments."""
    return sorted({path.parent.name for path in Path(directory).glob("*/*.toml")})


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `override` on top, table by table.

    A table that names something (`name`, `architecture`, `kind`) replaces the base's, options and all.
    """
    merged = dict(base)
    for key, value in override.items():
        old, tables = merged.get(key), isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        refines = tables and value.keys().isdisjoint(NAMING)
        merged[key] = merge(old, value) if refines else value
    return merged


def _shown(path: Path) -> Path:
    """Return the path as a user would write it: relative where it lies below the working directory."""
    try:
        absolute = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, or no name of a file: reading says so
        return path
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(read_file(path, MOST_BYTES).decode("utf-8-sig"))  # some editors begin files with a mark
    except OSError as error:
        raise InvalidInput("experiment", str(path), "a readable TOML file", f"{error.strerror}.") from error
    except RecursionError as error:
        raise InvalidInput("experiment", str(path), f"tables and lists at most {DEEPEST} deep") from error
    except ValueError as error:  # syntax, encoding, or a number of thousands of digits
        raise InvalidInput("experiment", str(path), "a file in TOML syntax", f"{error}.") from error
    _check_bounds(tables, path)
    return tables


def _check_bounds(tables: dict[str, Any], path: Path) -> None:
    """Refuse what TOML's own rules leave out (integers beyond 64 bits), and nesting that no run has."""
    waiting: list[tuple[str, Any, int]] = [("", tables, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise InvalidInput(f"{path}: {key.removeprefix('.')[:60]}", value, f"tables and lists at most {DEEPEST} deep")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidInput(f"{path}: {key.removeprefix('.')}", value, "an integer of 64 bits, as TOML has them")
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}", inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{key}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]


def _flat_grid(tables: Any, where: str) -> dict[str, list]:
    """Return dotted key → values, whether the key was quoted ("a.b" = […]) or not (a.b = […])."""
    if not isinstance(tables, dict):
        raise InvalidInput(where, tables, "a table of lists")
    flat: dict[str, list] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": values for inner, values in _flat_grid(value, f"{where}.{key}").items()}
        elif key.count(".") > DEEPEST:
            raise InvalidInput(f"{where}.{key[:60]}", key, f"a key of at most {DEEPEST} parts")
        elif isinstance(value, list) and value:
            flat[key] = value
        else:
            raise InvalidInput(f"{where}.{key}", value, "a list of one or more values")
    return flat


def _check_grid(swept: Mapping[str, list], path: Path) -> None:
    """Refuse keys of a grid that would overwrite one another in silence."""
    for outer, inner in itertools.permutations(swept, 2):
        if inner.startswith(f"{outer}."):
            accepted = f"a grid without {outer}, whose values are whole tables that {inner} would change or be lost in"
            raise InvalidInput(f"{path}: grid.{inner}", swept[inner], accepted)


def _writes(table: Any, key: str) -> bool:
    """Whether a key, or a table in its way that replaces the base's with all options, is written in a table."""
    for part in key.split("."):
        part = part.split("[")[0]
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
        if not isinstance(table, Mapping) or not table.keys().isdisjoint(NAMING):
            return True
    return True


def _is_table(table: Any, key: str) -> bool:
    for part in key.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return isinstance(table, Mapping)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def validated(table: dict[str, Any], origin: Origin, model: type[RunConfig] = RunConfig) -> RunConfig:
    """Validate one run, and say of the first of pydantic's errors which file, key, value, and what is accepted."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
    context = first.get("ctx", {})
    key, value = _key_and_value((*first["loc"], *([context["of"]] if "of" in context else [])), table)
    match first["type"]:
        case "unknown_key":
            unknown = f"{key}.{context['key']}" if key else context["key"]
            known = context["known"] + (list(OF_FILE) if not key and context["key"] not in OF_FILE else [])
            hint = suggest(context["key"], known)
            if context["key"] in OF_FILE:
                hint = f"{context['key']} belongs at the top of the file."
            raise UnknownKey(origin.locate(unknown), value[context["key"]], known, hint=hint)
        case "missing":
            raise InvalidInput(origin.locate(key), "nothing", f"{_article(first['loc'][-1])}; it has no default")
        case "union_tag_not_found":
            accepted = "a table with kind = " + " or ".join(_union_tags())
        case "union_tag_invalid":
            key, value, accepted = f"{key}.kind", value["kind"], "one of " + ", ".join(_union_tags())
        case _:
            accepted = in_words(first)
    choices = _union_tags() if first["type"].startswith("union_tag") else context.get("expected", "").split("'")[1::2]
    raise InvalidInput(origin.locate(key), value, accepted, suggest(value, choices))


def _key_and_value(location: tuple[str | int, ...], table: Any) -> tuple[str, Any]:
    """Return the dotted key and the value at a pydantic location, without the union tags that pydantic puts into it."""
    key, value = "", table
    for part in location:
        if isinstance(value, dict) and value.get("kind") == part:
            continue  # a union tag
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
        value = value.get(part) if isinstance(value, dict) else value[part]
    return key.removeprefix("."), value


def _union_tags() -> list[str]:
    return [model.model_fields["kind"].annotation.__args__[0] for model in (Every, Geometric, At, Epochs, FirstAndLast)]


def _article(key: str | int) -> str:
    return f"a table {key}" if key in {"network", "estimator", "training"} else f"a value for {key}"
