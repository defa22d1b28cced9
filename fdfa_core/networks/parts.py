"""What architectures are built from: activations, seeded initialisation, checked sizes, blocks.

Layers are initialised as torch initialises them (Kaiming uniform with a = √5: weights and biases uniform on ±1/√fan-in). With
`seed` the weights depend only on that seed, and torch's global random stream stays as it was; without it they come
from the global stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.networks.blocks import Block

Sizes = Annotated[Sequence[Annotated[int, Field(ge=1)]], Field(description="a list of positive integers")]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}


def make_activation(name: str) -> nn.Module:
    """Return a new activation module by name; raises `UnknownName` otherwise."""
    if name not in ACTIVATIONS:
        raise UnknownName("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global streams inside a `with` and restore them after; do nothing for None."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def normalised(layer: nn.Linear | nn.Conv2d, batch_norm: bool) -> nn.Module:
    """Return the layer, followed by batch normalisation if asked for."""
    if not batch_norm:
        return layer
    if isinstance(layer, nn.Linear):
        return nn.Sequential(layer, nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))


def linear_block(fan_in: int, fan_out: int, activation: str, batch_norm: bool, flatten: bool = False) -> Block:
    """Return a fully connected block, which flattens its input first if asked to."""
    affine = normalised(nn.Linear(fan_in, fan_out), batch_norm)
    if flatten:
        affine = nn.Sequential(nn.Flatten(), *(affine if batch_norm else [affine]))
    return Block(affine, make_activation(activation))


def convolutional_block(convolution: nn.Conv2d, activation: str, batch_norm: bool, pool: nn.Module | None) -> Block:
    """Return a convolutional block; its pooling, if any, follows the activation."""
    above = make_activation(activation)
    return Block(normalised(convolution, batch_norm), above if pool is None else nn.Sequential(above, pool))


def positive_sizes(name: str, values: Sequence[int]) -> list[int]:
    """Return sizes as a list of positive integers; raises `InvalidInput` that names them otherwise."""
    if isinstance(values, str) or not isinstance(values, Iterable):  # text would pass for a list of its characters
        raise InvalidInput(name, values, "a list of positive integers")
    values = list(values)
    if any(not isinstance(value, int) or isinstance(value, bool) or value < 1 for value in values):
        raise InvalidInput(name, values, "positive integers")
    return values


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of an image; raises `InvalidInput` for any other shape."""
    shape = tuple(positive_sizes("input_shape", input_shape))
    if len(shape) != 3:
        raise InvalidInput("input_shape", shape, "channels, height and width of an image, e.g. (1, 28, 28)")
    return shape
