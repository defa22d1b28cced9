"""Many runs at once: processes on this machine by default, a Dask cluster by one option.

A run is named by the hash of its configuration, so a sweep is a set of names: what exists is skipped, what was interrupted
is taken up again, and what another sweep holds is left to it and waited for at the end. A damaged run is set aside under
another name, never deleted, and made again. Nothing heavy (torch, tables) is imported before there is something to do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from fdfa_core.errors import InvalidInput
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.references import is_reference, require_unchanged
from fdfa_core.runs.directory import claim, open_root, read_provenance, set_aside
from fdfa_core.runs.validation import damage
from fdfa_core.sweeps.dask import cluster_engine
from fdfa_core.sweeps.display import Display
from fdfa_core.sweeps.local import Watch, process_engine
from fdfa_core.sweeps.outcome import Outcome, Summary


def sweep(
    configs: Iterable[RunConfig],
    root: str | Path = "runs",
    *,
    processes: int | None = None,
    cluster: str | None = None,
    data_directory: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
    report: Callable[[Outcome], None] | None = None,
    watch: Watch | None = None,
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
        checkpoint_seconds, device: as in `fdfa_core.training.train`.
        threads: of torch in each process; default the cores divided by the processes, or one on a cluster.
        quiet: show no progress.
        report: called with what became of each run, those that are skipped included.
        watch: called after every step with the run, its steps done and its steps in all; only with one process.

    Raises:
        InvalidInput: fewer than one process or thread, both processes and a cluster, or steps to be watched in other processes.
        RunError: `root` cannot be used.
        Unsupported: a cluster is asked for and `distributed` is not installed.
    """
    if processes is not None and processes < 1:
        raise InvalidInput("processes", processes, "a positive integer")
    if processes is not None and cluster is not None:
        accepted = "no number of processes (--jobs) beside a cluster (--cluster), which has its own number of workers"
        raise InvalidInput("processes", processes, accepted)
    if threads is not None and threads < 1:
        raise InvalidInput("threads", threads, "a positive integer (by default the cores divided by the processes)")
    if watch is not None and processes != 1:
        raise InvalidInput("processes", processes, "1 with `watch`: steps are seen in the process that takes them")
    root = Path(os.path.realpath(root))
    runs = {config.id: config for config in configs}
    pending, summary = {}, Summary()
    sound = {run for run in runs if os.path.lexists(root / run) and not damage(root / run)}
    if len(sound) < len(runs):
        open_root(root)  # where nothing is to be done, the directory need not be one that can be written to
    for run, config in runs.items():
        if run not in sound and (not os.path.lexists(root / run) or damaged(root, run, summary)):
            pending[run] = config
        else:
            if any(map(is_reference, (config.network.architecture, config.data.name))):
                own_code = read_provenance(root / run).get("own_code", ())
                require_unchanged(own_code, root / run, "move it away to make the run again")
            summary.skipped.append(run)
    for run in summary.skipped if report else ():
        report(Outcome(run, "skipped"))
    if not pending:
        return summary

    data_directory = None if data_directory is None else Path(data_directory).resolve()
    options = {"data_directory": data_directory, "checkpoint_seconds": checkpoint_seconds, "device": device}
    if cluster is None:
        engine = process_engine(processes, root, options, threads=threads, watch=watch)
    else:
        engine = cluster_engine(cluster, root, options, threads=threads or 1)
    with engine as (workers, carry_out), Display(len(runs), len(summary.skipped), workers, quiet) as display:

        def add(outcome: Outcome) -> None:
            summary.add(outcome)
            display.add(outcome)
            if report:
                report(outcome)

        elsewhere = []
        for outcome in carry_out(list(pending.values()), False):
            if outcome.status == "elsewhere":
                elsewhere.append(pending[outcome.run])
            else:
                add(outcome)
        # What another sweep held is complete by now or soon, or free again because that sweep was killed.
        for outcome in carry_out(elsewhere, True) if elsewhere else ():
            add(outcome)
    return summary


def damaged(root: Path, run: str, summary: Summary) -> bool:
    """Return whether a run has to be made again: a warning says what is wrong with it, and it is set aside."""
    if not damage(root / run):
        return False
    with claim(root, run, wait=False) as ours:  # another sweep may have set it aside by now, and be making it again
        if ours and os.path.lexists(root / run) and (fault := damage(root / run)):
            place = set_aside(root, run)
            summary.set_aside[run] = fault
            warnings.warn(f"run {run} is damaged: {fault}; it is set aside as {place.name} and made again", stacklevel=3)
    return True
