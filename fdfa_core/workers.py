"""Processes of this machine that work for this one, and end with it however it ends."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # prctl(2): send this process a signal when its parent ends


@contextmanager
def worker_processes(threads: int | None = None) -> Iterator[None]:
    """Let `joblib.Parallel` use processes that end with this one, and end them with the block.

    They end also where this process is killed in the midst of its work. They leave Ctrl-C, which a terminal sends to all
    processes of a command, to this process. Idle ones would hold half a gigabyte each, so none outlives the block.

    Args:
        threads: of numerical libraries in each process; None takes joblib's share of the cores.
    """
    import joblib
    from joblib.externals.loky import get_reusable_executor

    try:
        with joblib.parallel_config("loky", inner_max_num_threads=threads, initializer=_begin, initargs=(os.getpid(),)):
            yield
    finally:
        get_reusable_executor(reuse=True, kill_workers=True).shutdown(kill_workers=True)


def _begin(parent: int) -> None:
    """Prepare this process, which works for the process `parent`."""
    from joblib.externals.loky import process_executor

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky takes a worker for leaking that holds 300 MB more than after its first task, and replaces it with a warning. What
    # grows here is memory that is kept on purpose (`keep_freed_memory`), up to what the largest task needs.
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf
    _end_with(parent)


def _end_with(parent: int) -> None:
    """Let this process end when its parent does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it was asked for
            os._exit(1)
    else:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: int) -> None:
    """Wait for the end of a process, and end this one."""
    import psutil

    try:
        psutil.Process(parent).wait()
    except psutil.NoSuchProcess:
        pass
    os._exit(1)
