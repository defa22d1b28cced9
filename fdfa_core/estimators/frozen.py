"""The baseline that shows what training the hidden blocks is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace


@register("frozen")
class Frozen(Estimator):
    r"""Hidden blocks stay as they were initialised, g = 0; the readout gets its true gradient e ∂y/∂θ.

    A method that does not beat it gains nothing from depth. Running statistics of batch normalisation still move, as in any
    training, and so do weights under a decoupled weight decay. No variance. Cost: one forward pass, the readout's gradient.
    """

    need_push = False
    expectation, variance = "biased", 0.0

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return zeros, and the readout's gradient."""
        zeros = {name: torch.zeros_like(p) for name, p in self.net.named_parameters()}
        return repeat({**zeros, **trace.readout.pull(error)}, lead)
