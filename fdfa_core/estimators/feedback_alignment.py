"""Feedback alignment: backpropagation with fixed random matrices in place of the transposed weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fdfa_core.errors import Unsupported
from fdfa_core.estimators import consistency
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.direct_feedback import uniform_feedback
from fdfa_core.estimators.options import free_memory
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, plain_parameters
from fdfa_core.linearisation.maps import ruled
from fdfa_core.linearisation.trace import Gradients, merge
from fdfa_core.networks.batch import explained
from fdfa_core.random_state import Streams, preserve_random_stream

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)  # these types exactly: a subclass may compute something else


@dataclass
class _Link:
    """One block's forward pass: what its local gradients need, and nothing of its neighbours."""

    leaf: Tensor
    parameters: dict[str, Tensor]  # by name in the network
    graph: Tensor


class _Pass:
    """A forward pass through a network; the graph of every block ends at the block's own input."""

    def __init__(self):
        self.links: list[_Link] = []

    @property
    def output(self) -> Tensor:
        """The network's output (N, O), detached."""
        return self.links[-1].graph.detach().reshape(len(self.links[-1].graph), -1)


@register("fa")
class FeedbackAlignment(Estimator):
    r"""FA: the error of block l is the error of block l+1 carried down through fixed random weights (Lillicrap et al. 2016).

    Where backpropagation multiplies by the transpose of a weight, this multiplies by that of a random tensor of the weight's
    shape: a matrix for a linear layer, a kernel of the same stride, padding and groups for a convolution. Everything without
    such a weight (activations, pooling, normalisation, skip connections) is differentiated as it is. A block with weights
    outside plain linear and convolution layers (say `nn.MultiheadAttention`) has one dense random matrix from its output to its
    input instead. Errors travel down block by block, in sequence; each block's own gradients are local and exact.

    Biased; no variance given the batch. Random weights are uniform on ±√(6/fan-in), drawn at the first batch. Cost: the
    products of backpropagation.
    """

    need_push = False
    need_pull = False  # in the sense of `Trace`: it has passes of its own
    expectation, variance = "biased", 0.0

    def __init__(self, net, **common):
        super().__init__(net, **common)
        self.names = {p: name for name, p in net.named_parameters()}
        self.layered = [_is_layered(block) for block in net]
        self.feedback: dict[str, Tensor] = {}

    def meet(self, x: Tensor, y: Tensor) -> None:
        """Look at the network, and whether random weights in the backward direction leave the blocks' values alone."""
        super().meet(x, y)
        if not (self.check and consistency.enabled()) or all(map(ruled, self.net)):
            return
        with torch.no_grad(), preserve_random_stream(self.device, self.net, host=True):
            streams = Streams(self.device, self.net, host=True)
            links = self.trace(x).links  # draws the random weights, which the step at hand would draw now
            streams.restore()
            for i, (block, link) in enumerate(zip(self.net, links, strict=True)):
                tensors = plain_parameters(block) | {name: b.clone() for name, b in block.named_buffers()}
                with as_written():
                    x = functional_call(block, tensors, (x.clone(),))
                if not torch.allclose(link.graph.detach(), x, rtol=1e-2, atol=1e-3, equal_nan=True):
                    raise Unsupported(
                        f"block {i} ({type(block).__name__}): fa changes its values, for it differentiates layers inside its "
                        "forward, where fa puts random weights: use another method"
                    )

    def trace(self, x: Tensor, update_buffers: bool = False, shortcuts: bool = False) -> _Pass:
        """Run the network forward, block by block, each on a leaf of its own."""
        forward = _Pass()
        for i, block in enumerate(self.net):
            leaf = x.detach().requires_grad_(i > 0 and self.layered[i])
            plain = dict(block.named_parameters()) if update_buffers else plain_parameters(block)
            parameters = {name: p.detach().requires_grad_() for name, p in plain.items()}
            buffers = {} if update_buffers else {name: b.clone() for name, b in block.named_buffers()}
            with torch.enable_grad(), self._random_weights(i, block), as_written(), explained(self.net, x):
                graph = functional_call(block, {**parameters, **buffers}, (leaf.clone(),))  # a block may write into its input
            named = {self.names[p]: parameters[name] for name, p in block.named_parameters()}
            forward.links.append(_Link(leaf, named, graph))
            if i > 0 and not self.layered[i]:
                self._weight(f"{i}", (graph[0].numel(), leaf[0].numel()))
            x = graph
        self.loss.shape = None if graph.dim() == 2 else tuple(graph.shape[1:])
        return forward

    def gradients(self, trace: _Pass, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Sweep the error down through random weights, with local gradients on the way."""
        gradients: Gradients = {}
        signal = error
        for i, link in reversed(list(enumerate(trace.links))):
            leaves = [leaf for leaf in (*link.parameters.values(), link.leaf) if leaf.requires_grad]
            if leaves and link.graph.requires_grad:
                signal = signal.reshape(link.graph.shape)
                local = torch.autograd.grad(
                    link.graph, leaves, signal, retain_graph=True, materialize_grads=True, allow_unused=True
                )
            else:
                local = [torch.zeros_like(leaf) for leaf in leaves]
            local = [g if g.layout is torch.strided else g.to_dense() for g in local]
            merge(gradients, dict(zip(link.parameters, local, strict=False)))
            if i > 0:
                below = trace.links[i - 1].graph.shape
                signal = local[-1] if self.layered[i] else (signal.flatten(1) @ self.feedback[f"{i}"]).view(below)
        return repeat(gradients, lead)

    @contextmanager
    def _random_weights(self, i: int, block: nn.Module) -> Iterator[None]:
        """Let every affine layer of a block pass signals down through its random weight while it computes as ever."""
        with ExitStack() as hooks:
            for name, module in block.named_modules():
                if i > 0 and self.layered[i] and type(module) in LAYERS:
                    key = f"{i}.{name}.weight" if name else f"{i}.weight"
                    substitute = _Substitute(self._weight(key, tuple(module.weight.shape)))
                    hooks.enter_context(_removed(module.register_forward_pre_hook(substitute.cut)))
                    hooks.enter_context(_removed(module.register_forward_hook(substitute.join)))
            yield

    def _weight(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """Return the random weight of a layer (by its weight's name) or of a whole block (by its index)."""
        if key not in self.feedback:
            self._require_memory(key, shape)
            self.feedback[key] = uniform_feedback(self, shape, math.prod(shape[1:]))
        return self.feedback[key]

    def _require_memory(self, key: str, shape: tuple[int, ...]) -> None:
        """Raise `Unsupported` if a random weight would not leave the machine half of its free memory."""
        size, free = math.prod(shape) * self.dtype.itemsize, free_memory(self.device)
        if size > free / 2:
            given = " × ".join(map(str, shape))
            raise Unsupported(
                f"fa needs a random weight of {given} numbers for {key} ({size / 1e9:.3g} GB; {free / 1e9:.3g} GB are free). A "
                "block with matrices outside plain linear layers and convolutions has one dense weight from its output to its "
                "input: make it of plain layers, or use dfa"
            )

    def own_state(self):
        """Return the random weights."""
        return {"feedback": {key: b.clone() for key, b in self.feedback.items()}}

    def load_own_state(self, state: Mapping[str, object]):
        """Restore the random weights."""
        self.feedback = {key: b.clone() for key, b in state["feedback"].items()}


class _Substitute:
    """Hooks that give an affine layer the gradient of a layer with another weight, and leave its value as it is."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def cut(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hand the layer its input without history: its own weight carries nothing down."""
        (self.x,) = inputs
        return (self.x.detach(),)

    def join(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Return the layer's value, from which signals go down as they would from the random layer."""
        if isinstance(module, nn.Linear):
            return _BelowLinear.apply(self.x, output, self.weight)
        if isinstance(module.padding, str) or module.padding_mode != "zeros" or self.x.dim() != self.weight.dim():
            random = module._conv_forward(self.x, self.weight, None)  # autograd finds the way down
            return output + (random - random.detach())
        return _BelowConvolution.apply(self.x, output, self.weight, module)


class _BelowLinear(torch.autograd.Function):
    """The value of a linear layer, with the gradient at its input that another weight gives it."""

    generate_vmap_rule = True  # a block may use the transforms of torch.func

    @staticmethod
    def forward(x: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        return output.clone()  # what follows may write into it

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, _, weight = inputs
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx, signal: Tensor):
        (weight,) = ctx.saved_tensors
        below = signal.reshape(-1, len(weight)) @ weight.to(signal.dtype)  # autocast may have made it another than the input's
        return below.view(ctx.shape).to(ctx.dtype), signal, None


class _BelowConvolution(torch.autograd.Function):
    """The same for a convolution."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, output: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        return output.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, _, weight, ctx.layer = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, signal: Tensor):
        (x, weight), of = ctx.saved_tensors, ctx.layer
        how = (of.stride, of.padding, of.dilation, False, (0,) * len(of.stride), of.groups)
        x_like, weight = x.to(signal.dtype), weight.to(signal.dtype)
        below, _, _ = torch.ops.aten.convolution_backward(signal, x_like, weight, None, *how, (True, False, False))
        return below.to(x.dtype), signal, None, None


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _is_layered(block: nn.Module) -> bool:
    """Whether all matrices and kernels among the parameters are weights of plain affine layers."""
    weights = {module.weight for module in block.modules() if type(module) in LAYERS}
    return all(_is_vector(p) or p in weights for p in block.parameters())


def _is_vector(parameter: Tensor) -> bool:
    """Whether a parameter has at most one dimension of more than one entry, as what scales or shifts channels has."""
    return sum(size > 1 for size in parameter.shape) < 2
