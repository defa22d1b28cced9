"""Residual networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.parts import (
    MOST_BLOCKS,
    TORCH,
    Sizes,
    convolutional_block,
    image_shape,
    initialise,
    make_activation,
    normalised,
    positive_sizes,
    seeded,
)


class ResidualBlock(nn.Module):
    """h = ReLU(body(x) + shortcut(x)), with two 3 × 3 convolutions in the body (He et al. 2016, arXiv 1512.03385).

    Args:
        fan_in, fan_out: channels.
        stride: of the first convolution; where it or the channels change, the shortcut is a 1 × 1 convolution.
        batch_norm: normalise after every convolution.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1, batch_norm: bool = True):
        super().__init__()
        first = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1)
        second = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.body = nn.Sequential(normalised(first, batch_norm), nn.ReLU(), normalised(second, batch_norm))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = normalised(nn.Conv2d(fan_in, fan_out, 1, stride), batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, fan_in, H, W) to (N, fan_out, H/stride, W/stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def residual(
    input_shape: Sequence[int],
    outputs: int,
    *,
    channels: Sizes = (16, 32, 64),
    blocks_per_stage: int = 1,
    batch_norm: bool = True,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a residual network whose blocks are a convolutional stem and whole residual blocks (He et al. 2016).

    A residual block has only the "post" site: feedback enters after its sum and ReLU, and its inside is one local problem.
    The readout averages over positions.

    Args:
        input_shape: channels, height, width of one image.
        outputs: number of outputs.
        channels: of each stage; every stage but the first halves height and width.
        blocks_per_stage: residual blocks in a stage. With 3 × n blocks the network is ResNet-(6n + 2).
        batch_norm: normalise after every convolution.
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: a size below one.

    Examples:
        >>> from fdfa_core import residual
        >>> net = residual((1, 8, 8), 10, channels=(2, 4), seed=0)
        >>> net.site_shapes()
        [(2, 8, 8), (2, 8, 8), (4, 4, 4)]
    """
    fan_in, *_ = image_shape(input_shape)
    channels = positive_sizes("channels", channels)
    if not channels:
        raise InvalidInput("channels", channels, "one size per stage, at least one")
    positive_sizes("outputs, blocks_per_stage", (outputs, blocks_per_stage))
    with seeded(seed):
        stem = nn.Conv2d(fan_in, channels[0], 3, padding=1)
        blocks: list[nn.Module] = [convolutional_block(stem, "relu", batch_norm, None)]
        fan_in = channels[0]
        for stage, fan_out in enumerate(channels):
            for i in range(blocks_per_stage):
                blocks.append(ResidualBlock(fan_in, fan_out, 2 if stage and i == 0 else 1, batch_norm))
                fan_in = fan_out
        readout = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, outputs))
        return BlockNetwork(*blocks, readout, input_shape=input_shape)


class PreNormBlock(nn.Module):
    """h = x + W₂ act(W₁ LN(x) + b₁) + b₂: a residual block of a perceptron, normalised before its weights.

    Nothing bounds h itself: what a block adds stays in the sum, and only the next block's LayerNorm takes the scale away.

    Args:
        width: of x and h.
        inner: units between W₁ and W₂.
        activation: "relu", "tanh" or "identity".
    """

    def __init__(self, width: int, inner: int, activation: str = "relu"):
        super().__init__()
        first, second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.body = nn.Sequential(nn.LayerNorm(width), first, make_activation(activation), second)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to (N, width)."""
        return x + self.body(x)


def residual_mlp(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 256,
    blocks: int = 4,
    mlp_ratio: int = 1,
    activation: str = "relu",
    initialisation: str = TORCH,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a pre-norm residual perceptron: a linear embedding, residual blocks, and a readout behind a last LayerNorm.

    Hidden block 0 is the embedding h₀ = W x + b, and the others are `PreNormBlock`. All have only the "post" site: feedback
    enters after the sum. The scale of the stream h_l may grow without bound, and the last LayerNorm divides the gradient by
    it, so that the true gradient of the hidden blocks can vanish while the outputs stay as they are.

    The kind of network is that of the evaluation protocol of arXiv 2606.21126: pre-norm, four blocks, 256 wide, an embedding
    below and a last LayerNorm. That is second hand, from its authors' public notes; of its blocks, the activation, the inner
    width and the initialisation could not be read, and are choices of this project.

    Args:
        input_shape: shape of one sample, which is flattened.
        outputs: number of outputs.
        width: of the embedding and of every block's output.
        blocks: number of residual blocks; the network has one hidden block more, the embedding.
        mlp_ratio: units inside a block over `width`.
        activation: "relu", "tanh" or "identity".
        initialisation: of all weights: "torch" or a name in `parts.INITIALISATIONS`.
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: a size below one.
        UnknownName: unknown activation or initialisation.

    Examples:
        >>> from fdfa_core import residual_mlp
        >>> net = residual_mlp((1, 8, 8), 10, width=6, blocks=2, seed=0)
        >>> net.site_shapes()
        [(6,), (6,), (6,)]
    """
    shape = positive_sizes("input_shape", input_shape)
    width, blocks, mlp_ratio, outputs = (
        positive_sizes(name, [value])[0]
        for name, value in {"width": width, "blocks": blocks, "mlp_ratio": mlp_ratio, "outputs": outputs}.items()
    )
    if blocks > MOST_BLOCKS:
        raise InvalidInput("blocks", blocks, f"at most {MOST_BLOCKS}")
    with seeded(seed):
        hidden: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))]
        hidden += [PreNormBlock(width, mlp_ratio * width, activation) for _ in range(blocks)]
        readout = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        net = BlockNetwork(*hidden, readout, input_shape=shape)
        initialise(net, initialisation)
        return net
