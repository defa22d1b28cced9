"""What one could gain at most: from the law of the directions, and from giving some samples more directions than others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.theory.predictions import predict
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.tangents import best_counts
from fdfa_core.networks.blocks import BlockNetwork


class DiscreteLaw(NamedTuple):
    """A law of finitely many directions.

    Attributes:
        directions: (D, P).
        probabilities: (D,).
    """

    directions: Tensor
    probabilities: Tensor


def aligned_law(gradient: Tensor, share: float) -> DiscreteLaw:
    r"""Return a law of directions that knows the gradient: as unbiased as any, with a variance as small as one likes.

    With probability p, v is ±∇/(‖∇‖√p). Otherwise it is one of the P − 1 directions across ∇, as long as E vvᵀ = I asks. There
    the slope ∇·v is zero, and so is the estimate (∇·v)v. Hence E‖g‖² = ‖∇‖²/p and the variance is (1/p − 1)‖∇‖². It has no
    least value above zero: without a bound on what a law may know, "the best law" says nothing. Of laws with ‖v‖² = P, which
    need know nothing, all have the variance (P − 1)‖∇‖² of the sphere.

    Args:
        gradient: ∇ (P,), P > 1, not zero.
        share: p in (0, 1).

    Raises:
        InvalidInput: a gradient or a share that is none.

    Examples:
        >>> import torch
        >>> from analysis.theory.optimal import aligned_law
        >>> gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> v, p = aligned_law(gradient, share=0.8)
        >>> estimates = (v @ gradient)[:, None] * v
        >>> [round(float(mean), 9) for mean in p @ estimates], f"{float(p @ estimates.square().sum(1)) - 25:.2f}"
        ([3.0, 4.0], '6.25')
    """
    if gradient.dim() != 1 or len(gradient) < 2 or not (gradient.isfinite().all() and gradient.any()):
        accepted = "a vector of at least two components, all finite, not all zero"
        raise InvalidInput("gradient", gradient.tolist(), accepted)
    if not 0 < share < 1:
        raise InvalidInput("share", share, "a probability between 0 and 1")
    basis = torch.linalg.qr(torch.cat([gradient[:, None], torch.eye(len(gradient), dtype=gradient.dtype)], dim=1))[0].T
    rest = (1 - share) / (len(gradient) - 1)
    probabilities = torch.cat([gradient.new_tensor([share]), gradient.new_full((len(gradient) - 1,), rest)])
    one_way = basis / probabilities.sqrt()[:, None]
    return DiscreteLaw(torch.cat([one_way, -one_way]), torch.cat([probabilities, probabilities]) / 2)


class Allocation(NamedTuple):
    """How directions are best shared among the samples of a batch.

    Attributes:
        shares: of all directions, by sample (N,); they add up to one.
        ratio: perturbation variance ÷ that of as many directions for every sample. At least 1/N.
    """

    shares: Tensor
    ratio: float

    def counts(self, total: int) -> Tensor:
        """Return the best whole numbers of directions (N,) that add up to a total: those of `fg-a` with `allocation="optimal"`.

        Raises:
            InvalidInput: fewer directions than samples that need one.
        """
        return best_counts(self.shares.square(), self.shares > 0, total)


def allocation(net: BlockNetwork, x: Tensor, y: Tensor, loss: str | Callable = "cross_entropy", **options) -> Allocation:
    r"""Return the allocation of FG-A's directions to the samples of a batch that has the least perturbation variance.

    By (4) of docs/theory.md, sample p adds b_p/(N²K_p) with K_p directions. For a given ∑K_p, Cauchy–Schwarz gives K_p ∝ √b_p,
    and (mean √b)²/mean b of the variance with equal K_p. An oracle: b_p takes a backward pass, and K_p need not be whole.

    Args:
        net: the network; normalisation in evaluation mode.
        x, y: the batch (N, …), (N, …).
        loss: as for `make_estimator`.
        **options: of `fg-a`.

    Raises:
        InvalidInput: no sample has a perturbation variance.

    Examples:
        At the start, nothing is to be gained. After 200 steps, a few samples hold most of the error, and of the noise.

        >>> import torch
        >>> from fdfa_core import fully_connected, make_estimator
        >>> from fdfa_core.data import load
        >>> from analysis.theory.optimal import allocation
        >>> digits = load("digits")
        >>> x, y = digits.train_images.flatten(1).float() / 16, digits.train_labels
        >>> net = fully_connected([64, 64, 64, 10], seed=0)
        >>> f"{allocation(net, x[:64], y[:64]).ratio:.2f}"
        '0.99'
        >>> bp, adam = make_estimator("bp", net), torch.optim.Adam(net.parameters(), 3e-3)
        >>> for step in range(200):
        ...     batch = torch.arange(64 * step, 64 * step + 64) % len(x)
        ...     loss = bp.backward(x[batch], y[batch])
        ...     adam.step()
        >>> f"{allocation(net, x[:64], y[:64]).ratio:.1f}"
        '0.2'
    """
    noise = [predict("fg-a", net, x[p : p + 1], y[p : p + 1], 1, loss, **options).total("perturbation") for p in range(len(x))]
    roots = torch.tensor(noise, dtype=torch.float64).sqrt()
    if not roots.any():
        raise InvalidInput("x, y", "samples without a gradient", "at least one sample with a gradient")
    return Allocation(roots / roots.sum(), float(roots.mean().square() / roots.square().mean()))
