"""Torch's global random streams: read, restored, and left as they were."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's global random streams that code on a device draws from: the CPU's, and CUDA's on CUDA."""
    return [torch.random.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.random.set_rng_state(state[0])
    for cuda in state[1:]:
        torch.cuda.set_rng_state(cuda, device)


@contextlib.contextmanager
def preserve_random_stream(device: torch.device):
    """Leave torch's global random stream as it was, whatever a block draws from it."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
