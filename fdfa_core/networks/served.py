"""What a network must not hold for estimates to be right: refusals by name, before anything is computed."""

from __future__ import annotations

import torch
from torch import nn

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.networks.blocks import BlockNetwork


def require_served(net: BlockNetwork) -> None:
    """Raise where a network does what no gradient here can follow, backpropagation's included.

    Raises:
        Unsupported: an embedding that rewrites its weights while it is read.
        InvalidInput: parameters without values, or that differentiation cannot use.
    """
    for path, module in net.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            others = [m for m in net.modules() if m is not module and getattr(m, "weight", None) is module.weight]
            if others:
                raise Unsupported(
                    f"block {path.split('.')[0]}: {type(module).__name__} {path} with max_norm={module.max_norm} rewrites the "
                    f"weight that {type(others[0]).__name__} uses too: use max_norm=None and shorten the rows after each step"
                )
    for name, parameter in net.named_parameters():
        if parameter.is_meta:
            raise InvalidInput(f"{name}: device", "meta", "parameters that hold values: net.to_empty(device=…), then load them")
        if parameter.is_inference():
            raise InvalidInput(name, "an inference tensor", "a network that was made outside torch.inference_mode()")


def require_blockwise(net: BlockNetwork) -> None:
    """Raise where a network does what an estimator that works block by block cannot follow.

    Raises:
        Unsupported: hooks that only a backward pass through the whole network calls.
        InvalidInput: parameters of several types or devices, or of complex numbers.
    """
    require_served(net)
    for path, module in net.named_modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            kind = type(module).__name__
            raise Unsupported(f"block {path.split('.')[0]}: {kind} {path} copies what it wraps: use its .module; bp takes it")
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(
                f"block {path.split('.')[0]}: {path} is TorchScript, whose code cannot be followed: use the module that was "
                "scripted or traced; bp takes it"
            )
        if module._backward_hooks or module._backward_pre_hooks:
            what = f"block {path.split('.')[0]}: {type(module).__name__} {path}" if path else type(module).__name__
            raise Unsupported(
                f"{what} has a backward hook (register_full_backward_hook), which only bp calls: no backward pass goes through "
                "the network here. Remove it, or use a hook on the parameters (Tensor.register_hook), which backward() calls"
            )
    first = next(iter(net.named_parameters()), None)
    for name, parameter in net.named_parameters():
        if parameter.dtype != first[1].dtype:
            given = f"{parameter.dtype}, where {first[0]} is {first[1].dtype}"
            raise InvalidInput(f"{name}: dtype", given, "parameters of one type, e.g. net.float(); bp takes several")
        if parameter.device != first[1].device:
            given = f"{parameter.device}, where {first[0]} is on {first[1].device}"
            raise InvalidInput(f"{name}: device", given, "parameters on one device, e.g. net.to('cpu'); bp takes several")
        if not parameter.is_floating_point():
            raise InvalidInput(f"{name}: dtype", parameter.dtype, "real floating-point parameters")


def require_plain_types(device: torch.device) -> None:
    """Raise `InvalidInput` inside `torch.autocast`, under which kernels meet two types."""
    if torch.is_autocast_enabled(device.type):
        raise InvalidInput(
            "torch.autocast",
            "on",
            "a call outside it: estimators keep to the type of the parameters, e.g. net.bfloat16(); bp may stay inside",
        )


def coupled(net: nn.Module) -> bool:
    """Return whether a sample's loss depends on the others through batch normalisation that uses the batch's statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, kind) and (m.training or m.running_mean is None) for m in net.modules())
