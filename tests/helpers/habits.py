"""Networks with the habits of real code, each in one block between two linear layers, and what tests do with them."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fdfa_core import BlockNetwork
from verification.support.networks import HABITS as BLOCKS
from verification.support.networks import Own, backbone, linear, restarted

__all__ = ["BLOCKS", "F64", "Operations", "Own", "backbone", "batch", "flat", "linear", "network", "restarted"]

F64 = torch.float64


def network(block, dtype=F64):
    torch.manual_seed(0)
    return BlockNetwork(nn.Linear(6, 8), block(), nn.Linear(8, 3)).to(dtype)


def batch(dtype=F64):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=stream, dtype=dtype), torch.randint(3, (5,), generator=stream)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions inside a `with`, tangents' included."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=value) if formula else 0
        return value
