"""The seal of a finished run: hashes of all that it wrote. Also a number that was altered within what is plausible is found.

The seal is a part of the provenance, and goes into the record with it. `files` are hashes of the bytes in the run's directory,
which take no reader of tables to check. `tables` are hashes of the values, which a record keeps in files of its own. The hash
of the provenance is of all in it but this very hash. Runs of earlier versions have no seal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdfa_core.errors import RunError
from fdfa_core.files import open_file

if TYPE_CHECKING:
    import pyarrow as pa

_ALTERED = "was altered after the run wrote it; accepted: what has the SHA-256 in the seal of its provenance"


def sealed(
    provenance: Mapping[str, Any], summary: Mapping[str, Any], tables: Mapping[str, pa.Table], files: Mapping[str, Path]
) -> dict[str, Any]:
    """Return the provenance of a run with its seal: hashes by which whatever was altered since is found.

    Args:
        provenance: without a seal.
        summary: as `summary.json` will hold it.
        tables: by name, as `conform` returns them.
        files: name within the run's directory → where the file is.
    """
    hashes = {name: file_sha256(path) for name, path in files.items()}
    numbers = {name: table_sha256(table) for name, table in tables.items()}
    seal = {"summary": _json_sha256(summary), "tables": numbers, "files": hashes}
    return {**provenance, "seal": seal | {"provenance": _json_sha256({**provenance, "seal": seal})}}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; raises `OSError` where it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of a table's values, whatever file they stand in; the column `run` is left out.

    A column of floats without any number counts as absent, so that a column that a later version adds changes nothing.

    Examples:
        >>> import pyarrow as pa
        >>> from fdfa_core.runs.seal import table_sha256
        >>> table = pa.table({"step": [0, 1], "loss": [0.5, 0.25]})
        >>> table_sha256(table)[:8]
        'b3b5f35b'
        >>> table_sha256(table) == table_sha256(table.append_column("own_norm", pa.nulls(2, "float64")))
        True
    """
    import numpy as np
    import pyarrow as pa

    digest = hashlib.sha256()
    for name in sorted(set(table.column_names) - {"run"}):
        column = table[name]
        if pa.types.is_string(column.type):
            content = "\0".join(column.to_pylist()).encode()
        else:
            values = column.to_numpy()
            if pa.types.is_floating(column.type):
                absent = np.isnan(values)
                if absent.all():
                    continue
                values = np.where(absent, np.nan, values)  # one NaN of the many
            content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def require_file(directory: Path, name: str, provenance: Mapping[str, Any]) -> None:
    """Raise `RunError` for a file of a run that is not the one that the run wrote, by its seal; `OSError` if it is lost."""
    seal = provenance.get("seal")
    if seal and seal["files"].get(name) != file_sha256(directory / name):
        raise RunError(f"{directory / name}: {_ALTERED}")


def unlike(provenance: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Say which of the two was altered since the run wrote its seal; an empty text where none was, or there is no seal."""
    seal = provenance.get("seal")
    if not seal:
        return ""
    hashed = {**provenance, "seal": {key: value for key, value in seal.items() if key != "provenance"}}
    written = {"summary": summary, "provenance": hashed}
    altered = [name for name, content in written.items() if _json_sha256(content) != seal[name]]
    return f"its {altered[0]} {_ALTERED}" if altered else ""


def check_rows(
    table: pa.Table,
    name: str,
    writers: Sequence[str],
    provenances: Mapping[str, Mapping[str, Any]],
    place: Callable[..., str],
) -> None:
    """Hold the rows of each run, which stand run after run, against its seal; raises `RunError` for the first that differs."""
    if not any(provenances[run].get("seal") for run in writers):
        return
    counts, first = {row["values"]: row["counts"] for row in table["run"].value_counts().to_pylist()}, 0
    for run in writers:
        rows = table.slice(first, counts.get(run, 0))
        first += len(rows)
        seal = provenances[run].get("seal")
        if seal and seal["tables"].get(name) != table_sha256(rows):
            raise RunError(f"{place(run, name)}: {_ALTERED}")


def _json_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
