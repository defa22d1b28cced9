"""What decorrelated inputs do to the variance of FG-A, and what not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.theory.fourth_moment import noise
from analysis.theory.local_maps import UnitMap
from analysis.theory.population import Chunk, Population
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators.options import Count, Perturbation, Site
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.signatures import checked


class InputForm(NamedTuple):
    r"""Variance and gradient of one weight matrix (n_out, n), as quadratic forms of a map R of its inputs.

    Attributes:
        variance: Q (n, n). With inputs R h and the same outputs, FG-A's total variance of these weights is tr(R Q Rᵀ).
        gradient: ∇ᵀ∇ (n, n). The squared norm of the mean gradient is tr(R ∇ᵀ∇ Rᵀ).
    """

    variance: Tensor
    gradient: Tensor

    def total(self, matrix: Tensor | None = None) -> float:
        """Return the total variance where the inputs are R h; with None for R, where they are h."""
        return _along(self.variance, matrix)

    def relative(self, matrix: Tensor | None = None) -> float:
        """Return the total variance over the squared norm of the mean gradient, where the inputs are R h.

        Raises:
            InvalidInput: no mean gradient.
        """
        if not (norm2 := _along(self.gradient, matrix)) > 0:
            raise InvalidInput("the mean gradient of the weights", norm2, "one that is not zero; `total()` needs none")
        return _along(self.variance, matrix) / norm2


def input_forms(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    loss: str | Callable = "cross_entropy",
    *,
    perturbation: Perturbation = "gaussian",
    site: Site = "pre",
    joint: bool = True,
    tangents: Count = 1,
) -> dict[str, InputForm]:
    r"""Return how FG-A's variance depends on the inputs of every linear layer, by the name of its weights. Exact.

    Put R before a linear layer and W R⁻¹ in the place of W. All values, slopes and directions stay, and so does everything in
    (4) of docs/theory.md but the layer's input h, which becomes R h. Draw by draw, the estimate g of W becomes g Rᵀ. Summed
    over the units of a row, (4) is a quadratic form of the input:

        Q = (1/N) { (1/K) E_p[(c ζ_p ‖γ_p‖² + (2c + k − 1) ‖γ_p z_p‖²) h hᵀ] + E_p[‖γ_p z_p‖² h hᵀ] − ∇ᵀ∇ }.

    With N = 1, one sample and one block, Q is a multiple of h hᵀ, as ∇ᵀ∇ is: no R changes the relative variance. The biases,
    the other layers, and the number of units in ζ feel nothing of R.

    Args:
        net: the network; normalisation in evaluation mode.
        x, y: the population (M, …), (M, …).
        batch_size: N, samples drawn with replacement.
        loss: as for `make_estimator`.
        perturbation, site, joint, tangents: of `fg-a`, whose readout is exact, and whose other options are the usual ones.

    Raises:
        Unsupported: no linear layer whose units stand apart, or a network without exact forms (see `predict`).
        InvalidInput: an impossible batch size, or options that are none.

    Examples:
        White inputs do not help here: the relative variance of the first weights grows. Samples have less in common, so that
        there is less of a mean gradient.

        >>> from fdfa_core import fully_connected
        >>> from fdfa_core.data import load
        >>> from analysis.theory.decorrelation import input_forms, whitening
        >>> digits = load("digits")
        >>> x, y = digits.train_images[:512].flatten(1).double() / 16, digits.train_labels[:512]
        >>> x = x[:, x.std(0) > 0.05]
        >>> net = fully_connected([51, 64, 10], seed=0).double()
        >>> form = input_forms(net, x, y, batch_size=64)["0.affine.weight"]
        >>> f"{form.relative():.0f} {form.relative(whitening(x)):.0f}"
        '48 85'
    """
    checked("tangents", Count, tangents)
    checked("batch_size", Count, batch_size)
    population = Population(net, x, y, loss, site)
    units = population.units
    laws = [noise(perturbation, sum(units) if joint else n, tangents) for n in units]
    sums: dict[str, list[Tensor]] = {}
    for chunk in population.chunks():
        for name, found in _sums(chunk, laws, joint).items():
            sums[name] = [a + b / len(population) for a, b in zip(sums.get(name, [0.0] * 3), found, strict=True)]
    if not sums:
        raise Unsupported("no block is a linear layer with elementwise parts above it; the form is known for such blocks alone")
    forms = {}
    for name, (perturbed, square, mean) in sums.items():
        gradient = mean.mT @ mean
        forms[name] = InputForm((perturbed + square - gradient) / batch_size, gradient)
    return forms


def _sums(chunk: Chunk, laws, joint: bool) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return Σ_p of noise and of squared gradient, as weights of h hᵀ, and of the gradient, for every linear layer."""
    signals = chunk.signals()
    lengths = [z.square().sum(1) for z in signals[:-1]]
    heard = [sum(lengths)] * len(lengths) if joint else lengths
    found = {}
    for i, (local, z) in enumerate(zip(chunk.maps, signals, strict=True)):
        for name, (gate, h) in local.factors.items() if isinstance(local, UnitMap) else ():
            if h is None:
                continue
            own = (gate * z).square().sum(1)
            noise_of = torch.zeros_like(own)
            if i < len(laws):  # the readout's gradient is exact
                noise_of = laws[i].norm * heard[i] * gate.square().sum(1) + (laws[i].own + laws[i].fourth) * own
            found[name] = (h.mT @ (noise_of[:, None] * h), h.mT @ (own[:, None] * h), (gate * z).mT @ h)
    return found


def whitening(h: Tensor) -> Tensor:
    """Return the symmetric R (n, n) that makes the second moments of inputs (M, n) the identity: (mean of h hᵀ)^(−1/2).

    Raises:
        InvalidInput: inputs that do not span their space.

    Examples:
        >>> import torch
        >>> from analysis.theory.decorrelation import whitening
        >>> whitening(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        tensor([[0.7071, 0.0000],
                [0.0000, 0.3536]], dtype=torch.float64)
    """
    if h.dim() != 2:
        raise InvalidInput("h: shape", tuple(h.shape), "a matrix (M, n), one row of inputs for each sample")
    values, vectors = torch.linalg.eigh(h.double().mT @ h.double() / len(h))
    if not values[0] > 1e-12 * values[-1]:
        accepted = f"inputs that span all {h.shape[1]} dimensions; leave out those that are always zero, or add samples"
        raise InvalidInput("h", f"inputs of rank {int((values > 1e-12 * values[-1]).sum())}", accepted)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.mT


def _along(form: Tensor, matrix: Tensor | None) -> float:
    if matrix is None:
        return float(form.trace())
    if tuple(matrix.shape[1:]) != tuple(form.shape[:1]):
        raise InvalidInput("matrix: shape", tuple(matrix.shape), f"(rows, {len(form)})")
    matrix = matrix.to(form)
    return float((matrix @ form * matrix).sum())
