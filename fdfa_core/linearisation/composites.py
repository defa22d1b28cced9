"""Rules of larger operations: normalisation, attention and pooling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core.linearisation.operations import Uncovered, aten, named, operation

if TYPE_CHECKING:
    from fdfa_core.linearisation.tape import Tape

CHUNK_NUMBERS = 2**17  # weights of attention that are worked on at a time: what a core's own cache holds

# Normalisation ---------------------------------------------------------------------------------------------------------------


def _affine(moved: Tensor | None, normalised, gamma: Tensor | None, w: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    """Return γ moved + x̂ w + b, with what broadcasts over the value; `moved` may be written into."""
    out = moved if moved is None or gamma is None else moved.mul_(gamma)
    if w is not None:
        out = normalised() * w if out is None else out.addcmul_(normalised(), w)
    if b is not None:
        out = b.expand(like) if out is None else out.add_(b)
    return out


@operation(F.layer_norm)
def layer_norm(tape: Tape, function, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """The Jacobian of x → x̂ is symmetric, so that torch's backward pass without weights is its tangent map too."""
    places = tape.slot(x), tape.slot(weight), tape.slot(bias)
    value, mean, inverse = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
    x, gamma, mean, inverse = map(tape.keep, (x, weight, mean, inverse))
    shape = value.shape

    def tangent(s, w, b):
        moved = None
        if s is not None:
            given = s.contiguous(), x, normalized_shape, mean, inverse, None, None, (True, False, False)
            moved = aten.native_layer_norm_backward(*given)[0]
        return _affine(moved, lambda: (x - mean) * inverse, gamma, w, b, shape)

    return tape.put(value, places, tangent)


@operation(F.batch_norm)
def batch_norm(tape: Tape, function, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """As layer normalisation; γ is constant where samples mix, so that the whole Jacobian is symmetric."""
    places = tape.slot(x), tape.slot(weight), tape.slot(bias)
    if training:
        F._verify_batch_size(x.size())
    elif mean is None or var is None:
        raise Uncovered
    value, *statistics = torch.native_batch_norm(x, weight, bias, mean, var, training, momentum or 0.0, eps)
    if not training:
        statistics = mean, (var + eps).rsqrt()
    running = (None, None) if training else (tape.keep(mean), tape.keep(var))
    x, gamma, saved_mean, saved_inverse = map(tape.keep, (x, weight, *statistics))
    shape, over = value.shape, (1, -1) + (1,) * (value.dim() - 2)

    def normalised():
        return (x - saved_mean.view(over)) * saved_inverse.view(over)

    def tangent(s, w, b):
        moved = None
        if s is not None:
            given = s, x, gamma, *running, saved_mean, saved_inverse, training, eps, (True, False, False)
            moved = aten.native_batch_norm_backward(*given)[0]
        w, b = (None if v is None else v.view(over) for v in (w, b))
        return _affine(moved, normalised, None, w, b, shape)

    return tape.put(value, places, tangent)


@operation(F.group_norm)
def group_norm(tape: Tape, function, x, num_groups, weight=None, bias=None, eps=1e-5):
    """As layer normalisation, over groups of channels."""
    places = tape.slot(x), tape.slot(weight), tape.slot(bias)
    if x.dim() < 2 or x.shape[1] % num_groups or x.shape[0] * x[0].numel() // num_groups <= x.shape[0]:
        raise Uncovered
    x = x.contiguous()
    sizes = x.shape[0], x.shape[1], math.prod(x.shape[2:]), num_groups
    value, mean, inverse = torch.native_group_norm(x, weight, bias, *sizes, eps)
    x, gamma, mean, inverse = map(tape.keep, (x, weight, mean, inverse))
    shape, over = value.shape, (1, -1) + (1,) * (value.dim() - 2)

    def normalised():
        grouped = x.view(sizes[0], num_groups, -1)
        return ((grouped - mean.unsqueeze(-1)) * inverse.unsqueeze(-1)).view(shape)

    def tangent(s, w, b):
        moved = None
        if s is not None:
            given = s.contiguous(), x, mean, inverse, None, *sizes, (True, False, False)
            moved = aten.native_group_norm_backward(*given)[0]
        w, b = (None if v is None else v.view(over) for v in (w, b))
        return _affine(moved, normalised, None if gamma is None else gamma.view(over), w, b, shape)

    return tape.put(value, places, tangent)


# Pooling ---------------------------------------------------------------------------------------------------------------------


@operation(torch.max_pool2d, *named("max_pool2d"))
def max_pool(tape: Tape, function, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The greatest entry of each window, whose place tangents take."""
    if return_indices:
        raise Uncovered
    at = tape.slot(x)
    value, index = torch._C._nn.max_pool2d_with_indices(x, kernel_size, stride or [], padding, dilation, ceil_mode)
    index = tape.keep(index)
    shape = value.shape
    return tape.put(value, (at,), lambda t: t.flatten(-2).gather(-1, index.flatten(-2)).view(shape))


# Attention -------------------------------------------------------------------------------------------------------------------


@operation(F.scaled_dot_product_attention)
def attention(tape: Tape, function, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """O = P v with P = softmax(S), S = scale · q kᵀ: ȯ = P v̇ + (P ∘ Ṡ) v − rowsum(P ∘ Ṡ) o. P is made anew, part by part.

    With dropout, which torch's fused kernel for processors does not know, the weights are kept, as torch keeps them.
    """
    places, mask = (tape.slot(q), tape.slot(k), tape.slot(v)), attn_mask
    lead, length = q.shape[:-2], (q.shape[-2], k.shape[-2])
    if enable_gqa or q.dim() not in (3, 4) or not lead == k.shape[:-2] == v.shape[:-2]:
        raise Uncovered
    if mask is not None and (is_causal or mask.requires_grad or mask.dim() > q.dim()):
        raise Uncovered
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if is_causal:
        mask = torch.ones(length, dtype=torch.bool, device=q.device).tril()
    empty = _rows_without_keys(mask)
    if dropout_p > 0:
        if q.device.type != "cpu" or empty is not None:
            raise Uncovered
        with tape:
            return _with_dropout(q, k, v, mask, dropout_p, factor)
    value = function(q, k, v, attn_mask, 0.0, is_causal, scale=scale)
    held = [tape.keep(each) for each in (q, k, v, value)]
    mask = tape.keep(mask)
    return tape.put(value, places, lambda *moved: _attention_tangent(held, moved, mask, empty, factor))


def _rows_without_keys(mask: Tensor | None) -> Tensor | None:
    """Queries that may see nothing: torch's result for them is zero."""
    if mask is None:
        return None
    rows = (~mask if mask.dtype is torch.bool else mask == -torch.inf).all(-1, keepdim=True)
    return rows if bool(rows.any()) else None


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, factor: float) -> Tensor:
    """Attention by separate operations, in the order in which torch does them without its fused kernels."""
    weights = F.softmax(_masked((q * factor) @ k.transpose(-2, -1), mask), -1)
    return F.dropout(weights, p) @ v


def _attention_tangent(held: list[Tensor], moved: tuple[Tensor | None, ...], mask, empty, factor: float) -> Tensor:
    if held[0].dim() == 3:  # without heads
        held, moved = [x.unsqueeze(1) for x in held], tuple(None if t is None else t.unsqueeze(1) for t in moved)
        mask, empty = (x.unsqueeze(1) if x is not None and x.dim() == 3 else x for x in (mask, empty))
        return _attention_tangent(held, moved, mask, empty, factor).squeeze(1)
    q, k, v, value = held
    many, heads, rows, columns = *q.shape[:3], k.shape[2]
    mask, empty = (None if x is None else x.expand(many, heads, rows, x.shape[-1]) for x in (mask, empty))
    out, size = torch.empty_like(value), max(1, CHUNK_NUMBERS // (heads * rows * columns))
    for first in range(0, many, size):
        part = slice(first, first + size)
        q, k, v, value = (x[part].reshape(-1, *x.shape[2:]) for x in held)
        s, t, u = (None if x is None else x[part].reshape(-1, *x.shape[2:]) for x in moved)
        shape = (-1, heads, rows, columns)
        scores = torch.bmm(q, k.mT).mul_(factor).view(shape)
        if mask is not None:
            hidden = mask[part]
            scores = scores.masked_fill_(~hidden, -torch.inf) if hidden.dtype is torch.bool else scores.add_(hidden)
        weights = torch.softmax(scores, -1)
        if empty is not None:
            weights.masked_fill_(empty[part], 0)
        weights = weights.view(-1, rows, columns)
        change = None if u is None else torch.bmm(weights, u)
        if s is not None or t is not None:
            slopes = torch.bmm(q, t.mT) if s is None else torch.bmm(s, k.mT)
            if s is not None and t is not None:
                slopes.baddbmm_(q, t.mT)
            slopes.mul_(weights).mul_(factor)
            along = torch.bmm(slopes, v) if change is None else change.baddbmm_(slopes, v)
            change = along.addcmul_(slopes.sum(-1, keepdim=True), value, value=-1)
        out[part] = change.view(-1, heads, *change.shape[1:])
    return out
