"""Forward gradients by activity perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.options import Combination, Count, Mask, Perturbation, Readout, Site, Slope
from fdfa_core.estimators.registry import register
from fdfa_core.estimators.tangents import Tangents
from fdfa_core.linearisation.trace import Gradients, Trace, merge
from fdfa_core.networks.blocks import require_site


@register("fg-a")
class ActivityPerturbation(Estimator):
    r"""FG-A: the error of block l is s u_l, with s = Σ_l δ_l · u_l the slope of a sample's loss (Ren et al. 2022).

    Every sample has its own direction u_l at a site of every hidden block; one tangent pass gives all slopes. A local
    vector–Jacobian product turns the error into the block's parameter gradients. Unbiased where a sample's perturbation moves
    only its own loss. Its variance grows with the number of perturbed units, not of parameters. Cost: one forward pass,
    K tangent passes, local gradients.

    Batch normalisation in training mode lets a sample's perturbation move the losses of the others, which a sample's own slope
    does not see: `slope="sample"` is then biased. `slope="batch"` gives every sample the slope of the whole batch's loss along
    all perturbations together: unbiased on any network, and its variance is about N times larger.

    Args:
        perturbation: law of u, a name or an object.
        site: "pre" perturbs the affine output, "post" the block output.
        readout: "exact" uses the readout's true gradient; "perturbed" perturbs the outputs too.
        joint: perturb all blocks in one tangent pass, or one block at a time (a pass per block, less variance).
        tangents: K, directions per sample.
        combine: "mean", or "projection" of a sample's error on the span of its K directions (see `Tangents`): over all blocks
            together with `joint`, in each block otherwise.
        slope: "sample" or "batch".
        mask: "active" perturbs only units whose value moves their block's output (at site="pre"): behind a ReLU, those above
            zero. The slope along any other is zero, so that the estimate stays unbiased; the number of active units takes the
            place of their number in the variance (Ren et al. 2022, section 3.6). It costs a pass through the activations.
    """

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        site: Site = "pre",
        readout: Readout = "exact",
        joint: bool = True,
        tangents: Count = 1,
        combine: Combination = "mean",
        slope: Slope = "sample",
        mask: Mask = "none",
        **common,
    ):
        super().__init__(net, **common)
        self.readout, self.slope, self.joint, self.mask = readout, slope, joint, mask
        require_maskable(mask, site, combine)
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.tangents, self.site = Tangents(perturbation, tangents, combine), site

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return local gradients of the estimated errors, and the readout's."""
        sites = [block.site(self.site) for block in trace.hidden]
        live = [i for i, block in enumerate(trace.hidden) if not block.frozen]  # what does not train needs no error
        if self.readout == "perturbed":
            live.append(len(sites))
            sites.append(trace.output)
        gradients: Gradients = {}
        for group in ([live] if self.joint else [[i] for i in live]) if live else ():
            sizes = [sites[i][0].numel() for i in group]
            self.tangents.check(sum(sizes) * (len(error) if self.slope == "batch" else 1))
            u = self.tangents.sample(lead, (len(error), sum(sizes)), self.generator, self.dtype)  # (*lead, K, N, n)
            if self.mask == "active":
                moving = [trace.blocks[i].active() if i < len(trace.hidden) else torch.ones_like(trace.output) for i in group]
                u *= torch.cat([units.flatten(1) for units in moving], dim=-1)
            axes = self.tangents.axes(lead)
            parts = {i: v.reshape(*axes, *sites[i].shape) for i, v in zip(group, u.split(sizes, dim=-1), strict=True)}
            outputs = parts.pop(len(trace.hidden), None)
            hidden = [parts.get(i) for i in range(len(trace.hidden))]
            slopes = trace.slopes(hidden, self.site, error, outputs).view(*lead, self.tangents.count, -1)  # of the mean loss
            signals = self.errors(slopes, u).split(sizes, dim=-1)
            for i, signal in zip(group, signals, strict=True):
                merge(gradients, trace.blocks[i].pull(signal.reshape(*lead, *sites[i].shape), self.site))
        if self.readout == "exact":
            merge(gradients, exact_readout(trace, error, lead))
        return gradients

    def errors(self, slopes: Tensor, u: Tensor) -> Tensor:
        """Return estimated errors (*lead, N, n) from slopes (*lead, K, N) along directions (*lead, K, N, n)."""
        shape = (*u.shape[:-3], *u.shape[-2:])
        if self.slope == "batch":  # the batch's perturbations are one direction
            slopes, u = slopes.sum(-1, keepdim=True), u.flatten(-2).unsqueeze(-2)
        return self.tangents.combine(slopes.mT, u.transpose(-3, -2)).reshape(shape)


def require_maskable(mask: Mask, site: Site, combine: Combination) -> None:
    """Raise `InvalidInput` where masked directions would not give what the options promise."""
    if mask == "active" and site == "post":
        accepted = '"none" with site="post", where a unit at zero moves the outputs too; or site="pre"'
        raise InvalidInput("mask", mask, accepted)
    if mask == "active" and combine == "projection":
        raise InvalidInput("mask", mask, '"none" with combine="projection"; or combine="mean"')


def exact_readout(trace: Trace, error: Tensor, lead: tuple[int, ...]) -> Gradients:
    """Return the readout's true gradient, the same in every draw."""
    return repeat(trace.readout.pull(error), lead)
