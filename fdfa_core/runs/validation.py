"""What a sound run is. Every run is checked here before it counts as finished, is read for analysis, or enters a record.

A sweep looks at every run directory (`damage`): links, configuration, summary, and whether each file is present and the one
that the run wrote. Whoever reads the numbers checks all of them (`checked`). Each fault is an error that names the file, what
it holds and what is accepted.

A finished run carries a seal in its provenance, hashes of all that it wrote (`fdfa_core.runs.seal`), so that also a number that
was altered within what is plausible is found. Runs of earlier versions have no seal, and are read as before.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, model_validator

from fdfa_core.errors import RunError, shown
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.files import open_file, read_file
from fdfa_core.runs import seal
from fdfa_core.runs.schema import ADDED_COLUMNS, COLUMNS, METRICS, TABLES, TYPES, expected_tables
from fdfa_core.signatures import in_words

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from fdfa_core.runs.store import Store


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Summary(_Shape):
    """What `summary.json` of a run holds; `final` is the last row of the metrics, or empty if there is none."""

    status: Literal["finished", "diverged"]
    diverged_step: NonNegativeInt | None
    steps: NonNegativeInt
    final: dict[str, float | None]

    @model_validator(mode="after")
    def _consistent(self) -> Summary:
        if (self.status == "diverged") != (self.diverged_step is not None):
            raise ValueError(f"diverged_step is {self.diverged_step} although status is {self.status!r}")
        if self.final and sorted(self.final) != sorted(METRICS):
            raise ValueError(f"final has the keys {', '.join(sorted(self.final))}, not those of the metrics")
        return self


class _Code(_Shape):
    commit: str | None
    dirty: bool | None


class _Resumed(_Shape):
    step: NonNegativeInt
    code: _Code


class _Hardware(_Shape):
    processor: str
    cores: int | None
    device: str
    threads: int


class _Data(_Shape):
    name: str
    sha256: str
    notes: list[str]


class _Seal(_Shape):
    model_config = ConfigDict(extra="forbid")

    summary: str
    provenance: str
    tables: dict[str, str]
    files: dict[str, str]


class Provenance(_Shape):
    """What `provenance.json` of a run holds. Other keys are refused, since a seal under another name would be none."""

    model_config = ConfigDict(extra="forbid")

    code: _Code
    versions: dict[str, str | None]
    hardware: _Hardware
    seed: int
    data: _Data
    started: str
    finished: str
    resumed: list[_Resumed] = []
    plugins: Any = None
    own_code: Any = None
    renamed: Any = None
    seal: _Seal | None = None


@dataclass(frozen=True)
class Contents:
    """All that is kept of some runs, checked.

    Attributes:
        configs: of the runs, in the order asked for.
        summaries: by run id.
        provenances: by run id.
        tables: name of a table → frame with the column `run` and those of the table; only tables that these runs write.
    """

    configs: list[RunConfig]
    summaries: dict[str, dict[str, Any]]
    provenances: dict[str, dict[str, Any]]
    tables: dict[str, pd.DataFrame]


def checked(store: Store, configs: Sequence[RunConfig]) -> Contents:
    """Read runs and check all that they hold.

    Raises:
        RunError: a file is missing, cannot be read, or holds what no such run writes, or not what this one wrote.
    """
    configs = list(configs)
    for config in configs:
        if store.config(config.id) != config:
            raise RunError(f"{store.place(config.id)}: its config.json is not that of run {config.id}; move it away and make "
                           "the run again")  # fmt: skip
    summaries = {config.id: store.summary(config.id) for config in configs}
    provenances = {config.id: store.provenance(config.id) for config in configs}
    for config in configs:
        origin = provenances[config.id]
        of_data = ("data.name", origin["data"]["name"], config.data.name)
        for key, given, wanted in (("seed", origin["seed"], config.seed), of_data):
            if given != wanted:
                raise RunError(f"{store.place(config.id)}: its provenance has the {key} {given!r}; accepted: {wanted!r}, as in "
                               "its configuration")  # fmt: skip
        if fault := seal.unlike(origin, summaries[config.id]):
            raise RunError(f"{store.place(config.id)}: {fault}")
    tables = {}
    for name in TABLES:
        writers = [config.id for config in configs if name in tables_of(config)]
        if writers:
            table = store.arrow(name, writers)
            seal.check_rows(table, name, writers, provenances, store.place)
            tables[name] = table.to_pandas()
    _check_rows(configs, summaries, tables, store.place)
    return Contents(configs, summaries, provenances, tables)


def tables_of(config: RunConfig) -> list[str]:
    """Return the names of the tables that a run writes."""
    return expected_tables(config.probe is not None, config.probe is not None and bool(config.probe.feedback))


def damage(directory: str | Path, run: str | None = None) -> str:
    """Say what is wrong with the directory of a finished run, or return an empty text; tables are not read.

    Raw gradients are left to those who read them: they may be large.

    Args:
        directory: of the run.
        run: its id; None where the directory has its name.
    """
    directory = Path(directory)
    run = directory.name if run is None else run
    if directory.is_symlink() and (target := os.path.basename(os.path.realpath(directory))) != run:
        return f"is a link to {target}, another run"
    try:
        config = json.loads(read_file(directory / "config.json"))
        if configuration_id(config) != run:
            return "its config.json is that of another run"
        probe = config.get("probe") or {}
        summary = check_summary(json.loads(read_file(directory / "summary.json")), directory / "summary.json")
        origin = check_provenance(json.loads(read_file(directory / "provenance.json")), directory / "provenance.json")
        if fault := seal.unlike(origin, summary):
            return fault
        for name in expected_tables(bool(probe), bool(probe.get("feedback"))):
            if not _ends_as_parquet(directory / f"{name}.parquet"):
                return f"{name}.parquet is truncated or not Parquet"
            seal.require_file(directory, f"{name}.parquet", origin)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read ({error.strerror})"
    except RunError as error:
        return str(error).removeprefix(f"{directory}{os.sep}")
    except (ValueError, AttributeError, RecursionError) as error:
        return f"a file that should be JSON cannot be read ({error})"
    return ""


def require_unspoilt(root: Path, runs: Iterable[str]) -> None:
    """Raise `RunError` for the first run that is there and cannot be read, which is no missing run."""
    for run in runs:
        if os.path.lexists(root / run):
            raise RunError(f"{root / run}: is damaged ({damage(root / run)}); `fdfa sweep` sets it aside and makes it again")


def configuration_id(config: Mapping[str, Any]) -> str:
    """Return the id of a run from its configuration as plain JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_summary(summary: Any, place: str | Path) -> dict[str, Any]:
    """Return a summary as it is; raises `RunError`, which names `place`, if it is none."""
    return _shaped(Summary, summary, place, "the summary of a run")


def check_provenance(provenance: Any, place: str | Path) -> dict[str, Any]:
    """Return a provenance as it is; raises `RunError`, which names `place`, if it is none."""
    return _shaped(Provenance, provenance, place, "the provenance of a run")


def conform(table: pa.Table, name: str, place: str | Path) -> pa.Table:
    """Return a table of a run with its columns in their order and of their types, whatever writer made the file.

    Args:
        table: as read.
        name: "metrics", "probes", "timing" or "feedback".
        place: of the file, for the error.

    Raises:
        RunError: a column is missing, unknown, or of another type.
    """
    import pyarrow as pa

    wanted = COLUMNS[name] if len(table) else TABLES[name]
    for added in ADDED_COLUMNS if name == "probes" and len(table) else ():
        if not {*added} & {*table.column_names}:  # written before there were such columns
            for column in added:
                table = table.append_column(column, pa.repeat(math.nan, len(table)))
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise RunError(f"{place}: lacks the column {missing[0]!r} of a {name} table; it has {', '.join(table.column_names)}")
    unknown = [column for column in table.column_names if column not in COLUMNS[name]]
    if unknown:
        accepted = ", ".join(COLUMNS[name])
        raise RunError(f"{place}: has the column {unknown[0]!r}, which no {name} table has; accepted: {accepted}")
    if not len(table):
        return schema(name).empty_table()
    for field in schema(name):
        given = table.schema.field(field.name).type
        plain = given.value_type if pa.types.is_dictionary(given) else given
        if plain != field.type and not (pa.types.is_large_string(plain) and pa.types.is_string(field.type)):
            raise RunError(f"{place}: its column {field.name!r} is of the type {given}; accepted: {field.type}")
        if table[field.name].null_count and not pa.types.is_floating(field.type):
            raise RunError(f"{place}: its column {field.name!r} has missing values; accepted: {field.type}")
    return table.select(list(wanted)).cast(schema(name)).replace_schema_metadata(None)


def schema(name: str) -> pa.Schema:
    """Return the Arrow schema of a table of runs."""
    import pyarrow as pa

    return pa.schema([(column, TYPES.get(column, "float64")) for column in COLUMNS[name]])


def _shaped(model: type[_Shape], content: Any, place: str | Path, what: str) -> dict[str, Any]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        raise RunError(f"{place}: is not {what} ({first_fault(error)})") from error
    return content


def first_fault(error: ValidationError) -> str:
    """Say what is wrong with a file's content: the key, what is there, and what is accepted."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "content"
    if first["type"] == "unknown_key":
        return f"{'.'.join([*map(str, first['loc']), first['ctx']['key']])}: unknown key"
    given = "nothing" if first["type"] == "missing" else shown(first["input"], 60)
    return f"{key}: got {given}; accepted: {in_words(first)}"


def _ends_as_parquet(path: Path) -> bool:
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        return size > 12 and file.read() == b"PAR1"


def _check_rows(
    configs: Sequence[RunConfig],
    summaries: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    place: Callable[..., str],
) -> None:
    """Check the values in the tables of several runs, all runs at once; raises `RunError` for the first fault."""
    from fdfa_core.runs import values

    by_id = {config.id: config for config in configs}
    for name, frame in tables.items():
        fault = values.fault(name, frame, by_id)
        if fault:
            raise RunError(f"{place(fault.run, name)}: {fault.text}")
    metrics, timing = tables.get("metrics"), tables.get("timing")
    if metrics is None:
        return
    steps = {run: part.tolist() for run, part in metrics.groupby("run", sort=False)["step"]}
    timed = {run: part.tolist() for run, part in timing.groupby("run", sort=False)["step"]}
    last = metrics[~metrics["run"].duplicated(keep="last")].set_index("run")[list(METRICS)].to_dict("index")
    for run, summary in summaries.items():
        if steps.get(run) != timed.get(run):
            raise RunError(f"{place(run, 'timing')}: its steps are not those of the metrics; accepted: one row per evaluation")
        own = by_id[run].own_loop  # the user's loop logs what it likes, and when
        if run not in steps:
            if summary["final"] or not (own or summary["status"] == "diverged"):
                raise RunError(f"{place(run, 'metrics')}: has no rows; accepted: one row per evaluation")
            continue
        final = {key: None if math.isnan(value) else value for key, value in last[run].items()}
        if summary["final"] != final:
            raise RunError(f"{place(run, 'metrics')}: its last row is not `final` in the summary; accepted: equal values")
        if summary["status"] == "diverged":
            continue
        planned = by_id[run].training.steps
        if steps[run][-1] > summary["steps"] or not own and steps[run][-1] != summary["steps"]:
            raise RunError(
                f"{place(run, 'metrics')}: ends at step {steps[run][-1]}; accepted: {summary['steps']}, as in the summary"
            )
        if planned is not None and summary["steps"] != planned:
            raise RunError(
                f"{place(run)}: its summary has {summary['steps']} steps; accepted: {planned}, as in its configuration"
            )
