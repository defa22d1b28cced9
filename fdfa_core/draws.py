"""R draws of a gradient, held in factored form where that is smaller.

The weight gradient of a linear layer is a sum of M outer products, G_r = Σ_p left_rp ⊗ right_p, whose right factors (layer
inputs) are common to all draws on one batch. Norms and inner products then need only M × M Gram matrices and M × n products,
never the n_out × n_in gradient of each draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        r, m, n = self.left.shape
        return (self.left.transpose(1, 2).reshape(r * n, m) @ self.right).view(r, n, -1)

    def norm2(self) -> Tensor:
        """Return the squared norm of each draw (R,), in float64."""
        if self.right.shape[0] > self.right.shape[1]:  # more summands than columns: the dense form is the smaller one
            return torch.stack([(left.T @ self.right).square().sum(dtype=torch.float64) for left in self.left])
        gram = self.right @ self.right.T
        return ((gram @ self.left) * self.left).sum(dim=(1, 2), dtype=torch.float64)

    def inner(self, other: Tensor) -> Tensor:
        """Return the inner product of each draw with one matrix (n_out, n_in), (R,) in float64."""
        return (self.left * (self.right @ other.T)).sum(dim=(1, 2), dtype=torch.float64)

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
    return gradient.norm2() if isinstance(gradient, Outer) else gradient.flatten(1).square().sum(1, dtype=torch.float64)


def inner(gradient: Gradient, other: Tensor) -> Tensor:
    """Return inner products with one tensor of the parameter's shape, (R,) in float64."""
    if isinstance(gradient, Outer):
        return gradient.inner(other)
    return (gradient.flatten(1) @ other.flatten()).double()


def mean(gradient: Gradient) -> Gradient:
    """Return the mean over draws with a leading dimension of one, factored as the draws are."""
    if isinstance(gradient, Outer):
        return Outer(gradient.left.mean(0, keepdim=True), gradient.right)
    return gradient.mean(0, keepdim=True)


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
