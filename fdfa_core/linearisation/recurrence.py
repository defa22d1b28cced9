"""Gated recurrent units: values that keep their gates, and tangents and gradients that take them from there.

Torch's own GRU keeps its gates in a graph that nobody else can read. Here one loop over time makes the values, and writes the
gates of all times into one tensor each. A tangent then needs no product of the values again, and the gradient of the recurrent
weights is one product over all times in place of one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core.linearisation.operations import Uncovered, operation

if TYPE_CHECKING:
    from fdfa_core.linearisation.tape import Tape


CHUNK_NUMBERS = 2**17  # slopes that are worked on at a time: what a core's own cache holds


class _Recurrence(torch.autograd.Function):
    """h_t = n + z ∘ (h_{t−1} − n) with r, z = σ(a_r + c_r), σ(a_z + c_z), n = tanh(a_n + r ∘ c_n), c = U h_{t−1} + b.

    Inputs are a (T, N, 3 H), h_0 (N, H), U (3 H, H) and b (3 H,) or None. The results are h and, for use in tangents without a
    gradient of their own, r beside z (T, N, 2 H), c_n and n (T, N, H).
    """

    @staticmethod
    def forward(ctx, of_input: Tensor, start: Tensor, weight: Tensor, bias: Tensor | None):
        times, samples, size = len(of_input), len(start), start.shape[-1]
        states, candidates, news = (of_input.new_empty(times, samples, size) for _ in range(3))
        gates = of_input.new_empty(times, samples, 2 * size)
        into, h = weight.t(), start
        for a, gate, candidate, new, state in zip(of_input, gates, candidates, news, states, strict=True):
            c = h @ into if bias is None else torch.addmm(bias, h, into)
            torch.add(a[:, : 2 * size], c[:, : 2 * size], out=gate).sigmoid_()
            candidate.copy_(c[:, 2 * size :])
            torch.addcmul(a[:, 2 * size :], gate[:, :size], candidate, out=new).tanh_()
            h = torch.lerp(new, h, gate[:, size:], out=state)
        ctx.save_for_backward(start, states, weight, gates, candidates, news)
        ctx.biased = bias is not None
        ctx.mark_non_differentiable(gates, candidates, news)
        return states, gates, candidates, news

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, signal: Tensor, *_):
        start, states, weight, *kept = ctx.saved_tensors
        before = torch.cat([start.unsqueeze(0), states[:-1]])
        slopes, to_new = _slopes(before, *kept)
        size, carried, totals = start.shape[-1], torch.zeros_like(start), torch.empty_like(signal)
        steps = zip(*(reversed(v.unbind()) for v in (signal, totals, kept[0], slopes)), strict=True)
        for g, total, gate, slope in steps:
            torch.add(g, carried, out=total)
            slope.unflatten(-1, (3, size)).mul_(total.unsqueeze(1))  # from here on the gradient of c
            carried = torch.addmm(total * gate[:, size:], slope, weight)
        flat = slopes.flatten(0, 1)
        parameters = flat.t() @ before.flatten(0, 1), flat.sum(0) if ctx.biased else None
        torch.mul(totals, to_new, out=slopes[..., 2 * size :])  # the gradient of a is that of c, but for its last part
        return slopes, carried, *parameters


def _slopes(before: Tensor, gates: Tensor, candidates: Tensor, news: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes of h_t with respect to c (T, N, 3 H) and to a_n (T, N, H), those to a_r and a_z being the same."""
    size = news.shape[-1]
    r, z = gates.split(size, -1)
    to_new = torch.addcmul(news.new_ones(()), news, news, value=-1).mul_(1 - z)
    slopes = torch.empty(*news.shape[:2], 3 * size, dtype=news.dtype, device=news.device)
    of_r, of_z, of_new = slopes.split(size, -1)
    torch.mul(to_new, r, out=of_new)
    torch.mul(of_new, candidates, out=of_r).mul_(1 - r)
    torch.sub(before, news, out=of_z).mul_(z).mul_(1 - z)
    return slopes, to_new


@operation(torch.gru)
def gru(tape: Tape, function, x, start, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """One layer in one direction. Only the tangents of h need a loop over time, with one product in each step."""
    if not isinstance(weights, list) or num_layers > 1 or bidirectional or x.dim() != 3:
        raise Uncovered
    if not x.numel() or start.shape != (1, x.shape[0 if batch_first else 1], weights[1].shape[1]):
        raise Uncovered  # torch refuses some of these by name, and spreads others
    places = tape.slot(x), tape.slot(start), *map(tape.slot, weights)
    inputs = x.transpose(0, 1) if batch_first else x
    of_input = F.linear(inputs, *weights[0::2])
    states, *kept = _Recurrence.apply(of_input, start[0], *(weights[1::2] if has_biases else (weights[1], None)))
    x, start, after, *held = map(tape.keep, (inputs, start, states, *weights))

    def tangent(t, moved_start, *moved):
        t = t.transpose(0, 1) if batch_first and t is not None else t
        h, out = torch.zeros_like(start[0]) if moved_start is None else moved_start[0], torch.empty_like(after)
        size, into = max(1, CHUNK_NUMBERS // after[0].numel() // 3), held[1].mT
        for first in range(0, len(after), size):
            part = slice(first, first + size)
            before = after[max(0, first - 1) : min(first + size, len(after)) - 1]
            before = torch.cat([start, before]) if first == 0 else before
            gates, *others = (v[part] for v in kept)
            slopes, to_new = _slopes(before, gates, *others)
            given = _given(x[part], before, None if t is None else t[part], held, moved, slopes, to_new)
            given = [None] * len(slopes) if given is None else given
            for z, slope, more, state in zip(gates[..., h.shape[-1] :], slopes, given, out[part], strict=True):
                change = (h @ into).mul_(slope).unflatten(-1, (3, -1)).sum(-2)
                h = torch.addcmul(change, z, h, out=state)
                if more is not None:
                    h.add_(more)
        return (out.transpose(0, 1) if batch_first else out), h.unsqueeze(0)

    value = (states.transpose(0, 1) if batch_first else states), states[-1:].clone()  # the two share no memory in torch
    return tape.put(value, places, tangent)


def _given(
    inputs: Tensor, before: Tensor, t: Tensor | None, held: list[Tensor], moved: Sequence[Tensor | None], slopes, to_new
) -> Tensor | None:
    """Return what the tangents of inputs and parameters give to that of h at each time (T, N, H)."""
    given, size = None, before.shape[-1]
    if (of_input := _gates_tangent(inputs, t, held[0::2], moved[0::2])) is not None:
        rz, new = of_input.split([2 * size, size], -1)
        given = (rz * slopes[..., : 2 * size]).unflatten(-1, (2, size)).sum(-2).addcmul_(new, to_new)
    if (of_state := _gates_tangent(before, None, held[1::2], moved[1::2])) is not None:
        part = (of_state * slopes).unflatten(-1, (3, size)).sum(-2)
        given = part if given is None else given.add_(part)
    return given


def _gates_tangent(v: Tensor, t: Tensor | None, parameters, moved) -> Tensor | None:
    """Return the tangent of W v + b."""
    parts = [] if t is None else [F.linear(t, parameters[0])]
    parts += [F.linear(v, moved[0])] if moved[0] is not None else []
    parts += [moved[1]] if len(moved) > 1 and moved[1] is not None else []
    if not parts:
        return None
    return sum(parts[1:], parts[0]).expand(*v.shape[:-1], len(parameters[0]))
