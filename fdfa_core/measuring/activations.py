"""How large the values are that pass from block to block."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, plain_parameters
from fdfa_core.networks.batch import packed
from fdfa_core.networks.blocks import BlockNetwork, require_samples
from fdfa_core.random_state import preserve_random_stream


class _Hidden(nn.Module):
    """A network called for the outputs of its hidden blocks, which are views of the same parameters and buffers."""

    def __init__(self, net: BlockNetwork):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return h₁, h₂, … (N, …) of a batch (N, …)."""
        outputs = []
        for i, block in enumerate(self.net.hidden):
            x = require_samples(block(x), len(x), i, block)
            outputs.append(x)
        return outputs


def activation_rms(net: BlockNetwork, batches: Iterable[Tensor]) -> list[float]:
    """Return the root mean square of every hidden block's output, over all samples and units: √(E ‖h_l‖² ÷ units).

    In contrast to ‖h_l‖ it does not grow with the width of a block or the size of a batch. Each batch passes alone and in the
    network's own mode, as it does for the reference gradient: normalisation uses the batch's statistics in training mode, and
    dropout drops. Running statistics, parameters, modes and random streams stay as they are.

    Args:
        net: the network.
        batches: inputs (N, …) of each batch; the batches may differ in N.

    Returns:
        One number per hidden block, in the units of the block's output, computed from sums in float64.

    Raises:
        InvalidInput: no batch.
        Unsupported: a block that does not map N samples to N samples.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> from fdfa_core.measuring.activations import activation_rms
        >>> net, x = fully_connected([4, 6, 5, 3], seed=0), torch.linspace(-1, 1, 32).view(8, 4)
        >>> [round(value, 3) for value in activation_rms(net, x.split(4))]
        [0.253, 0.194]
    """
    squares, numbers = [0.0] * (len(net) - 1), [0] * (len(net) - 1)
    given, called, device = None, _Hidden(net), next(net.parameters()).device
    parameters = {f"net.{name}": value for name, value in plain_parameters(net).items()}
    for x in batches:
        given = packed(net, x).to(device)
        buffers = {f"net.{name}": value.clone() for name, value in net.named_buffers()}
        with torch.no_grad(), preserve_random_stream(device, net, host=True), as_written():
            outputs = functional_call(called, {**parameters, **buffers}, (given,))
        for i, h in enumerate(outputs):
            squares[i] += float(torch.linalg.vector_norm(h, dtype=torch.float64).square())
            numbers[i] += h.numel()
    if given is None:
        raise InvalidInput("batches", [], "at least one batch of inputs")
    return [math.sqrt(total / max(1, count)) for total, count in zip(squares, numbers, strict=True)]
