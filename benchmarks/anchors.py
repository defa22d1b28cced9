"""What the suite's own code is held against: the same thing by tools that are not ours."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from benchmarks.gallery import large, missing, training_step
from benchmarks.networks import NETWORKS, bp_step, estimator_step, make_batch
from benchmarks.timing import Row, bench, ratio, take_turns
from fdfa_core.losses import make_loss

SAMPLES = 1024  # whose gradients' variance is taken


def naive_step(model: nn.Module, x: Tensor, y: Tensor, loss: Callable = F.cross_entropy) -> Callable[[], None]:
    """Return a training step of FG-W as one writes it down: one direction for all weights, and `torch.func.jvp`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        direction = {name: torch.randn_like(w) for name, w in weights.items()}
        _, slope = jvp(lambda w: loss(functional_call(model, w, (x,)), y), (weights,), (direction,))
        for name, p in model.named_parameters():
            p.grad = slope * direction[name]
        optimizer.step()

    return step


def backpack_variance(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], float]:
    """Return what takes the total variance of one sample's gradient by BackPACK, over the samples of a batch."""
    backpack, extend = (getattr(importlib.import_module("backpack"), name) for name in ("backpack", "extend"))
    variance = importlib.import_module("backpack.extensions").Variance
    model, loss = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss())

    def total() -> float:
        model.zero_grad()
        with backpack(variance()):
            loss(model(x), y).backward()
        # of the terms of the mean loss, each of which is a sample's over their number
        return len(x) ** 2 * sum(float(p.variance.double().sum()) for p in model.parameters())

    return total


@bench("anchors", processes=3)
def _() -> Iterator[Row]:
    def compared(name: str, functions: dict[str, Callable[[], object]], rounds: int) -> Iterator[Row]:
        seconds = take_turns(functions, rounds)
        baseline = 1e3 * float(np.median(seconds["naive"]))
        yield Row(f"FG-W step / the same by torch.func.jvp, {name}", ratio(seconds["ours"], seconds["naive"]), 1.0, baseline)
        baseline = 1e3 * float(np.median(seconds["plain"]))
        yield Row(f"FG-W step by torch.func.jvp / BP step, {name}", ratio(seconds["naive"], seconds["plain"]), None, baseline)

    net = NETWORKS["fc"]()
    batch = make_batch(net)
    plain, naive = bp_step(copy.deepcopy(net), *batch), naive_step(copy.deepcopy(net), *batch)
    yield from compared("fc", {"plain": plain, "naive": naive, "ours": estimator_step("fg-w", net, *batch)}, 30)
    for name in ("U-Net", "nn.TransformerEncoder, 8 × 64 tokens"):
        example = large(name)
        naive = naive_step(example.model, example.x, example.y, make_loss(example.loss))
        plain, ours = (training_step(large(name), method) for method in ("plain", "fg-w"))
        yield from compared(name, {"plain": plain, "naive": naive, "ours": ours}, 5)
    yield from _data_noise()


def _data_noise() -> Iterator[Row]:
    """Compare the exact variance of the batch gradient with BackPACK's, which must be the same number."""
    from analysis.theory import predict

    if reason := missing("torchvision") or missing("backpack"):  # which needs torchvision
        print(reason, file=sys.stderr)
        return
    net = NETWORKS["fc"]()
    x, y = make_batch(net, SAMPLES)
    model = nn.Sequential(*(m for m in net.modules() if isinstance(m, nn.Linear | nn.ReLU)))
    functions = {
        "ours": lambda: predict("bp", net, x, y, SAMPLES).total("variance"),
        "theirs": backpack_variance(model, x, y),
    }
    ours, theirs = functions["ours"](), functions["theirs"]() / SAMPLES
    if abs(ours - theirs) > 1e-4 * theirs:
        raise ArithmeticError(f"variance of the batch gradient: {ours} by theory, {theirs} by BackPACK")
    seconds = take_turns(functions, 5)
    figure = f"Exact variance of the batch gradient over {SAMPLES:,} samples / the same by BackPACK, fc"
    yield Row(figure, ratio(seconds["ours"], seconds["theirs"]), None, 1e3 * float(np.median(seconds["theirs"])))
