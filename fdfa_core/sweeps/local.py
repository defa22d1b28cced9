"""Runs in this process, and in other processes of this machine."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fdfa_core.errors import FdfaError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.directory import read_summary
from fdfa_core.sweeps.outcome import CarryOut, Outcome
from fdfa_core.workers import worker_processes

Watch = Callable[[RunConfig, int, int], None]  # (run, its steps done, its steps in all)


def carry_out_one(
    config: RunConfig, root: Path, wait: bool, threads: int | None, options: dict, watch: Watch | None = None
) -> Outcome:
    """Carry out one run in this process and say what became of it; never raises an `Exception`."""
    from fdfa_core.training.process import keep_freed_memory
    from fdfa_core.training.run import train

    keep_freed_memory()
    progress = functools.partial(watch, config) if watch else None
    try:
        directory = train(config, root, progress=progress, threads=threads, wait=wait, **options)
        return Outcome(config.id, read_summary(directory)["status"] if directory else "elsewhere")
    except FdfaError as error:
        return Outcome(config.id, "failed", str(error))
    except Exception as error:
        return Outcome(config.id, "failed", f"{type(error).__name__}: {error}", traceback.format_exc())


@contextmanager
def process_engine(
    processes: int | None, root: Path, options: dict, *, threads: int | None = None, watch: Watch | None = None
) -> Iterator[tuple[int, CarryOut]]:
    """Carry runs out in processes of this machine; one process is this one, and only its steps can be watched."""
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    cores = joblib.cpu_count()
    processes = processes or cores
    threads = threads or max(1, cores // processes)

    def in_this_process(configs: list[RunConfig], wait: bool) -> Iterator[Outcome]:
        for config in configs:
            yield carry_out_one(config, root, wait, threads, options, watch)

    def parallel(configs: Iterable[RunConfig], wait: bool, workers: int) -> Iterator[Outcome]:
        # A worker is handed one run at a time and none in advance, so that little is in doubt when a worker dies.
        engine = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
        yield from engine(joblib.delayed(carry_out_one)(c, root, wait, threads, options) for c in configs)

    def in_processes(configs: list[RunConfig], wait: bool) -> Iterator[Outcome]:
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

    with ExitStack() as stack:
        if processes > 1:
            stack.enter_context(worker_processes(threads))
        yield processes, in_this_process if processes == 1 else in_processes
