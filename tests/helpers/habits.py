"""Networks with the habits of real code, each in one block between two linear layers, and what tests do with them."""

import torch
from torch import nn

from fdfa_core import BlockNetwork
from verification.support.networks import HABITS as BLOCKS
from verification.support.networks import Own, backbone, linear, restarted

__all__ = ["BLOCKS", "F64", "Own", "backbone", "batch", "flat", "linear", "network", "restarted"]

F64 = torch.float64


def network(block, dtype=F64):
    torch.manual_seed(0)
    return BlockNetwork(nn.Linear(6, 8), block(), nn.Linear(8, 3)).to(dtype)


def batch(dtype=F64):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=stream, dtype=dtype), torch.randint(3, (5,), generator=stream)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])
