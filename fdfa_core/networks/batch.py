"""Checks of a batch (x, y), shared by everything that takes one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fdfa_core.errors import FdfaError, InvalidInput
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.inputs import require_tensor

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


def packed(net: BlockNetwork, x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return a network's inputs as one tensor, where they are given by name and the network was cut with such an example."""
    return net.inputs.pack(x) if isinstance(x, Mapping) and net.inputs is not None else x


def check_batch(net: BlockNetwork, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch on the network's device, or raise `InvalidInput` that names what does not fit."""
    x = packed(net, x)
    for name, value in (("x", x), ("y", y)):
        require_tensor(name, value)
    if len(x) != len(y):
        raise InvalidInput("y: number of samples", len(y), f"{len(x)}, the number of samples of x")
    if len(x) == 0:
        raise InvalidInput("x: number of samples", 0, "at least one sample")
    parameter = next(net.parameters())
    x, y = _plain(x).to(parameter.device), _plain(y).to(parameter.device)
    if x.is_floating_point():
        if x.dtype != parameter.dtype:
            raise InvalidInput("x: dtype", x.dtype, f"{parameter.dtype}, the dtype of the network's parameters")
        require_finite("x", x)
    if y.is_floating_point():
        require_finite("y", y)
    if net.input_shape is not None and tuple(x.shape[1:]) != net.input_shape:
        raise InvalidInput("x: shape of a sample", tuple(x.shape[1:]), f"{net.input_shape}, the network's input_shape")
    return x, y


def _plain(value: Tensor) -> Tensor:
    """Return a tensor that automatic differentiation may keep: no inference tensor, and without the graph that made it."""
    return value.clone() if value.is_inference() else value.detach() if value.requires_grad else value


def require_finite(name: str, value: Tensor) -> None:
    """Raise `InvalidInput` that names the first sample with a NaN or an infinity."""
    # the sum is finite unless an entry is not (or it overflows): one cheap pass, and a careful look only then
    if not math.isfinite(value.sum().item()) and not bool(value.isfinite().all()):
        bad = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[0].item()
        raise InvalidInput(name, f"NaN or infinity in sample {bad}", "finite values")


@contextlib.contextmanager
def explained(net: BlockNetwork, x: Tensor, where: str = "") -> Iterator[None]:
    """Around a forward pass: turn an error of torch into one that names the block, and x where its first layer cannot take it.

    Args:
        net: the network.
        x: the input, of the network or of the block that is run.
        where: the block, if one is run by itself.
    """
    try:
        yield
    except (FdfaError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        if not where or where.startswith("block 0 "):
            _explain_input(net, x, error)
        where = "; ".join(getattr(error, "__notes__", ())) or f"in {where or type(net).__name__}"
        given = f"{x.dtype}, shape {tuple(x.shape)}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        accepted = f"what the blocks take; the forward pass failed {where}"
        raise InvalidInput("x", given, accepted, f"torch says: {reason}") from error


def _explain_input(net: BlockNetwork, x: Tensor, error: Exception) -> None:
    """Raise `InvalidInput` if x is not what the network's first layer takes."""
    first = next((m for m in net.modules() if not any(True for _ in m.children())), net)
    weight = getattr(first, "weight", None)
    if isinstance(first, LOOKUPS):
        if x.dtype not in (torch.int64, torch.int32):
            raise InvalidInput("x: dtype", x.dtype, f"torch.int64, which {type(first).__name__} looks up") from error
        low, high = (int(bound) for bound in x.aminmax())
        if low < 0 or high >= first.num_embeddings:
            bad = low if low < 0 else high
            raise InvalidInput("x: index", bad, f"integers from 0 to {first.num_embeddings - 1}") from error
    elif isinstance(weight, Tensor) and not x.is_floating_point():
        accepted = f"{weight.dtype}, which {type(first).__name__} multiplies, e.g. x.to({weight.dtype})"
        raise InvalidInput("x: dtype", x.dtype, accepted) from error
    if isinstance(first, nn.Linear) and x.shape[-1] != first.in_features:
        raise InvalidInput("x: last dimension", x.shape[-1], f"{first.in_features}, which Linear takes") from error
    if isinstance(first, CONVOLUTIONS) and (x.dim() != first.weight.dim() or x.shape[1] != first.in_channels):
        dims = ", ".join(["N", str(first.in_channels), *"DHW"[-(first.weight.dim() - 2) :]])
        raise InvalidInput("x: shape", tuple(x.shape), f"({dims}), which {type(first).__name__} takes") from error
