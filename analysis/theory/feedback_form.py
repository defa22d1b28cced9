r"""How the randomness of FDFA's feedback reaches a gradient component: the quadratic form V(X) = Var⟨B, X⟩.

A gradient component is ⟨B, mean_p X_p⟩ with X_p = e_p ⊗ A_p (O × units), A_p the component's column of the block's Jacobian.
With B independent of the batch its variance is V(μ) + E_p V(X_p − μ)/N + Var_p⟨B̄, X_p⟩/N, where μ = E X.

One feedback step is a mean of quadratic forms u_pᵀ 𝒥_pᵀ X u_p in the perturbations. With f = Cov B/(N Cov D) and the pairs
of dependent directions (weight w; square s, cross c, diagonal k; see `PairMoment`)

    V(X) = f { Σ_pairs w [c Σ_k x_kᵀ S x_k + k Σ_k x_kᵀ R_k x_k + c E tr (J Xᵀ)² + s E⟨J, X⟩²] + E⟨J, X⟩² − ⟨J̄, X⟩² },

x_k the columns of X, S = E 𝒥𝒥ᵀ over all units perturbed together and R_k = E J_·k J_·kᵀ; pairs of two samples have J̄ for J.
Where a component touches only one unit k (a dense block) this is x_kᵀ Γ_k x_k with Γ_k the feedback's covariance between
output rows.
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
        self.scale = float(law.factor(law.updates(steps, block))) / law.batch_size

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
        forms: dict[str, list[Tensor]] = {name: [] for name in local.factors}
        for units in self._groups(population, len(self.covariance), width):
            mu = accumulate(
                chunk.maps[self.block].coupling(chunk.error / len(population), units) for chunk in population.chunks()
            )
            for name, value in mu.items():
                columns = value.flatten(2) if value.dim() > 2 else value[:, :, None]
                columns = columns.transpose(0, 1)  # (units, O, parameters of the unit)
                form = (columns * (self.covariance[units] @ columns)).sum(1)
                forms[name].append(form.view(form.shape[:1] + value.shape[2:]))
        return {name: torch.cat(parts) for name, parts in forms.items()}


class GeneralForm(FeedbackForm):
    """V for parameters that touch many units (convolution, attention, …), through the block's own Jacobian."""

    def __init__(self, law, block, steps):
        super().__init__(law, block, steps)
        mean, second, heard = law.jacobian[block], law.moments.second[block], law.heard[block]
        factors = jacobian_factors(law.source, block)  # (r, O, units), whose sum of squares is E over samples
        own = {True: second, False: torch.einsum("ok,vk->kov", mean, mean)}
        trace, inner, white = {True: 0.0, False: 0.0}, {True: 1.0, False: -1.0}, 0.0
        for pair in law.pairs[block]:
            same, weight = pair.same_sample, pair.weight
            white = white + weight * (pair.cross * heard[same] + pair.diagonal * own[same])
            trace[same] += weight * pair.cross
            inner[same] += weight * pair.square
        self.white = self.scale * white.expand_as(second)  # (units, O, O)
        self.factors = torch.cat([factors, mean[None]])
        weights = [[w[True]] * len(factors) + [w[False]] for w in (trace, inner)]
        self.trace, self.inner = (self.scale * mean.new_tensor(w) for w in weights)  # of tr (F Xᵀ)² and ⟨F, X⟩²

    def of_samples(self, chunk):
        """X_p has rank one, so tr (F X_pᵀ)² = ⟨F, X_p⟩² = (A_pᵀ Fᵀ e_p)²."""
        local, error = chunk.maps[self.block], chunk.error
        outer = (error[:, :, None] * error[:, None, :]).flatten(1)
        terms = [(1.0, local.energy(outer @ self.white.flatten(1).T))]
        terms += [(w, local.square(error @ f)) for w, f in zip(self.trace + self.inner, self.factors, strict=True)]
        return accumulate({name: weight * value for name, value in term.items()} for weight, term in terms)

    def of_mean(self, population):
        """Couple the errors with every unit (for the white part) and with the factors of the Jacobian's second moment."""
        count, outputs, units = self.factors.shape
        size = population.probe().maps[self.block].size
        unit_basis = torch.eye(units, dtype=self.factors.dtype, device=self.factors.device)
        terms: list[Sums] = []
        for group in self._groups(population, units, size):
            columns = self._couple(population, unit_basis[group])
            terms.append({n: torch.einsum("ko...,kov,kv...->...", x, self.white[group], x) for n, x in columns.items()})
        for group in self._groups(population, count, outputs * size):
            for name, x in self._couple(population, self.factors[group].flatten(0, 1)).items():
                x = x.unflatten(0, (-1, outputs))  # (factors, O of the factor, O of the error, *shape)
                inner = torch.einsum("roo...->r...", x)
                terms.append({name: torch.einsum("r,roq...,rqo...->...", self.trace[group], x, x)})
                terms.append({name: torch.einsum("r,r...,r...->...", self.inner[group], inner, inner)})
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
