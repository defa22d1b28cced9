"""Forward gradients by weight perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.registry import register
from fdfa_core.linearize import Trace
from fdfa_core.perturbations import make_law


@register("fg-w")
class WeightPerturbation(Estimator):
    r"""FG-W: g = (∇ℓ · v) v with one random direction v over all parameters (Baydin et al. 2022; Silver et al. 2022).

    ∇ℓ · v is the directional derivative of the mean loss, from one forward pass with tangents. Unbiased for any law with
    identity covariance. Given the batch, its total variance is (P + κ − 2)‖∇ℓ‖² for P parameters and kurtosis κ, divided by
    `tangents` if several directions are averaged. Cost: one forward pass, one tangent pass, P random numbers a direction.

    Args:
        perturbation: law of v, a name or an object (`fdfa_core.perturbations`).
    """

    need_pull = False

    def __init__(self, net, *, perturbation="gaussian", **common):
        super().__init__(net, **common)
        self.law = make_law(perturbation)

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]):
        """Return (e · J_θ v) v."""
        parameters = dict(self.net.named_parameters())
        sizes = [p.numel() for p in parameters.values()]
        v = self.law.sample((*lead, sum(sizes)), generator=self.generator, dtype=self.dtype)
        directions = {
            name: part.view(*lead, *p.shape) if part.is_contiguous() else part.reshape(*lead, *p.shape)
            for (name, p), part in zip(parameters.items(), v.split(sizes, dim=-1), strict=True)
        }
        tangent = None
        for block in trace.blocks:
            tangent = block.push(tangent, parameters=directions)
        slope = torch.zeros(lead, dtype=v.dtype, device=v.device) if tangent is None else (tangent * error).sum((-2, -1))
        return {name: d * slope.reshape(lead + (1,) * (d.dim() - len(lead))) for name, d in directions.items()}
