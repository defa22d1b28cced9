"""How much memory a computation takes at its peak, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
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
        for value in (part for leaf in tree_leaves(values) for part in _dense_parts(leaf)):
            if value.layout is torch.strided:
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


def _dense_parts(value: object) -> Sequence[Tensor]:
    """The tensors in which a value holds its numbers: of a sparse one its values and indices."""
    if not isinstance(value, Tensor):
        return ()
    if value.layout is torch.sparse_coo:
        return (value._values(), value._indices())
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (value.values(), value.crow_indices(), value.col_indices())
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (value.values(), value.ccol_indices(), value.row_indices())
    return (value,)


def peak_memory(function: Callable[[], object]) -> int:
    """Return the peak memory of a call: the bytes of all tensors that it made and that were alive together.

    Tensors that existed before are not counted, and neither is what a library needs inside one operation.

    Examples:
        >>> import torch
        >>> from fdfa_core.memory import peak_memory
        >>> peak_memory(lambda: torch.zeros(1000) + 1)
        8000
    """
    with _Allocations() as allocations:
        function()
    return allocations.peak
