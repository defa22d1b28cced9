"""R draws of a gradient, held in factored form where that is smaller.

The weight gradient of a linear layer is a sum of M outer products, G_r = Σ_p left_rp ⊗ right_p, whose right factors (layer
inputs) are common to all draws on one batch. Norms and inner products then need only M × M Gram matrices and M × n products,
never the n_out × n_in gradient of each draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_NUMBERS = 2**22  # of what is worked on at a time


@dataclass
class Outer:
    """R matrices Σ_p left[r, p] ⊗ right[p].

    Attributes:
        left: (R, M, n_out).
        right: (M, n_in), common to all draws.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense draws: (R, n_out, n_in)."""
        return (self.left.shape[0], self.left.shape[2], self.right.shape[1])

    def dense(self) -> Tensor:
        """Return the draws (R, n_out, n_in)."""
        return torch.bmm(self.left.mT, self.right.expand(len(self.left), -1, -1))

    def norm2(self) -> Tensor:
        """Return the squared norm of each draw (R,), in float64: Σ_pq (left_p · left_q) (right_p · right_q)."""
        _, m, n_out = self.left.shape
        n_in = self.right.shape[1]
        norms = []
        if m > n_in:  # more summands than columns: the dense form is the smaller one
            for left in self.left.split(max(1, CHUNK_NUMBERS // (n_out * max(m, n_in)))):
                norms.append((left.mT @ self.right).square().sum((1, 2), dtype=torch.float64))
        else:
            right = self.right.double()  # some processors' float32 products err in the sixth digit over 5,000 columns
            gram = (right @ right.T).to(self.left.dtype)
            for left in self.left.split(max(1, CHUNK_NUMBERS // (m * max(m, n_out)))):
                norms.append(((left @ left.mT) * gram).sum((1, 2), dtype=torch.float64))
        return torch.cat(norms)

    def inner(self, others: Sequence[Tensor]) -> Tensor:
        """Return the inner products of each draw with some matrices (n_out, n_in), (R, matrices) in float64."""
        moved = torch.stack([self.right @ other.T for other in others], 1)  # (M, matrices, n_out)
        return (moved @ self.left.permute(1, 2, 0)).sum(0, dtype=torch.float64).T

    def __add__(self, other: Gradient) -> Gradient:
        """Return the draws' sums (a shared weight meets two inputs); dense if one of them is."""
        if isinstance(other, Tensor):
            return self.dense() + other
        return Outer(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 0))

    __radd__ = __add__


Gradient = Tensor | Outer


def dense(gradient: Gradient) -> Tensor:
    """Return draws as a tensor (R, *shape)."""
    return gradient.dense() if isinstance(gradient, Outer) else gradient


def norm2(gradient: Gradient) -> Tensor:
    """Return squared norms (R,) in float64."""
    if isinstance(gradient, Outer):
        return gradient.norm2()
    rows = _rows(gradient)
    return rows.square().sum(-1).sum(-1, dtype=torch.float64)  # rows as they are, their sums in float64: half the time


def distance2(gradient: Gradient, other: Tensor) -> Tensor:
    """Return squared distances to one tensor of the parameter's shape, (R,) in float64, from the differences themselves."""
    at_once = max(1, CHUNK_NUMBERS // other.numel())
    left = gradient.left if isinstance(gradient, Outer) else gradient
    parts = (Outer(part, gradient.right).dense() if isinstance(gradient, Outer) else part for part in left.split(at_once))
    return torch.cat([norm2(part - other) for part in parts])


def inner(gradient: Gradient, *others: Tensor) -> Tensor:
    """Return inner products with tensors of the parameter's shape, (R, tensors) in float64."""
    if isinstance(gradient, Outer):
        return gradient.inner(others)
    # Row by row, and the rows' sums in float64: one product over a million components would err in the fourth digit.
    rows, fixed = _rows(gradient), torch.stack([_rows(other.unsqueeze(0))[0] for other in others], -1)  # (row, n, tensors)
    return (rows.transpose(0, 1) @ fixed).sum(0, dtype=torch.float64)


def _rows(gradient: Tensor) -> Tensor:
    """Return draws (R, *shape) as (R, rows, n), a row for each output of the layer; vectors are one row."""
    return gradient.reshape(len(gradient), gradient.shape[1] if gradient.dim() > 2 else 1, -1)


def numbers(gradient: Gradient) -> int:
    """Return how many numbers the draws hold beyond those that all of them share."""
    held = gradient.left if isinstance(gradient, Outer) else gradient
    return 0 if constant(gradient) else held.numel()


def mean(gradient: Gradient) -> Gradient:
    """Return the mean over draws with a leading dimension of one, factored as the draws are."""
    if constant(gradient):
        return first(gradient)
    if isinstance(gradient, Outer):
        return Outer(gradient.left.mean(0, keepdim=True), gradient.right)
    return gradient.mean(0, keepdim=True)


def first(gradient: Gradient) -> Gradient:
    """Return the first draw, with a leading dimension of one."""
    return pick(gradient, 0)


def pick(gradient: Gradient, draw: int) -> Gradient:
    """Return one draw, with a leading dimension of one."""
    some = slice(draw, draw + 1)
    return Outer(gradient.left[some], gradient.right) if isinstance(gradient, Outer) else gradient[some]


def minus(gradient: Gradient, other: Gradient) -> Gradient:
    """Return draws minus one draw on the same batch; factored draws stay so."""
    if isinstance(gradient, Outer) and isinstance(other, Outer):
        return Outer(gradient.left - other.left, gradient.right)
    return dense(gradient) - dense(other)


def blend(gradient: Gradient, other: Gradient, weight: float) -> Gradient:
    """Return gradient + weight (other − gradient), both on the same batch: one step of a running mean."""
    if isinstance(gradient, Outer):
        return Outer(torch.lerp(gradient.left, other.left, weight), gradient.right)
    return torch.lerp(gradient, other, weight)


def constant(gradient: Gradient) -> bool:
    """Whether all draws are one and the same by construction (a stride of zero over draws)."""
    held = gradient.left if isinstance(gradient, Outer) else gradient
    return held.shape[0] > 1 and held.stride(0) == 0
