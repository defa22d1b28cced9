"""Several directions for one gradient: how many, of which law, and how their slopes are put together."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.options import Combination, Count, Perturbation
from fdfa_core.perturbations import Gaussian, Rademacher, Sphere, make_law

CHUNK_NUMBERS = 2**26  # random numbers held at a time where many draws take several directions each


@dataclass
class PerturbedUnits:
    """What the directions of one block meet and move, in k orthonormal coordinates of them.

    Attributes:
        met: slopes of the mean loss along each coordinate, (N, k).
        rows: squared length of the parameters' gradient that a signal of one in a coordinate gives, (N, k).
        own: the same for each sample's own slopes as the signal, (N,).
        whole: the same for those of all samples together.
    """

    met: Tensor
    rows: Tensor
    own: Tensor
    whole: float


class Tangents:
    """K directions v_k with measured slopes s_k = ∇·v_k, put together to an estimate of ∇.

    "mean" is (1/K) Σ s_k v_k: unbiased, E‖·‖² falls as 1/K. "projection" is the orthogonal projection of ∇ on the directions'
    span (Flügel et al. 2024), which is the shortest vector with the measured slopes: never longer than ∇, E = (K/d) ∇ for
    isotropic directions in d dimensions, mean squared cosine K/d, and ∇ itself once the directions span the space.

    Args:
        perturbation: law of the directions, a name or an object.
        tangents: K.
        combine: "mean" or "projection".
    """

    def __init__(self, perturbation: Perturbation, tangents: Count, combine: Combination):
        self.law = make_law(perturbation)
        self.count, self.how = tangents, combine

    def axes(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        """Fold draws and directions into the one leading axis that a linearisation knows; () for one direction."""
        return (math.prod(lead) * self.count,) if lead or self.count > 1 else ()

    def sample(self, lead: tuple[int, ...], shape: tuple[int, ...], generator: torch.Generator, dtype) -> Tensor:
        """Return directions (*lead, K, *shape) whose last axis is one vector of the law, in memory of their own."""
        drawn = self.law.sample((*lead, self.count, *shape), generator=generator, dtype=dtype)
        return drawn if getattr(self.law, "fresh", False) else drawn.clone()

    def sample_parameters(self, lead: tuple[int, ...], shapes: Sequence[Sequence[int]], generator, dtype) -> Tensor:
        """Return directions (*lead, K, P) over parameters of these shapes together; a law may know them one by one."""
        if hasattr(self.law, "sample_parameters"):
            return self.law.sample_parameters((*lead, self.count), shapes, generator, dtype)
        return self.sample(lead, (sum(map(math.prod, shapes)),), generator, dtype)

    def chunk(self, dimension: int) -> int:
        """Return how many draws of K directions in this many dimensions to hold at a time."""
        return max(1, CHUNK_NUMBERS // (self.count * dimension))

    def check(self, dimension: int) -> None:
        """Raise `InvalidInput` if K directions cannot be independent in this many dimensions."""
        if self.how == "projection" and self.count > dimension:
            raise InvalidInput(
                "tangents", self.count, f'at most {dimension}, the dimension perturbed, with combine="projection"'
            )

    def noise(self, dimension: int) -> float | None:
        """Return the variance of a "mean" over ‖∇‖² in d dimensions: (d + κ − 2)/K for independent entries of kurtosis κ.

        On the sphere it is (d − 1)/K. None for "projection", and for laws that are not the project's.
        """
        if self.how != "mean" or type(self.law) not in (Gaussian, Rademacher, Sphere):
            return None
        return (dimension - 1 if type(self.law) is Sphere else dimension + self.law.kurtosis - 2) / self.count

    def activity_noise(self, units: Sequence[PerturbedUnits], stacked: bool) -> float | None:
        """Return the total variance, given the batch, of a "mean" over directions for units that are perturbed together.

        By E (z·u)²(a·u)² = c (‖z‖²‖a‖² + 2 (z·a)²) + k Σ z²a², summed over the parameters (docs/theory.md, sections 1 and 4).

        Args:
            units: per block.
            stacked: the slope is that of the batch, along the directions of all samples together.

        Returns:
            None for laws that are not the project's, and on the sphere if stacked.
        """
        sphere = type(self.law) is Sphere
        if type(self.law) not in (Gaussian, Rademacher, Sphere) or (sphere and stacked):
            return None
        if not stacked:
            return float(self.sample_noise(units).sum()) / self.count
        total, met2 = 0.0, sum(each.met.square().sum() for each in units).double()
        for each in units:
            own = (each.met.square() * each.rows).sum()
            total += float(met2 * each.rows.sum() + (self.law.kurtosis - 3) * own) + each.whole
        return total / self.count

    def sample_noise(self, units: Sequence[PerturbedUnits]) -> Tensor:
        """Return what one direction of each sample adds to the total variance, (N,) in float64: b_p/N² of docs/theory.md (4).

        Args:
            units: as of `activity_noise`, for one of the project's laws.
        """
        dimension = sum(each.met.shape[1] for each in units)
        sphere = type(self.law) is Sphere
        c, k = (dimension / (dimension + 2), 0.0) if sphere else (1.0, self.law.kurtosis - 3)
        met2 = sum(each.met.square().sum(1) for each in units).double()
        parts = [
            c * met2 * each.rows.sum(1) + (2 * c - 1) * each.own + k * (each.met.square() * each.rows).sum(1) for each in units
        ]
        return sum(parts)

    def combine(self, slopes: Tensor, directions: Tensor) -> Tensor:
        """Return estimates (…, d) from slopes (…, K) along directions (…, K, d). The directions may be overwritten."""
        if self.how == "mean":
            scaled = directions.mul_(slopes.unsqueeze(-1))  # a million numbers: fresh memory costs more than the products
            return scaled.squeeze(-2) if self.count == 1 else scaled.mean(-2)
        # Least-norm solution of V g = s. Solving with V rather than with its Gram matrix keeps the digits where K is near d.
        driver = "gelsd" if directions.device.type == "cpu" else "gels"  # CUDA has only the one for full rank
        tolerance = self.count * torch.finfo(directions.dtype).eps
        finite = slopes.isfinite().all(-1, keepdim=True)  # a run that diverges must go on to say so: the solver would not
        slopes = torch.where(finite, slopes, 0).unsqueeze(-1)
        shortest = torch.linalg.lstsq(directions, slopes, rcond=tolerance, driver=driver).solution.squeeze(-1)
        return torch.where(finite, shortest, torch.nan)


def best_counts(noise: Tensor, needed: Tensor, total: int) -> Tensor:
    r"""Return the whole numbers K_p of directions with the least Σ b_p/K_p, where Σ K_p is given.

    Every sample with a gradient gets one, for without it the mean would lack that gradient. Each further direction goes where
    it saves most, b_p/(K(K + 1)). As a sample's next one always saves less, no other whole numbers do better (Fox 1966).

    Args:
        noise: b_p ≥ 0, (N,), what one direction of a sample adds to the variance.
        needed: whether a sample has a gradient, (N,). Its b_p may be zero: a sign is all that a single unit has to be told.
        total: Σ K_p, at least the number of samples with a gradient.

    Returns:
        K_p (N,), integers on the CPU. Equal shares where no sample has noise, or where a number is not finite.

    Raises:
        InvalidInput: fewer directions than samples that need one.

    Examples:
        >>> import torch
        >>> from fdfa_core.estimators.tangents import best_counts
        >>> noise = torch.tensor([9.0, 1.0, 0.0])
        >>> best_counts(noise, noise > 0, total=8)
        tensor([6, 2, 0])
    """
    values = noise.clamp(min=0).tolist()
    if not all(map(math.isfinite, values)) or not any(values):
        each, left = divmod(total, len(values))
        return torch.tensor([each + (p < left) for p in range(len(values))])
    counts = [int(need) for need in needed.tolist()]
    if sum(counts) > total:
        raise InvalidInput("total", total, f"at least {sum(counts)}, one direction for each sample with a gradient")
    gains = [(-b / 2, p) for p, b in enumerate(values) if counts[p]]
    heapq.heapify(gains)
    for _ in range(total - sum(counts)):
        p = gains[0][1]
        counts[p] += 1
        heapq.heapreplace(gains, (-values[p] / (counts[p] * (counts[p] + 1)), p))
    return torch.tensor(counts)
