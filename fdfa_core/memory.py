"""How much memory a computation takes at its peak, on any device; and how a process holds on to what it has."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Follow the storages of all tensors that operations return, from their making to their end."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds and is of no use here

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._meet((args, kwargs), new=False)  # what is met as an input first was there before
        result = function(*args, **kwargs)
        self._meet(result, new=True)
        return result

    def _meet(self, values: object, new: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    size = storage.nbytes() if new else 0
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    self._known[storage._cdata] = weakref.ref(storage, self._end(storage._cdata, size))

    def _end(self, key: int, size: int) -> Callable[[object], None]:
        def end(_) -> None:
            self._known.pop(key, None)
            self.live -= size

        return end


def peak_memory(function: Callable[[], object]) -> int:
    """Return the bytes of all tensors that a call made, and that were alive together, at their most.

    Tensors that were there before are not counted, nor what a library needs inside one operation.
    """
    with _Allocations() as allocations:
        function()
    return allocations.peak


# Parameters of mallopt(3), by number as in <malloc.h>, and what the environment calls them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
GROWTH = 2**26  # bytes of addresses (not of memory) that are asked for at a time


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees for what it needs next, in place of handing it back page by page.

    A training step frees and needs the same megabytes over and over. glibc returns a large block at once, and every page of
    the next one then costs a page fault, which can take longer than what is computed in it. For processes that do nothing but
    train, as those of a sweep, which call it: what the process once held it holds to its end. Results do not change.

    Returns:
        Whether it took effect: not on other C libraries, nor where the environment sets the allocator (MALLOC_…_).
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    chosen = {_TRIM_THRESHOLD: -1, _TOP_PAD: GROWTH, _MMAP_MAX: 0}
    return all([mallopt(parameter, value) for parameter, value in chosen.items()])
