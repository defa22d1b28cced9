"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.parts import (
    TORCH,
    DecorrelationRate,
    Share,
    Sizes,
    behind_decorrelation,
    dropout_share,
    initialise,
    linear_block,
    positive_sizes,
    require_bool,
    seeded,
)


def fully_connected(
    widths: Sequence[int],
    *,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    dropout: Share = 0.0,
    decorrelation: DecorrelationRate = None,
    initialisation: str = TORCH,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a fully connected network of blocks Linear(–BatchNorm)–activation(–Dropout) and a linear readout.

    Args:
        widths: input size, hidden widths, number of outputs: at least three positive integers.
        activation: "relu", "tanh" or "identity".
        batch_norm: put batch normalisation between each hidden linear layer and its activation.
        bias: whether the linear layers have biases, the readout's among them.
        dropout: share of each hidden block's outputs that a training step drops; the others grow by 1/(1 − dropout).
        decorrelation: put a layer that learns at this rate to decorrelate its input before every linear layer, the readout
            among them (`fdfa_core.networks.decorrelation.Decorrelation`); None puts none.
        initialisation: of all weights, the readout's among them: "torch" or a name in `parts.INITIALISATIONS`, such as
            "he_uniform", uniform on ±√(6/n_in).
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: fewer than two layers of weights, a width below one, or an option out of its range.
        UnknownName: unknown activation or initialisation.

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
    own = {"bias": require_bool("bias", bias), "dropout": dropout_share(dropout), "decorrelation": decorrelation}
    with seeded(seed):
        blocks = [linear_block(*pair, activation, batch_norm, **own) for pair in pairwise(widths[:-1])]
        readout = behind_decorrelation(nn.Linear(*widths[-2:], bias=bias), decorrelation)
        net = BlockNetwork(*blocks, readout, input_shape=widths[:1])
        initialise(net, initialisation)
        return net


def build_fully_connected(
    input_shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sizes,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    dropout: Share = 0.0,
    decorrelation: DecorrelationRate = None,
    initialisation: str = TORCH,
    seed: int | None = None,
) -> BlockNetwork:
    """Return `fully_connected` with the `hidden` widths for samples of `input_shape`, as the registry calls it."""
    hidden = positive_sizes("hidden", hidden)
    if not hidden:
        raise InvalidInput("hidden", hidden, "at least one positive integer: a network has two or more blocks")
    widths = [math.prod(input_shape), *hidden, outputs]
    options = {"bias": bias, "dropout": dropout, "decorrelation": decorrelation, "initialisation": initialisation}
    return fully_connected(widths, activation=activation, batch_norm=batch_norm, **options, seed=seed)
