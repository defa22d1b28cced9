"""What runs in one process share: the process's random stream and threads, and the data sets in memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fdfa_core import data
from fdfa_core.data import Dataset

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
