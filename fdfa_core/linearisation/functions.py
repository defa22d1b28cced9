"""What a general block computes between its layers: functions whose tangents are known by hand, and where gradients stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Functions(TorchFunctionMode):
    """What a general block computes between its layers, by functions whose tangents are known by hand.

    The first pass keeps their values. A tangent pass takes these and works out the tangents alone, where torch's forward mode
    would compute both again, some of them in many steps.

    Where a block calls `torch.no_grad()` reverse mode stops. Torch's forward mode would go on; here it stops too.

    Args:
        kept: what the first pass kept (its `kept`); None in the first pass.

    Attributes:
        stops: whether the block has switched gradients off or on by itself.
    """

    def __init__(self, kept: Sequence[tuple[Callable, Tensor, int]] | None = None):
        super().__init__()
        self.replayed = None if kept is None else iter(kept)
        self.kept: list[tuple[Callable, Tensor, int]] = []
        self.stops = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is _SET_GRAD:
            self.stops = True
            if self.replayed is not None:
                torch._C._set_fwd_grad_enabled(args[0])
        tangent_of = _TANGENTS.get(function)
        if tangent_of is None or (kwargs and function not in _SOFTMAX) or transformed():
            return function(*args, **kwargs)
        if self.replayed is None:
            value = function(*args, **kwargs)
            self.kept.append((function, value.detach(), value._version))
            return value
        known, value, version = next(self.replayed, (None, None, None))
        primals, tangents = zip(*map(_unpacked, args), strict=True)
        if known is not function:  # the block takes another way than in the first pass
            self.replayed = iter(())
        if known is not function or value._version != version:  # or has worked on the value in place
            value = function(*primals, **kwargs)
        if all(tangent is None for tangent in tangents):
            return value
        tangent = tangent_of(function, value, primals, tangents, kwargs)
        return function(*args, **kwargs) if tangent is None else forward_ad.make_dual(value, tangent)


def _unpacked(value: object) -> tuple[object, Tensor | None]:
    """A dual number's value and tangent; other values, sparse tensors among them, have none."""
    plain = not isinstance(value, Tensor) or value.layout is not torch.strided
    return (value, None) if plain else forward_ad.unpack_dual(value)


def transformed() -> bool:
    """Whether the code that runs is inside a transform of torch.func, such as `torch.vmap`."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _sum_tangent(function, value, primals, tangents, kwargs):
    s, t = tangents
    if s is not None and t is not None:
        return function(s, t)
    one = s if t is None else function(torch.zeros_like(t), t)
    return one.to(value.dtype).expand_as(value).clone()  # what comes after may work on it in place


def _product_tangent(function, value, primals, tangents, kwargs):
    (a, b), (s, t) = primals, tangents
    if s is not None and t is not None:
        return torch.addcmul(function(s, b), a, t)
    return function(a, t) if s is None else function(s, b)


def _quotient_tangent(function, value, primals, tangents, kwargs):
    (_, b), (s, t) = primals, tangents
    if t is None:
        return function(s, b)
    return function(-value * t if s is None else torch.addcmul(s, value, t, value=-1), b)


def _matrix_product_tangent(function, value, primals, tangents, kwargs):
    (a, b), (s, t) = primals, tangents
    if s is None or t is None:
        return function(a, t) if s is None else function(s, b)
    if a.dim() < 3 or a.shape[:-2] != b.shape[:-2]:
        return function(s, b) + function(a, t)
    a, s, b, t = (v.reshape(-1, *v.shape[-2:]) for v in (a, s, b, t))
    return torch.bmm(s, b).baddbmm_(a, t).view(value.shape)


def _softmax_tangent(function, value, primals, tangents, kwargs):
    dim = kwargs.get("dim", primals[1] if len(primals) > 1 else None)
    if dim is None or any(isinstance(v, torch.dtype) for v in (*primals, *kwargs.values())):
        return None
    return aten._softmax_backward_data(tangents[0], value, dim, value.dtype)  # the Jacobian is symmetric


def _weight_norm_tangent(function, value, primals, tangents, kwargs):
    """The tangent of w = g v/‖v‖, with ‖v‖ taken over all but one dimension (all of them for −1)."""
    (v, g, *dim), (s, t, *_) = primals, tangents
    dim = dim[0] if dim else 0
    over = [i for i in range(v.dim()) if dim == -1 or i != dim % v.dim()]
    length = v.square().sum(over, keepdim=True).sqrt() if over else v.abs()
    unit = v / length
    along = 0 if t is None else unit * t
    if s is None:
        return along
    s = s / length
    return g * (s - unit * ((unit * s).sum(over, keepdim=True) if over else unit * s)) + along


_SET_GRAD = torch._C._set_grad_enabled  # what `no_grad`, `enable_grad` and `set_grad_enabled` call
_SOFTMAX = (Tensor.softmax, torch.softmax, F.softmax)
_TANGENTS: dict[Callable, Callable[..., Tensor | None]] = {
    **dict.fromkeys((Tensor.add, torch.add, Tensor.sub, torch.sub), _sum_tangent),
    **dict.fromkeys((Tensor.mul, torch.mul), _product_tangent),
    **dict.fromkeys((Tensor.div, torch.div), _quotient_tangent),
    **dict.fromkeys((Tensor.matmul, torch.matmul, Tensor.bmm, torch.bmm), _matrix_product_tangent),
    **dict.fromkeys((torch.sparse.mm, torch.spmm, torch.mm, Tensor.mm), _matrix_product_tangent),
    **dict.fromkeys(_SOFTMAX, _softmax_tangent),
    torch._weight_norm: _weight_norm_tangent,
}
