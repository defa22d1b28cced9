"""From a site to the parameters of its own block: the Jacobian A_p = ∂site/∂parameters of every sample p of a chunk.

The closed forms meet A through four sums over samples, each returned as {parameter: tensor of its shape}:

- `mean(w)`      Σ_p A_pᵀ w_p                   the gradient that a signal w gives;
- `square(w)`    Σ_p (A_pᵀ w_p)²                its second moment;
- `energy(w)`    Σ_p Σ_k w_pk A_pk²             what white noise at the site with variances w gives;
- `coupling`     Σ_p e_p ⊗ (A_pᵀ c)             how output errors e meet fixed directions c at the site.

In a dense block every parameter touches one unit, and these are matrix products of squares (`UnitMap`). Any other module goes
through its own vector–Jacobian products, sample by sample (`GeneralMap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from fdfa_core.linearisation.functional import functional_call
from fdfa_core.networks.blocks import Block
from fdfa_core.networks.decorrelation import Decorrelation

Sums = dict[str, Tensor]
MEMORY = 128 * 2**20  # bytes of per-sample gradients held at a time

ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Softsign,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Dropout,  # the identity in evaluation mode, the only one that is let through
)


class LocalMap(ABC):
    """A block's Jacobian from its parameters to its site, at the samples of one chunk. Signals are (n, units).

    Attributes:
        parameters: names of the parameters, as in the network.
    """

    parameters: list[str]

    @abstractmethod
    def mean(self, w: Tensor) -> Sums:
        """Return Σ_p A_pᵀ w_p."""

    @abstractmethod
    def square(self, w: Tensor) -> Sums:
        """Return Σ_p (A_pᵀ w_p)², element by element."""

    @abstractmethod
    def energy(self, w: Tensor) -> Sums:
        """Return Σ_p Σ_k w_pk A_pk², element by element; w is (n, units) or (n, 1) where all units weigh the same."""


class UnitMap(LocalMap):
    """A map whose every parameter touches one unit: A_{k,θ} = 0 unless k = unit(θ), where it is gate_k × feature_j.

    Args:
        factors: per parameter name its gate (n, units) and its features (n, m), or None for a parameter per unit.
    """

    def __init__(self, factors: dict[str, tuple[Tensor, Tensor | None]]):
        self.factors, self.parameters = factors, list(factors)

    def mean(self, w):
        """Return matrix products of signals and inputs."""
        return {name: _product(w * gate, feature) for name, (gate, feature) in self.factors.items()}

    def square(self, w):
        """Return matrix products of their squares."""
        return {name: _product((w * gate).square(), _squared(feature)) for name, (gate, feature) in self.factors.items()}

    def energy(self, w):
        """Return the same with the variances in place of the squared signal."""
        return {name: _product(w * gate.square(), _squared(feature)) for name, (gate, feature) in self.factors.items()}

    def coupling(self, error: Tensor, units: slice) -> Sums:
        """Return Σ_p e_po A_{p,k,θ} for the parameters of some units, (O, units, …): each couples only to its own unit k."""
        return {
            name: torch.stack([_product(e[:, None] * gate[:, units], feature) for e in error.T])
            for name, (gate, feature) in self.factors.items()
        }


class GeneralMap(LocalMap):
    """Any module, one sample at a time under `vmap`.

    Args:
        module: maps (n, …) to the site's values.
        x: the chunk's block inputs (n, …).
        names: parameter name within the module → name in the network.
    """

    def __init__(self, module: nn.Module, x: Tensor, names: dict[str, str]):
        self.module, self.x, self.names, self.parameters = module, x, names, list(names.values())
        self.values = {inner: dict(module.named_parameters())[inner] for inner in names}
        with torch.no_grad():
            self.shape = module(x[:1]).shape[1:]
        self.units = self.shape.numel()
        self.size = max(1, sum(p.numel() for p in self.values.values()))

    def mean(self, w):
        """Return sums of the samples' gradients."""
        return self._sum(lambda rows, part: rows.sum((0, 1)), w[:, None])

    def square(self, w):
        """Return sums of the samples' squared gradients."""
        return self._sum(lambda rows, part: rows.square().sum((0, 1)), w[:, None])

    def energy(self, w):
        """Return the weighted sum of the squared rows of every sample's Jacobian."""
        w, total = w.expand(-1, self.units), None
        step = max(1, MEMORY // (8 * self.size))
        for start in range(0, self.units, step):
            basis = self._basis(start, start + step)
            weights = w[:, start : start + step]
            sums = self._sum(
                lambda rows, part, weights=weights: torch.tensordot(weights[part], rows.square(), 2),
                basis.expand(len(w), -1, -1),
            )
            total = sums if total is None else {name: total[name] + value for name, value in sums.items()}
        return total

    def coupling(self, error: Tensor, directions: Tensor) -> Sums:
        """Return Σ_p (A_pᵀ c) e_po for C site directions (C, units), as (C, O, *shape)."""
        return self._sum(
            lambda rows, part: torch.einsum("pc...,po->co...", rows, error[part]), directions.expand(len(error), -1, -1)
        )

    def _basis(self, start: int, stop: int) -> Tensor:
        return torch.eye(self.units, dtype=self.x.dtype, device=self.x.device)[start:stop]

    def _sum(self, reduce, cotangents: Tensor) -> Sums:
        """Sum `reduce(rows, part)` over parts of the chunk; rows are A_pᵀ c, (n, C, *shape), for cotangents (n, C, units)."""
        if not self.values:
            return {}
        totals: Sums = {}
        step = max(1, MEMORY // (8 * self.size * cotangents.shape[1]))
        for start in range(0, len(self.x), step):
            part = slice(start, start + step)
            here = cotangents[part].unflatten(-1, self.shape)
            # one flat batch of (sample, cotangent) pairs: not all of torch's backward formulas can be mapped twice
            rows = vmap(self._row)(self.x[part].repeat_interleave(here.shape[1], 0), here.flatten(0, 1))
            for inner, value in rows.items():
                name = self.names[inner]
                sums = reduce(value.unflatten(0, here.shape[:2]), part)
                totals[name] = totals[name] + sums if name in totals else sums
        return totals

    def _row(self, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
        _, pull = vjp(lambda p: functional_call(self.module, p, (x[None],))[0], self.values)
        return pull(cotangent)[0]


def local_map(block: nn.Module, x: Tensor, site: str, names: dict[nn.Parameter, str]) -> UnitMap | GeneralMap:
    """Return the map from a block's site to its parameters at the inputs x, the dense form where the block has one.

    Parameters above the site (of an activation, for `site="pre"`) get no signal and are left out.
    """
    module = block.affine if site == "pre" else block
    factors = _dense_factors(module, x, names)
    if factors is not None:
        return UnitMap(factors)
    return GeneralMap(module, x, {inner: names[p] for inner, p in module.named_parameters()})


def _dense_factors(module: nn.Module, x: Tensor, names) -> dict[str, tuple[Tensor, Tensor | None]] | None:
    """Factors of [Flatten] [Decorrelation] Linear [BatchNorm1d] and elementwise layers, or None for anything else."""
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None  # a hook may change the value
    layers = _layers(module)
    if type(layers[0]) is nn.Flatten and layers[0].start_dim == 1:
        x, layers = layers[0](x), layers[1:]
    if layers and type(layers[0]) is Decorrelation and x.dim() == 2:
        x, layers = x @ layers[0].matrix.mT, layers[1:]  # R is given: it has no part in the block's Jacobian
    if not layers or type(layers[0]) is not nn.Linear or x.dim() != 2:
        return None
    linear, norm = layers[0], layers[1] if len(layers) > 1 and type(layers[1]) is nn.BatchNorm1d else None
    above = layers[1:] if norm is None else layers[2:]
    if any(type(layer) not in ELEMENTWISE for layer in above):
        return None
    with torch.no_grad():
        a = linear(x)
        scale, normalised, inner = 1.0, None, a
        if norm is not None:
            inverse = (norm.running_var + norm.eps).rsqrt()
            normalised, inner = (a - norm.running_mean) * inverse, norm(a)
            scale = inverse if norm.weight is None else inverse * norm.weight
    gate = _derivative(nn.Sequential(*above), inner)
    factors = {names[linear.weight]: (gate * scale, x)}
    if linear.bias is not None:
        factors[names[linear.bias]] = (gate * scale, None)
    if norm is not None and norm.weight is not None:
        factors[names[norm.weight]] = (gate * normalised, None)
        factors[names[norm.bias]] = (gate, None)
    return factors


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers that a module calls one after the other; the module itself where that is not known."""
    if type(module) is Block:
        return _layers(module.affine) + _layers(module.activation)
    if type(module) is nn.Sequential:
        return [layer for child in module for layer in _layers(child)]
    return [module]


def _derivative(activation: nn.Module, a: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = a.clone().requires_grad_()  # a clone: an in-place activation must not touch what others read
        h = activation(leaf * 1)
        return torch.autograd.grad(h.sum(), leaf)[0] if h.requires_grad else torch.zeros_like(a)


def _product(left: Tensor, feature: Tensor | None) -> Tensor:
    return left.sum(0) if feature is None else left.T @ feature


def _squared(feature: Tensor | None) -> Tensor | None:
    return None if feature is None else feature.square()
