"""Many runs at once: processes on this machine by default, a Dask cluster by one option.

A run is named by the hash of its configuration, so a sweep is a set of names: what exists is skipped, what was interrupted
is taken up again, and what another sweep holds is left to it and waited for at the end. Nothing heavy (torch, tables) is
imported before there is something to do.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from fdfa_core.config import RunConfig
from fdfa_core.errors import FdfaError, InvalidInput, Unsupported
from fdfa_core.runs import is_complete, open_root, read_summary

Status = Literal["finished", "diverged", "failed", "elsewhere"]


@dataclass(frozen=True)
class Outcome:
    """What became of one run; `error` says why it failed, `details` holds the traceback of an unexpected failure."""

    run: str
    status: Status
    error: str = ""
    details: str = ""


CarryOut = Callable[[list[RunConfig], bool], Iterator[Outcome]]  # (runs, wait for those held elsewhere)


@dataclass
class Summary:
    """What became of a sweep: ids of runs, and for the failed ones the reason."""

    skipped: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one more run."""
        match outcome.status:
            case "failed":
                self.failed[outcome.run] = outcome.error
            case "diverged":
                self.diverged.append(outcome.run)
            case "finished":
                self.finished.append(outcome.run)

    def __str__(self) -> str:
        """Return one line."""
        counts = {"finished": self.finished, "diverged": self.diverged, "failed": self.failed}
        return f"{len(self.skipped)} runs were there already; " + ", ".join(f"{len(v)} {k}" for k, v in counts.items())


def sweep(
    configs: Iterable[RunConfig],
    root: str | Path = "runs",
    *,
    processes: int | None = None,
    cluster: str | None = None,
    data_directory: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    quiet: bool = False,
) -> Summary:
    """Carry out all runs that are not there yet; a run that fails is reported and does not stop the others.

    Processes times threads is the number of cores; a single process per core is the default.

    Args:
        configs: what to run; repeated ones count once.
        root: directory of runs. Other sweeps may work in it at the same time.
        processes: on this machine; default one a core. One is the caller's own, which then keeps the memory that it frees
            (`fdfa_core.memory.keep_freed_memory`).
        cluster: address of a Dask scheduler, e.g. "tcp://host:8786", whose workers see `root` under the same path.
        data_directory: as in `fdfa_core.data.load`.
        checkpoint_seconds: as in `fdfa_core.training.train`.
        quiet: show no progress.

    Raises:
        InvalidInput: fewer than one process, or both processes and a cluster.
        RunError: `root` cannot be used.
        Unsupported: a cluster is asked for and `distributed` is not installed.
    """
    if processes is not None and processes < 1:
        raise InvalidInput("processes", processes, "a positive integer")
    if processes is not None and cluster is not None:
        raise InvalidInput("processes", processes, "None with a cluster, which has its own number of workers")
    root = open_root(root).resolve()
    runs = {config.id: config for config in configs}
    pending = {run: config for run, config in runs.items() if not is_complete(root, run)}
    summary = Summary(skipped=[run for run in runs if run not in pending])
    if not pending:
        return summary

    data_directory = None if data_directory is None else Path(data_directory).resolve()
    options = {"data_directory": data_directory, "checkpoint_seconds": checkpoint_seconds}
    engine = _processes(processes, root, options) if cluster is None else _dask(cluster, root, options)
    with engine as (workers, carry_out), _Display(len(runs), len(summary.skipped), workers, quiet) as display:
        elsewhere = []
        for outcome in carry_out(list(pending.values()), False):
            if outcome.status == "elsewhere":
                elsewhere.append(pending[outcome.run])
            else:
                summary.add(outcome)
                display.add(outcome)
        # What another sweep held is there by now or soon, or free again because that sweep was killed.
        for outcome in carry_out(elsewhere, True) if elsewhere else ():
            summary.add(outcome)
            display.add(outcome)
    return summary


def carry_out_one(config: RunConfig, root: Path, wait: bool, threads: int | None, options: dict) -> Outcome:
    """Carry out one run in this process and say what became of it; never raises an `Exception`."""
    from fdfa_core.memory import keep_freed_memory
    from fdfa_core.training import train

    keep_freed_memory()
    try:
        directory = train(config, root, threads=threads, wait=wait, **options)
        return Outcome(config.id, read_summary(directory)["status"] if directory else "elsewhere")
    except FdfaError as error:
        return Outcome(config.id, "failed", str(error))
    except Exception as error:
        return Outcome(config.id, "failed", f"{type(error).__name__}: {error}", traceback.format_exc())


@contextmanager
def _processes(processes: int | None, root: Path, options: dict) -> Iterator[tuple[int, CarryOut]]:
    """Carry runs out in processes of this machine."""
    import joblib
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    cores = joblib.cpu_count()
    processes = processes or cores
    threads = max(1, cores // processes)

    def parallel(configs: Iterable[RunConfig], wait: bool, workers: int) -> Iterator[Outcome]:
        # A worker is handed one run at a time and none in advance, so that little is in doubt when a worker dies.
        with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
            engine = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
            yield from engine(joblib.delayed(carry_out_one)(c, root, wait, threads, options) for c in configs)

    def carry_out(configs: list[RunConfig], wait: bool) -> Iterator[Outcome]:
        waiting = {config.id: config for config in configs}
        suspects: list[RunConfig] = []
        while waiting:
            started: list[RunConfig] = []
            feed = (started.append(config) or config for config in list(waiting.values()))
            try:
                for outcome in parallel(feed, wait, min(processes, len(waiting))):
                    del waiting[outcome.run]
                    yield outcome
            except TerminatedWorkerError:  # killed from outside, most often for lack of memory
                suspects += [waiting.pop(config.id) for config in started if config.id in waiting]
        for config in suspects:  # one at a time: only a run whose own process dies has failed
            try:
                yield from parallel([config], wait, 2)  # with one, joblib would run it in this very process
            except TerminatedWorkerError:
                yield Outcome(config.id, "failed", "its process was killed twice, perhaps for lack of memory")

    try:
        yield processes, carry_out
    finally:
        if processes > 1:
            # Idle workers would hold half a gigabyte each; busy ones, after an interruption, have their checkpoints.
            get_reusable_executor().shutdown(kill_workers=True)


@contextmanager
def _dask(address: str, root: Path, options: dict) -> Iterator[tuple[int, CarryOut]]:
    """Carry runs out on a Dask cluster, one thread each; a run whose worker dies goes to another worker."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise Unsupported("a cluster needs the packages dask and distributed: pip install -e '.[cluster]'") from error
    try:
        client = Client(address, timeout=30)
    except (OSError, ValueError) as error:
        raise InvalidInput("cluster", address, "the address of a running Dask scheduler", f"{error}.") from error

    def carry_out(configs: list[RunConfig], wait: bool) -> Iterator[Outcome]:
        futures = {client.submit(carry_out_one, c, root, wait, 1, options, pure=False): c.id for c in configs}
        for future in as_completed(futures):
            error = future.exception()
            yield Outcome(futures[future], "failed", f"{type(error).__name__}: {error}") if error else future.result()

    with client:
        yield len(client.scheduler_info()["workers"]), carry_out


class _Display:
    """Progress: counts and time left, as a bar on a terminal, otherwise as a line at every tenth and at least once a minute."""

    def __init__(self, total: int, skipped: int, workers: int, quiet: bool):
        self.counts: Counter[str] = Counter()
        self.total, self.workers, self.quiet = total, workers, quiet
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=skipped, unit="run", disable=quiet or not self.on_terminal, smoothing=0.1)
        self.started_at = skipped
        self.start = self.said = time.monotonic()

    def __enter__(self) -> _Display:
        self._show()
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.status] += 1
        self.bar.update()
        self._show()
        if outcome.status == "failed" and not self.quiet:
            tqdm.write(f"run {outcome.run} failed: {outcome.error}", file=sys.stderr)
            if outcome.details:
                tqdm.write(outcome.details, file=sys.stderr)

    def _show(self) -> None:
        done = self.started_at + self.counts.total()
        running = min(self.workers, self.total - done)
        self.bar.set_postfix(running=running, failed=self.counts["failed"], diverged=self.counts["diverged"])
        if self.on_terminal or self.quiet:
            return
        new, now = self.counts.total(), time.monotonic()
        if done == self.total or new % max(1, (self.total - self.started_at) // 10) == 0 or now - self.said > 60:
            self.said = now
            left = (
                f", about {tqdm.format_interval((now - self.start) * (self.total - done) / new)} left"
                if new and done < self.total
                else ""
            )
            print(
                f"{done}/{self.total} runs done, {running} running, {self.counts['failed']} failed, "
                f"{self.counts['diverged']} diverged{left}",
                file=sys.stderr,
                flush=True,
            )
