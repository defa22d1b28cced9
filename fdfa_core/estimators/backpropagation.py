"""Backpropagation: the reference."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fdfa_core.estimators import consistency
from fdfa_core.estimators.base import Estimator, repeat, require_replicates
from fdfa_core.estimators.registry import register
from fdfa_core.gradients import gradients_of, true_gradient
from fdfa_core.linearisation.calls import as_written
from fdfa_core.networks.batch import explained
from fdfa_core.networks.blocks import require_samples
from fdfa_core.networks.served import require_served


@register("bp")
class Backpropagation(Estimator):
    r"""Reverse-mode automatic differentiation through the whole network: g = ∇ℓ (Rumelhart, Hinton & Williams 1986).

    Expectation: the batch gradient itself. Variance given the batch: zero. Cost: one forward and one backward pass.

    With `checkpoint`, `backward` keeps the inputs of the hidden blocks alone, and computes what is inside each block once more
    when its turn comes (Chen et al. 2016, arXiv 1604.06174). The gradients are the same. The cost is a second forward pass
    through the hidden blocks, for less memory: the rival of methods that need no backward pass.

    Args:
        checkpoint: compute the hidden blocks once more in place of keeping what is inside them.
    """

    blockwise = False
    expectation, variance = "gradient", 0.0

    def __init__(self, net, *, checkpoint: bool = False, **common):
        super().__init__(net, **common)
        self.checkpoint = checkpoint

    def backward(self, x, y):
        """One plain training step: the network is called as any torch module."""
        x, y, parameters = self.admit(x, y)
        trained = [p for _, p in parameters if p.requires_grad]
        hooked = any([p._backward_hooks or p._post_accumulate_grad_hooks for p in trained])
        with torch.enable_grad(), as_written(compiled=True, recomputed=True):
            with explained(self.net, x):
                outputs = self._recomputing(x) if self.checkpoint else self.net(x)
            loss = self.loss(outputs, y)
            for _, parameter in parameters:
                parameter.grad = None  # the new gradients take the old ones' memory, still warm in the cache
            if hooked and loss.requires_grad:
                loss.backward(inputs=trained)  # writes gradients, and calls the hooks on the way
                return loss.detach()
            values = gradients_of(loss, trained, sparse=True) if trained else ()
        gradients = dict(zip(trained, values, strict=True))
        for _, parameter in parameters:
            parameter.grad = gradients.get(parameter)
        return loss.detach()

    def _recomputing(self, x: Tensor) -> Tensor:
        """Return the outputs, with nothing kept of the hidden blocks but their inputs."""
        *hidden, readout = self.net
        for i, block in enumerate(hidden):
            contexts = functools.partial(_contexts, block)
            x = require_samples(checkpoint(block, x, use_reentrant=False, context_fn=contexts), len(x), i, block)
        return require_samples(readout(x), len(x), len(hidden), readout)

    def meet(self, x, y):
        """Look whether the loss is a function of the outputs only, as it must be for the other methods."""
        require_served(self.net)
        if self.check and consistency.enabled():
            consistency.check_loss(self.net, x, y, self.loss)

    def estimate(self, x, y):
        """Return the batch gradient."""
        self.admit(x, y)
        return true_gradient(self.net, x, y, self.loss)

    def draws(self, x, y, replicates, *, replica=None):
        """Return the batch gradient R times, without copying."""
        require_replicates(replicates)
        return repeat(self.estimate(x, y), (replicates,))

    def gradients(self, trace, error, targets, lead):
        """Backpropagation cannot be written block by block; `estimate` and `backward` stand for it."""
        raise NotImplementedError


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Return the contexts in which a block computes at first, and in the backward pass."""
    modules = [module for module in block.modules() if module._buffers]
    first = [{name: None if value is None else value.clone() for name, value in module._buffers.items()} for module in modules]
    return contextlib.nullcontext(), _again(modules, first)


@contextlib.contextmanager
def _again(modules: list[nn.Module], first: list[dict[str, Tensor | None]]) -> Iterator[None]:
    """Let modules compute the same once more inside a `with`, from the buffers that they had at first.

    Their own, which have moved already, come back behind it. What a layer computes may depend on them (`Decorrelation`).
    """
    held = [dict(module._buffers) for module in modules]
    for module, buffers in zip(modules, first, strict=True):
        module._buffers.update(buffers)
    try:
        yield
    finally:
        for module, buffers in zip(modules, held, strict=True):
            module._buffers.update(buffers)
