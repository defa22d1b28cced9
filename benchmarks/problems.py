"""Networks, batches and training steps that are timed."""

from __future__ import annotations

import torch
from torch import nn

from fdfa_core import BlockNetwork, convolutional, fully_connected, make_estimator
from fdfa_core.architectures import residual, transformer

BATCH = 64


def fc(batch_norm: bool) -> BlockNetwork:
    """784-800-800-10, the paper's network for MNIST."""
    return fully_connected([784, 800, 800, 10], batch_norm=batch_norm, seed=0)


def digits() -> BlockNetwork:
    """64-128-128-10 with batch normalisation, the network of the quick profile."""
    return fully_connected([64, 128, 128, 10], batch_norm=True, seed=0)


def cnn() -> BlockNetwork:
    """The released code's convolutional network on 28 × 28."""
    return convolutional((1, 28, 28), 10, variant="cnn-released", seed=0)


def residual_toy() -> BlockNetwork:
    """A residual network of ordinary modules, 3 × 32 × 32."""
    return residual((3, 32, 32), 10, seed=0)


def transformer_toy() -> BlockNetwork:
    """A small transformer of ordinary modules, 3 × 32 × 32."""
    return transformer((3, 32, 32), 10, seed=0)


def batch(net: BlockNetwork, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal inputs and uniform labels, always the same."""
    stream = torch.Generator().manual_seed(0)
    labels = torch.randint(net.output_shape()[0], (size,), generator=stream)
    return torch.randn(size, *net.input_shape, generator=stream), labels


def plain_step(net: BlockNetwork, x, y):
    """A training step by backpropagation as anyone writes it, without this project."""
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-4), nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()

    return step


def estimator_step(name: str, net: BlockNetwork, x, y, **options):
    """A training step by an estimator, with the same optimiser."""
    optimizer, estimator = torch.optim.Adam(net.parameters(), lr=1e-4), make_estimator(name, net, **options)

    def step():
        estimator.backward(x, y)
        optimizer.step()

    return step
