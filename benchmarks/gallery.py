"""Networks that nobody here wrote: the code of the gallery of docs/own-network.md, for its tests and for its bench."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fdfa_core import BlockNetwork, cut, make_estimator

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
