"""Forward gradients by activity perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.registry import register
from fdfa_core.linearize import Gradients, Trace, merge
from fdfa_core.network import require_site
from fdfa_core.perturbations import Law, make_law


def perturbations(
    law: Law, values: list[Tensor], lead: tuple[int, ...], generator: torch.Generator, joint: bool = True
) -> list[Tensor]:
    """Draw one direction per sample for values (N, …) of several sites, as tensors (*lead, N, …).

    With `joint` all sites of a sample form one vector of the law (which matters for laws with dependent entries).
    """
    if not joint:
        return [perturbations(law, [value], lead, generator)[0] for value in values]
    samples = len(values[0])
    sizes = [value[0].numel() for value in values]
    u = law.sample((*lead, samples, sum(sizes)), generator=generator, dtype=values[0].dtype)
    return [
        part.reshape(*lead, *value.shape) for part, value in zip(u.split(sizes, dim=-1), values, strict=True)
    ]


@register("fg-a")
class ActivityPerturbation(Estimator):
    r"""FG-A: the error of block l is s u_l, with s = Σ_l δ_l · u_l the slope of a sample's loss (Ren et al. 2022).

    Every sample has its own direction u_l at a site of every hidden block; one tangent pass gives all slopes. A local
    vector–Jacobian product turns the error into the block's parameter gradients. Unbiased. Its variance grows with the
    number of perturbed units, not of parameters. Cost: one forward pass, one tangent pass, local gradients.

    Args:
        perturbation: law of u, a name or an object.
        site: "pre" perturbs the affine output, "post" the block output.
        readout: "exact" uses the readout's true gradient; "perturbed" perturbs the outputs too.
        joint: perturb all blocks in one tangent pass, or one block at a time (a pass per block, less variance).
    """

    def __init__(self, net, *, perturbation="gaussian", site="pre", readout="exact", joint=True, **common):
        super().__init__(net, **common)
        if readout not in ("exact", "perturbed"):
            raise InvalidInput("readout", readout, '"exact" or "perturbed"')
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.law, self.site, self.readout, self.joint = make_law(perturbation), site, readout, bool(joint)

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return local gradients of the errors s u_l, and the readout's."""
        sites = [block.site(self.site) for block in trace.hidden]
        if self.readout == "perturbed":
            sites.append(trace.output)
        us = perturbations(self.law, sites, lead, self.generator, self.joint)
        groups = [range(len(us))] if self.joint else [range(i, i + 1) for i in range(len(us))]
        found: Gradients = {}
        for group in groups:
            tangent = trace.push([us[i] if i in group else None for i in range(len(trace.hidden))], self.site)
            if len(trace.hidden) in group:
                tangent = us[-1] if tangent is None else tangent + us[-1]
            slopes = (tangent * error).sum(-1)  # (*lead, N): each sample's directional derivative of the mean loss
            for i in group:
                signal = us[i] * slopes.reshape(slopes.shape + (1,) * (us[i].dim() - slopes.dim()))
                merge(found, trace.blocks[i].pull(signal, self.site))
        if self.readout == "exact":
            merge(found, exact_readout(trace, error, lead))
        return found


def exact_readout(trace: Trace, error: Tensor, lead: tuple[int, ...]) -> Gradients:
    """Return the readout's true gradient, the same in every draw."""
    return repeat(trace.readout.pull(error), lead)
