"""Small helpers that several rules share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdfa_core.linearisation.maps import Context


def fold(value: Tensor, primal: torch.Size) -> Tensor:
    """R directions of N samples as R N samples."""
    return value.flatten(0, 1) if value.dim() > len(primal) else value


def spread(value: Tensor, dims: int, shape: tuple[int, ...]) -> Tensor:
    """Give a direction of a parameter with `dims` dimensions the shape in which that parameter broadcasts."""
    return value.reshape(value.shape[: value.dim() - dims] + shape)


def detached(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter as a plain value; None stays None."""
    return None if parameter is None else parameter.detach()


def parameter_names(module: nn.Module, context: Context) -> tuple[str | None, str | None]:
    """The network's names of a layer's weight and bias, None for one that it does not have."""
    return tuple(None if p is None else context.names[p] for p in (module.weight, module.bias))
