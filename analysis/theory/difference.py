"""What difference quotients and cut slopes cost: the bias of zeroth-order estimates in place of forward gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor
from torch.func import hessian, jacrev

from analysis.theory.fourth_moment import fourth_moment
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.options import Positive
from fdfa_core.linearisation.functional import functional_call
from fdfa_core.losses import make_loss
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.signatures import checked

MOST = 1_000  # parameters: third derivatives are written out


def difference_bias(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    loss: str | Callable = "cross_entropy",
    perturbation: str = "gaussian",
) -> dict[str, Tensor]:
    r"""Return the bias of `zo` on one batch to order ε², per component.

    The difference quotient along v is ∇·v + (ε²/6) D³ℓ[v, v, v] + O(ε⁴). With E v_a v_b v_i v_j = c (three pairings) + k δ_abij
    (`FourthMoment`), its product with v_i has the mean ∇_i + (ε²/6)(3c ∂_i Δℓ + k ∂_iii ℓ).

    Args:
        net: a smooth network without state that moves; at most `MOST` parameters.
        x, y: the batch.
        epsilon: ε.
        loss: as for `make_estimator`.
        perturbation: law of v.

    Raises:
        InvalidInput: too many parameters, or an impossible ε.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> from analysis.theory.difference import difference_bias
        >>> net = fully_connected([2, 2, 2], activation="tanh", seed=0).double()
        >>> bias = difference_bias(net, torch.ones(1, 2).double(), torch.tensor([0]), epsilon=0.1)
        >>> f"{torch.cat([b.flatten() for b in bias.values()]).norm():.5f}"
        '0.01143'
    """
    checked("epsilon", Positive, epsilon)
    named = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    if sum(sizes) > MOST:
        raise InvalidInput("net: parameters", sum(sizes), f"at most {MOST}, whose third derivatives are written out")
    mean_loss = make_loss(loss)

    def at(theta: Tensor) -> Tensor:
        parts = dict(zip(named, theta.split(sizes), strict=True))
        moved = {name: part.view_as(named[name]) for name, part in parts.items()}
        return mean_loss(functional_call(net, moved, (x,)), y)

    theta = torch.cat([p.flatten() for p in named.values()])
    of_diagonal = jacrev(lambda t: hessian(at)(t).diagonal())(theta)  # ∂_i ∂_jj ℓ in row j
    moment = fourth_moment(perturbation, len(theta))
    bias = epsilon**2 / 6 * (3 * moment.c * of_diagonal.sum(0) + moment.k * of_diagonal.diagonal())
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), bias.split(sizes), strict=True)}


class Clipped(NamedTuple):
    """Moments of a forward gradient whose slope is cut, given the batch.

    Attributes:
        keep: E g = keep · ∇.
        variance: total variance of g.
    """

    keep: float
    variance: float


def clipped_slope(gradient_norm: float, parameters: int, clip: float) -> Clipped:
    r"""Return the moments of g = f(s) v for normal v, with s = ∇·v and f cutting at ±c. Exact, for ε → 0.

    s = ‖∇‖ z with z normal, and the part of v across ∇ is independent of z. By Stein's lemma E f(s) v = ∇ P(|s| < c), and
    E‖g‖² = (P − 1) E f² + E f² z².

    Args:
        gradient_norm: ‖∇‖ of the batch.
        parameters: P.
        clip: c > 0.

    Examples:
        >>> from analysis.theory.difference import clipped_slope
        >>> keep, variance = clipped_slope(1.0, parameters=100, clip=1.0)
        >>> f"{keep:.4f}, {variance:.3f}"
        '0.6827, 51.537'
    """
    if not (gradient_norm > 0 and clip > 0 and parameters >= 1):
        accepted = "a positive norm, a positive clip and at least one parameter"
        raise InvalidInput("gradient_norm, clip, parameters", (gradient_norm, clip, parameters), accepted)
    a = clip / gradient_norm
    inside, density = math.erf(a / math.sqrt(2)), float(norm.pdf(a))
    square = inside - 2 * a * density + a**2 * (1 - inside)  # E f² / ‖∇‖²
    along = 3 * inside - 2 * density * (a**3 + 3 * a) + a**2 * (1 - inside + 2 * a * density)  # E f² z² / ‖∇‖²
    return Clipped(inside, gradient_norm**2 * ((parameters - 1) * square + along - inside**2))
