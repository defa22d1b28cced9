"""Perturbation laws: random directions with mean zero and identity covariance.

A law draws arrays whose last axis holds the jointly perturbed dimensions. Its `kurtosis`, E[v⁴] of one entry, is what the
variance of a forward gradient depends on besides the first two moments.
"""

from __future__ import annotations

import functools
import math
import re
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


class LowRank(Law):
    """V = A Bᵀ/√r for each weight matrix (m, n), with standard normal A (m, r) and B (n, r); kurtosis 3 + 6/r.

    A matrix costs r (m + n) random numbers in place of m n. Its entries are uncorrelated, but not independent within a row or a
    column, so that a forward gradient has 2 (m + n + 1)/r ‖∇‖² more variance than with independent normal entries
    (docs/theory.md). The kernels of a convolution are the matrix of its output channels against all else; a parameter with one
    axis gets standard normal entries. Only weights can be perturbed so: FG-W and LG-FG-W take this law, others refuse it.

    Sarkar et al. (2025, arXiv 2511.16652, EGGROLL) use such directions for evolution strategies, Chen et al. (2024, arXiv
    2410.07698, LOZO) for zeroth-order gradients.

    Args:
        rank: r, at least 1.

    Raises:
        InvalidInput: a rank that is not a positive integer.

    Examples:
        >>> import torch
        >>> from fdfa_core.perturbations import LowRank
        >>> v = LowRank(rank=2).sample_parameters((), [(5, 4), (5,)], torch.Generator().manual_seed(0), torch.float64)
        >>> v.shape, torch.linalg.matrix_rank(v[:20].view(5, 4)).item(), LowRank(rank=2).kurtosis
        (torch.Size([25]), 2, 6.0)
    """

    fresh = True

    def __init__(self, rank: int = 1):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise InvalidInput("rank", rank, "a positive integer")
        self.rank, self.name, self.kurtosis = rank, f"low-rank-{rank}", 3 + 6 / rank

    def sample(self, shape, *, generator, dtype):
        """Refuse: a vector has no rows and columns."""
        accepted = "a law of vectors here; directions of low rank are for weights, in fg-w and lg-fg-w"
        raise InvalidInput("perturbation", self.name, accepted)

    def sample_parameters(
        self, lead: Sequence[int], shapes: Sequence[Sequence[int]], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return independent directions (*lead, P) over parameters of these shapes, flattened one after the other."""
        parts = []
        for shape in shapes:
            rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
            normal = functools.partial(torch.randn, generator=generator, dtype=dtype, device=generator.device)
            if len(shape) < 2:
                parts.append(normal((*lead, math.prod(shape))))
            else:
                a, b = normal((*lead, rows, self.rank)), normal((*lead, self.rank, columns))
                parts.append((a @ b).div_(math.sqrt(self.rank)).flatten(-2))
        return torch.cat(parts, dim=-1)

    def __repr__(self) -> str:
        return f"LowRank(rank={self.rank})"


LAWS: dict[str, type[Law]] = {law.name: law for law in (Gaussian, Rademacher, Sphere)}


def make_law(law: str | Law) -> Law:
    """Return a law by name ("low-rank-2" for rank 2), or the object itself if it has `name`, `kurtosis` and `sample`.

    Raises:
        UnknownName: no law of that name.
        InvalidInput: an object that is not a law.

    Examples:
        >>> from fdfa_core.perturbations import make_law
        >>> make_law("rademacher")
        Rademacher()
    """
    if isinstance(law, str):
        if rank := re.fullmatch(r"low-rank-(\d{1,9})", law):
            return LowRank(int(rank[1]))
        if law not in LAWS:
            raise UnknownName("perturbation", law, [*LAWS, "low-rank-1"], "A law object is accepted too.")
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
