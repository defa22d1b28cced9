"""Architectures as functions that return a `BlockNetwork`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

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
        seed: initialise from this seed and leave torch's global random stream as it was; None draws from the global one.

    Raises:
        InvalidInput: fewer than two layers of weights, or a width below one.
        UnknownName: unknown activation.
    """
    widths = list(widths)
    if len(widths) < 3 or any(not isinstance(w, int) or isinstance(w, bool) or w < 1 for w in widths):
        raise InvalidInput(
            "widths", widths, "at least three positive integers (input, hidden …, outputs): a network has two or more blocks"
        )
    with _seeded(seed):
        blocks: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths[:-1]):
            linear = nn.Linear(fan_in, fan_out)
            affine = nn.Sequential(linear, nn.BatchNorm1d(fan_out)) if batch_norm else linear
            blocks.append(Block(affine, make_activation(activation)))
        blocks.append(nn.Linear(widths[-2], widths[-1]))
        return BlockNetwork(*blocks, input_shape=(widths[0],))


def _build_fully_connected(input_shape, outputs, *, hidden, activation="relu", batch_norm=False, seed=None):
    size = 1
    for n in input_shape:
        size *= n
    return fully_connected([size, *hidden, outputs], activation=activation, batch_norm=batch_norm, seed=seed)


ARCHITECTURES: dict[str, Callable[..., BlockNetwork]] = {"fully_connected": _build_fully_connected}


def build(architecture: str, input_shape: Sequence[int], outputs: int, *, seed: int, **options) -> BlockNetwork:
    """Return a registered architecture for samples of `input_shape` and `outputs` classes.

    Raises:
        UnknownName: unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture](tuple(input_shape), outputs, seed=seed, **options)


class _seeded:
    """Seed the global CPU stream inside a `with` and restore it after; do nothing for None."""

    def __init__(self, seed: int | None):
        self.seed = seed

    def __enter__(self):
        if self.seed is not None:
            self.state = torch.random.get_rng_state()
            torch.manual_seed(self.seed)

    def __exit__(self, *_):
        if self.seed is not None:
            torch.random.set_rng_state(self.state)
