"""Rules of operations: tangents that are worked out by hand from the values of the forward pass.

A rule calls the operation, and puts on the tape (`fdfa_core.linearisation.tape`) how tangents of its arguments become a tangent
of its value. It keeps only what the tangent needs, which is mostly what autograd keeps for the gradients anyway. No tangent is
written into: several operations may share one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fdfa_core.linearisation.tape import Tape

aten = torch.ops.aten
OPERATIONS: dict[Callable, Callable[..., Any]] = {}


class Uncovered(Exception):
    """A rule does not cover the options of a call: torch's forward-mode derivative of the operation takes its place."""


def operation(*functions: Callable):
    """Register a rule (tape, function, *arguments of the call) → value of the call."""

    def register(rule: Callable) -> Callable:
        OPERATIONS.update(dict.fromkeys(functions, rule))
        return rule

    return register


def named(*names: str) -> list[Callable]:
    """Return the functions of these names: those of torch, of `torch.nn.functional`, and the methods of tensors."""
    places = (torch, Tensor, F, torch._C._nn)
    return list({id(f): f for name in names for place in places if (f := getattr(place, name, None)) is not None}.values())


# Operators that are linear in one argument ---------------------------------------------------------------------------------


@operation(*named("transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "__getitem__", "narrow", "select", "unbind"))
@operation(*named("chunk", "split", "split_with_sizes", "tensor_split", "diagonal", "flip", "roll", "tril", "triu", "unfold"))
@operation(*named("sum", "mean", "cumsum", "neg", "__neg__", "gather", "index_select", "take_along_dim", "repeat", "tile"))
@operation(*named("avg_pool1d", "avg_pool2d", "avg_pool3d", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle"))
@operation(*named("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate", "float", "double"))
@operation(*named("to", "type_as", "channel_shuffle", "im2col", "col2im"))
def linear_operator(tape: Tape, function, x, *rest, **options):
    """Functions that are linear in their first argument and take nothing else that is differentiated."""
    at = tape.slot(x)
    rest = tape.constants(rest)
    options = {name: tape.constants(value) for name, value in options.items()}
    value = function(x, *rest, **options)
    return tape.put(value, (at,), lambda t: function(t, *rest, **options))


@operation(*named("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "ravel", "view_as", "reshape_as"))
def reshaped(tape: Tape, function, x, *rest, **options):
    """The same numbers in another shape. A tangent need not have the strides of its value."""
    at, value = tape.slot(x), function(x, *rest, **options)
    if value.dtype is not x.dtype:
        raise Uncovered
    shape = value.shape
    return tape.put(value, (at,), lambda t: t.reshape(shape))


@operation(*named("contiguous", "clone"))
def copied(tape: Tape, function, x, **options):
    """The same numbers elsewhere in memory."""
    return tape.put(function(x, **options), (tape.slot(x),), lambda t: t)


@operation(*named("expand", "expand_as", "broadcast_to"))
def expanded(tape: Tape, function, x, *rest, **options):
    """The same numbers, several times."""
    at, value = tape.slot(x), function(x, *rest, **options)
    shape = value.shape
    return tape.put(value, (at,), lambda t: t.expand(shape))


@operation(torch._C._nn.pad)
def padded(tape: Tape, function, x, pad, mode="constant", value=None):
    """A margin, constant or a copy of what is inside."""
    at, result = tape.slot(x), function(x, pad, mode, value)
    return tape.put(result, (at,), lambda t: function(t, pad, mode))


@operation(*named("masked_fill"))
def masked(tape: Tape, function, x, mask, value):
    """Entries replaced by a constant."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise Uncovered
    at, result, mask = tape.slot(x), function(x, mask, value), tape.keep(mask)
    shape = result.shape
    return tape.put(result, (at,), lambda t: t.expand(shape).masked_fill(mask, 0))


@operation(torch.where)
def chosen(tape: Tape, function, mask, a, b):
    """Each entry from one of two tensors."""
    places, mask = (tape.slot(a), tape.slot(b)), tape.keep(mask)
    value = function(mask, a, b)
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    return tape.put(value, places, lambda s, t: function(mask, zero if s is None else s, zero if t is None else t))


@operation(*named("cat", "concat", "concatenate", "stack", "hstack", "vstack"))
def joined(tape: Tape, function, tensors, *rest, **options):
    """Tensors side by side."""
    tensors = list(tensors)
    places, value = tuple(map(tape.slot, tensors)), function(tensors, *rest, **options)
    kind, device, shapes = value.dtype, value.device, [v.shape for v in tensors]
    if any(v.dtype is not kind for v in tensors):
        raise Uncovered

    def tangent(*moved):
        parts = (torch.zeros(n, dtype=kind, device=device) if t is None else t for t, n in zip(moved, shapes, strict=True))
        return function(tuple(parts), *rest, **options)

    return tape.put(value, places, tangent)


# Functions of every entry by itself ------------------------------------------------------------------------------------------


def elementwise(tangent: Callable[..., Tensor], *names: str, of: str = "x") -> None:
    """Register functions by their tangent (t, v, further arguments), with v the argument ("x") or the value ("y")."""

    def rule(tape: Tape, function, x, *rest, inplace=False, **options):
        at = tape.slot(x)
        if at is None:
            return function(x, *rest, **({"inplace": True} if inplace else {}), **options)
        if any(isinstance(v, Tensor) for v in (*rest, *options.values())):
            raise Uncovered
        if not inplace:
            value = function(x, *rest, **options)
            held = tape.keep(x if of == "x" else value)
        elif of == "y":
            value = function(x, *rest, inplace=True, **options)
            held = tape.keep(value)
        else:  # what is overwritten is copied first, as autograd would
            before = x.clone()
            held, value = tape.keep(before), x.copy_(function(before, *rest, **options))
        return tape.put(value, (at,), lambda t: tangent(t, held, *rest, **options))

    operation(*named(*names))(rule)


def _power(t: Tensor, x: Tensor, exponent: float) -> Tensor:
    return t * x.pow(exponent - 1).mul_(exponent) if exponent else torch.zeros_like(t)  # elsewhere 0 · ∞ at zero


def _within(t: Tensor, x: Tensor, min=None, max=None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool) if min is None else x >= min
    return t * (inside if max is None else inside & (x <= max))


elementwise(lambda t, y: aten.threshold_backward(t, y, 0), "relu", "relu_", of="y")
elementwise(lambda t, y: aten.tanh_backward(t, y), "tanh", of="y")
elementwise(lambda t, y: aten.sigmoid_backward(t, y), "sigmoid", of="y")
elementwise(lambda t, y: t * y, "exp", of="y")
elementwise(lambda t, y: t / y.mul(2), "sqrt", of="y")
elementwise(lambda t, y: t * y.pow(3).mul_(-0.5), "rsqrt", of="y")
elementwise(lambda t, y: t * y.square().neg_(), "reciprocal", of="y")
elementwise(lambda t, x, approximate="none": aten.gelu_backward(t, x, approximate=approximate), "gelu")
elementwise(lambda t, x: aten.silu_backward(t, x), "silu")
elementwise(lambda t, x: aten.mish_backward(t, x), "mish")
elementwise(lambda t, x: aten.hardswish_backward(t, x), "hardswish")
elementwise(lambda t, x: aten.hardsigmoid_backward(t, x), "hardsigmoid")
elementwise(lambda t, x: aten.hardtanh_backward(t, x, 0, 6), "relu6")
elementwise(lambda t, x, min_val=-1.0, max_val=1.0: aten.hardtanh_backward(t, x, min_val, max_val), "hardtanh")
elementwise(lambda t, x, negative_slope=0.01: aten.leaky_relu_backward(t, x, negative_slope, False), "leaky_relu")
elementwise(lambda t, x, alpha=1.0: aten.elu_backward(t, alpha, 1.0, 1.0, False, x), "elu")
elementwise(lambda t, x, beta=1, threshold=20: aten.softplus_backward(t, x, beta, threshold), "softplus")
elementwise(lambda t, x: t / x, "log")
elementwise(lambda t, x: t * x.mul(2), "square")
elementwise(lambda t, x: t * x.cos(), "sin")
elementwise(lambda t, x: t * x.sin().neg_(), "cos")
elementwise(lambda t, x: t * x.sgn(), "abs")
elementwise(_power, "pow", "__pow__")
elementwise(_within, "clamp")


@operation(*named("softmax"))
def softmax(tape: Tape, function, x, dim=None, *rest, dtype=None, **options):
    """The Jacobian of the softmax is symmetric."""
    at, value = tape.slot(x), function(x, dim, *rest, dtype=dtype, **options)
    if dim is None or any(isinstance(v, torch.dtype) for v in (dtype, *rest)):
        raise Uncovered
    held = tape.keep(value) if at is not None else None
    return tape.put(value, (at,), lambda t: aten._softmax_backward_data(t, held, dim, held.dtype))


@operation(*named("dropout"))
def dropout(tape: Tape, function, x, p=0.5, training=True, inplace=False):
    """A random mask, which takes the same random numbers as torch's own dropout does."""
    at = tape.slot(x)
    if not training or p == 0 or at is None or inplace or x.device.type != "cpu" or not 0 < p < 1:
        if training and p != 0 and at is not None:
            raise Uncovered
        return function(x, p, training, inplace)
    mask = torch.empty_like(x, requires_grad=False).bernoulli_(1 - p).div_(1 - p)
    held = tape.keep(mask)
    return tape.put(x * mask, (at,), lambda t: t * held)


# Sums and products -----------------------------------------------------------------------------------------------------------

_DIFFERENCES = named("sub", "sub_", "subtract")


def _as(v: Tensor, like: tuple[torch.Size, torch.dtype]) -> Tensor:
    """A tangent in the shape and type of its value."""
    return v.to(like[1]).expand(like[0])


@operation(*named("add", "add_"), *_DIFFERENCES)
def summed(tape: Tape, function, a, b, *, alpha=1):
    """A sum or a difference, in place or not."""
    places, value = (tape.slot(a), tape.slot(b)), function(a, b, alpha=alpha)
    like, factor = (value.shape, value.dtype), -alpha if function in _DIFFERENCES else alpha

    def tangent(s, t):
        if t is None:
            return _as(s, like)
        return _as(t if factor == 1 else t * factor, like) if s is None else _as(torch.add(s, t, alpha=factor), like)

    return tape.put(value, places, tangent)


@operation(*named("__rsub__", "rsub"))
def subtracted(tape: Tape, function, a, b):
    """B − a."""
    places, value = (tape.slot(a), tape.slot(b)), function(a, b)
    like = value.shape, value.dtype
    return tape.put(value, places, lambda s, t: _as(t if s is None else -s if t is None else t - s, like))


@operation(*named("mul", "mul_", "multiply", "__rmul__"))
def multiplied(tape: Tape, function, a, b):
    """A product entry by entry."""
    at, bt = tape.slot(a), tape.slot(b)
    first = None if bt is None else tape.keep(a.clone() if function is Tensor.mul_ else a)
    second = None if at is None else tape.keep(b)
    value = function(a, b)
    like = value.shape, value.dtype

    def tangent(s, t):
        if s is not None and t is not None:
            return _as(torch.addcmul(s * second, first, t) if isinstance(first, Tensor) else s * second + first * t, like)
        return _as(first * t if s is None else s * second, like)

    return tape.put(value, (at, bt), tangent)


@operation(*named("div", "div_", "true_divide", "__truediv__"))
def divided(tape: Tape, function, a, b):
    """A quotient."""
    at, bt = tape.slot(a), tape.slot(b)
    value = function(a, b)
    second, held = tape.keep(b), None if bt is None else tape.keep(value)
    like = value.shape, value.dtype

    def tangent(s, t):
        if t is None:
            return _as(s / second, like)
        return _as((-held * t if s is None else torch.addcmul(s.expand(like[0]), held, t, value=-1)) / second, like)

    return tape.put(value, (at, bt), tangent)


@operation(*named("__rtruediv__", "__rdiv__"))
def inverted(tape: Tape, function, a, b):
    """B / a for a constant b."""
    at, value = tape.slot(a), function(a, b)
    if isinstance(b, Tensor) and b.requires_grad:
        raise Uncovered
    a, held = tape.keep(a), tape.keep(value)
    return tape.put(value, (at,), lambda t: -(t * held) / a)


@operation(*named("matmul", "mm", "bmm"), torch.sparse.mm, torch.spmm)
def matrix_product(tape: Tape, function, a, b):
    """A product of matrices, of which one may be sparse."""
    places, lead = (tape.slot(a), tape.slot(b)), a.shape[:-2]
    if None not in places and a.dim() > 2 and lead == b.shape[:-2]:  # as torch does inside, so that both keep one copy
        a, b = (v.reshape(-1, *v.shape[-2:]) for v in (a, b))
        value, function = torch.bmm(a, b), torch.bmm
        value = value.view(*lead, *value.shape[1:])
    else:
        value, lead = function(a, b), None
    a, b = None if places[1] is None else tape.keep(a), None if places[0] is None else tape.keep(b)

    def tangent(s, t):
        if lead is not None:
            s, t = (None if v is None else v.reshape(-1, *v.shape[-2:]) for v in (s, t))
        out = function(a, t) if s is None else function(s, b)
        if s is not None and t is not None:
            out = out.add_(function(a, t)) if lead is None else out.baddbmm_(a, t)
        return out if lead is None else out.view(*lead, *out.shape[1:])

    return tape.put(value, places, tangent)


@operation(torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm)
def added_product(tape: Tape, function, bias, a, b, *, beta=1, alpha=1):
    """A product of matrices, and a bias."""
    places = tape.slot(bias), tape.slot(a), tape.slot(b)
    value = function(bias, a, b, beta=beta, alpha=alpha)
    a, b = None if places[2] is None else tape.keep(a), None if places[1] is None else tape.keep(b)
    shape = value.shape

    def tangent(u, s, t):
        out = None if u is None else (beta * u).expand(shape)
        for left, right in ((s, b), (a, t)):
            if left is not None and right is not None:
                out = torch.matmul(left, right).mul_(alpha) if out is None else function(out, left, right, alpha=alpha)
        return out

    return tape.put(value, places, tangent)


@operation(torch.einsum)
def contracted(tape: Tape, function, equation, *operands):
    """A sum of products: linear in each operand."""
    if len(operands) == 1 and not isinstance(operands[0], Tensor) or not isinstance(equation, str):
        raise Uncovered
    places, value = tuple(map(tape.slot, operands)), function(equation, *operands)
    held = [tape.keep(v) for v in operands]

    def tangent(*moved):
        each = (function(equation, *held[:i], t, *held[i + 1 :]) for i, t in enumerate(moved) if t is not None)
        return sum(each[1:], each[0]) if (each := list(each)) else None

    return tape.put(value, places, tangent)


@operation(*named("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
def layer(tape: Tape, function, x, weight, bias=None, *rest, **options):
    """Linear layers and convolutions: linear in their input and in their parameters."""
    places = tape.slot(x), tape.slot(weight), None if bias is None else tape.slot(bias)
    value = function(x, weight, bias, *rest, **options)
    x, weight = None if places[1] is None else tape.keep(x), tape.keep(weight)
    extra = 0 if function is F.linear else weight.dim() - 2
    shape = value.shape

    def tangent(s, w, b):
        out = None if s is None else function(s, weight, None, *rest, **options)
        if w is not None:
            moved = function(x, w, None, *rest, **options)
            out = moved if out is None else out.add_(moved)
        if b is not None:
            b = b.view(-1, *[1] * extra)
            out = b.expand(shape) if out is None else out.add_(b)
        return out

    return tape.put(value, places, tangent)


@operation(torch.embedding)
def embedding(tape: Tape, function, weight, index, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """Rows of a table. Reverse mode takes the row at `padding_idx` for a constant, and so does this."""
    if scale_grad_by_freq:
        raise Uncovered
    at, value = tape.slot(weight), function(weight, index, padding_idx, False, sparse)
    index = tape.keep(index)
    trained = None if padding_idx < 0 else (index != padding_idx).unsqueeze(-1)

    def tangent(t):
        rows = function(t, index)
        return rows if trained is None else rows * trained

    return tape.put(value, (at,), tangent)


@operation(torch._weight_norm)
def weight_norm(tape: Tape, function, v, g, dim=0):
    """The weight g v/‖v‖, with ‖v‖ taken over all but one dimension (all of them for −1)."""
    places, value = (tape.slot(v), tape.slot(g)), function(v, g, dim)
    v, g = tape.keep(v), tape.keep(g)

    def tangent(s, t):
        over = [i for i in range(v.dim()) if dim == -1 or i != dim % v.dim()]
        length = v.square().sum(over, keepdim=True).sqrt() if over else v.abs()
        unit = v / length
        along = 0 if t is None else unit * t
        if s is None:
            return along
        s = s / length
        return g * (s - unit * ((unit * s).sum(over, keepdim=True) if over else unit * s)) + along

    return tape.put(value, places, tangent)
