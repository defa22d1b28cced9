"""A network for each row of the support matrix: layers, and habits of real code, each in one block of a small network."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fdfa_core import Block, BlockNetwork, cut
from fdfa_core.networks.decorrelation import Decorrelation
from fdfa_core.networks.residual import PreNormBlock


class Own(nn.Module):
    """A block whose forward is a given function of itself and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        """Call the function."""
        return self.function(self, x)


def linear():
    """Return the layer that most of these blocks are made of."""
    return nn.Linear(8, 8)


def backbone(self, x):
    """Hold back the gradient of what lies below, as a pretrained part is often called."""
    with torch.no_grad():
        return torch.tanh(self.a(x))


def constant_scale(self, x):
    """Scale by a statistic that no gradient passes."""
    z = self.a(x)
    with torch.no_grad():
        scale = z.norm(dim=1, keepdim=True)
    return torch.tanh(z / scale)


def grad_again_inside(self, x):
    """Switch gradients off, and on again inside."""
    with torch.no_grad():
        z = self.a(x)
        with torch.enable_grad():
            return torch.tanh(z) * self.b(x)


def python_scale(self, x):
    """Draw from Python's stream."""
    return x + random.random() * torch.tanh(self.a(x))


def numpy_scale(self, x):
    """Draw from NumPy's stream."""
    return x + np.random.normal() * torch.tanh(self.a(x))


def layer_drop(self, x):
    """Leave a layer out at random."""
    return x if random.random() < 0.5 else x + torch.tanh(self.a(x))


def held_generator(self, x):
    """Draw from a generator that the block holds."""
    return torch.tanh(self.a(x) * torch.rand((), generator=self.stream, dtype=x.dtype))


def held_numpy_generator(self, x):
    """Draw by a bound method of a generator of NumPy's."""
    return torch.tanh(self.a(x) * self.draw())


def rows(self, x):
    """Map over rows by vmap."""
    return torch.vmap(lambda row: torch.tanh(self.a.weight @ row))(x)


def own_gradient(self, x):
    """Return a gradient of its own."""
    return torch.vmap(torch.func.grad(lambda row: self.a(row).square().sum()))(x)


def hypernetwork(self, x):
    """Compute the weights of a layer."""
    return F.linear(x, self.a(x.mean(0)).view(8, 1).expand(8, 8))


def recurrent(self, x):
    """Run a recurrent layer over three steps, and keep the last."""
    return self.a(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]


def checkpointed(reentrant):
    """Recompute a part in the backward pass."""
    def forward(self, x):
        return x + checkpoint(lambda z: torch.pow(self.b(torch.tanh(self.a(z))), 2), x, use_reentrant=reentrant)

    return forward


def sparse(self, x):
    """Multiply by a sparse matrix."""
    return torch.sparse.mm(self.matrix.to_sparse(), self.a(x))


HABITS = {
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
    "sparse matrix": lambda: Own(sparse, a=linear(), matrix=nn.Buffer((torch.arange(25).view(5, 5) % 3 == 0).float())),
    "scalar parameter": lambda: Own(lambda self, x: x + self.s * self.a(x), a=linear(), s=nn.Parameter(torch.tensor(0.5))),
}


def restarted(net: nn.Module) -> None:
    """Bring every stream that these networks draw from to one point."""
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    for module in net.modules():
        if isinstance(stream := vars(module).get("stream"), torch.Generator):
            stream.manual_seed(3)
        if owner := getattr(vars(module).get("draw"), "__self__", None):
            owner.bit_generator.state = np.random.default_rng(3).bit_generator.state


@dataclass(frozen=True)
class Row:
    """A row of the matrix: how its network, its batch and its surroundings are made.

    Attributes:
        network: makes the network, from one seed.
        batch: makes inputs and targets.
        loss: as in `make_estimator`.
        around: makes the context in which the estimators are called.
        dtype: of the network and of inputs that are no indices.
        tolerance: relative, of what has to agree; None for that of the type.
    """

    network: Callable[[], nn.Module]
    batch: Callable[[], tuple[object, Tensor]] = field(default=lambda: vectors())
    loss: object = "cross_entropy"
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    dtype: torch.dtype = torch.float64
    tolerance: float | None = None

    def made(self) -> tuple[BlockNetwork, object, Tensor]:
        """Return network, inputs and targets."""
        torch.manual_seed(0)
        net = self.network().to(self.dtype)
        x, y = self.batch()
        if isinstance(x, dict):
            return net, {name: self._typed(value) for name, value in x.items()}, y
        return net, self._typed(x), y

    def _typed(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def vectors(samples: int = 5) -> tuple[Tensor, Tensor]:
    """Return samples of six numbers, with three classes."""
    stream = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=stream), torch.randint(3, (samples,), generator=stream)


def indices(samples: int = 5) -> tuple[Tensor, Tensor]:
    """Return samples of four indices below nine."""
    return torch.randint(9, (samples, 4), generator=torch.Generator().manual_seed(1)), vectors(samples)[1]


def around(block: nn.Module) -> BlockNetwork:
    """Put a block that takes eight numbers between a stem and a readout."""
    with torch.no_grad():
        output = block.eval()(torch.zeros(5, 8))
    readout = nn.Linear(output[0].numel(), 3)
    head = readout if output.dim() == 2 else nn.Sequential(nn.Flatten(), readout)
    return BlockNetwork(nn.Linear(6, 8), block.train(), head)


def shaped(*shape: int, **parts: nn.Module) -> Callable[[], BlockNetwork]:
    """Return a maker of a network whose block sees its input in a shape, and runs some layers and a tanh."""
    layers = nn.Sequential(*parts.values())
    return lambda: around(Own(lambda self, x: torch.tanh(self.layers(x.view(-1, *shape))), layers=_anew(layers)))


def _anew(layers: nn.Module) -> nn.Module:
    """Return a copy of a module with parameters drawn from where torch's stream stands, so that each network is the same."""
    layers = copy.deepcopy(layers)
    for layer in layers.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return layers


def attending(self, x: Tensor) -> Tensor:
    """Attend by torch's scaled dot product, over four tokens of two numbers."""
    q, k, v = self.project(x.view(-1, 4, 2)).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v).flatten(1)


def many_heads(self, x: Tensor) -> Tensor:
    """Attend by `nn.MultiheadAttention`, over two tokens of four numbers."""
    tokens = x.view(-1, 2, 4)
    return self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


def unrolled(self, x: Tensor) -> Tensor:
    """Run a recurrent layer over four tokens of two numbers."""
    return self.layer(x.view(-1, 4, 2))[0].flatten(1)


def cast_inside(self, x: Tensor) -> Tensor:
    """Compute in bfloat16, inside the block."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.tanh(self.a(x)).float()


class Thresholds(torch.autograd.Function):
    """The sign, with the gradient of the identity: a straight-through estimator, without a forward-mode derivative."""

    @staticmethod
    def forward(context, x):
        """Return signs."""
        return x.sign()

    @staticmethod
    def backward(context, gradient):
        """Pass the gradient through."""
        return gradient


def tied() -> BlockNetwork:
    """Two blocks that share a layer."""
    shared = linear()
    return BlockNetwork(nn.Linear(6, 8), nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared, nn.Tanh()), nn.Linear(8, 3))


def compiled() -> BlockNetwork:
    """A compiled block."""
    return BlockNetwork(nn.Linear(6, 8), torch.compile(nn.Sequential(linear(), nn.Tanh()), backend="eager"), nn.Linear(8, 3))


def frozen() -> BlockNetwork:
    """A block that does not train."""
    return around(nn.Sequential(linear(), nn.Tanh()).requires_grad_(False))


def hooked() -> BlockNetwork:
    """A block with a backward hook."""
    net = around(nn.Sequential(linear(), nn.Tanh()))
    net[1].register_full_backward_hook(lambda *_: None)
    return net


def normalised_in_evaluation() -> BlockNetwork:
    """Batch normalisation by running statistics."""
    return around(nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Tanh())).eval()


def embedding(layer: nn.Module, pool: bool = True) -> Callable[[], BlockNetwork]:
    """Return a maker of a network that looks its inputs up."""
    first = lambda: nn.Sequential(_anew(layer), Own(lambda _, x: x.mean(1))) if pool else _anew(layer)  # noqa: E731
    return lambda: BlockNetwork(first(), nn.Sequential(linear(), nn.Tanh()), nn.Linear(8, 3))


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens of each sample."""
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def plain() -> BlockNetwork:
    """Linear layers with an activation."""
    return BlockNetwork(Block(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(linear(), nn.Tanh()), nn.Linear(8, 3))


def for_tokens() -> BlockNetwork:
    """Linear layers over the tokens of a sample."""
    return BlockNetwork(*plain(), input_shape=(4, 6))


def token_batch() -> tuple[Tensor, Tensor]:
    """Return samples of four tokens, and a target for each token."""
    stream = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, 6, generator=stream), torch.randint(3, (5, 4), generator=stream)


def two_inputs() -> tuple[dict[str, Tensor], Tensor]:
    """Return samples of two times six numbers, by name."""
    left, y = vectors()
    return {"left": left, "right": left.flip(1)}, y


def product(self, x: dict[str, Tensor]) -> Tensor:
    """Multiply two inputs by name."""
    return self.a(x["left"]) * self.b(x["right"])


def text() -> tuple[dict[str, Tensor], Tensor]:
    """Return samples of four indices and a mask, by name."""
    ids, y = indices()
    return {"ids": ids, "mask": torch.arange(4) <= torch.arange(5).view(-1, 1)}, y


def masked_mean(self, x: dict[str, Tensor]) -> Tensor:
    """Average over the tokens that the mask shows."""
    mask = x["mask"].unsqueeze(-1)
    return (self.a(x["ids"]) * mask).sum(1) / mask.sum(1)


def by_name(function, batch: Callable[[], tuple[dict[str, Tensor], Tensor]], **parts: nn.Module) -> BlockNetwork:
    """Cut a network whose first layer takes inputs by name."""
    return cut(nn.Sequential(Own(function, **parts), nn.Tanh(), linear(), nn.Tanh(), nn.Linear(8, 3)), example=batch()[0])


def _convolution() -> nn.Module:
    return nn.Conv2d(2, 3, 2, padding=1)


_TRANSFORMER = dict(d_model=4, nhead=2, dim_feedforward=6, dropout=0.0, batch_first=True)

LAYERS: dict[str, Row] = {
    "linear": Row(plain),
    "convolution, 1d": Row(shaped(2, 4, a=nn.Conv1d(2, 3, 2))),
    "convolution, 2d": Row(shaped(2, 2, 2, a=_convolution())),
    "convolution, 3d": Row(shaped(1, 2, 2, 2, a=nn.Conv3d(1, 2, 2, padding=1))),
    "transposed convolution": Row(shaped(2, 2, 2, a=nn.ConvTranspose2d(2, 2, 2))),
    "max pooling": Row(shaped(2, 2, 2, a=_convolution(), b=nn.MaxPool2d(2))),
    "mean pooling": Row(shaped(2, 2, 2, a=_convolution(), b=nn.AvgPool2d(2))),
    "adaptive mean pooling": Row(shaped(2, 2, 2, a=_convolution(), b=nn.AdaptiveAvgPool2d(2))),
    "adaptive max pooling": Row(shaped(2, 2, 2, a=_convolution(), b=nn.AdaptiveMaxPool2d(2))),
    "power-mean pooling": Row(shaped(2, 2, 2, a=_convolution(), b=nn.Softplus(), c=nn.LPPool2d(2, 2))),
    "batch normalisation": Row(lambda: around(nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Tanh()))),
    "batch normalisation, evaluation": Row(normalised_in_evaluation),
    "layer normalisation": Row(shaped(8, a=linear(), b=nn.LayerNorm(8))),
    "group normalisation": Row(shaped(2, 2, 2, a=_convolution(), b=nn.GroupNorm(3, 3))),
    "instance normalisation": Row(shaped(2, 2, 2, a=_convolution(), b=nn.InstanceNorm2d(3, affine=True))),
    "RMS normalisation": Row(shaped(8, a=linear(), b=nn.RMSNorm(8))),
    "decorrelation": Row(lambda: around(nn.Sequential(Decorrelation(8, 0.1), linear(), nn.Tanh()))),
    "dropout": Row(shaped(8, a=linear(), b=nn.Dropout(0.3))),
    "embedding": Row(embedding(nn.Embedding(9, 8)), indices),
    "embedding, sparse gradients": Row(embedding(nn.Embedding(9, 8, sparse=True)), indices),
    "embedding bag": Row(embedding(nn.EmbeddingBag(9, 8), pool=False), indices),
    "RNN": Row(lambda: around(Own(unrolled, layer=nn.RNN(2, 3, batch_first=True)))),
    "GRU": Row(lambda: around(Own(unrolled, layer=nn.GRU(2, 3, batch_first=True)))),
    "LSTM": Row(lambda: around(Own(unrolled, layer=nn.LSTM(2, 3, batch_first=True)))),
    "scaled dot-product attention": Row(lambda: around(Own(attending, project=nn.Linear(2, 6)))),
    "nn.MultiheadAttention": Row(lambda: around(Own(many_heads, attention=nn.MultiheadAttention(4, 2, batch_first=True)))),
    "pre-norm residual block": Row(lambda: around(PreNormBlock(8, 8, "tanh"))),
    "nn.TransformerEncoderLayer": Row(shaped(2, 4, a=nn.TransformerEncoderLayer(**_TRANSFORMER))),
}
CODE: dict[str, Row] = {
    "work in place": Row(lambda: around(nn.Sequential(linear(), nn.Tanh(), linear(), nn.ReLU(inplace=True)))),
    "tied weights": Row(tied),
    "torch.compile": Row(compiled, dtype=torch.float32),
    "frozen block": Row(frozen),
    "no_grad around what trains": Row(lambda: around(Own(backbone, a=linear()))),
    "autograd.Function without jvp": Row(lambda: around(Own(lambda self, x: Thresholds.apply(self.a(x)), a=linear()))),
    "backward hook": Row(hooked),
    "autocast around the estimator": Row(
        plain, around=lambda: torch.autocast("cpu", dtype=torch.bfloat16), dtype=torch.float32
    ),
    "autocast inside a block": Row(lambda: around(Own(cast_inside, a=linear())), dtype=torch.float32, tolerance=0.05),
    "bfloat16": Row(plain, dtype=torch.bfloat16),
    "float16": Row(plain, dtype=torch.float16),
    "inputs in a dict": Row(lambda: by_name(product, two_inputs, a=nn.Linear(6, 8), b=nn.Linear(6, 8)), two_inputs),
    "indices and a mask in a dict": Row(lambda: by_name(masked_mean, text, a=nn.Embedding(9, 8)), text),
    "inputs in a dict, not cut with one": Row(plain, two_inputs),
    "a loss per token": Row(for_tokens, token_batch, token_loss),
} | {name: Row(lambda make=make: around(make())) for name, make in HABITS.items()}
ROWS = LAYERS | CODE
