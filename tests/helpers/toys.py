"""Small float64 networks and batches for the tests: one of every kind that an estimator must serve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdfa_core.networks.blocks import Block, BlockNetwork
from fdfa_core.networks.dense import fully_connected

OUTPUTS = 3


class Residual(nn.Module):
    """x + a small network of x."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Embedding(nn.Module):
    """Patches (N, T, p) → tokens (N, T, d) with a learned position."""

    def __init__(self, tokens: int, patch: int, width: int):
        super().__init__()
        self.project = nn.Linear(patch, width)
        self.position = nn.Parameter(torch.randn(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x) + self.position


class Attention(nn.Module):
    """A transformer block of one head: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width + 1), nn.GELU(), nn.Linear(width + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out(weights @ v)
        return x + self.mlp(self.norm2(x))


class MeanToken(nn.Module):
    """Tokens (N, T, d) → outputs (N, O)."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1))


class MixedWeights(nn.Module):
    """A block with a matrix that belongs to no layer."""

    def __init__(self, width: int):
        super().__init__()
        self.linear, self.matrix = nn.Linear(width, width), nn.Parameter(torch.randn(width, width + 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) @ self.matrix)


def fc() -> BlockNetwork:
    return fully_connected([5, 6, 4, OUTPUTS], activation="tanh")


def linear() -> BlockNetwork:
    return fully_connected([5, 6, 4, OUTPUTS], activation="identity")


def fc_bn() -> BlockNetwork:
    return fully_connected([5, 6, 4, OUTPUTS], activation="relu", batch_norm=True)


def fc_bn_eval() -> BlockNetwork:
    net = fc_bn()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):  # as after some training
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return net.eval()


def conv() -> BlockNetwork:
    return BlockNetwork(
        Block(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)), nn.Sequential(nn.Tanh(), nn.MaxPool2d(2))),
        Block(nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(3, OUTPUTS)),
        input_shape=(1, 5, 5),
    )


def residual() -> BlockNetwork:
    return BlockNetwork(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), Residual(4, 3), nn.Linear(4, OUTPUTS))


def transformer() -> BlockNetwork:
    return BlockNetwork(Embedding(3, 2, 4), Attention(4), MeanToken(4, OUTPUTS), input_shape=(3, 2))


def mixed() -> BlockNetwork:
    return BlockNetwork(nn.Linear(5, 4), MixedWeights(4), nn.Linear(5, OUTPUTS))


def parameterless() -> BlockNetwork:
    return BlockNetwork(nn.Flatten(), Block(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, OUTPUTS), input_shape=(2, 3))


def shared_inside() -> BlockNetwork:
    """One linear layer used twice within a block."""
    layer = nn.Linear(4, 4)
    return BlockNetwork(nn.Linear(5, 4), nn.Sequential(layer, nn.Tanh(), layer), nn.Linear(4, OUTPUTS))


def dropout() -> BlockNetwork:
    return BlockNetwork(
        Block(nn.Linear(5, 6), nn.Sequential(nn.Tanh(), nn.Dropout(0.5))), nn.Linear(6, OUTPUTS), input_shape=(5,)
    )


TOYS = {f.__name__: f for f in (fc, linear, fc_bn, fc_bn_eval, conv, residual, transformer, mixed, parameterless,
                                shared_inside, dropout)}  # fmt: skip
WITH_PRE_SITE = ("fc", "linear", "fc_bn", "fc_bn_eval", "conv", "dropout")
COUPLED = ("fc_bn", "conv")  # samples meet in batch statistics


def make_toy(name: str, seed: int = 1, dtype: torch.dtype = torch.float64) -> BlockNetwork:
    """A toy network, initialised from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TOYS[name]().to(dtype)


def make_batch(net: BlockNetwork, samples: int = 4, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs and class labels that fit a network."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(net.parameters()).dtype
    x = torch.randn(samples, *net.input_shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(OUTPUTS, (samples,), generator=generator)
