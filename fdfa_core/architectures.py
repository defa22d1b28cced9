"""Architectures as functions that return a `BlockNetwork`.

Layers are initialised as torch initialises them (Kaiming uniform with a = √5: weights and biases uniform on ±1/√fan-in). With
`seed` the weights are a function of that seed alone and torch's global random stream stays as it was; without it they come
from the global stream.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import Parameter, signature
from itertools import pairwise

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.network import Block, BlockNetwork

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}


def make_activation(name: str) -> nn.Module:
    """Return a new activation module by name; raises `UnknownName` otherwise."""
    if name not in ACTIVATIONS:
        raise UnknownName("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def fully_connected(
    widths: Sequence[int], *, activation: str = "relu", batch_norm: bool = False, seed: int | None = None
) -> BlockNetwork:
    """Return a fully connected network of blocks Linear(–BatchNorm)–activation and a linear readout.

    Args:
        widths: input size, hidden widths, number of outputs: at least three positive integers.
        activation: "relu", "tanh" or "identity".
        batch_norm: put batch normalisation between each hidden linear layer and its activation.
        seed: see the module.

    Raises:
        InvalidInput: fewer than two layers of weights, or a width below one.
        UnknownName: unknown activation.
    """
    widths = _sizes("widths", widths)
    if len(widths) < 3:
        accepted = "at least three positive integers (input, hidden …, outputs): a network has two or more blocks"
        raise InvalidInput("widths", widths, accepted)
    with seeded(seed):
        blocks = [_linear_block(*pair, activation, batch_norm) for pair in pairwise(widths[:-1])]
        return BlockNetwork(*blocks, nn.Linear(*widths[-2:]), input_shape=widths[:1])


CONVOLUTIONAL_VARIANTS: dict[str, tuple[bool, ...]] = {"cnn": (True, True), "cnn-released": (False, True)}


def convolutional(
    input_shape: Sequence[int],
    outputs: int,
    *,
    variant: str = "cnn",
    channels: Sequence[int] = (15, 40),
    hidden: Sequence[int] = (128,),
    kernel_size: int = 5,
    padding: int = 0,
    activation: str = "relu",
    batch_norm: bool = True,
    seed: int | None = None,
) -> BlockNetwork:
    """Return the convolutional network of Bacho & Chu: two convolutional blocks, one fully connected block, a readout.

    Each hidden block is affine–BatchNorm–activation; 2 × 2 max pooling, where there is one, ends its block, so that a signal at
    the "post" site enters after the pooling.

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
        seed: see the module.

    Raises:
        InvalidInput: an image too small for the layers, or a size below one.
        UnknownName: unknown variant or activation.
    """
    if variant not in CONVOLUTIONAL_VARIANTS:
        raise UnknownName("variant", variant, CONVOLUTIONAL_VARIANTS)
    pools, (fan_in, height, width) = CONVOLUTIONAL_VARIANTS[variant], _image(input_shape)
    channels, hidden = _sizes("channels", channels), _sizes("hidden", hidden)
    _sizes("outputs, kernel_size", (outputs, kernel_size))
    if len(channels) != len(pools):
        raise InvalidInput("channels", channels, f"{len(pools)} sizes, one per convolution")
    with seeded(seed):
        blocks: list[nn.Module] = []
        for fan_out, pool in zip(channels, pools, strict=True):
            convolution = nn.Conv2d(fan_in, fan_out, kernel_size, padding=padding)
            blocks.append(_convolutional_block(convolution, activation, batch_norm, nn.MaxPool2d(2) if pool else None))
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
        blocks += [_linear_block(*pair, activation, batch_norm, flatten=i == 0) for i, pair in enumerate(pairwise(widths))]
        readout = nn.Linear(widths[-1], outputs)
        return BlockNetwork(*blocks, readout if hidden else nn.Sequential(nn.Flatten(), readout), input_shape=input_shape)


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
        seed: see the module.

    Raises:
        InvalidInput: another image size, or a size below one.
    """
    if input_size not in ALEXNET_STEMS:
        raise InvalidInput("input_size", input_size, " or ".join(map(str, ALEXNET_STEMS)) + " pixels")
    if not width > 0:
        raise InvalidInput("width", width, "a positive number")
    _sizes("outputs, channels", (outputs, channels))
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
            blocks.append(_convolutional_block(convolution, "relu", batch_norm, nn.MaxPool2d(pooling, 2) if pool else None))
            grid = (grid + 2 * padding - kernel) // stride + 1
            grid = (grid - pooling) // 2 + 1 if pool else grid
        widths = [sizes[4] * grid * grid, *sizes[5:]]
        blocks += [_linear_block(*pair, "relu", batch_norm, flatten=i == 0) for i, pair in enumerate(pairwise(widths))]
        return BlockNetwork(*blocks, nn.Linear(widths[-1], outputs), input_shape=(channels, input_size, input_size))


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
        self.body = nn.Sequential(_normalised(first, batch_norm), nn.ReLU(), _normalised(second, batch_norm))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = _normalised(nn.Conv2d(fan_in, fan_out, 1, stride), batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, fan_in, H, W) to (N, fan_out, H/stride, W/stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def residual(
    input_shape: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (16, 32, 64),
    blocks_per_stage: int = 1,
    batch_norm: bool = True,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a residual network whose blocks are a convolutional stem and whole residual blocks (He et al. 2016).

    A residual block has the "post" site alone: feedback enters after its sum and ReLU, and its inside is one local problem.
    The readout averages over positions.

    Args:
        input_shape: channels, height, width of one image.
        outputs: number of outputs.
        channels: of each stage; every stage but the first halves height and width.
        blocks_per_stage: residual blocks in a stage. With 3 × n blocks the network is ResNet-(6n + 2).
        batch_norm: normalise after every convolution.
        seed: see the module.

    Raises:
        InvalidInput: a size below one.
    """
    fan_in, *_ = _image(input_shape)
    channels = _sizes("channels", channels)
    if not channels:
        raise InvalidInput("channels", channels, "one size per stage, at least one")
    _sizes("outputs, blocks_per_stage", (outputs, blocks_per_stage))
    with seeded(seed):
        stem = nn.Conv2d(fan_in, channels[0], 3, padding=1)
        blocks: list[nn.Module] = [_convolutional_block(stem, "relu", batch_norm, None)]
        fan_in = channels[0]
        for stage, fan_out in enumerate(channels):
            for i in range(blocks_per_stage):
                blocks.append(ResidualBlock(fan_in, fan_out, 2 if stage and i == 0 else 1, batch_norm))
                fan_in = fan_out
        readout = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, outputs))
        return BlockNetwork(*blocks, readout, input_shape=input_shape)


class PatchEmbedding(nn.Module):
    """Cut an image into patches, map each linearly to a token, add a learnt position (Dosovitskiy et al. 2021).

    Args:
        input_shape: channels, height, width.
        patch: side of a square patch.
        dimension: of a token.
    """

    def __init__(self, input_shape: Sequence[int], patch: int, dimension: int):
        super().__init__()
        channels, height, width = input_shape
        self.projection = nn.Conv2d(channels, dimension, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((height // patch) * (width // patch), dimension))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to tokens (N, T, dimension)."""
        return self.projection(x).flatten(2).transpose(1, 2) + self.position


class AttentionBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x): a pre-norm transformer block (Vaswani et al. 2017, Xiong et al. 2020).

    Args:
        dimension: of a token.
        heads: of the attention; divides the dimension.
        mlp_ratio: hidden width of the mlp over the dimension.
    """

    def __init__(self, dimension: int, heads: int, mlp_ratio: int = 2):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.qkv, self.projection = nn.Linear(dimension, 3 * dimension), nn.Linear(dimension, dimension)
        inner = mlp_ratio * dimension
        self.mlp = nn.Sequential(nn.Linear(dimension, inner), nn.GELU(), nn.Linear(inner, dimension))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, dimension) to tokens."""
        x = x + self.projection(self.attention(self.attention_norm(x)))
        return x + self.mlp(self.mlp_norm(x))

    def attention(self, x: Tensor) -> Tensor:
        """Return softmax(q kᵀ/√d) v of every head, side by side."""
        # written out: torch's fused attention has no forward-mode derivative
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


class TokenMean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, dimension) to (N, dimension)."""
        return x.mean(1)


def transformer(
    input_shape: Sequence[int],
    outputs: int,
    *,
    patch: int = 2,
    dimension: int = 32,
    heads: int = 2,
    depth: int = 2,
    mlp_ratio: int = 2,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a small vision transformer: patch embedding, attention blocks, and a readout of the normalised token mean.

    Its blocks have the "post" site alone, whose shape is (tokens, dimension).

    Args:
        input_shape: channels, height, width of one image.
        outputs: number of outputs.
        patch: side of a square patch; divides height and width.
        dimension: of a token.
        heads: of the attention; divides the dimension.
        depth: number of attention blocks.
        mlp_ratio: hidden width of a block's mlp over the dimension.
        seed: see the module. Positions are drawn from N(0, 0.02²).

    Raises:
        InvalidInput: a patch that does not divide the image, heads that do not divide the dimension, a size below one.
    """
    image = _image(input_shape)
    _sizes("outputs, patch, dimension, heads, depth, mlp_ratio", (outputs, patch, dimension, heads, depth, mlp_ratio))
    if image[1] % patch or image[2] % patch:
        raise InvalidInput("patch", patch, f"a divisor of the image's height and width {image[1:]}")
    if dimension % heads:
        raise InvalidInput("heads", heads, f"a divisor of the dimension {dimension}")
    with seeded(seed):
        blocks = [PatchEmbedding(image, patch, dimension)]
        blocks += [AttentionBlock(dimension, heads, mlp_ratio) for _ in range(depth)]
        readout = nn.Sequential(nn.LayerNorm(dimension), TokenMean(), nn.Linear(dimension, outputs))
        return BlockNetwork(*blocks, readout, input_shape=image)


def _build_fully_connected(input_shape, outputs, *, hidden, activation="relu", batch_norm=False, seed=None):
    hidden = _sizes("hidden", hidden)
    if not hidden:
        raise InvalidInput("hidden", hidden, "at least one positive integer: a network has two or more blocks")
    widths = [math.prod(input_shape), *hidden, outputs]
    return fully_connected(widths, activation=activation, batch_norm=batch_norm, seed=seed)


def _build_alexnet(input_shape, outputs, *, width=1.0, batch_norm=True, seed=None):
    channels, height, breadth = _image(input_shape)
    if height != breadth:
        raise InvalidInput("input_shape", tuple(input_shape), "square images")
    return alexnet(outputs, height, channels=channels, width=width, batch_norm=batch_norm, seed=seed)


ARCHITECTURES: dict[str, Callable[..., BlockNetwork]] = {
    "fully_connected": _build_fully_connected,
    "convolutional": convolutional,
    "alexnet": _build_alexnet,
    "residual": residual,
    "transformer": transformer,
}


def architecture_options(architecture: str) -> dict[str, object]:
    """Return an architecture's options and their defaults (`inspect.Parameter.empty` where there is none).

    Raises:
        UnknownName: unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
    parameters = signature(ARCHITECTURES[architecture]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name != "seed"}


def build(architecture: str, input_shape: Sequence[int], outputs: int, *, seed: int | None = None, **options) -> BlockNetwork:
    """Return a registered architecture for samples of `input_shape` and `outputs` classes.

    Raises:
        UnknownName: unknown architecture or option.
        InvalidInput: an option without default is missing, or an impossible value.
    """
    known = architecture_options(architecture)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {architecture}", option, known)
    for option, default in known.items():
        if default is Parameter.empty and option not in options:
            raise InvalidInput(f"{option} of {architecture}", "nothing", f"a value for {option}; it has no default")
    return ARCHITECTURES[architecture](tuple(input_shape), outputs, seed=seed, **options)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global streams inside a `with` and restore them after; do nothing for None."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _normalised(layer: nn.Linear | nn.Conv2d, batch_norm: bool) -> nn.Module:
    if not batch_norm:
        return layer
    if isinstance(layer, nn.Linear):
        return nn.Sequential(layer, nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))


def _linear_block(fan_in: int, fan_out: int, activation: str, batch_norm: bool, flatten: bool = False) -> Block:
    affine = _normalised(nn.Linear(fan_in, fan_out), batch_norm)
    if flatten:
        affine = nn.Sequential(nn.Flatten(), *(affine if batch_norm else [affine]))
    return Block(affine, make_activation(activation))


def _convolutional_block(convolution: nn.Conv2d, activation: str, batch_norm: bool, pool: nn.Module | None) -> Block:
    above = make_activation(activation)
    return Block(_normalised(convolution, batch_norm), above if pool is None else nn.Sequential(above, pool))


def _sizes(name: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Iterable):  # text would pass for a list of its characters
        raise InvalidInput(name, values, "a list of positive integers")
    values = list(values)
    if any(not isinstance(value, int) or isinstance(value, bool) or value < 1 for value in values):
        raise InvalidInput(name, values, "positive integers")
    return values


def _image(input_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(_sizes("input_shape", input_shape))
    if len(shape) != 3:
        raise InvalidInput("input_shape", shape, "channels, height and width of an image, e.g. (1, 28, 28)")
    return shape
