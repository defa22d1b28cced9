"""Convolutional networks, AlexNet among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.parts import (
    TORCH,
    Share,
    Sizes,
    convolutional_block,
    dropout_share,
    image_shape,
    initialise,
    linear_block,
    positive_sizes,
    require_bool,
    seeded,
)

CONVOLUTIONAL_VARIANTS: dict[str, tuple[bool, ...]] = {"cnn": (True, True), "cnn-released": (False, True)}


def convolutional(
    input_shape: Sequence[int],
    outputs: int,
    *,
    variant: str = "cnn",
    channels: Sizes = (15, 40),
    hidden: Sizes = (128,),
    kernel_size: int = 5,
    padding: int = 0,
    activation: str = "relu",
    batch_norm: bool = True,
    bias: bool = True,
    dropout: Share = 0.0,
    initialisation: str = TORCH,
    seed: int | None = None,
) -> BlockNetwork:
    """Return the convolutional network of Bacho & Chu: two convolutional blocks, one fully connected block, a readout.

    Each hidden block is affine–BatchNorm–activation. If a block has 2 × 2 max pooling, the pooling ends the block, and a signal
    at the "post" site enters after it.

    Args:
        input_shape: channels, height, width of one image.
        outputs: number of outputs.
        variant: "cnn" is 15C5–P2–40C5–P2–128–outputs, as the paper's text has it; "cnn-released" is
            15C5–40C5–P2–128–outputs, as the authors' code has it: one pooling, after the second convolution.
        channels: of the two convolutions.
        hidden: widths of the fully connected hidden blocks.
        kernel_size: of the convolutions.
        padding: of the convolutions; the paper has none.
        activation: "relu", "tanh" or "identity".
        batch_norm: normalise every hidden block.
        bias, dropout, initialisation: as in `fully_connected`; dropout ends every hidden block, after its pooling.
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: an image too small for the layers, a size below one, or an option out of its range.
        UnknownName: unknown variant, activation or initialisation.

    Examples:
        >>> from fdfa_core import convolutional
        >>> net = convolutional((1, 16, 16), 10, channels=(2, 3), hidden=(8,), seed=0)
        >>> net.site_shapes()
        [(2, 6, 6), (3, 1, 1), (8,)]
    """
    if variant not in CONVOLUTIONAL_VARIANTS:
        raise UnknownName("variant", variant, CONVOLUTIONAL_VARIANTS)
    pools, (fan_in, height, width) = CONVOLUTIONAL_VARIANTS[variant], image_shape(input_shape)
    channels, hidden = positive_sizes("channels", channels), positive_sizes("hidden", hidden)
    positive_sizes("outputs, kernel_size", (outputs, kernel_size))
    bias, dropout = require_bool("bias", bias), dropout_share(dropout)
    if len(channels) != len(pools):
        raise InvalidInput("channels", channels, f"{len(pools)} sizes, one per convolution")
    with seeded(seed):
        blocks: list[nn.Module] = []
        for fan_out, pool in zip(channels, pools, strict=True):
            convolution = nn.Conv2d(fan_in, fan_out, kernel_size, padding=padding, bias=bias)
            pooling = nn.MaxPool2d(2) if pool else None
            blocks.append(convolutional_block(convolution, activation, batch_norm, pooling, dropout))
            shrink = kernel_size - 1 - 2 * padding
            height, width, fan_in = (height - shrink) // (1 + pool), (width - shrink) // (1 + pool), fan_out
        if height < 1 or width < 1:
            raise InvalidInput(
                "input_shape",
                tuple(input_shape),
                f"images that kernels of {kernel_size} and the poolings leave a pixel of",
                "A smaller kernel_size, or padding = kernel_size // 2, serves small images.",
            )
        widths = [fan_in * height * width, *hidden]
        blocks += [
            linear_block(*pair, activation, batch_norm, flatten=i == 0, bias=bias, dropout=dropout)
            for i, pair in enumerate(pairwise(widths))
        ]
        readout = nn.Linear(widths[-1], outputs, bias=bias)
        net = BlockNetwork(*blocks, readout if hidden else nn.Sequential(nn.Flatten(), readout), input_shape=input_shape)
        initialise(net, initialisation)
        return net


# Image size → kernel, stride and padding of the first convolution, and size of the poolings (their stride is 2)
ALEXNET_STEMS = {224: (11, 4, 2, 3), 64: (5, 2, 2, 3), 32: (3, 2, 1, 2)}


def alexnet(
    outputs: int,
    input_size: int = 224,
    *,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    seed: int | None = None,
) -> BlockNetwork:
    """Return AlexNet, 64-192-384-256-256-4096-4096-outputs, with batch normalisation everywhere and no dropout.

    Layers are those of the one-tower network (Krizhevsky 2014, arXiv 1404.5997); a block is convolution–BatchNorm–ReLU and the
    pooling where there is one (blocks 1, 2 and 5), so that a signal at the "post" site enters after the pooling, as in the
    released code of Bacho & Chu. For 64 and 32 px the first convolution and the poolings shrink (see `ALEXNET_STEMS`), which
    leaves a 3 × 3 and a 2 × 2 grid instead of 6 × 6 before the fully connected blocks.

    Args:
        outputs: number of outputs.
        input_size: height and width of the images: 224, 64 or 32.
        channels: of the images.
        width: multiplies all hidden sizes; 1 is AlexNet.
        batch_norm: normalise every hidden block.
        seed: of the initial weights; None draws them from torch's global stream.

    Raises:
        InvalidInput: another image size, or a size below one.
    """
    if input_size not in ALEXNET_STEMS:
        raise InvalidInput("input_size", input_size, " or ".join(map(str, ALEXNET_STEMS)) + " pixels")
    if not width > 0:
        raise InvalidInput("width", width, "a positive number")
    positive_sizes("outputs, channels", (outputs, channels))
    kernel, stride, padding, pooling = ALEXNET_STEMS[input_size]
    sizes = [max(1, round(n * width)) for n in (64, 192, 384, 256, 256, 4096, 4096)]
    # fan-in, kernel, stride, padding, pooling of each convolution
    layers = [(channels, kernel, stride, padding, True), (sizes[0], 5, 1, 2, True)]
    layers += [(sizes[1], 3, 1, 1, False), (sizes[2], 3, 1, 1, False), (sizes[3], 3, 1, 1, True)]
    with seeded(seed):
        blocks: list[nn.Module] = []
        grid = input_size
        for (fan_in, kernel, stride, padding, pool), fan_out in zip(layers, sizes[:5], strict=True):
            convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, padding)
            blocks.append(convolutional_block(convolution, "relu", batch_norm, nn.MaxPool2d(pooling, 2) if pool else None))
            grid = (grid + 2 * padding - kernel) // stride + 1
            grid = (grid - pooling) // 2 + 1 if pool else grid
        widths = [sizes[4] * grid * grid, *sizes[5:]]
        blocks += [linear_block(*pair, "relu", batch_norm, flatten=i == 0) for i, pair in enumerate(pairwise(widths))]
        return BlockNetwork(*blocks, nn.Linear(widths[-1], outputs), input_shape=(channels, input_size, input_size))


def build_alexnet(
    input_shape: Sequence[int], outputs: int, *, width: float = 1.0, batch_norm: bool = True, seed: int | None = None
) -> BlockNetwork:
    """Return `alexnet` for square images of `input_shape`, as the registry calls it."""
    channels, height, breadth = image_shape(input_shape)
    if height != breadth:
        raise InvalidInput("input_shape", tuple(input_shape), "square images")
    return alexnet(outputs, height, channels=channels, width=width, batch_norm=batch_norm, seed=seed)
