"""Calling a module with other parameters and buffers than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


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
