"""What is verified: a list fixed before any number is seen.

A case is one estimator with its options on one small network and population. The full suite crosses estimators with networks,
batch sizes, laws and feedback rates, and adds each option once; the light suite is a part of it on smaller samples.
Sizes of samples follow from a power calculation (`verification`).
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from fdfa_core import Block, BlockNetwork, fully_connected
from fdfa_core.networks.decorrelation import decorrelated

PROFILES = ("full", "light")


@dataclass(frozen=True)
class Case:
    """One estimator on one network.

    Attributes:
        kind: how it is measured, a name in `verification.checks.CHECKS`.
        estimator: registered name.
        network: a name in `NETWORKS`.
        samples: M, size of the population.
        batch_size: N.
        draws: independent draws (or feedback chains) to take.
        options: the estimator's own.
        steps: updates of the feedback before it is looked at.
    """

    kind: str
    estimator: str
    network: str = "tanh"
    samples: int = 3
    batch_size: int = 2
    draws: int = 0
    options: dict[str, object] = field(default_factory=dict)
    steps: int = 0

    @property
    def label(self) -> str:
        """A short unique name."""
        given = {**self.options, **({"steps": self.steps} if self.steps else {})}
        options = ", ".join(f"{key}={value}" for key, value in given.items())
        named = f"{self.estimator}({options})" if options else self.estimator
        return f"{named} on {self.network}, M={self.samples}, N={self.batch_size}" + (
            "" if self.kind in ("draws", "feedback") else f" [{self.kind}]"
        )

    @property
    def visited(self) -> list[tuple[list[int], float]]:
        """The batches that draws are given, with their probabilities: every one, or all samples as the only one."""
        return [(list(range(self.samples)), 1.0)] if self.kind == "given" else list(batches(self.samples, self.batch_size))

    @property
    def seed(self) -> int:
        """A seed of its own: a fixed function of the label (the pilot that set the numbers of draws had other seeds)."""
        return zlib.crc32(f"registered: {self.label}".encode())


def _dense(activation: str, widths: tuple[int, ...], seed: int, spread: float) -> BlockNetwork:
    """Weights spread so far that activations bend: the Jacobian differs between samples, so that FDFA is biased."""
    net = fully_connected(list(widths), activation=activation, batch_norm=activation == "relu", seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)

    def move(value: Tensor, scale: float) -> None:
        value.data.add_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))

    for module in net.modules():
        if isinstance(module, nn.Linear):
            move(module.weight, spread)
        if isinstance(module, nn.BatchNorm1d):
            for value in (module.weight, module.bias, module.running_mean):
                move(value, 0.5)
            module.running_var.data.mul_(1.7)
    return net.eval()


def _convolutional(seed: int, spread: float) -> BlockNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = Block(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Sequential(nn.Tanh(), nn.AvgPool2d(2)))
        second = Block(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), nn.ReLU())
        net = BlockNetwork(first, second, nn.Linear(4, 3), input_shape=(1, 6, 6)).double()
        for layer in (second.affine[1], net.readout):
            layer.weight.data.add_(spread * torch.randn(layer.weight.shape).double())
    norm = first.affine[1]
    norm.running_mean.copy_(torch.tensor([0.2, -0.1]))
    norm.running_var.copy_(torch.tensor([0.6, 1.4]))
    norm.weight.data.copy_(torch.tensor([1.3, 0.8]))
    return net.eval()


def _decorrelated(plain: Callable[[], BlockNetwork]) -> BlockNetwork:
    """Put maps that are not symmetric before all linear layers of a network, and leave its outputs as they are."""
    net, generator = plain(), torch.Generator().manual_seed(26)
    weights = {name: p for name, p in net.named_parameters() if p.dim() == 2}
    noise = {name: torch.randn(2 * p.shape[1:], generator=generator, dtype=torch.float64) for name, p in weights.items()}
    return decorrelated(net, matrices={name: torch.eye(len(v)) + 0.5 * v for name, v in noise.items()})


# Seeds chosen so that no block's gradient, bias or Jacobian spread is close to nothing.
NETWORKS: dict[str, Callable[[], BlockNetwork]] = {
    "linear": lambda: _dense("identity", (6, 5, 4, 3), 35, 0.5),
    "tanh": lambda: _dense("tanh", (6, 5, 4, 3), 35, 0.8),
    "relu": lambda: _dense("relu", (6, 5, 4, 3), 39, 0.5),
    "cnn": lambda: _convolutional(6, 0.8),
    "decorrelated-tanh": lambda: _decorrelated(NETWORKS["tanh"]),
    "decorrelated-small": lambda: _decorrelated(NETWORKS["small"]),
    "small": lambda: _dense("tanh", (4, 3, 3, 2), 34, 0.8),
    "small-relu": lambda: _dense("relu", (4, 4, 3, 2), 39, 0.8),
}


@cache
def problem(network: str, samples: int) -> tuple[BlockNetwork, Tensor, Tensor]:
    """Return a network (float64, evaluation mode) and its population (x, y)."""
    net = NETWORKS[network]()
    generator = torch.Generator().manual_seed(14)
    x = torch.randn(samples, *net.input_shape, generator=generator, dtype=torch.float64)
    return net, x, torch.arange(samples) % net.output_shape()[0]


def batches(samples: int, size: int) -> Iterator[tuple[list[int], float]]:
    """Yield every batch drawn with replacement, as a multiset of indices and its probability."""
    for indices in itertools.combinations_with_replacement(range(samples), size):
        ways = math.factorial(size)
        for repeats in Counter(indices).values():
            ways //= math.factorial(repeats)
        yield list(indices), ways / samples**size


def suite(profile: str) -> list[Case]:
    """Return the cases of a profile, "full" or "light"."""
    return _light() if profile == "light" else _full()


LAWS = ("gaussian", "rademacher", "sphere")
# Draws that the primary rows need to notice a mistake of 5 %, from the coefficients of variation of a pilot with other seeds:
# (estimator, site) → N → draws. A single sample's gradient (N = 1) is far from the mean.
DRAWS = {
    ("fg-w", ""): {1: 110_000, 4: 80_000},
    ("fg-a", "pre"): {1: 250_000, 4: 80_000},
    ("fg-a", "post"): {1: 330_000, 4: 90_000},
}
OPTION_DRAWS, CHAINS = 80_000, 80_000


def _full() -> list[Case]:
    crossed = [
        Case("draws", name, network, 3, n, draws, {"perturbation": law, **({"site": site} if site else {})})
        for (name, site), sizes in DRAWS.items()
        for network in ("linear", "tanh", "relu", "cnn")
        for n, draws in sizes.items()
        for law in LAWS
        if network != "cnn" or n == 4 or law == "gaussian"
    ]
    feedback = [
        Case("feedback", "fdfa", network, 2, n, CHAINS, {"perturbation": law, "feedback_lr": rate}, steps=2)
        for network in ("tanh", "relu", "cnn")
        for n in (1, 2)
        for law, rate in (("gaussian", 0.3), ("gaussian", 1.0), ("rademacher", 0.6), ("sphere", 0.6))
    ]
    # The long run. In a linear network the Jacobian is the same for all samples: it does not matter which batches taught B.
    long_run = [
        Case("feedback", "fdfa", "linear", 3, n, CHAINS // 2, {"feedback_lr": rate, "joint": joint}, steps=steps)
        for n, rate, joint, steps in ((1, 0.1, True, 120), (4, 0.2, False, 60), (4, 0.5, True, 25))
    ]
    long_run += [
        Case("feedback", "fdfa", "tanh", 1, 4, CHAINS // 2, {"feedback_lr": 0.1, "perturbation": law}, steps=120)
        for law in LAWS
    ]
    return [*crossed, *feedback, *long_run, *_options("tanh", "relu", 1), *_fixed(12_000, "tanh", "relu", "cnn")]


def _light() -> list[Case]:
    draws = 40_000
    crossed = [
        Case("draws", name, network, 2, 2, draws, options)
        for name, network, options in (
            ("fg-w", "small", {}),
            ("fg-w", "small-relu", {"perturbation": "rademacher"}),
            ("fg-a", "small", {}),
            ("fg-a", "small-relu", {"perturbation": "rademacher", "site": "post"}),
            ("fg-a", "small", {"perturbation": "sphere"}),
        )
    ]
    feedback = [
        Case("feedback", "fdfa", "small", 2, 2, 24_000, {"feedback_lr": 0.4}, steps=2),
        Case("feedback", "fdfa", "small-relu", 2, 2, 24_000, {"feedback_lr": 0.6, "perturbation": "rademacher"}, steps=2),
        Case("feedback", "fdfa", "small", 1, 2, 24_000, {"feedback_lr": 0.2}, steps=40),
    ]
    return [*crossed, *feedback, *_options("small", "small-relu", 3), *_fixed(1_600, "small", "small-relu")]


def _options(tanh: str, relu: str, thrift: int) -> list[Case]:
    """Every other option once; `thrift` divides the number of draws."""
    draws, chains = OPTION_DRAWS // thrift, CHAINS // thrift
    forward = [
        ("fg-a", relu, {"joint": False}, draws),
        ("fg-a", tanh, {"readout": "perturbed"}, draws),
        ("fg-a", tanh, {"readout": "perturbed", "joint": False, "site": "post"}, draws),
        ("fg-a", tanh, {"tangents": 3}, draws // 2),
        ("fg-a", tanh, {"tangents": 2, "combine": "projection"}, draws // 2),
        ("fg-a", relu, {"slope": "batch"}, draws),
        ("fg-a", relu, {"mask": "active"}, draws),
        ("fg-a", tanh, {"loss": "mse"}, draws),
        ("guess", tanh, {}, draws),
        ("guess", relu, {"rank": 2}, draws * 5 // 4),
        ("fg-w", tanh, {"tangents": 16}, 3_200 // thrift),
        ("fg-w", tanh, {"tangents": 16, "combine": "projection"}, 3_200 // thrift),
        ("fg-w", tanh, {"tangents": 16, "perturbation": "low-rank-2"}, 7_200 // thrift),  # heavy tails
        ("zo", tanh, {"tangents": 16, "epsilon": 1e-4}, 3_200 // thrift),
    ]
    chained = [
        (tanh, {"feedback_lr": 0.5, "joint": False}),
        (relu, {"feedback_lr": 0.5, "joint": "cyclic"}),
        (tanh, {"feedback_lr": 0.5, "site": "pre"}),
        (tanh, {"feedback_lr": 0.5, "tangents": 16}),
        (relu, {"feedback_lr": 0.5, "directions": "orthogonal"}),
        (tanh, {"feedback_lr": 0.5, "directions": "antithetic"}),
        (tanh, {"feedback_lr": 0.1, "warmup": True}),
    ]
    return [
        *(Case("draws", name, network, 2, 2, n, options) for name, network, options, n in forward),
        *(Case("feedback", "fdfa", network, 2, 2, chains, options, steps=2) for network, options in chained),
        Case("inputs", "fg-a", f"decorrelated-{tanh}", 2, 2, draws),
        Case("given", "fg-a", relu, 4, 4, draws // 4, {"tangents": 4, "allocation": "optimal"}),
        # a direction per sample is slow to draw, and a wide batch needs few draws
        Case("draws", "fg-w", tanh, 1, 48, 1_600 // thrift, {"per_sample": True}),
    ]


def _fixed(draws: int, *networks: str) -> list[Case]:
    """What can be told without a tolerance, and the instruments."""
    fixed = [Case("fixed", name, network) for name in ("bp", "frozen", "dfa", "dkp", "drtp") for network in networks]
    fixed += [Case("fixed", name, networks[0], options={"rank": 1}) for name in ("dfa", "dkp")]
    order = [Case("order", "fdfa", networks[0], options={"feedback_lr": rate}) for rate in (0.3, 1.0)]
    pieces = [Case("pieces", "grape", network, 2, 1, 4 * draws, {"joint": False}) for network in networks]
    return [*fixed, *order, *pieces, Case("instruments", "fg-a", networks[0], 2, 2, draws, {"site": "post"})]
