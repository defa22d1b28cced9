"""Runs on a Dask cluster."""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError as CancelledTask
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from fdfa_core.errors import InvalidInput, RunError, Unsupported
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.locks import AGAIN, FIRST, say
from fdfa_core.sweeps.local import carry_out_one
from fdfa_core.sweeps.outcome import CarryOut, Outcome


@contextmanager
def cluster_engine(address: str, root: Path, options: dict, *, threads: int = 1) -> Iterator[tuple[int, CarryOut]]:
    """Carry runs out on a Dask cluster; a run whose worker dies goes to another worker.

    Where no worker is there, standard error says so within seconds, and then every minute.

    Raises:
        InvalidInput: no scheduler answers at the address.
        RunError: the scheduler is lost while runs wait.
        Unsupported: `distributed` is not installed.
    """
    try:
        from distributed import Client, wait
        from distributed.comm import CommClosedError
    except ImportError as error:
        raise Unsupported("a cluster needs the packages dask and distributed: pip install -e '.[cluster]'") from error
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError) as error:
        raise InvalidInput("cluster", address, "the address of a running Dask scheduler", f"{error}.") from error

    def carry_out(configs: list[RunConfig], wait_for_others: bool) -> Iterator[Outcome]:
        futures = {client.submit(carry_out_one, c, root, wait_for_others, threads, options, pure=False): c.id for c in configs}
        waiting = set(futures)
        watch = _Watch(address)
        while waiting:
            try:
                done, waiting = wait(waiting, timeout=FIRST, return_when="FIRST_COMPLETED")
            except TimeoutError:
                done = set()
                if client.status == "running":
                    watch.look(len(client.scheduler_info()["workers"]), len(waiting))
            except (CancelledError, CancelledTask, CommClosedError, OSError) as error:
                raise _lost(address, len(waiting)) from error
            if client.status != "running":
                raise _lost(address, len(waiting))
            for future in done:
                if future.cancelled():
                    raise _lost(address, len(waiting) + len(done))
                error = future.exception()
                yield Outcome(futures[future], "failed", f"{type(error).__name__}: {error}") if error else future.result()

    for name in ("distributed.client", "distributed.core", "distributed.comm"):  # they log a lost scheduler as tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield len(client.scheduler_info()["workers"]), carry_out
    finally:
        client.close(timeout=2)


class _Watch:
    """Says that no worker is there, at once and then every minute.

    Args:
        address: of the scheduler.
    """

    def __init__(self, address: str):
        self.address, self.since, self.said = address, 0.0, 0.0

    def look(self, workers: int, runs: int) -> None:
        """Take note of how many workers there are while so many runs wait."""
        now = time.monotonic()
        if workers:
            self.since = self.said = 0.0
            return
        self.since = self.since or now
        if not self.said or now - self.said >= AGAIN:
            self.said = now
            say(
                f"waiting: the cluster {self.address} has no worker, for {now - self.since:.0f} s so far; {runs} runs wait. "
                f"Start workers with: dask worker {self.address}"
            )


def _lost(address: str, runs: int) -> RunError:
    return RunError(
        f"cluster {address}: the scheduler does not answer any more; {runs} runs are unfinished. The same command resumes "
        "where it stopped"
    )
