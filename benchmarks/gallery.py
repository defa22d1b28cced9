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
from benchmarks.timing import Row, bench, ratio, take_turns
from fdfa_core import BlockNetwork, Monitor, cut, make_estimator
from fdfa_core.estimators import consistency
from fdfa_core.losses import make_loss
from fdfa_core.measuring.cost import operations, peak_memory
from fdfa_core.networks.batch import check_batch
from fdfa_core.networks.families import Mean

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


# Networks of a size at which arithmetic counts --------------------------------------------------------------------------


def _images(make: Callable[[], nn.Module], size: int = 64, batch: int = 16) -> Callable[[], tuple]:
    """A network of images and a batch for it."""
    return lambda: (make(), torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))


def _bert() -> tuple:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=1000, num_labels=3))
    return model, {"input_ids": torch.randint(1, 1000, (16, 128))}, torch.randint(3, (16,))


def _gpt2() -> tuple:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = GPT2Config(vocab_size=1000, n_embd=256, n_layer=4, n_head=4, n_positions=128, num_labels=3, **special)
    return GPT2ForSequenceClassification(config), {"input_ids": torch.randint(1, 1000, (16, 128))}, torch.randint(3, (16,))


def encoder(tokens: int, batch: int, layers: int = 4) -> Callable[[], tuple]:
    """Return what makes an encoder, token numbers, and targets."""

    def make() -> tuple:
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        model = nn.Sequential(nn.Embedding(1000, 256), nn.TransformerEncoder(layer, layers), Mean(1), nn.Linear(256, 3))
        return model, torch.randint(1000, (batch, tokens)), torch.randint(3, (batch,))

    return make


def _gru() -> tuple:
    class Last(nn.Module):
        def forward(self, pair):
            return pair[0][:, -1]

    model = nn.Sequential(nn.Embedding(1000, 128), nn.GRU(128, 128, batch_first=True), Last(), nn.Linear(128, 3))
    return model, torch.randint(1000, (32, 32)), torch.randint(3, (32,))


def _unet() -> tuple:
    class Level(nn.Module):
        def __init__(self, width, inside):
            super().__init__()
            self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.inside, self.up = inside, nn.ConvTranspose2d(2 * width, width, 2, stride=2)

        def forward(self, x):
            return torch.cat([x, self.up(torch.relu(self.inside(torch.relu(self.down(x)))))], 1)

    inner = nn.Sequential(Level(32, nn.Identity()), nn.Conv2d(64, 32, 1))
    head = [nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 3)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Level(16, inner), *head)
    return model, torch.randn(16, 3, 64, 64), torch.randint(3, (16,))


def _of(package: str, name: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module(package), name)(num_classes=10, **options)


# name: (package, makes a model, inputs and targets, the most that FDFA's step may take in BP steps)
TRANSFORMERS: dict[str, tuple[str, Callable[[], tuple], float]] = {
    "BERT-mini, 16 × 128 tokens": ("transformers", _bert, 1.5),
    "GPT-2-mini, 16 × 128 tokens": ("transformers", _gpt2, 1.5),
    "nn.TransformerEncoder, 16 × 128 tokens": ("", encoder(128, 16), 1.5),
    "nn.TransformerEncoder, 8 × 64 tokens": ("", encoder(64, 8), 1.5),
    "ViT-tiny, 16 × 64 px": (
        "timm",
        _images(_of("timm.models", "VisionTransformer", img_size=64, patch_size=8, embed_dim=192, depth=4, num_heads=3)),
        1.5,
    ),
}
CONVOLUTIONS: dict[str, tuple[str, Callable[[], tuple], float]] = {
    "ResNet-18": ("torchvision", _images(_of("torchvision.models", "resnet18")), 1.1),
    "ConvNeXt-T": ("torchvision", _images(_of("torchvision.models", "convnext_tiny"), batch=8), 1.1),
    "EfficientNet-B0": ("torchvision", _images(_of("torchvision.models", "efficientnet_b0")), 1.6),
    "MobileNet-v3": ("torchvision", _images(_of("torchvision.models", "mobilenet_v3_small")), 1.6),
    "RegNet-Y": ("torchvision", _images(_of("torchvision.models", "regnet_y_400mf")), 1.6),
    "ShuffleNet": ("torchvision", _images(_of("torchvision.models", "shufflenet_v2_x1_0")), 1.6),
    "MLP-Mixer": (
        "timm",
        _images(_of("timm.models", "MlpMixer", img_size=64, patch_size=8, num_blocks=4, embed_dim=192)),
        1.6,
    ),
    "U-Net": ("", _unet, 1.6),
    "GRU": ("", _gru, 1.6),
}


def large(name: str, seed: int = 0) -> Example:
    """Make one of these networks, and cut it."""
    torch.manual_seed(seed)
    model, x, y = (TRANSFORMERS | CONVOLUTIONS)[name][1]()
    return Example(model, cut(model, example=x), x, y, "cross_entropy")


# Benches -----------------------------------------------------------------------------------------------------------------


def training_step(example: Example, method: str) -> Callable[[], object]:
    """Return a training step: "plain" is PyTorch alone, on the model as it was before it was cut."""
    if method != "plain":
        options = {"site": "post"} if method == "fg-a" else {}  # these blocks have no other
        return estimator_step(method, example.net, example.x, example.y, loss=example.loss, **options)
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
        functions = {method: training_step(made(title), method) for method in ("plain", "bp", "fdfa")}
        functions["check"] = partial(consistency.check, example.net, x, y, make_loss(example.loss))
        seconds = take_turns(functions, 8)
        plain = 1e3 * float(np.median(seconds["plain"]))
        yield Row(f"FDFA step / BP step, {title}", ratio(seconds["fdfa"], seconds["plain"]), None, plain)
        yield Row(f"The estimator bp's step / BP step, {title}", ratio(seconds["bp"], seconds["plain"]), None, plain)
        step = 1e3 * float(np.median(seconds["fdfa"]))
        yield Row(f"Check at the first batch / FDFA step, {title}", ratio(seconds["check"], seconds["fdfa"]), 3.0, step)
        peaks = {method: peak_memory(functions[method]) for method in ("plain", "fdfa")}  # of tensors alive together
        yield Row(f"Peak memory of a FDFA step / BP step, {title}", [peaks["fdfa"] / peaks["plain"]])


def _large(table: dict[str, tuple[str, Callable[[], tuple], float]]) -> Iterator[Row]:
    for name, (package, _, limit) in table.items():
        if reason := missing(package):
            print(reason, file=sys.stderr)
            continue
        methods = ("plain", "fdfa", "fg-a", "fg-w")
        functions = {method: training_step(large(name), method) for method in methods}
        seconds = take_turns(functions, 5, warmup=2)
        plain = 1e3 * float(np.median(seconds["plain"]))
        peaks = {method: peak_memory(functions[method]) for method in methods}  # of tensors alive together
        counts = {method: operations(functions[method]) for method in methods}
        for method, most in (("fdfa", limit), ("fg-a", 1.6), ("fg-w", None)):
            label = method.upper()
            yield Row(f"{label} step / BP step, {name}", ratio(seconds[method], seconds["plain"]), most, plain)
            yield Row(f"Operations of a {label} step / BP step, {name}", [counts[method] / counts["plain"]])
            yield Row(f"Peak memory of a {label} step / BP step, {name}", [peaks[method] / peaks["plain"]], 1.3)


@bench("steps-transformers")
def _() -> Iterator[Row]:
    yield from _large(TRANSFORMERS)


@bench("steps-convolutions")
def _() -> Iterator[Row]:
    yield from _large(CONVOLUTIONS)


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
