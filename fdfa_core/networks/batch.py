"""Checks of a batch (x, y), shared by everything that takes one."""

from __future__ import annotations

import math

from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork


def check_batch(net: BlockNetwork, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch on the network's device, or raise `InvalidInput` that names what does not fit."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise InvalidInput(name, value, "a tensor whose first dimension counts samples")
    if len(x) != len(y):
        raise InvalidInput("y: number of samples", len(y), f"{len(x)}, the number of samples of x")
    if len(x) == 0:
        raise InvalidInput("x: number of samples", 0, "at least one sample")
    parameter = next(net.parameters())
    x, y = x.to(parameter.device), y.to(parameter.device)
    if x.is_floating_point():
        if x.dtype != parameter.dtype:
            raise InvalidInput("x: dtype", x.dtype, f"{parameter.dtype}, the dtype of the network's parameters")
        require_finite("x", x)
    if y.is_floating_point():
        require_finite("y", y)
    if net.input_shape is not None and tuple(x.shape[1:]) != net.input_shape:
        raise InvalidInput("x: shape of a sample", tuple(x.shape[1:]), f"{net.input_shape}, the network's input_shape")
    return x, y


def require_finite(name: str, value: Tensor) -> None:
    """Raise `InvalidInput` that names the first sample with a NaN or an infinity."""
    # the sum is finite unless an entry is not (or it overflows): one cheap pass, and a careful look only then
    if not math.isfinite(value.sum().item()) and not bool(value.isfinite().all()):
        bad = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[0].item()
        raise InvalidInput(name, f"NaN or infinity in sample {bad}", "finite values")
