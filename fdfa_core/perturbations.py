"""Perturbation laws: random directions with mean zero and identity covariance.

A law draws arrays whose last axis holds the jointly perturbed dimensions. Its `kurtosis`, E[v⁴] of one entry, is what the
variance of a forward gradient depends on besides the first two moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput, UnknownName


class Law:
    """A law of perturbations v with E[v] = 0 and E[v vᵀ] = I along the last axis.

    A user's own law is any object with these attributes and this method.

    Attributes:
        name: what the law is called in options, logs and figures.
        kurtosis: E[v_i⁴]; may depend on the dimension (see `kurtosis_in`).
    """

    name: str
    kurtosis: float

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return independent draws of shape (…, dimension) on the generator's device."""
        raise NotImplementedError

    def kurtosis_in(self, dimension: int) -> float:
        """Return E[v_i⁴] for vectors of this dimension."""
        return self.kurtosis

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Gaussian(Law):
    """Independent standard normal entries, kurtosis 3 (Baydin et al. 2022)."""

    name, kurtosis = "gaussian", 3.0

    def sample(self, shape, *, generator, dtype):
        """Return standard normal draws."""
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)


class Rademacher(Law):
    """Independent random signs, kurtosis 1: the least possible, hence the least variance of independent entries."""

    name, kurtosis = "rademacher", 1.0

    def sample(self, shape, *, generator, dtype):
        """Return draws of ±1."""
        bits = torch.empty(tuple(shape), dtype=dtype, device=generator.device)
        return bits.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


class Sphere(Law):
    """Uniform on the sphere of radius √d in d dimensions, kurtosis 3d/(d+2); its entries are dependent.

    The fourth moments are E[v_a v_b v_i v_j] = d/(d+2) (δ_ab δ_ij + δ_ai δ_bj + δ_aj δ_bi).
    """

    name, kurtosis = "sphere", 3.0

    def sample(self, shape, *, generator, dtype):
        """Return draws of Euclidean norm √d along the last axis."""
        v = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
        return v.mul_(math.sqrt(v.shape[-1]) / v.norm(dim=-1, keepdim=True))

    def kurtosis_in(self, dimension):
        """Return 3d/(d+2)."""
        return 3.0 * dimension / (dimension + 2.0)


LAWS: dict[str, type[Law]] = {law.name: law for law in (Gaussian, Rademacher, Sphere)}


def make_law(law: str | Law) -> Law:
    """Return a law by name, or the object itself if it has `name`, `kurtosis` and `sample`.

    Raises:
        UnknownName: no law of that name.
        InvalidInput: an object that is not a law.
    """
    if isinstance(law, str):
        if law not in LAWS:
            raise UnknownName("perturbation", law, LAWS, "A law object is accepted too.")
        return LAWS[law]()
    missing = [a for a in ("name", "kurtosis", "sample") if not hasattr(law, a)]
    if missing:
        raise InvalidInput("perturbation", law, f"a name ({', '.join(LAWS)}) or a law object; this lacks {missing}")
    return law
