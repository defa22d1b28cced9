r"""The law of FDFA's feedback at frozen weights.

One feedback step averages D = (1/N) Σ_p d_p u_pᵀ over a batch, with d_p = 𝒥_p u_p the output tangent of sample p when the
units u_p of one block, or of all hidden blocks together, are perturbed. The feedback is the moving average
B ← (1 − α) B + α D, started at zero. See docs/theory.md, "The feedback".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from analysis.theory.fourth_moment import PairMoment, step_pairs
from analysis.theory.population import Population, gather
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import averages
from fdfa_core.estimators.options import Joint
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.signatures import checked

FACTOR_MEMORY = 2**29  # bytes that the Jacobians of a whole population may take (only general blocks need them)


@dataclass(frozen=True)
class JacobianMoments:
    """First and second moments over a population of the output's Jacobian at every hidden site.

    Attributes:
        mean: J̄ = E_p[J_p] per hidden block, (O, units).
        second: R_k = E_p[J_·k J_·kᵀ] per hidden block and unit k, (units, O, O).
        total: S = Σ_k R_k per hidden block, (O, O).
    """

    mean: list[Tensor]
    second: list[Tensor]
    total: list[Tensor]

    @classmethod
    def of(cls, population: Population) -> JacobianMoments:
        """Average over a population."""
        mean: list = [0.0] * population.hidden
        second: list = [0.0] * population.hidden
        for chunk in population.chunks(jacobians=True):
            for i, jacobian in enumerate(chunk.jacobians()):
                by_unit = jacobian.permute(2, 1, 0)  # (units, O, n)
                mean[i] = mean[i] + jacobian.sum(0) / len(population)
                second[i] = second[i] + by_unit @ by_unit.transpose(1, 2) / len(population)
        return cls(mean, second, [r.sum(0) for r in second])


def jacobian_factors(population: Population, block: int) -> Tensor:
    """Return F (r, O, units) with Σ_r F_r ⊗ F_r = E_p[J_p ⊗ J_p] for one hidden block, r as small as it can be.

    Raises:
        InvalidInput: the Jacobians of the population are too large to be held at once.
    """
    size = population.outputs * population.units[block]
    if 8 * len(population) * size > FACTOR_MEMORY:
        most = FACTOR_MEMORY // (8 * size)
        raise InvalidInput("x: samples", len(population), f"at most {most} for block {block}, which is not dense")
    rows = torch.cat([chunk.jacobians()[block].flatten(1) for chunk in population.chunks(jacobians=True)])
    _, scale, directions = torch.linalg.svd(rows / len(population) ** 0.5, full_matrices=False)
    kept = scale > 1e-13 * scale[0].clamp(min=1e-300)
    return (scale[kept, None] * directions[kept]).unflatten(1, (population.outputs, -1))


@dataclass(frozen=True)
class FeedbackLaw:
    r"""Mean and covariance of FDFA's feedback after t steps from zero, and in the long run.

    Attributes:
        batch_size, feedback_lr, joint, warmup: N, α, and the estimator's options of these names.
        moments: moments of the Jacobian.
        pairs: the dependent pairs among the directions of a step, per hidden block.
        heard: second moments S of all units perturbed together with the block, per hidden block: {True: E 𝒥_p 𝒥_pᵀ of one
            sample, False: E 𝒥_p E 𝒥_pᵀ of two}, (O, O).
        source: the population.
    """

    batch_size: int
    feedback_lr: float
    joint: bool | str
    warmup: bool
    moments: JacobianMoments
    pairs: list[list[PairMoment]]
    heard: list[dict[bool, Tensor]]
    source: Population = field(repr=False)

    @property
    def jacobian(self) -> list[Tensor]:
        """J̄ = E[D], the long-run mean, per hidden block (O, units)."""
        return self.moments.mean

    @property
    def data(self) -> list[Tensor]:
        """The part of N Cov(D_ok, D_o'k) that the draw of the batch causes: Cov_p(J_ok, J_o'k), (units, O, O) per block."""
        return [r - _outer(j) for r, j in zip(self.moments.second, self.moments.mean, strict=True)]

    @property
    def perturbation(self) -> list[Tensor]:
        """The part of N Cov(D_ok, D_o'k) that perturbations cause, (units, O, O) per block."""
        covariances = []
        for second, mean, heard, pairs in zip(self.moments.second, self.moments.mean, self.heard, self.pairs, strict=True):
            own = {True: second, False: _outer(mean)}
            covariances.append(sum(p.weight * (p.cross * heard[p.same_sample] + p.aligned * own[p.same_sample]) for p in pairs))
        return covariances

    @cached_property
    def step_covariance(self) -> list[Tensor]:
        """Covariance of one step D between output rows, Cov(D_ok, D_o'k), per hidden block (units, O, O)."""
        return [(a + b) / self.batch_size for a, b in zip(self.perturbation, self.data, strict=True)]

    def updates(self, steps, block: int):
        """Return how often a block's feedback was updated in `steps` steps; with `joint="cyclic"` blocks take turns."""
        if steps is None or self.joint != "cyclic":
            return steps
        blocks = len(self.jacobian)
        return (np.asarray(steps) - block + blocks - 1) // blocks

    def memory(self, steps=None):
        r"""Return what is left of B_0 after t updates (a number, an array, or None for t → ∞): (1−α)^t.

        With warm-up (see `fdfa_core.estimators.averages.weight`) the first step forgets B_0.
        """
        if steps is None:
            return 0.0
        return np.where(np.asarray(steps) > 0, 0.0, 1.0) if self.warmup else (1 - self.feedback_lr) ** np.asarray(steps)

    def factor(self, steps=None):
        r"""Return Cov B_t / Cov D = s + (1−α)^{2(t−t₀)} (f₀ − s), s = α/(2−α), `steps` as in `memory`.

        From zero t₀ = f₀ = 0; with warm-up B_t is the plain mean of t steps, 1/t, until t₀ = ⌊1/α⌋.
        """
        alpha = self.feedback_lr
        limit = alpha / (2 - alpha)
        if steps is None:
            return limit
        t = np.asarray(steps)
        start = averages.plain_items(alpha, self.warmup)
        late = limit + (1 - alpha) ** (2 * np.maximum(t - start, 0)) * ((1 / start if start else 0.0) - limit)
        return np.where(t < start, np.where(t > 0, 1 / np.maximum(t, 1), 0.0), late)

    def mean(self, steps: int | None = None) -> list[Tensor]:
        """Return E[B_t] after `steps` steps from zero (None: in the long run), per hidden block (O, units)."""
        return [j * (1 - float(self.memory(self.updates(steps, i)))) for i, j in enumerate(self.jacobian)]

    def covariance(self, steps: int | None = None) -> list[Tensor]:
        """Return Cov(B_ok, B_o'k) after `steps` steps, per hidden block (units, O, O)."""
        return [float(self.factor(self.updates(steps, i))) * c for i, c in enumerate(self.step_covariance)]

    def autocovariance(self, lag: int, steps: int | None = None) -> list[Tensor]:
        """Return Cov(B_t, B_{t+lag}) = (1−α)^lag Cov B_t, `lag` in updates (once any warm-up is over), as `covariance`."""
        return [(1 - self.feedback_lr) ** lag * covariance for covariance in self.covariance(steps)]

    def squared_error(self, steps: int | Sequence[int] | None = None) -> np.ndarray:
        """Return E‖B_t − J̄‖² per hidden block, or (blocks, times) for a sequence of times."""
        errors = []
        for i, (jacobian, covariance) in enumerate(zip(self.jacobian, self.step_covariance, strict=True)):
            updates = self.updates(steps, i)
            noise = self.factor(updates) * float(covariance.diagonal(dim1=1, dim2=2).sum())
            errors.append(self.memory(updates) ** 2 * float(jacobian.square().sum()) + noise)
        return np.array(errors)


def feedback_law(
    net: BlockNetwork,
    x: Tensor,
    batch_size: int,
    *,
    feedback_lr: float = 1e-2,
    site: str = "post",
    joint: bool = True,
    perturbation="gaussian",
    tangents: int = 1,
    directions: str = "independent",
    warmup: bool = False,
) -> FeedbackLaw:
    """Return the law of FDFA's feedback at frozen weights, for batches drawn with replacement from x (M, …).

    Args:
        net: the network; normalisation in evaluation mode.
        batch_size: N.
        feedback_lr: α in (0, 1].
        site: where perturbations enter, "pre" or "post".
        joint: all hidden blocks are perturbed in one tangent pass, so that each block's step hears the others' (cross-talk);
            False: one pass per block; "cyclic": one block per step.
        perturbation: law of u, a name or an object.
        tangents: directions per sample averaged in one step.
        directions: "independent", "antithetic" or "orthogonal" over the samples of a step.
        warmup: α_t = max(α, 1/t) at update t.

    Raises:
        Unsupported, InvalidInput: as `Population`; or a value out of range.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from analysis.theory import feedback_law
        >>> law = feedback_law(net, x, batch_size=8, feedback_lr=0.1)
        >>> law.squared_error().round(4), law.squared_error(steps=1).round(4)
        (array([0.0545]), array([0.9696]))
    """
    population = Population(net, x, None, site=site)
    return law_of(population, batch_size, feedback_lr, joint, perturbation, tangents, directions, warmup)


def law_of(
    population: Population, batch_size: int, feedback_lr, joint, perturbation, tangents, directions, warmup
) -> FeedbackLaw:
    """Return the law of the feedback over a population (see `feedback_law`)."""
    if not 0 < feedback_lr <= 1:
        raise InvalidInput("feedback_lr", feedback_lr, "a number in (0, 1]")
    together = checked("joint", Joint, joint) is True
    moments, units = JacobianMoments.of(population), population.units
    sizes = [sum(units)] * len(units) if together else units
    pairs = [step_pairs(perturbation, n, batch_size, tangents, directions) for n in sizes]
    heard = [{True: s, False: j @ j.T} for s, j in zip(moments.total, moments.mean, strict=True)]
    if together:
        heard = [{same: sum(each[same] for each in heard) for same in (True, False)}] * len(units)
    return FeedbackLaw(batch_size, feedback_lr, joint, warmup, moments, pairs, heard, population)


def lag_bias(
    net: BlockNetwork, x: Tensor, y: Tensor, drift: Sequence[Tensor], feedback_lr: float, *, loss="cross_entropy", site="post"
) -> dict[str, Tensor]:
    r"""Return the bias that FDFA's gradient has because its feedback lags behind moving weights (an approximation).

    If the mean Jacobian moves by a constant V per step, the feedback used at a step is J̄ − V/α on average, once (1−α)^t has
    died out. The gradient is linear in the feedback, so its bias is E_p[A_pᵀ (−V/α)ᵀ e_p]. Exact for a linear drift of J̄ with
    e and A as they are now; an approximation otherwise, good while J̄ moves little within 1/α steps.

    Args:
        drift: V per hidden block, (O, *site shape); see `feedback_drift`.
        feedback_lr: α in (0, 1].

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from analysis.theory import lag_bias
        >>> drift = [torch.full((3, 6), 1e-3)]
        >>> lag_bias(net, x, y, drift, feedback_lr=0.1)["0.affine.bias"].shape
        torch.Size([6])
    """
    population = Population(net, x, y, loss, site)
    lag = [-v.to(population.device).double().flatten(1) / feedback_lr for v in drift]
    (mean,) = population.mean(lambda chunk: [gather(m.mean(chunk.error @ b) for m, b in zip(chunk.maps, lag, strict=False))])
    return mean


def feedback_drift(before: nn.Module, after: nn.Module, x: Tensor, steps: int, *, site: str = "post") -> list[Tensor]:
    """Return the mean drift of E[J] per step between two states of a network `steps` apart, per hidden block (O, *site).

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from analysis.theory import feedback_drift
        >>> later = fully_connected([4, 6, 3], activation="tanh", seed=1)
        >>> [drift.shape for drift in feedback_drift(net, later, x, steps=10)]
        [torch.Size([3, 6])]
    """
    populations = [Population(net, x, None, site=site) for net in (before, after)]
    first, last = (JacobianMoments.of(p).mean for p in populations)
    shapes = populations[0].site_shapes
    return [((b - a) / steps).unflatten(1, shape) for a, b, shape in zip(first, last, shapes, strict=True)]


def _outer(mean: Tensor) -> Tensor:
    """J̄_·k J̄_·kᵀ for every unit k, (units, O, O)."""
    by_unit = mean.T
    return by_unit[:, :, None] * by_unit[:, None, :]
