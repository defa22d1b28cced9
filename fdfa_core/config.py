"""What to run: experiments as TOML, validated as a whole before anything runs.

An experiment file is a base run, `cases` (overrides of it) and a `grid` (dotted key → values); its runs are cases ×
grid. Nothing here imports torch, so that a profile whose runs all exist is recognised as such at once. What only the
registries know (estimators and their options, architectures, data sets) `Experiment.check` checks, for the runs to come.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fdfa_core.errors import FdfaError, InvalidInput, UnknownName

NAMING = ("name", "architecture", "kind")  # keys that say what a table is, and so which others it may hold
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


class Table(BaseModel):
    """Base of all tables: immutable, strictly typed, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, table: Any) -> Any:
        if isinstance(table, dict) and cls.model_config["extra"] == "forbid":
            for key in table.keys() - cls.model_fields.keys():
                raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "known": list(cls.model_fields)})
        return table


def _finite(value: Any) -> Any:
    """Refuse NaN and infinity in an option, which the JSON that identifies a run cannot hold."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        _finite(part)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "a finite number")
    return value


class OpenTable(Table):
    """A table whose further keys are the options of what it names; the registry of these names knows the options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_finite)]]

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond the declared ones."""
        return dict(self.model_extra or {})


class Every(Table):
    """At every k-th step, from step 0."""

    kind: Literal["every"]
    k: PositiveInt
    last: bool = False


class Geometric(Table):
    """At the steps first·ratioⁱ, rounded."""

    kind: Literal["geometric"]
    first: PositiveInt = 1
    ratio: float = Field(default=2.0, gt=1)
    last: bool = False


class At(Table):
    """At the steps listed."""

    kind: Literal["at"]
    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    last: bool = False


class Epochs(Table):
    """At the first step of every `every`-th epoch."""

    kind: Literal["epochs"]
    every: PositiveInt = 1
    last: bool = False


class FirstAndLast(Table):
    """At the first and the last step."""

    kind: Literal["first_and_last"]


Schedule = Annotated[Every | Geometric | At | Epochs | FirstAndLast, Field(discriminator="kind")]


class DataConfig(Table):
    """What is learnt, and what the result is judged on.

    With ``evaluate_on = "validation"`` a part of the training set is held out and takes the place of the test set, which
    then is not looked at: the setting for choosing learning rates. `train_size` keeps that many training samples, drawn
    at random; `image_size` scales images to that height and width; `augment` flips and crops training images at random.
    """

    name: str = "digits"
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    train_size: PositiveInt | None = None
    image_size: PositiveInt | None = None
    augment: bool = False


class NetworkConfig(OpenTable):
    """An architecture by name; the other keys are its options."""

    architecture: str = "fully_connected"


class EstimatorConfig(OpenTable):
    """An estimator by name; the other keys are its options."""

    name: str


class TrainingConfig(Table):
    """How the weights move: as many `epochs` or `steps` as given (one of the two).

    `learning_rate` is multiplied by `decay` after each epoch. ``optimizer = "none"`` freezes the weights while the
    estimators' own state moves on, which takes feedback to its stationary distribution at these weights. `drop_last`
    leaves out an epoch's last, smaller batch. `momentum` is that of SGD.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 64
    drop_last: bool = False
    loss: str = "cross_entropy"
    optimizer: Literal["adam", "sgd", "none"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError("length", "a table with either epochs or steps")
        if self.momentum and self.optimizer != "sgd":
            raise PydanticCustomError("momentum", 'momentum with optimizer = "sgd" alone', {"of": "momentum"})
        return self


class EvaluationConfig(Table):
    """When loss and accuracy are measured (always before the first step and after the last), and on how much.

    `reference_size` training samples, the same for every run on these data, stand for the training set.
    """

    schedule: Schedule = Epochs(kind="epochs")
    reference_size: PositiveInt = 1024
    batch_size: PositiveInt = 1000


class ProbeConfig(Table):
    """When and how estimators are measured against the true gradient, while training goes on undisturbed.

    `replicates` is the number R of draws and, for a shadow with state, of its replicas that follow the trajectory. With
    `feedback` the feedback of FDFA's shadows is compared with the exact mean Jacobian (``feedback.parquet``).
    """

    schedule: Schedule
    estimators: list[EstimatorConfig] = Field(min_length=1)
    sampling: Literal["given_batch", "fresh_batches"] = "given_batch"
    replicates: int = Field(default=32, ge=2)
    reference_size: PositiveInt = 512
    raw_gradients: bool = False
    feedback: Literal[True] | None = None

    @model_validator(mode="after")
    def _distinct(self) -> ProbeConfig:
        for i, estimator in enumerate(self.estimators):
            if estimator in self.estimators[:i]:
                raise PydanticCustomError("distinct", f"distinct estimators (number {i + 1} repeats an earlier one)")
            if estimator.name == "self" and estimator.options:
                raise PydanticCustomError("self", '"self" without options: its options are those of the trained one')
        return self


class RunConfig(Table):
    """One run, completely: two runs with equal configurations write equal logs."""

    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    network: NetworkConfig
    estimator: EstimatorConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig | None = None

    def canonical(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, no keys without value (so that new ones leave old ids alone)."""
        table = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str | bytes) -> RunConfig:
        """Read what `canonical`, or any JSON writer, wrote."""
        return cls.model_validate(json.loads(text))


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

    `role` is what figures know it by: a profile may have several experiments of one role (a data set each, say).
    """

    name: str
    description: str
    role: str
    path: Path
    _runs: dict[str, tuple[RunConfig, Origin]] = field(repr=False)

    def runs(self) -> list[RunConfig]:
        """The runs in the order of the file: cases in turn, the grid's last key fastest. Their ids are distinct."""
        return [config for config, _ in self._runs.values()]

    def check(self, skip: Collection[str] = (), data_directory: str | Path | None = None) -> None:
        """Refuse what cannot run before anything runs, for all runs but those whose ids are in `skip`.

        This loads the data (and downloads what is missing), so that no two runs of a sweep begin with a download.

        Raises:
            FdfaError: an unknown name or option, or a value that its owner refuses; names file and key.
        """
        todo = [pair for run_id, pair in self._runs.items() if run_id not in skip]
        if not todo:
            return
        from fdfa_core.training import check  # the registries need torch, which takes seconds to import

        seen = set()
        for config, origin in todo:
            signature = config.model_copy(update={"seed": 0}).canonical()
            if signature not in seen:
                check(config, origin.locate, data_directory=data_directory)
                seen.add(signature)


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file.

    Raises:
        InvalidInput: the file cannot be read, is not TOML, or holds an unknown key, a wrong type, an impossible value.
    """
    path = _shown(Path(path))
    tables = _read_toml(path)
    about = {"description": tables.pop("description", ""), "role": tables.pop("role", path.stem)}
    for key, text in about.items():
        if not isinstance(text, str):
            raise InvalidInput(f"{path}: {key}", text, "a string")
    cases = tables.pop("cases", None)
    if cases is not None and not (cases and isinstance(cases, list) and all(isinstance(c, dict) for c in cases)):
        raise InvalidInput(f"{path}: cases", cases, "a list of one or more tables, each written [[cases]]")
    grid = _flat_grid(tables.pop("grid", {}), f"{path}: grid")

    runs: dict[str, tuple[RunConfig, Origin]] = {}
    for index, case in [(None, {})] if cases is None else enumerate(cases):
        override = dict(case)
        own = _flat_grid(override.pop("grid", {}), f"{path}: cases[{index}].grid")
        swept = grid | own
        places = {key: f"cases[{index}].grid.{key}" if key in own else f"grid.{key}" for key in swept}
        origin = Origin(path, tables, index, override, places)
        for values in itertools.product(*swept.values()):
            point = dict(zip(swept, values, strict=True))
            table = merge(tables, override)
            # a name replaces its table with all options, so that names come before the options that are swept beside them
            for key, value in sorted(point.items(), key=lambda item: item[0].rpartition(".")[2] not in NAMING):
                table = merge(table, _nested(key, value))
            config = _validate(table, origin)
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


def require_known(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise `UnknownName`, with the nearest match, unless `value` is one of `known`."""
    known = list(known)
    if value not in known:
        raise UnknownName(name, value, known, _suggest(value, known))


@contextmanager
def located(locate: Callable[[str], str], key: str, table: Table | None = None, **called: str):
    """Put the place of `key` in front of the message of any of the project's errors that passes through.

    Where an error names a key that was given in the `table` at `key`, the place is that key's; `called` translates names.
    """
    try:
        yield
    except FdfaError as error:
        message, name = str(error), getattr(error, "name", "")
        if table is not None and (own := called.get(name, name)) in table.model_fields_set:
            key, message = f"{key}.{own}", message.removeprefix(f"{name}: ")
        error.args = (f"{locate(key)}: {message}",)
        raise


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
    absolute = path.resolve()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput("experiment", str(path), "a readable TOML file", f"{error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("experiment", str(path), "a file in TOML syntax", f"{error}.") from error


def _flat_grid(tables: Any, where: str) -> dict[str, list]:
    """Return dotted key → values, whether the key was quoted ("a.b" = […]) or not (a.b = […])."""
    if not isinstance(tables, dict):
        raise InvalidInput(where, tables, "a table of lists")
    flat: dict[str, list] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": values for inner, values in _flat_grid(value, f"{where}.{key}").items()}
        elif isinstance(value, list) and value:
            flat[key] = value
        else:
            raise InvalidInput(f"{where}.{key}", value, "a list of one or more values")
    return flat


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


def _validate(table: dict[str, Any], origin: Origin) -> RunConfig:
    """Validate one run, and say of the first of pydantic's errors which file, key, value, and what is accepted."""
    try:
        return RunConfig.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
    context = first.get("ctx", {})
    key, value = _key_and_value((*first["loc"], *([context["of"]] if "of" in context else [])), table)
    match first["type"]:
        case "unknown_key":
            known = context["known"] + (["description", "role", "cases", "grid"] if not key else [])
            unknown = f"{key}.{context['key']}" if key else context["key"]
            hint = _suggest(context["key"], known)
            raise UnknownName(f"{origin.locate(unknown)} (unknown key)", value[context["key"]], known, hint)
        case "missing":
            raise InvalidInput(origin.locate(key), "nothing", f"{_article(first['loc'][-1])}; it has no default")
        case "model_type" | "model_attributes_type" | "dict_type":
            accepted = "a table"
        case "union_tag_not_found":
            accepted = "a table with kind = " + " or ".join(_union_tags())
        case "union_tag_invalid":
            key, value, accepted = f"{key}.kind", value["kind"], "one of " + ", ".join(_union_tags())
        case _:
            accepted = first["msg"].removeprefix("Input should be ")
            if accepted.startswith(("greater", "less")):
                accepted = f"a number {accepted}"
    choices = _union_tags() if first["type"].startswith("union_tag") else context.get("expected", "").split("'")[1::2]
    raise InvalidInput(origin.locate(key), value, accepted, _suggest(value, choices))


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


def _suggest(value: Any, known: Iterable[str]) -> str:
    near = get_close_matches(str(value), list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
