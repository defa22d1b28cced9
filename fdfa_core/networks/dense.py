"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.parts import Sizes, linear_block, positive_sizes, seeded


def fully_connected(
    widths: Sequence[int], *, activation: str = "relu", batch_norm: bool = False, seed: int | None = None
) -> BlockNetwork:
    """Return a fully connected network of blocks Linear(–BatchNorm)–activation and a linear readout.

    Args:
        widths: input size, hidden widths, number of outputs: at least three positive integers.
        activation: "relu", "tanh" or "identity".
        batch_norm: put batch normalisation between each hidden linear layer and its activation.
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: fewer than two layers of weights, or a width below one.
        UnknownName: unknown activation.

    Examples:
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> [name for name, _ in net.named_parameters()]
        ['0.affine.weight', '0.affine.bias', '1.weight', '1.bias']
    """
    widths = positive_sizes("widths", widths)
    if len(widths) < 3:
        accepted = "at least three positive integers (input, hidden …, outputs): a network has two or more blocks"
        raise InvalidInput("widths", widths, accepted)
    with seeded(seed):
        blocks = [linear_block(*pair, activation, batch_norm) for pair in pairwise(widths[:-1])]
        return BlockNetwork(*blocks, nn.Linear(*widths[-2:]), input_shape=widths[:1])


def build_fully_connected(
    input_shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sizes,
    activation: str = "relu",
    batch_norm: bool = False,
    seed: int | None = None,
) -> BlockNetwork:
    """Return `fully_connected` with the `hidden` widths for samples of `input_shape`, as the registry calls it."""
    hidden = positive_sizes("hidden", hidden)
    if not hidden:
        raise InvalidInput("hidden", hidden, "at least one positive integer: a network has two or more blocks")
    widths = [math.prod(input_shape), *hidden, outputs]
    return fully_connected(widths, activation=activation, batch_norm=batch_norm, seed=seed)
