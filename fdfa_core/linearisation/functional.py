"""Calling a module with other parameters and buffers than its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

COUNTING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


@dataclass
class Members:
    """What a module holds, by name, as its own iterators have it, in one walk: these take longer than a small block runs.

    Attributes:
        parts: the module and all inside it.
        parameters, buffers: each once, under its first name.
        counted: names of the buffers in which batch normalisation counts while it trains, and which it does not read.
    """

    parts: list[nn.Module] = field(default_factory=list)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)


def members(module: nn.Module) -> Members:
    """Return what a module holds."""
    found, seen = Members(), set()

    def visit(part: nn.Module, path: str) -> None:
        seen.add(id(part))
        found.parts.append(part)
        for into, values in ((found.parameters, part._parameters), (found.buffers, part._buffers)):
            for name, value in values.items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    into[path + name] = value
                    if into is found.buffers and part.training and type(part) in COUNTING:
                        found.counted.add(path + name)
        for name, child in part._modules.items():
            if child is not None and id(child) not in seen:
                visit(child, f"{path}{name}.")

    visit(module, "")
    return found


def functional_call(module: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
    """Call a module with some of its parameters and buffers replaced, as `torch.func.functional_call` does.

    A tensor that a module holds in several places is replaced in all of them by the value given for its first name. Torch's own
    treatment of such ties leaves the module with the *replacements* where one submodule is registered under two names
    (pytorch/pytorch#164759); here every place is written and restored once.

    Args:
        module: the module; afterwards it is as it was.
        tensors: name → replacement, names as in `named_parameters()` and `named_buffers()`.
        args: positional arguments of the call.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    replacements = {id(named[name]): value for name, value in tensors.items()}
    places = {}
    for path, child in module.named_modules():  # every submodule once, under its first name
        for attribute, tensor in (*child._parameters.items(), *child._buffers.items()):
            if id(tensor) in replacements:
                places[f"{path}.{attribute}" if path else attribute] = replacements[id(tensor)]
    return torch.func.functional_call(module, places, args, tie_weights=False)


def rewrites(module: nn.Module) -> bool:
    """Whether a module alone rewrites its weight in every forward pass: a lookup with `max_norm`."""
    return isinstance(module, LOOKUPS) and module.max_norm is not None


def plain_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters without history, by name; what a forward pass would rewrite comes as a copy."""
    written = {part.weight for part in module.modules() if rewrites(part)}
    return {name: p.detach().clone() if p in written else p.detach() for name, p in module.named_parameters()}
