"""What architectures are built from: activations, seeded initialisation, checked sizes, blocks.

Layers are initialised as torch initialises them (Kaiming uniform with a = √5: weights and biases uniform on ±1/√fan-in),
unless an initialisation is named (`INITIALISATIONS`), which then draws all weights; biases stay torch's. With
`seed` the weights depend only on that seed, and torch's global random stream stays as it was; without it they come
from the global stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.networks.blocks import Block
from fdfa_core.networks.decorrelation import Decorrelation

Sizes = Annotated[Sequence[Annotated[int, Field(ge=1)]], Field(description="a list of positive integers")]
SHARE = "a number in [0, 1), the share of units that a training step drops"
Share = Annotated[float, Field(ge=0, lt=1, description=SHARE)]
RATE = "None for no decorrelating layers, or their rate, a finite number of at least 0"
DecorrelationRate = Annotated[float | None, Field(ge=0, description=RATE)]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}

MOST_BLOCKS = 1000  # of a network: building more takes minutes
TORCH = "torch"  # the initialisation that torch's layers have by themselves
INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "he_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),  # uniform on ±√(6/n_in)
    "he_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # variance 2/n_in
    "lecun_normal": partial(nn.init.kaiming_normal_, nonlinearity="linear"),  # variance 1/n_in
    "xavier_uniform": nn.init.xavier_uniform_,  # uniform on ±√(6/(n_in + n_out))
    "xavier_normal": nn.init.xavier_normal_,  # variance 2/(n_in + n_out)
    "orthogonal": nn.init.orthogonal_,
}


def initialise(net: nn.Module, name: str) -> None:
    """Draw the weights of all linear and convolutional layers anew from torch's global stream; "torch" leaves them alone.

    Raises:
        UnknownName: unknown initialisation.
    """
    if name == TORCH:
        return
    if name not in INITIALISATIONS:
        raise UnknownName("initialisation", name, [TORCH, *INITIALISATIONS])
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            INITIALISATIONS[name](module.weight)


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


def behind_decorrelation(layer: nn.Linear, rate: float | None) -> nn.Module:
    """Return the layer behind one that decorrelates its input (`Decorrelation`), or without a rate the layer itself."""
    return layer if rate is None else nn.Sequential(Decorrelation(layer.in_features, rate), layer)


def dropout_share(value: object) -> float:
    """Return a share of units to drop; raises `InvalidInput` unless it is a number in [0, 1)."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise InvalidInput("dropout", value, SHARE)
    return float(value)


def require_bool(name: str, value: object) -> bool:
    """Return True or False; raises `InvalidInput` for anything else, which might be taken for either."""
    if not isinstance(value, bool):
        raise InvalidInput(name, value, "True or False")
    return value


def _ended(above: list[nn.Module], dropout: float) -> nn.Module:
    """Put the modules above a block's affine part together, dropout last."""
    above = above + ([nn.Dropout(dropout)] if dropout else [])
    return above[0] if len(above) == 1 else nn.Sequential(*above)


def linear_block(
    fan_in: int,
    fan_out: int,
    activation: str,
    batch_norm: bool,
    flatten: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    decorrelation: float | None = None,
) -> Block:
    """Return a fully connected block, which flattens its input first if asked to and ends in its dropout, if any."""
    affine = normalised(nn.Linear(fan_in, fan_out, bias=bias), batch_norm)
    if decorrelation is not None:
        affine = nn.Sequential(Decorrelation(fan_in, decorrelation), *(affine if batch_norm else [affine]))
    if flatten:
        affine = nn.Sequential(nn.Flatten(), *(affine if isinstance(affine, nn.Sequential) else [affine]))
    return Block(affine, _ended([make_activation(activation)], dropout))


def convolutional_block(
    convolution: nn.Conv2d, activation: str, batch_norm: bool, pool: nn.Module | None, dropout: float = 0.0
) -> Block:
    """Return a convolutional block; its pooling, if any, follows the activation, and dropout comes last."""
    above = [make_activation(activation)] + ([] if pool is None else [pool])
    return Block(normalised(convolution, batch_norm), _ended(above, dropout))


def positive_sizes(name: str, values: Sequence[int]) -> list[int]:
    """Return sizes as a list of positive integers; raises `InvalidInput` that names them otherwise."""
    if isinstance(values, str) or not isinstance(values, Iterable):  # text would pass for a list of its characters
        raise InvalidInput(name, values, "a list of positive integers")
    values = list(values)
    if len(values) > MOST_BLOCKS:
        raise InvalidInput(name, f"a list of {len(values)}", f"at most {MOST_BLOCKS} positive integers")
    if any(not isinstance(value, int) or isinstance(value, bool) or value < 1 for value in values):
        raise InvalidInput(name, values, "positive integers")
    return values


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of an image; raises `InvalidInput` for any other shape."""
    shape = tuple(positive_sizes("input_shape", input_shape))
    if len(shape) != 3:
        raise InvalidInput("input_shape", shape, "channels, height and width of an image, e.g. (1, 28, 28)")
    return shape
