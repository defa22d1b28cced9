"""Where "the variance is lower" holds and where it does not: a small network for every side of every claim.

The claims about forward gradients are true under conditions. Each row of `conditions()` is one claim on one concrete network,
decided by the closed forms, with the condition that decides it. Networks and populations are fixed by their seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from analysis.theory.laws import contest
from analysis.theory.predictions import predict
from fdfa_core import BlockNetwork, fully_connected

VANISHING_LR = 1e-9  # stands for α → 0


def example(
    widths: list[int], activation: str = "tanh", seed: int = 0, *, gain: float = 1.0, readout: float = 1.0, inputs: float = 1.0
) -> tuple[BlockNetwork, Tensor, Tensor]:
    """Return a float64 network without biases' offset, weights N(0, gain²/fan-in), and 24 Gaussian samples with random labels.

    Args:
        widths: input, hidden widths, outputs.
        gain, readout: scale of the hidden and of the readout's weights.
        inputs: scale of the inputs.
    """
    net = fully_connected(widths, activation=activation, seed=0).double()
    generator = torch.Generator().manual_seed(seed)
    for scale, name in zip([gain] * (len(net) - 1) + [readout], [n for n, _ in net.named_parameters()][::2], strict=True):
        weight = net.get_parameter(name).data
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * scale / weight.shape[1] ** 0.5)
        net.get_parameter(name.replace("weight", "bias")).data.zero_()
    generator.manual_seed(1000 + seed)
    x = inputs * torch.randn(24, widths[0], generator=generator, dtype=torch.float64)
    return net, x, torch.randint(0, widths[-1], (24,), generator=generator)


def weights_leak_less(net: BlockNetwork, x: Tensor, readout: str = "perturbed") -> bool:
    """Return whether Σ_l n_l H_l ≤ P min_l H_l for every sample of a dense network, with H_l = 1 + ‖input of block l‖².

    The sums run over perturbed blocks, P counts all parameters. Where it holds, FG-A (pre) has no more variance than FG-W.
    """
    size, h, parts = sum(p.numel() for p in net.parameters()), x, []
    with torch.no_grad():
        for i, block in enumerate(net):
            out = block(h)
            if i < len(net) - 1 or readout == "perturbed":
                parts.append((out.shape[1], 1 + h.square().sum(1)))
            h = out
    left = sum(n * norm for n, norm in parts)
    return bool((left <= size * torch.stack([norm for _, norm in parts]).amin(0)).all())


def conditions() -> pd.DataFrame:
    """Return one row per claim and network.

    Columns: `claim` ("A < B"), `setting`, `batch_size`, `feedback_lr` (NaN where none), `a`, `b` (the two predicted numbers),
    `ratio` a/b, `holds` (a < b up to rounding) and `why` (the condition that decides).
    """
    frame = pd.DataFrame([*_weights_against_activities(), *_feedback_against_activities(), *_bias_decides(), *_small_rates()])
    frame = frame.assign(ratio=frame.a / frame.b)
    return frame.assign(holds=frame.ratio < 1 - 1e-9)[
        ["claim", "setting", "batch_size", "feedback_lr", "a", "b", "ratio", "holds", "why"]
    ]


def _row(claim: str, setting: str, batch_size: int, a: float, b: float, why: str, feedback_lr: float = float("nan")) -> dict:
    return dict(claim=claim, setting=setting, batch_size=batch_size, feedback_lr=feedback_lr, a=a, b=b, why=why)


def _weights_against_activities() -> Iterator[dict]:
    claim = "Var FG-A < Var FG-W"
    unit = example([20, 10, 3])
    large = example([20, 10, 3], readout=0.1, inputs=6.0)
    for setting, (net, x, y), readout, why in (
        ("20-10-3 tanh, readout perturbed too", unit, "perturbed", "input norms of the layers are alike"),
        ("same, inputs × 6, readout × 0.1", large, "perturbed", "layer 1's large inputs amplify the readout's noise"),
        ("same, exact readout", large, "exact", "the readout's error no longer reaches layer 1"),
    ):
        weights = predict("fg-w", net, x, y, 1, per_sample=True).total()
        yield _row(claim, setting, 1, predict("fg-a", net, x, y, 1, readout=readout).total(), weights, why)
    net, x, y = unit
    shared, own = (predict("fg-w", net, x, y, 64, per_sample=each).total() for each in (False, True))
    yield _row(
        "Var FG-W (a direction per sample) < Var FG-W (shared)", "20-10-3 tanh", 64, own, shared,
        "a shared direction is not averaged over the batch: part of the usual gap between FG-W and FG-A is this choice",
    )  # fmt: skip


def _feedback_against_activities() -> Iterator[dict]:
    claim = "Var FDFA < Var FG-A"
    shallow, linear = example([6, 8, 3], gain=2.0), example([6, 5, 4, 3], "identity")
    deep = example([6, 5, 4, 3], gain=2.0, seed=27)
    for setting, problem, n, rate, why in (
        ("6-8-3 tanh", shallow, 1, 0.99, "one hidden layer: true for every α and N"),
        ("6-5-4-3 linear", linear, 1, 0.99, "J is the same for all samples: true for every α and N"),
        ("6-5-4-3 tanh", deep, 1, 1.0, "N = 1 and α = 1: the spread of J adds to the feedback's noise, nothing averages it"),
        ("6-5-4-3 tanh", deep, 1, 0.5, "averaging the feedback pays for that spread"),
        ("6-5-4-3 tanh", deep, 8, 1.0, "averaging over the batch pays for it too"),
    ):
        totals = contest(*problem)
        yield _row(claim, setting, n, float(totals.fdfa(n, rate, "variance")), float(totals.fg_a(n)), why, rate)


def _bias_decides() -> Iterator[dict]:
    claim, setting = "MSE FDFA < MSE FG-A", "6-5-4-3 tanh"
    totals = contest(*example([6, 5, 4, 3], gain=2.0, seed=51))
    limit = f"N* = {totals.batch_limit:.0f}: beyond it the bias, which does not shrink with N, outweighs FG-A's whole variance"
    for n, rate in ((64, 0.01), (1000, VANISHING_LR)):
        yield _row(claim, setting, n, float(totals.fdfa(n, rate)), float(totals.fg_a(n)), limit, rate)
    for name, problem, why in (
        ("6-8-3 tanh", example([6, 8, 3], gain=2.0), "last hidden layer: J is the readout's weights, whatever the sample"),
        ("6-5-4-3 linear", example([6, 5, 4, 3], "identity"), "J is the same for all samples"),
        ("6-5-4-3 tanh", example([6, 5, 4, 3], gain=2.0, seed=51), "e and J vary together over samples; the mean J misses it"),
    ):
        net, x, y = problem
        fdfa = predict("fdfa", net, x, y, 8)
        yield _row("bias² of FDFA < 10⁻²⁰ ‖∇‖²", name, 8, fdfa.total("bias"), 1e-20 * fdfa.total("target"), why)


def _small_rates() -> Iterator[dict]:
    for seed, why in (
        (6, "averaging J over samples also averages away part of its spread"),
        (20, "the mean J passes on variance of e that each sample's own J cancels"),
    ):
        net, x, y = example([6, 5, 4, 3], gain=2.0, seed=seed)
        totals = contest(net, x, y, block=0)
        a = float(totals.fdfa(8, VANISHING_LR, "variance"))
        yield _row("Var FDFA (α → 0) < Var BP", "6-5-4-3 tanh, block 0", 8, a, totals.bp / 8, why, VANISHING_LR)
    net, x, y = example([6, 5, 4, 3], gain=2.0, seed=27)
    whole, slow = (predict("fdfa", net, x, y, 8, feedback_lr=rate).total("feedback") for rate in (1.0, 0.01))
    yield _row(
        "feedback part summed over all lags: α = 0.01 < α = 1", "6-5-4-3 tanh", 8, slow * (2 - 0.01) / 0.01, whole,
        "slow feedback repeats its error for 1/α steps: the sum over lags does not depend on α",
        0.01,
    )  # fmt: skip
