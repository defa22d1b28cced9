"""Independent random streams of one run, derived from its seed by name."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """Return the seed of the stream called `names`: 63 bits of a SHA-256, so that streams of different names do not meet."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of the stream called `names`."""
    return torch.Generator(device).manual_seed(derive(seed, *names))
