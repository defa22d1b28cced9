"""The rows of a table that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Rows:
    """The rows of a table that grows, held as Arrow: a checkpoint of it copies bytes where a list would be pickled anew."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()):
        self._parts: list[Any] = []
        if rows:
            self.add(rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all with the same keys and types as those before."""
        import pyarrow as pa

        self._parts.append(pa.Table.from_pylist(list(rows)))

    def table(self):
        """Return all rows as one Arrow table, or None without any."""
        import pyarrow as pa

        # one chunk, whatever the parts were: so the same rows give the same bytes of Parquet
        return pa.concat_tables(self._parts).combine_chunks() if self._parts else None

    def state_dict(self) -> dict[str, Any]:
        """Return the rows as a tensor of bytes."""
        import pyarrow as pa
        import torch

        if (table := self.table()) is None:
            return {}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return {"arrow": torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        import pyarrow as pa

        self._parts = [pa.ipc.open_stream(state["arrow"].numpy()).read_all()] if state else []
