"""What difference quotients and cut slopes cost: the bias of zeroth-order estimates in place of forward gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import norm
from torch import Tensor
from torch.func import hessian, jacrev, jvp

from analysis.theory.fourth_moment import fourth_moment
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.options import Count, Positive
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
    theta, at = _flat_loss(net, x, y, loss)
    of_diagonal = jacrev(lambda t: hessian(at)(t).diagonal())(theta)  # ∂_i ∂_jj ℓ in row j
    moment = fourth_moment(perturbation, len(theta))
    bias = epsilon**2 / 6 * (3 * moment.c * of_diagonal.sum(0) + moment.k * of_diagonal.diagonal())
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), bias.split(sizes), strict=True)}


def quotient_errors(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    loss: str | Callable = "cross_entropy",
    directions: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Return how far the difference quotients of `zo` are from the slopes that they stand for, in float32 and in float64.

    The quotients are those of the estimator itself, along normal directions v. Beside them stand ∇·v and the leading error
    (ε²/6) D³ℓ[v, v, v], by forward-mode differentiation once and three times in float64, at the parameters as float32 has them.

    Args:
        net: a network without state that moves, in float32.
        x, y: the batch.
        epsilons: ε.
        loss: as for `make_estimator`.
        directions: v, drawn once and used for every ε.
        seed: of the directions.

    Returns:
        A row per ε and `precision` ("float32", "float64"): `error`, the root mean square over directions of quotient − slope,
        and `leading`, that of the leading error (exact for a smooth network and small ε), both divided by the root mean square
        of the slopes.

    Raises:
        InvalidInput: an impossible ε, or no directions.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> from analysis.theory.difference import quotient_errors
        >>> net = fully_connected([2, 3, 2], activation="tanh", seed=0)
        >>> rows = quotient_errors(net, torch.ones(1, 2), torch.tensor([0]), [0.01])
        >>> f"{rows['error'].iloc[1] / rows['leading'].iloc[1]:.2f}"
        '1.00'
    """
    from fdfa_core.estimators import make_estimator

    for epsilon in epsilons:
        checked("epsilons", Positive, epsilon)
    checked("directions", Count, directions)
    exact = copy.deepcopy(net).double()
    theta, at = _flat_loss(exact, x.double() if x.is_floating_point() else x, y, loss)
    v = torch.randn(directions, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        return jvp(f, (t,), (torch.ones_like(t),))[1]

    slopes, thirds = [], []
    zero = theta.new_zeros(())
    for direction in v:
        losses = [lambda t, direction=direction: at(theta + t * direction)]  # and its derivatives by t
        for order in range(3):
            losses.append(lambda t, f=losses[order]: derivative(f, t))
        slopes.append(losses[1](zero))
        thirds.append(losses[3](zero))
    slopes, thirds = torch.stack(slopes), torch.stack(thirds)
    scale, rows = float(slopes.square().mean().sqrt()), []
    for precision, module in (("float32", net), ("float64", exact)):
        estimator = make_estimator("zo", module, loss=loss)
        dtype = getattr(torch, precision)
        batch, mine = x.to(dtype) if x.is_floating_point() else x, v.to(dtype)
        for epsilon in epsilons:
            above, below = (estimator.losses(batch, y, mine, sign * epsilon) for sign in (1, -1))
            quotients = ((above - below) / (2 * epsilon)).double()
            rows.append(
                {
                    "epsilon": epsilon,
                    "precision": precision,
                    "error": float((quotients - slopes).square().mean().sqrt()) / scale,
                    "leading": epsilon**2 / 6 * float(thirds.square().mean().sqrt()) / scale,
                }
            )
    return pd.DataFrame(rows)


def _flat_loss(net: BlockNetwork, x: Tensor, y: Tensor, loss: str | Callable) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return all parameters as one vector, and the mean loss of the batch as a function of such a vector."""
    named = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    mean_loss = make_loss(loss)

    def at(theta: Tensor) -> Tensor:
        parts = dict(zip(named, theta.split(sizes), strict=True))
        moved = {name: part.view_as(named[name]) for name, part in parts.items()}
        return mean_loss(functional_call(net, moved, (x,)), y)

    return torch.cat([p.flatten() for p in named.values()]), at


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
