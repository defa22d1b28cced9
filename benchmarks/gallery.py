"""What users bring: networks that nobody here wrote, by the code of the gallery of docs/own-network.md, and their own loop."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, bp_step, estimator_step, make_batch
from benchmarks.rows import BENCHES, PROCESSES, Row, bench
from benchmarks.timing import ratio, take_turns
from fdfa_core import BlockNetwork, Monitor, cut, make_estimator
from fdfa_core.estimators import consistency
from fdfa_core.losses import make_loss
from fdfa_core.memory import peak_memory
from fdfa_core.networks.batch import check_batch

__all__ = ["BENCHES", "PAGE", "PROCESSES", "Example", "called", "made", "missing", "networks"]

PAGE = Path(__file__).parents[1] / "docs" / "own-network.md"
_FENCE = re.compile(r"^```(python|py)\n(.*?)^```", re.S | re.M)
# Operators of torchvision's wheels that importing it asks for: they detect objects, and no network here calls them.
_OPERATORS = ("nms", "qnms")
_held: list[torch.library.Library] = []


@dataclass
class Example:
    """A network of the gallery.

    Attributes:
        model: as its package makes it.
        net: the same, cut.
        x, y: a batch.
        loss: as in `make_estimator`.
    """

    model: nn.Module
    net: BlockNetwork
    x: Tensor | dict[str, Tensor]
    y: Tensor
    loss: object


def networks() -> dict[str, str]:
    """Return the names of the networks, and the package that each needs, or ""."""
    titles = [text.splitlines()[0].removeprefix("# ") for _, text in _fences() if text.startswith("# ")]
    return {title: (re.findall(r"\((\w+)\)$", title) or [""])[0] for title in titles}


def _fences() -> list[tuple[str, str]]:
    section = PAGE.read_text(encoding="utf-8").split("\n## Gallery\n")[1].split("\n## ")[0]
    return _FENCE.findall(section)


def missing(package: str) -> str:
    """Say why a package cannot be used, or return an empty text.

    The wheels of torchvision are linked against another build of torch than a CPU-only one. Its classifiers are plain Python
    and work all the same, once the operators are declared whose absence ends the import. timm and transformers import it.
    """
    if not package:
        return ""
    try:
        with contextlib.suppress(ModuleNotFoundError):
            _torchvision()
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        return f"{package} cannot be imported: {str(error).splitlines()[0]}"
    return ""


def _torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)  # it is withdrawn when nobody holds it
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


def made(title: str, seed: int = 0) -> Example:
    """Run the code of a network, after what stands above it and needs no package."""
    torch.manual_seed(seed)
    loss: list[object] = []

    def estimator(*arguments, **options):
        loss.append(options.get("loss", "cross_entropy"))
        return make_estimator(*arguments, **options)

    names = {"__name__": "gallery", "torch": torch, "nn": nn, "cut": cut}
    for kind, text in _fences():
        if kind == "python" or text.startswith(f"# {title}\n"):
            exec(compile(text, str(PAGE), "exec"), names)
            names["make_estimator"] = estimator
        if text.startswith(f"# {title}\n"):
            break
    return Example(names["model"], names["net"], names["x"], names["y"], loss[-1])


def called(example: Example) -> Tensor:
    """Return the outputs of the model as its package makes it."""
    outputs = example.model(**example.x) if isinstance(example.x, dict) else example.model(example.x)
    return getattr(outputs, "logits", outputs)


# Benches -----------------------------------------------------------------------------------------------------------------


def _step(example: Example, method: str) -> Callable[[], object]:
    """Return a training step: "plain" is PyTorch alone, on the model as it was before it was cut."""
    if method != "plain":
        return estimator_step(method, example.net, example.x, example.y, loss=example.loss)
    optimizer, loss = torch.optim.Adam(example.model.parameters(), lr=1e-4, fused=True), make_loss(example.loss)

    def step() -> None:
        optimizer.zero_grad()
        loss(called(example), example.y).backward()
        optimizer.step()

    return step


@bench("gallery")
def _() -> Iterator[Row]:
    for title, package in networks().items():
        if reason := missing(package):
            print(reason, file=sys.stderr)
            continue
        example = made(title)
        x, y = check_batch(example.net, example.x, example.y)
        functions = {method: _step(made(title), method) for method in ("plain", "bp", "fdfa")}
        functions["check"] = partial(consistency.check, example.net, x, y, make_loss(example.loss))
        seconds = take_turns(functions, 8)
        plain = 1e3 * float(np.median(seconds["plain"]))
        yield Row(f"FDFA step / BP step, {title}", ratio(seconds["fdfa"], seconds["plain"]), None, plain)
        yield Row(f"The estimator bp's step / BP step, {title}", ratio(seconds["bp"], seconds["plain"]), None, plain)
        step = 1e3 * float(np.median(seconds["fdfa"]))
        yield Row(f"Check at the first batch / FDFA step, {title}", ratio(seconds["check"], seconds["fdfa"]), 3.0, step)
        peaks = {method: peak_memory(functions[method]) for method in ("plain", "fdfa")}  # of tensors alive together
        yield Row(f"Peak memory of a FDFA step / BP step, {title}", [peaks["fdfa"] / peaks["plain"]])


@bench("monitor", processes=3)
def _() -> Iterator[Row]:
    some = 10  # steps between two probes
    every = inspect.signature(Monitor).parameters["every"].default
    sets = {"bp, fg-a and dfa": (["bp", "fg-a", "dfa"], 1.05), "fdfa, whose 32 states follow every step": (["fdfa"], None)}
    for network in ("fc", "digits"):
        for label, (estimators, limit) in sets.items():
            net = NETWORKS[network]()
            x, y = make_batch(net, 512)
            batch = x[:64], y[:64]
            step = bp_step(net, *batch)
            with tempfile.TemporaryDirectory() as directory:
                monitor = Monitor(net, estimators, reference=(x, y), directory=directory)

                def observed(monitor, first: int, count: int, step=step, batch=batch) -> None:
                    monitor.step = first
                    for _ in range(count):
                        monitor.observe(*batch)
                        step()

                functions = {
                    "plain": lambda step=step: [step() for _ in range(some)] and None,
                    "between": partial(observed, monitor, 1, some),
                    "probing": partial(observed, monitor, 0, 1),
                }
                seconds = take_turns(functions, 8, warmup=1)
                monitor.leave()
            plain = seconds["plain"] / some
            whole = ((every - 1) * seconds["between"] / some + seconds["probing"]) / every
            figure = f"Own loop with a Monitor / without, {label}; {network}, every {every} steps"
            yield Row(figure, ratio(whole, plain), limit, 1e3 * float(np.median(plain)))
