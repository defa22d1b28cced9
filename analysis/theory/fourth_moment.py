"""Fourth moments of a perturbation law, all that a forward gradient's variance asks of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.perturbations import Law, Sphere, make_law

ISOTROPIC = ("gaussian", "sphere")  # laws that look the same in every orthonormal basis


@dataclass(frozen=True)
class FourthMoment:
    r"""E[v_a v_b v_i v_j] = c (δ_ab δ_ij + δ_ai δ_bj + δ_aj δ_bi) + k δ_abij.

    Independent entries of kurtosis κ: c = 1, k = κ − 3. Uniform on the sphere of radius √d: c = d/(d+2), k = 0.

    For fixed vectors z, a and a square matrix Q this gives

        E[(z·v)² (a·v)²] = c (‖z‖²‖a‖² + 2 (z·a)²) + k Σ_i z_i² a_i²
        E[(vᵀQv)²]       = c ((tr Q)² + ‖Q‖² + tr Q²) + k Σ_i Q_ii²
    """

    c: float
    k: float


def fourth_moment(law: str | Law, dimension: int) -> FourthMoment:
    """Return the fourth moments of vectors of this dimension (the number of units or parameters perturbed together).

    Raises:
        Unsupported: a law whose entries may depend on each other in a way that is not known here.
    """
    law = make_law(law)
    if isinstance(law, Sphere):
        return FourthMoment(dimension / (dimension + 2), 0.0)
    if getattr(law, "independent", True) is False:
        raise Unsupported(f"perturbation {law.name}: its entries are dependent, and its fourth moments are not known here")
    return FourthMoment(1.0, float(law.kurtosis) - 3)


@dataclass(frozen=True)
class Noise:
    r"""Mean and variance of the estimate ẑ of a vector z from its slopes z·v along random directions v.

    E ẑ = keep z, and for any fixed a: Var[a·ẑ] = norm ‖z‖²‖a‖² + own (a·z)² + fourth Σ_i z_i² a_i².
    """

    keep: float
    norm: float
    own: float
    fourth: float


def noise(law: str | Law, dimension: int, tangents: int = 1, combine: str = "mean") -> Noise:
    r"""Return the noise of K directions in a number of dimensions, averaged or projected on.

    The mean of K estimates (z·v) v is unbiased, with a K-th of the variance of one. The projection of z on the span of K
    isotropic directions is t z + √(t(1−t)) ‖z‖ w with t ~ Beta(K/2, (d−K)/2) and w uniform on the unit sphere orthogonal to z.

    Raises:
        Unsupported: a projection on directions that are not isotropic.
        InvalidInput: more directions than dimensions for a projection, or an unknown combination.
    """
    if combine == "mean":
        moment = fourth_moment(law, dimension)
        return Noise(1.0, moment.c / tangents, (2 * moment.c - 1) / tangents, moment.k / tangents)
    if combine != "projection":
        raise InvalidInput("combine", combine, '"mean" or "projection"')
    if make_law(law).name not in ISOTROPIC:
        raise Unsupported(
            f'combine="projection" has an exact form for isotropic directions alone: use one of {ISOTROPIC}, or measure it'
        )
    if tangents > dimension:
        raise InvalidInput("tangents", tangents, f"at most {dimension}, the dimensions perturbed together, for a projection")
    keep = tangents / dimension
    square = keep * (tangents + 2) / (dimension + 2)  # E t²
    across = (keep - square) / max(dimension - 1, 1)  # E t(1−t) over each of the d − 1 other dimensions
    return Noise(keep, across, square - keep**2 - across, 0.0)


@dataclass(frozen=True)
class PairMoment:
    r"""Cov(uᵀQu, vᵀQ'v) = square tr Q tr Q' + cross (tr QQ'ᵀ + tr QQ') + diagonal Σ_i Q_ii Q'_ii for two directions u, v.

    Attributes:
        weight: how much of N Cov D such pairs make up, D being a batch's mean of K N such forms (see `step_pairs`).
        same_sample: whether u and v belong to one sample, so that Q = Q', or to two independent ones.
    """

    square: float
    cross: float
    diagonal: float
    weight: float
    same_sample: bool = True

    @property
    def aligned(self) -> float:
        """What is left where Q touches only one unit: all but the ‖Q‖² of `cross` is then the same number."""
        return self.square + self.cross + self.diagonal


def step_pairs(law: str | Law, dimension: int, batch_size: int, tangents: int = 1, directions: str = "independent"):
    r"""Return the dependent pairs among the K N directions of a feedback step, as `PairMoment`s.

    Every direction pairs with itself, with weight 1/K. An antithetic pair (u, −u) repeats uᵀQu. Two rows of an orthogonal
    block are √d times two orthonormal directions, uniformly distributed: E[u_a u_b v_i v_j] =
    d ((d+1) δ_ab δ_ij − δ_ai δ_bj − δ_aj δ_bi)/((d−1)(d+2)). Directions k = 0…K−1 of sample p are row k N + p.

    Raises:
        InvalidInput: an unknown design, or an orthogonal one of a law that is not isotropic.
    """
    rows, own = batch_size * tangents, fourth_moment("sphere" if directions == "orthogonal" else law, dimension)
    itself = PairMoment(own.c - 1, own.c, own.k, 1 / tangents)
    if directions == "independent":
        return [itself]
    if directions == "antithetic":
        half = (rows + 1) // 2
        pairs = [(r, r + half) for r in range(rows // 2)]
        form = (own.c - 1, own.c, own.k)
    elif directions == "orthogonal":
        if make_law(law).name not in ISOTROPIC:
            raise InvalidInput("perturbation", make_law(law).name, f'one of {ISOTROPIC} with directions="orthogonal"')
        blocks = (range(start, min(start + dimension, rows)) for start in range(0, rows, dimension))
        pairs = [pair for block in blocks for pair in itertools.combinations(block, 2)]
        scale = max((dimension - 1) * (dimension + 2), 1)
        form = (2 / scale, -dimension / scale, 0.0)
    else:
        raise InvalidInput("directions", directions, '"independent", "antithetic" or "orthogonal"')
    same = sum((r - s) % batch_size == 0 for r, s in pairs)
    weights = {True: same, False: len(pairs) - same}
    return [itself, *(PairMoment(*form, 2 * n * batch_size / rows**2, kind) for kind, n in weights.items() if n)]
