"""Networks, batches and steps that are timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core import fully_connected, make_estimator
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.convolutional import convolutional
from fdfa_core.networks.residual import residual
from fdfa_core.networks.transformer import transformer

BATCH_SIZE = 64

NETWORKS: dict[str, Callable[[], BlockNetwork]] = {
    "fc-bn": lambda: fully_connected([784, 800, 800, 10], batch_norm=True, seed=0),
    "fc": lambda: fully_connected([784, 800, 800, 10], seed=0),
    "fc-small": lambda: fully_connected([64, 100, 10], seed=0),
    "digits": lambda: fully_connected([64, 128, 128, 10], batch_norm=True, seed=0),
    "cnn-released": lambda: convolutional((1, 28, 28), 10, variant="cnn-released", seed=0),
    "residual": lambda: residual((1, 28, 28), 10, seed=0),
    "residual-digits": lambda: residual((1, 8, 8), 10, seed=0),
    "transformer": lambda: transformer((1, 28, 28), 10, seed=0),
    "transformer-wide": lambda: transformer((1, 28, 28), 10, patch=4, dimension=64, heads=4, seed=0),
    "transformer-digits": lambda: transformer((1, 8, 8), 10, seed=0),
}


def make_batch(net: BlockNetwork, size: int = BATCH_SIZE, outputs: int = 10) -> tuple[Tensor, Tensor]:
    """Random inputs and labels: what is computed does not depend on what they are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, *net.input_shape, generator=generator)
    return x, torch.randint(outputs, (size,), generator=generator)


def bp_step(net: BlockNetwork, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A plain PyTorch training step, with the optimiser as in `fdfa_core.training`."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def estimator_step(name: str, net: BlockNetwork, x: Tensor, y: Tensor, **options) -> Callable[[], None]:
    """The same with an estimator's gradient, its own state's update included."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    estimator = make_estimator(name, net, **options)

    def step() -> None:
        estimator.backward(x, y)
        optimizer.step()

    return step


class Ready:
    """Standard normal numbers that were drawn and written to memory before the step that takes them: `draw` is not timed."""

    name, kurtosis, fresh = "ready", 3.0, True

    def __init__(self, numbers: int):
        self.numbers, self.drawn = numbers, None

    def draw(self) -> None:
        self.drawn = torch.randn(self.numbers)

    def sample(self, shape, *, generator, dtype):
        drawn, self.drawn = self.drawn, None
        return drawn.view(shape)
