r"""How the randomness of FDFA's feedback reaches a gradient component: the quadratic form V(X) = Var⟨B, X⟩.

A gradient component is ⟨B, mean_p X_p⟩ with X_p = e_p ⊗ A_p (O × units), A_p the component's column of the block's Jacobian.
With B independent of the batch its variance is V(μ) + E_p V(X_p − μ)/N + Var_p⟨B̄, X_p⟩/N, where μ = E X.

One feedback step is the quadratic form D = mean_p 𝒥_p u_p u_pᵀ in the perturbations, so that with f = Cov B/(N Cov D)

    V(X) = f { [c Σ_k x_kᵀ S x_k + k Σ_k x_kᵀ R_k x_k + c E tr (J Xᵀ)² + (c − 1) E⟨J, X⟩²]/K + E⟨J, X⟩² − ⟨J̄, X⟩² },

x_k the columns of X, S = E 𝒥𝒥ᵀ over all units perturbed together and R_k = E J_·k J_·kᵀ. Where a component touches one unit k
alone (a dense block) this is x_kᵀ Γ_k x_k with Γ_k the feedback's covariance between output rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from analysis.theory.feedback import FeedbackLaw, jacobian_factors
from analysis.theory.local_maps import LocalMap, Sums, UnitMap
from analysis.theory.population import Chunk, Population

MEMORY = 2**28  # bytes of couplings between output errors and parameters held at a time


class FeedbackForm(ABC):
    """V for all parameters of one hidden block.

    Args:
        law: the feedback's law.
        block: index of the hidden block.
        steps: updates of the feedback so far, None for the long run.
    """

    def __init__(self, law: FeedbackLaw, block: int, steps: int | None):
        self.law, self.block = law, block
        self.scale = float(law.factor(steps)) / law.batch_size

    @abstractmethod
    def of_samples(self, chunk: Chunk) -> Sums:
        """Return Σ_p V(X_p) over a chunk."""

    @abstractmethod
    def of_mean(self, population: Population) -> Sums:
        """Return V(E_p X_p) over a population."""

    def _groups(self, population: Population, total: int, size: int) -> list[slice]:
        """Cut `total` directions into groups whose couplings with all outputs, `size` numbers each, fit in memory."""
        step = max(1, MEMORY // (8 * population.outputs * max(size, 1)))
        return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class UnitForm(FeedbackForm):
    """V where every parameter touches one unit: x_kᵀ Γ_k x_k."""

    def __init__(self, law, block, steps):
        super().__init__(law, block, steps)
        self.covariance = law.covariance(steps)[block]  # (units, O, O)

    def of_samples(self, chunk):
        """Return `energy` with the variances e_pᵀ Γ_k e_p of each unit's teaching signal."""
        outer = (chunk.error[:, :, None] * chunk.error[:, None, :]).flatten(1)
        return chunk.maps[self.block].energy(outer @ self.covariance.flatten(1).T)

    def of_mean(self, population):
        """Return μ_kᵀ Γ_k μ_k, some units at a time."""
        local: UnitMap = population.probe().maps[self.block]
        width = sum(1 if feature is None else feature.shape[1] for _, feature in local.factors.values())
        found: dict[str, list[Tensor]] = {name: [] for name in local.factors}
        for units in self._groups(population, len(self.covariance), width):
            mu = accumulate(
                chunk.maps[self.block].coupling(chunk.error / len(population), units) for chunk in population.chunks()
            )
            for name, value in mu.items():
                columns = value.flatten(2) if value.dim() > 2 else value[:, :, None]
                columns = columns.transpose(0, 1)  # (units, O, parameters of the unit)
                form = (columns * (self.covariance[units] @ columns)).sum(1)
                found[name].append(form.view(form.shape[:1] + value.shape[2:]))
        return {name: torch.cat(parts) for name, parts in found.items()}


class GeneralForm(FeedbackForm):
    """V for parameters that touch many units (convolution, attention, …), through the block's own Jacobian."""

    def __init__(self, law, block, steps):
        super().__init__(law, block, steps)
        fourth = law.laws[block]
        self.factors = jacobian_factors(law.source, block)  # (r, O, units)
        self.mean = law.jacobian[block]
        white = fourth.c * law.cross_talk[block] + fourth.k * law.moments.second[block]
        self.white = white * (self.scale / law.tangents)  # (units, O, O)
        self.trace = self.scale * fourth.c / law.tangents  # of E tr (J Xᵀ)²
        self.inner = self.scale * ((fourth.c - 1) / law.tangents + 1)  # of E⟨J, X⟩²

    def of_samples(self, chunk):
        """X_p has rank one, so tr (J X_pᵀ)² = ⟨J, X_p⟩² = (A_pᵀ Jᵀ e_p)²."""
        local, error = chunk.maps[self.block], chunk.error
        outer = (error[:, :, None] * error[:, None, :]).flatten(1)
        terms = [(1.0, local.energy(outer @ self.white.flatten(1).T)), (-self.scale, local.square(error @ self.mean))]
        terms += [(self.trace + self.inner, local.square(error @ factor)) for factor in self.factors]
        return accumulate({name: weight * value for name, value in term.items()} for weight, term in terms)

    def of_mean(self, population):
        """Couple the errors with every unit (for the white part) and with the factors of the Jacobian's second moment."""
        units, (r, outputs, _) = self.mean.shape[1], self.factors.shape
        size = population.probe().maps[self.block].size
        unit_basis = torch.eye(units, dtype=self.mean.dtype, device=self.mean.device)
        terms: list[Sums] = []
        for group in self._groups(population, units, size):
            white = self.white[group]
            columns = self._couple(population, unit_basis[group])
            terms.append({n: torch.einsum("ko...,kov,kv...->...", x, white, x) for n, x in columns.items()})
        for group in self._groups(population, r, outputs * size):
            for name, x in self._couple(population, self.factors[group].flatten(0, 1)).items():
                x = x.unflatten(0, (-1, outputs))  # (r, O of the factor, O of the error, *shape)
                inner = torch.einsum("roo...->r...", x)
                terms.append({name: self.trace * torch.einsum("roq...,rqo...->...", x, x)})
                terms.append({name: self.inner * inner.square().sum(0)})
        for name, x in self._couple(population, self.mean).items():
            terms.append({name: -self.scale * torch.einsum("oo...->...", x).square()})
        return accumulate(terms)

    def _couple(self, population: Population, directions: Tensor) -> Sums:
        return accumulate(
            chunk.maps[self.block].coupling(chunk.error / len(population), directions) for chunk in population.chunks()
        )


def feedback_forms(law: FeedbackLaw, population: Population, steps: int | None) -> list[FeedbackForm]:
    """Return the form of every hidden block, the dense one where it has one."""
    maps: list[LocalMap] = population.probe().maps[:-1]
    return [(UnitForm if isinstance(m, UnitMap) else GeneralForm)(law, i, steps) for i, m in enumerate(maps)]


def accumulate(terms) -> Sums:
    """Sum {parameter: value} by parameter."""
    totals: Sums = {}
    for term in terms:
        for name, value in term.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals
