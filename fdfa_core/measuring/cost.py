"""What a computation takes: its operations, and its memory at the peak, on any device."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence

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


@functools.cache
def _formulas() -> Mapping[object, Callable[..., int]]:
    """Return the operations of every kernel that multiplies, by shapes: torch's formulas, and those that torch lacks."""
    from torch.utils.flop_counter import conv_flop_count, flop_registry

    aten = torch.ops.aten

    def convolution_backward(grad, x, weight, bias, stride, padding, dilation, transposed, *others, **_) -> int:
        # as many as forward for each of the two products, also with groups, which torch's formula leaves out
        wanted = others[-1]  # of the gradients of the input, the weights and the bias
        return sum(wanted[:2]) * conv_flop_count(x.shape, weight.shape, grad.shape, transposed)

    def attention(products: int) -> Callable[..., int]:
        def formula(*tensors, **_) -> int:
            *batch, queries, width = tensors[0].shape
            return 2 * products * math.prod(batch) * queries * tensors[1].shape[-2] * width

        return formula

    def attention_backward(grad, *tensors, **_) -> int:
        return attention(5)(*tensors)  # the weights anew, and the gradients of weights, queries, keys and values

    return flop_registry | {
        aten.convolution_backward: convolution_backward,
        aten.addmm_: flop_registry[aten.addmm],
        aten.baddbmm_: flop_registry[aten.baddbmm],
        aten._scaled_dot_product_flash_attention_for_cpu: attention(2),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }


class _Operations(TorchDispatchMode):
    """Count what the kernels multiply."""

    def __init__(self):
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as above

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = _formulas().get(function._overloadpacket)
        if formula is None and function is not torch.ops.prim.device.default:
            with self:  # what consists of other operations is counted by these
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = function(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def operations(function: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products, convolutions and attention in a call.

    A multiplication and an addition count as two. Work on single elements and random numbers are left out.

    Examples:
        >>> import torch
        >>> from fdfa_core.measuring.cost import operations
        >>> operations(lambda: torch.ones(4, 5) @ torch.ones(5, 6))
        240
    """
    with _Operations() as counted:
        function()
    return counted.total
