"""Perturbation laws: random directions with mean zero and identity covariance.

A law draws arrays whose last axis holds the jointly perturbed dimensions. Its `kurtosis`, E[v⁴] of one entry, is what the
variance of a forward gradient depends on besides the first two moments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core.errors import InvalidInput, UnknownName


class Law:
    """A law of perturbations v with E[v] = 0 and E[v vᵀ] = I along the last axis.

    Your own law is any object with a `name`, a `kurtosis` and the method `sample`.

    Attributes:
        name: what the law is called in options, logs and figures.
        kurtosis: E[v_i⁴]; may depend on the dimension (see `kurtosis_in`).
        fresh: whether `sample` returns memory that nobody else holds, so that it may be written over; without this attribute
            the numbers are copied first.
    """

    name: str
    kurtosis: float
    fresh: bool = False

    def sample(self, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return independent draws of shape (…, dimension) on the generator's device."""
        raise NotImplementedError

    def kurtosis_in(self, dimension: int) -> float:
        """Return E[v_i⁴] for vectors of this dimension."""
        return self.kurtosis

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Gaussian(Law):
    """Independent standard normal entries, kurtosis 3 (Baydin et al. 2022).

    Examples:
        >>> import torch
        >>> from fdfa_core.perturbations import Gaussian
        >>> v = Gaussian().sample((1000, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> v.shape, f"{v.mean():.2f}", f"{v.var():.2f}"
        (torch.Size([1000, 4]), '-0.02', '0.99')
    """

    name, kurtosis = "gaussian", 3.0
    fresh = True

    def sample(self, shape, *, generator, dtype):
        """Return standard normal draws."""
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)


class Rademacher(Law):
    """Independent random signs, kurtosis 1: the least possible, hence the least variance of independent entries.

    Examples:
        >>> import torch
        >>> from fdfa_core.perturbations import Rademacher
        >>> Rademacher().sample((2, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        tensor([[ 1.,  1.,  1.,  1.],
                [-1.,  1., -1., -1.]])
    """

    name, kurtosis = "rademacher", 1.0
    fresh = True

    def sample(self, shape, *, generator, dtype):
        """Return draws of ±1."""
        # one random bit an entry, eight of them at a time from a table: 25 times as fast as `bernoulli_`
        count = math.prod(shape)
        words = torch.empty(-(-count // 64), dtype=torch.int64, device=generator.device)
        octets = words.random_(-(2**63), None, generator=generator).view(torch.uint8)
        return F.embedding(octets.int(), _signs_of_octets(dtype, generator.device)).flatten()[:count].view(tuple(shape))


@functools.cache
def _signs_of_octets(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The bits of 0 … 255 as signs, (256, 8)."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device) & 1
    return (2 * bits - 1).to(dtype)


class Sphere(Law):
    """Uniform on the sphere of radius √d in d dimensions, kurtosis 3d/(d+2); its entries are dependent.

    The fourth moments are E[v_a v_b v_i v_j] = d/(d+2) (δ_ab δ_ij + δ_ai δ_bj + δ_aj δ_bi).

    Examples:
        >>> import torch
        >>> from fdfa_core.perturbations import Sphere
        >>> v = Sphere().sample((1, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> f"{v.norm():.3f}", Sphere().kurtosis_in(4)
        ('2.000', 2.0)
    """

    name, kurtosis = "sphere", 3.0
    fresh = True

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

    Examples:
        >>> from fdfa_core.perturbations import make_law
        >>> make_law("rademacher")
        Rademacher()
    """
    if isinstance(law, str):
        if law not in LAWS:
            raise UnknownName("perturbation", law, LAWS, "A law object is accepted too.")
        return LAWS[law]()
    missing = [a for a in ("name", "kurtosis", "sample") if not hasattr(law, a)]
    if missing:
        raise InvalidInput("perturbation", law, f"a name ({', '.join(LAWS)}) or a law object; this lacks {missing}")
    return law


Design = Literal["independent", "antithetic", "orthogonal"]
DESIGNS = get_args(Design)


def design_sample(
    law: Law, design: str, shape: Sequence[int], *, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Return draws (…, M, dimension) whose M rows are arranged by design; each row by itself has identity covariance.

    Args:
        law: of the rows. "orthogonal" needs one that is the same in every direction.
        design: "independent"; "antithetic": the second half of the rows are the first half's negatives; "orthogonal": rows in
            blocks of up to `dimension`, orthogonal and of norm √dimension, uniformly distributed (each row is then of the law
            "sphere").
        shape: (…, M, dimension).
        generator: of the random numbers; the draws are on its device.
        dtype: of the draws.

    Raises:
        InvalidInput: unknown design, or an orthogonal design of a law that is not isotropic.

    Examples:
        >>> import torch
        >>> from fdfa_core.perturbations import design_sample, make_law
        >>> generator = torch.Generator().manual_seed(0)
        >>> u = design_sample(make_law("gaussian"), "orthogonal", (2, 2), generator=generator, dtype=torch.float64)
        >>> (u @ u.T).round(decimals=6).abs()
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    *lead, rows, dimension = shape
    if design not in DESIGNS:
        raise InvalidInput("directions", design, " or ".join(map(repr, DESIGNS)))
    if design == "antithetic":
        half = law.sample((*lead, (rows + 1) // 2, dimension), generator=generator, dtype=dtype)
        return torch.cat([half, -half[..., : rows // 2, :]], dim=-2)
    draws = law.sample((*lead, rows, dimension), generator=generator, dtype=dtype)
    if design == "independent":
        return draws
    if law.name not in ("gaussian", "sphere"):
        raise InvalidInput("perturbation", law.name, '"gaussian" or "sphere" with directions="orthogonal"')
    return torch.cat([_orthogonal_rows(block) for block in draws.split(dimension, dim=-2)], dim=-2)


def _orthogonal_rows(v: Tensor) -> Tensor:
    """Orthogonalise isotropic rows (…, m, d), m ≤ d, to norm √d."""
    q, r = torch.linalg.qr(v.mT)
    # QR leaves the columns' signs to the library; tied to the draw's they are uniform (Mezzadri 2007)
    return (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT * math.sqrt(v.shape[-1])
