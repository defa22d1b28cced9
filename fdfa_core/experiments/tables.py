"""The tables of an experiment file, as strictly typed models; `RunConfig` is one run, completely.

Nothing here imports torch, so that a profile whose runs all exist is recognised as such at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import date, time
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from fdfa_core.errors import FdfaError, UnknownName

NAMING = ("name", "architecture", "kind")  # keys that say what a table is, and so which others it may hold


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


def _plain(value: Any) -> Any:
    """Return an option as the JSON that identifies a run holds it, a tuple as a list.

    What JSON cannot hold is refused: NaN, infinity, dates and times, objects.
    """
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "a finite number")
    if not isinstance(value, str | int | float | None):
        what = "a date or a time" if isinstance(value, date | time) else f"a value of the type {type(value).__name__}"
        raise PydanticCustomError("plain_value", f"text, a number, true or false, or a list or table of these; {what} is none")
    return value


class OpenTable(Table):
    """A table whose further keys are the options of what it names; the registry of these names knows the options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_plain)]]

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
    Pixels are scaled to [-1, 1], and to [0, 1] with ``scale = "unit"``.
    """

    name: str = "digits"
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    train_size: PositiveInt | None = None
    image_size: PositiveInt | None = None
    augment: bool = False
    scale: Literal["unit"] | None = None


class NetworkConfig(OpenTable):
    """An architecture by name; the other keys are its options."""

    architecture: str = "fully_connected"


class EstimatorConfig(OpenTable):
    """An estimator by name; the other keys are its options."""

    name: str


class TrainingConfig(Table):
    """How the weights move: as many `epochs` or `steps` as given (one of the two).

    `learning_rate` is multiplied by `decay` after each epoch, and once more by `gamma` when as many epochs are over as one of
    the `milestones` says. ``optimizer = "none"`` freezes the weights while the estimators' own state moves on, which takes
    feedback to its stationary distribution at these weights. `drop_last` leaves out an epoch's last, smaller batch.
    `momentum` is that of SGD.
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
    milestones: list[PositiveInt] | None = Field(default=None, min_length=1)
    gamma: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError("length", "a table with either epochs or steps")
        if self.momentum and self.optimizer != "sgd":
            raise PydanticCustomError("momentum", 'momentum with optimizer = "sgd" alone', {"of": "momentum"})
        if (self.milestones is None) != (self.gamma is None):
            given = "milestones" if self.gamma is None else "gamma"
            raise PydanticCustomError("milestones", "milestones and gamma together, or neither of them", {"of": given})
        if self.milestones:
            if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
                raise PydanticCustomError("milestones", "epochs in ascending order, each once", {"of": "milestones"})
            if self.epochs is not None and self.milestones[-1] >= self.epochs:
                accepted = f"epochs below {self.epochs}, the length of the run: a later one is never reached"
                raise PydanticCustomError("milestones", accepted, {"of": "milestones"})
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
    `feedback` the feedback of FDFA's shadows is compared with the exact mean Jacobian (``feedback.parquet``). With
    `common_random_numbers` shadows whose feedback learns from the same perturbations get the same ones, measured once.
    """

    schedule: Schedule
    estimators: list[EstimatorConfig] = Field(min_length=1)
    sampling: Literal["given_batch", "fresh_batches"] = "given_batch"
    replicates: int = Field(default=32, ge=2)
    reference_size: PositiveInt = 512
    raw_gradients: bool = False
    feedback: Literal[True] | None = None
    common_random_numbers: Literal[True] | None = None

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

    own_loop: ClassVar[bool] = False  # whether the training loop is not this project's (`fdfa_core.experiments.own`)

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


def require_known(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise `UnknownName`, with the nearest match, unless `value` is one of `known`."""
    known = list(known)
    if value not in known:
        raise UnknownName(name, value, known, suggest(value, known))


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


def suggest(value: Any, known: Iterable[str]) -> str:
    """Return the question whether the nearest known name was meant, or nothing where none is near."""
    near = get_close_matches(str(value), list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
