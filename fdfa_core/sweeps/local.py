"""Runs in processes of this machine."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fdfa_core.errors import FdfaError
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs.directory import read_summary
from fdfa_core.sweeps.outcome import CarryOut, Outcome


def carry_out_one(config: RunConfig, root: Path, wait: bool, threads: int | None, options: dict) -> Outcome:
    """Carry out one run in this process and say what became of it; never raises an `Exception`."""
    from fdfa_core.training.allocator import keep_freed_memory
    from fdfa_core.training.run import train

    keep_freed_memory()
    try:
        directory = train(config, root, threads=threads, wait=wait, **options)
        return Outcome(config.id, read_summary(directory)["status"] if directory else "elsewhere")
    except FdfaError as error:
        return Outcome(config.id, "failed", str(error))
    except Exception as error:
        return Outcome(config.id, "failed", f"{type(error).__name__}: {error}", traceback.format_exc())


@contextmanager
def process_engine(processes: int | None, root: Path, options: dict) -> Iterator[tuple[int, CarryOut]]:
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
