"""Networks with the habits of real code, each in one block between two linear layers."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fdfa_core import BlockNetwork

F64 = torch.float64


class Own(nn.Module):
    """A block whose forward is a given function of itself and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def linear():
    return nn.Linear(8, 8)


def backbone(self, x):
    with torch.no_grad():
        return torch.tanh(self.a(x))


def constant_scale(self, x):
    z = self.a(x)
    with torch.no_grad():
        scale = z.norm(dim=1, keepdim=True)
    return torch.tanh(z / scale)


def grad_again_inside(self, x):
    with torch.no_grad():
        z = self.a(x)
        with torch.enable_grad():
            return torch.tanh(z) * self.b(x)


def python_scale(self, x):
    return x + random.random() * torch.tanh(self.a(x))


def numpy_scale(self, x):
    return x + np.random.normal() * torch.tanh(self.a(x))


def layer_drop(self, x):
    return x if random.random() < 0.5 else x + torch.tanh(self.a(x))


def held_generator(self, x):
    return torch.tanh(self.a(x) * torch.rand((), generator=self.stream, dtype=x.dtype))


def held_numpy_generator(self, x):
    return torch.tanh(self.a(x) * self.draw())


def rows(self, x):
    return torch.vmap(lambda row: torch.tanh(self.a.weight @ row))(x)


def own_gradient(self, x):
    return torch.vmap(torch.func.grad(lambda row: self.a(row).square().sum()))(x)


def hypernetwork(self, x):
    return F.linear(x, self.a(x.mean(0)).view(8, 1).expand(8, 8))


def recurrent(self, x):
    return self.a(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]


def checkpointed(reentrant):
    def forward(self, x):
        return x + checkpoint(lambda z: torch.pow(self.b(torch.tanh(self.a(z))), 2), x, use_reentrant=reentrant)

    return forward


def sparse(self, x):
    return torch.sparse.mm(self.matrix.to_sparse(), self.a(x))


BLOCKS = {
    "no_grad over a statistic": lambda: Own(constant_scale, a=linear()),
    "gradients on again inside": lambda: Own(grad_again_inside, a=linear().requires_grad_(False), b=linear()),
    "python's stream": lambda: Own(python_scale, a=linear()),
    "numpy's stream": lambda: Own(numpy_scale, a=linear()),
    "layer drop": lambda: Own(layer_drop, a=linear()),
    "a generator of its own": lambda: Own(held_generator, a=linear(), stream=torch.Generator().manual_seed(0)),
    "a bound method of numpy": lambda: Own(held_numpy_generator, a=linear(), draw=np.random.default_rng(0).uniform),
    "vmap inside": lambda: Own(rows, a=nn.Linear(8, 8, bias=False)),
    "torch.func.grad inside": lambda: Own(own_gradient, a=linear()),
    "a linear layer without a batch": lambda: Own(hypernetwork, a=linear()),
    "checkpoint": lambda: Own(checkpointed(False), a=linear(), b=linear()),
    "reentrant checkpoint": lambda: Own(checkpointed(True), a=linear(), b=linear()),
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "weight norm over all": lambda: parametrizations.weight_norm(linear(), dim=None),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "lstm": lambda: Own(recurrent, a=nn.LSTM(8, 8, batch_first=True)),
    "sparse matrix": lambda: Own(sparse, a=linear(), matrix=nn.Buffer((torch.arange(25).view(5, 5) % 3 == 0).double())),
    "scalar parameter": lambda: Own(lambda self, x: x + self.s * self.a(x), a=linear(), s=nn.Parameter(torch.tensor(0.5))),
}


def network(block, dtype=F64):
    torch.manual_seed(0)
    return BlockNetwork(nn.Linear(6, 8), block(), nn.Linear(8, 3)).to(dtype)


def batch(dtype=F64):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=stream, dtype=dtype), torch.randint(3, (5,), generator=stream)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


def restarted(net):
    """Bring every stream that the networks here draw from to one point."""
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    for module in net.modules():
        if isinstance(stream := vars(module).get("stream"), torch.Generator):
            stream.manual_seed(3)
        if owner := getattr(vars(module).get("draw"), "__self__", None):
            owner.bit_generator.state = np.random.default_rng(3).bit_generator.state
