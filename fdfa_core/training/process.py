"""What runs in one process share: its random stream and threads, its data sets and its memory."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fdfa_core import data
from fdfa_core.data import Dataset

# Parameters of mallopt(3), by number as in <malloc.h>, and what the environment calls them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
GROWTH = 2**26  # bytes of addresses (not of memory) that are asked for at a time
LARGEST_KEPT = 2**25  # bytes of a block; the most that glibc takes

one_at_a_time = threading.Lock()  # a run owns the process's global random stream and number of threads


@functools.lru_cache(maxsize=2)
def loaded_dataset(name: str, directory: str | Path | None, download: bool) -> Dataset:
    """Load a data set once a process."""
    return data.load(name, directory, download)


@contextmanager
def restored_globals() -> Iterator[None]:
    """Give the process its random stream and its number of threads back."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory(all_sizes: bool = False) -> bool:
    """Let this process keep memory that it frees for what it needs next, in place of handing it back page by page.

    A training step frees and needs the same megabytes over and over. glibc returns a large block at once, and every page of
    the next one then costs a page fault, which can take longer than what is computed in it. For processes that do nothing but
    train, as those of a sweep, which call it: what the process once held it holds to its end. Results do not change.

    Args:
        all_sizes: keep blocks of more than 32 MiB, too. This suits a program that asks for the same few large blocks over and
            over. In others small blocks that live on end up in the gaps, the next large block finds none, and the process
            grows to several times what it needs.

    Returns:
        Whether it took effect: not on other C libraries, nor where the environment sets the allocator (MALLOC_…_).
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    chosen = {_TRIM_THRESHOLD: -1, _TOP_PAD: GROWTH} | ({_MMAP_MAX: 0} if all_sizes else {_MMAP_THRESHOLD: LARGEST_KEPT})
    return all([mallopt(parameter, value) for parameter, value in chosen.items()])
