"""Backpropagation: the reference."""

from __future__ import annotations

import torch

from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.registry import register
from fdfa_core.gradients import true_gradient
from fdfa_core.networks.batch import check_batch


@register("bp")
class Backpropagation(Estimator):
    r"""Reverse-mode automatic differentiation through the whole network: g = ∇ℓ (Rumelhart, Hinton & Williams 1986).

    Expectation: the batch gradient itself. Variance given the batch: zero. Cost: one forward and one backward pass.
    """

    def backward(self, x, y):
        """One plain training step: the network is called as any torch module."""
        x, y = check_batch(self.net, x, y)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        with torch.enable_grad():
            loss = self.loss(self.net(x), y)
            values = torch.autograd.grad(loss, trained, materialize_grads=True, allow_unused=True) if trained else ()
        gradients = dict(zip(trained, values, strict=True))
        for parameter in self.net.parameters():
            parameter.grad = gradients.get(parameter)
        return loss.detach()

    def estimate(self, x, y):
        """Return the batch gradient."""
        return true_gradient(self.net, x, y, self.loss)

    def draws(self, x, y, replicates, *, replica=None):
        """Return the batch gradient R times, without copying."""
        return repeat(self.estimate(x, y), (replicates,))

    def gradients(self, trace, error, targets, lead):
        """Backpropagation cannot be written block by block; `estimate` and `backward` stand for it."""
        raise NotImplementedError
