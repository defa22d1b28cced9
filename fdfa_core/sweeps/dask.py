"""Runs on a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.sweeps.local import carry_out_one
from fdfa_core.sweeps.outcome import CarryOut, Outcome


@contextmanager
def cluster_engine(address: str, root: Path, options: dict, *, threads: int = 1) -> Iterator[tuple[int, CarryOut]]:
    """Carry runs out on a Dask cluster; a run whose worker dies goes to another worker."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise Unsupported("a cluster needs the packages dask and distributed: pip install -e '.[cluster]'") from error
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError) as error:
        raise InvalidInput("cluster", address, "the address of a running Dask scheduler", f"{error}.") from error

    def carry_out(configs: list[RunConfig], wait: bool) -> Iterator[Outcome]:
        futures = {client.submit(carry_out_one, c, root, wait, threads, options, pure=False): c.id for c in configs}
        for future in as_completed(futures):
            error = future.exception()
            yield Outcome(futures[future], "failed", f"{type(error).__name__}: {error}") if error else future.result()

    with client:
        yield len(client.scheduler_info()["workers"]), carry_out
