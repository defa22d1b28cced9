"""Local linearisations: one block at one input, its tangent map and its local vector–Jacobian product.

A `Trace` is one forward pass, block by block. Each block's output is detached before the next block sees it, so no
reverse-mode graph crosses a block boundary. What a method may do inside a block is offered by `BlockMap`:

- `push` carries a tangent (a direction at the block's input, at its parameters, or injected at a site) to the block's output;
- `pull` turns a signal at a site into gradients of the block's own parameters.

Tangents and signals have the shape (N, …) of the primal value, or (R, N, …) for R directions at once.

This file is the only place that tells layer types apart. A rule (a `Map` registered for a layer type) holds hand-derived
products on the saved primal value; any other module goes through torch's forward-mode and, inside the block, reverse-mode AD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vmap

from fdfa_core.draws import Gradient, Outer
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.functional import functional_call
from fdfa_core.network import Block, BlockNetwork, require_site

Gradients = dict[str, Gradient]
RULES: dict[type[nn.Module], type[Map]] = {}


class Context:
    """What every map of one pass needs to know.

    Attributes:
        names: parameter → its name in the network (the first one where a parameter is shared).
        update_buffers: let this pass move running statistics, as a training step does.
        need_pull: keep what `pull` needs.
    """

    def __init__(self, net: nn.Module, update_buffers: bool = False, need_pull: bool = True):
        self.names = {p: name for name, p in net.named_parameters()}
        self.update_buffers, self.need_pull = update_buffers, need_pull


class Map(ABC):
    """One module linearised at one input; `output` is its detached value."""

    output: Tensor

    @abstractmethod
    def __init__(self, module: nn.Module, x: Tensor, context: Context):
        """Run the module on x and keep what the two products need."""

    @abstractmethod
    def push(self, tangent: Tensor | None, parameters: Mapping[str, Tensor] | None) -> Tensor | None:
        """Return the output tangent; None stands for zero. `parameters` holds directions by parameter name."""

    @abstractmethod
    def pull(self, signal: Tensor, need_input: bool) -> tuple[Gradients, Tensor | None]:
        """Return parameter gradients and, if asked for, the signal at the input."""


def rule(*types: type[nn.Module]):
    """Register a `Map` as the fast path of layer types. It serves exactly these types, not their subclasses."""

    def register(cls):
        RULES.update(dict.fromkeys(types, cls))
        return cls

    return register


def linearize(module: nn.Module, x: Tensor, context: Context) -> Map:
    """Return the fast map of the module's type where there is one that is safe, and the general map otherwise."""
    hooked = module._forward_hooks or module._forward_pre_hooks  # a hook may change the value: only a real call runs it
    return (GeneralMap if hooked else RULES.get(type(module), GeneralMap))(module, x, context)


@rule(nn.Identity)
class IdentityMap(Map):
    """Output = input."""

    def __init__(self, module, x, context):
        self.output = x

    def push(self, tangent, parameters):
        return tangent

    def pull(self, signal, need_input):
        return {}, signal


@rule(nn.Flatten)
class FlattenMap(Map):
    """A change of shape."""

    def __init__(self, module, x, context):
        self.output, self.shape = module(x), x.shape

    def push(self, tangent, parameters):
        return None if tangent is None else tangent.reshape(_lead(tangent, self.shape) + self.output.shape)

    def pull(self, signal, need_input):
        return {}, signal.reshape(_lead(signal, self.output.shape) + self.shape)


@rule(nn.Linear)
class LinearMap(Map):
    """a = x Wᵀ + b; gradients Σ_p signal_p ⊗ x_p and Σ_p signal_p."""

    def __init__(self, module, x, context):
        self.x, self.weight, self.bias = x, module.weight.detach(), module.bias
        self.weight_name = context.names[module.weight]
        self.bias_name = None if module.bias is None else context.names[module.bias]
        self.output = F.linear(x, self.weight, None if module.bias is None else module.bias.detach())

    def push(self, tangent, parameters):
        out = None if tangent is None else F.linear(tangent, self.weight)
        if parameters is not None:
            v = parameters[self.weight_name]  # (*lead, n_out, n_in)
            # one matrix product for all directions: (n_in,) rows of every direction side by side
            moved = self.x @ v.flatten(0, -2).T
            if v.dim() == 3:
                moved = moved.unflatten(-1, v.shape[:2]).movedim(-2, 0)
            out = _add(out, moved)
            if self.bias_name is not None:
                vb = parameters[self.bias_name]
                out = out + vb.reshape(vb.shape[:-1] + (1,) * (self.x.dim() - 1) + vb.shape[-1:])
        return out

    def pull(self, signal, need_input):
        below = signal @ self.weight if need_input else None
        rows, x = signal.reshape(_lead(signal, self.output.shape) + (-1, signal.shape[-1])), self.x.flatten(0, -2)
        gradients: Gradients = {self.weight_name: rows.T @ x if rows.dim() == 2 else Outer(rows, x)}
        if self.bias_name is not None:
            gradients[self.bias_name] = rows.sum(-2)
        return gradients, below


@rule(nn.ReLU)
class ReLUMap(Map):
    """max(a, 0); the mask is read off the output, so nothing more is kept."""

    def __init__(self, module, x, context):
        self.output = torch.relu(x)

    def push(self, tangent, parameters):
        return None if tangent is None else torch.ops.aten.threshold_backward(tangent, self.output, 0)

    def pull(self, signal, need_input):
        return {}, torch.ops.aten.threshold_backward(signal, self.output, 0)


@rule(nn.Tanh)
class TanhMap(Map):
    """tanh(a), derivative 1 − output²."""

    def __init__(self, module, x, context):
        self.output = torch.tanh(x)

    def push(self, tangent, parameters):
        return None if tangent is None else torch.ops.aten.tanh_backward(tangent, self.output)

    def pull(self, signal, need_input):
        return {}, torch.ops.aten.tanh_backward(signal, self.output)


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
class BatchNormMap(Map):
    """γ (x − μ)/σ + β per channel, with the batch's statistics in training mode and the running ones otherwise.

    In training mode the Jacobian of the normalisation couples samples, (I − 11ᵀ/M − x̂x̂ᵀ/M)/σ over the M values of a
    channel. It is symmetric, so one function serves tangents and signals.
    """

    def __init__(self, module, x, context):
        self.axes = (0,) if x.dim() == 2 else (0, *range(2, x.dim()))  # batch and positions, counted without lead
        self.channels = (1, -1) + (1,) * (x.dim() - 2)
        self.batch_statistics = module.training or module.running_mean is None
        mean, var = module.running_mean, module.running_var
        momentum = module.momentum
        if module.training and module.track_running_stats:
            if context.update_buffers:
                module.num_batches_tracked.add_(1)
                momentum = 1 / module.num_batches_tracked.item() if momentum is None else momentum
            else:
                mean = var = None
        if self.batch_statistics and x.numel() // x.shape[1] < 2:
            raise InvalidInput("x: shape at batch normalisation", tuple(x.shape), "more than one value per channel in training mode")
        gamma = None if module.weight is None else module.weight.detach()
        beta = None if module.bias is None else module.bias.detach()
        self.output, saved_mean, saved_scale = torch.native_batch_norm(
            x, gamma, beta, mean, var, self.batch_statistics, momentum or 0.0, module.eps
        )
        if not self.batch_statistics:
            saved_mean, saved_scale = mean, (var + module.eps).rsqrt()
        self.x, self.mean = x, saved_mean.view(self.channels)
        self.inverse = saved_scale.view(self.channels)
        self.gamma = None if gamma is None else gamma.view(self.channels)
        self.names = None if gamma is None else (context.names[module.weight], context.names[module.bias])

    @property
    def normalised(self) -> Tensor:
        return (self.x - self.mean) * self.inverse

    def _jacobian(self, v: Tensor, scaled: bool) -> Tensor:
        """Apply the symmetric Jacobian of x → γ x̂ (or of x → x̂) to tangents or signals."""
        scale = self.inverse if self.gamma is None or not scaled else self.inverse * self.gamma
        if not self.batch_statistics:
            return v * scale
        axes = [a + v.dim() - self.x.dim() for a in self.axes]
        normalised = self.normalised
        centred = v - v.mean(axes, keepdim=True)
        return (centred - normalised * (v * normalised).mean(axes, keepdim=True)) * scale

    def push(self, tangent, parameters):
        out = None if tangent is None else self._jacobian(tangent, scaled=True)
        if parameters is not None and self.names is not None:
            gamma, beta = (parameters[name] for name in self.names)
            shape = gamma.shape[:-1] + self.channels
            out = _add(out, gamma.reshape(shape) * self.normalised + beta.reshape(shape))
        return out

    def pull(self, signal, need_input):
        axes = [a + signal.dim() - self.x.dim() for a in self.axes]
        gradients = {}
        if self.names is not None:
            gradients = dict(zip(self.names, ((signal * self.normalised).sum(axes), signal.sum(axes)), strict=True))
        return gradients, self._jacobian(signal, scaled=True) if need_input else None


@rule(nn.Sequential)
class SequentialMap(Map):
    """A chain of maps."""

    def __init__(self, module, x, context):
        self.maps = []
        for child in module:
            self.maps.append(linearize(child, x, context))
            x = self.maps[-1].output
        # a signal is carried below a child only if something below it has parameters
        self.has_parameters = [any(True for _ in child.parameters()) for child in module]
        self.output = x

    def push(self, tangent, parameters):
        for each in self.maps:
            tangent = each.push(tangent, parameters)
        return tangent

    def pull(self, signal, need_input):
        gradients: Gradients = {}
        for i in reversed(range(len(self.maps))):
            below = need_input or any(self.has_parameters[:i])
            found, signal = self.maps[i].pull(signal, below)
            merge(gradients, found)
            if not below:
                return gradients, None
        return gradients, signal


class GeneralMap(Map):
    """Any module, by torch's forward-mode AD for tangents and reverse-mode AD inside the module for signals.

    Tangent products run the module again; they see the same random numbers (dropout masks) as the first pass.
    """

    def __init__(self, module, x, context):
        self.module, self.x = module, x.detach()
        self.values = {name: p.detach() for name, p in module.named_parameters()}
        self.names = {name: context.names[p] for name, p in module.named_parameters()}
        self.buffers = {name: b.clone() for name, b in module.named_buffers()}
        self.random_state = torch.random.get_rng_state()
        buffers = dict(module.named_buffers()) if context.update_buffers else self._fresh_buffers()
        with torch.set_grad_enabled(context.need_pull):
            self.leaves = {name: p.clone().requires_grad_() for name, p in self.values.items()}
            self.leaf = self.x.clone().requires_grad_()
            self.graph = functional_call(module, {**self.leaves, **buffers}, (self.leaf,))
        self.output = self.graph.detach()

    def _fresh_buffers(self) -> dict[str, Tensor]:
        return {name: b.clone() for name, b in self.buffers.items()}

    def push(self, tangent, parameters):
        if tangent is None and (parameters is None or not self.values):
            return None
        directions = {name: parameters[self.names[name]] for name in self.values} if parameters is not None else None
        state = torch.random.get_rng_state()

        def one(t, v):
            torch.random.set_rng_state(self.random_state)
            x_and_p, moved = [self.x], [torch.zeros_like(self.x) if t is None else t]
            if v is not None:
                x_and_p.append(self.values)
                moved.append(v)

            def call(x, values=self.values):
                return functional_call(self.module, {**values, **self._fresh_buffers()}, (x,))

            return jvp(call, tuple(x_and_p), tuple(moved))[1]

        try:
            with torch.no_grad():
                many_t = tangent is not None and tangent.dim() > self.x.dim()
                many_v = directions is not None and any(
                    v.dim() > self.values[name].dim() for name, v in directions.items()
                )
                if not (many_t or many_v):
                    return one(tangent, directions)
                in_dims = (0 if many_t else None, dict.fromkeys(directions, 0) if many_v else None)
                return vmap(one, in_dims=in_dims, randomness="same")(tangent, directions)
        finally:
            torch.random.set_rng_state(state)

    def pull(self, signal, need_input):
        wanted = list(self.leaves.values()) + ([self.leaf] if need_input else [])
        if not wanted:
            return {}, None
        found = torch.autograd.grad(
            self.graph,
            wanted,
            signal,
            retain_graph=True,
            is_grads_batched=signal.dim() > self.output.dim(),
            materialize_grads=True,
            allow_unused=True,
        )
        below = found[-1] if need_input else None
        gradients: Gradients = {}
        for name, gradient in zip(self.leaves, found, strict=False):
            merge(gradients, {self.names[name]: gradient})
        return gradients, below


class BlockMap:
    """One block linearised at one input, with its sites."""

    def __init__(self, block: nn.Module, x: Tensor, context: Context):
        sited = isinstance(block, Block) and type(block).forward is Block.forward
        hooked = block._forward_hooks or block._forward_pre_hooks
        if sited and not hooked:
            self.below = linearize(block.affine, x, context)
            self.above: Map | None = linearize(block.activation, self.below.output, context)
        else:
            self.below, self.above = linearize(block, x, context), None

    @property
    def output(self) -> Tensor:
        """Value at the post site (N, …)."""
        return (self.above or self.below).output

    def site(self, site: str) -> Tensor:
        """Value at a site (N, …)."""
        return self.below.output if site == "pre" else self.output

    def push(
        self,
        tangent: Tensor | None,
        inject: Tensor | None = None,
        site: str = "post",
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:
        """Return the tangent at the output, for a tangent at the input, at a site, and at the parameters.

        Args:
            tangent: (N, …) or (R, N, …) at the input, or None for zero.
            inject: a direction of the site's shape, added there.
            site: "pre" or "post".
            parameters: a direction for each parameter name, (*shape) or (R, *shape).
        """
        tangent = self.below.push(tangent, parameters)
        if site == "pre":
            tangent = _add(tangent, inject)
        if self.above is not None:
            tangent = self.above.push(tangent, parameters)
        return _add(tangent, inject) if site == "post" else tangent

    def pull(self, signal: Tensor, site: str = "post") -> Gradients:
        """Return the gradients of the block's parameters for a signal (N, …) or (R, N, …) at a site."""
        gradients: Gradients = {}
        if self.above is not None and site == "post":
            found, signal = self.above.pull(signal, True)
            merge(gradients, found)
        merge(gradients, self.below.pull(signal, False)[0])
        return gradients


class Trace:
    """One forward pass through a network, block by block, with every block linearised where it stands.

    Args:
        net: the network.
        x: the batch (N, …).
        site: the site that will be used; raises `Unsupported` where a hidden block lacks it.
        update_buffers: move running statistics, as a training step does.
        need_pull: keep what the local vector–Jacobian products need.

    Attributes:
        blocks: a `BlockMap` per block, readout last.
        output: (N, O), detached.
    """

    def __init__(
        self, net: BlockNetwork, x: Tensor, *, site: str = "post", update_buffers: bool = False, need_pull: bool = True
    ):
        context = Context(net, update_buffers, need_pull)
        self.input = x
        self.blocks: list[BlockMap] = []
        with torch.no_grad():
            for i, block in enumerate(net):
                if i < len(net) - 1:
                    require_site(net, i, site)
                self.blocks.append(BlockMap(block, x, context))
                previous, x = x, self.blocks[-1].output
                if x.shape[:1] != previous.shape[:1]:
                    raise Unsupported(
                        f"block {i} ({type(block).__name__}) changes the batch dimension from {previous.shape[0]} to "
                        f"{tuple(x.shape)[:1]}; a block maps N samples to N samples"
                    )
        self.output = x

    @property
    def hidden(self) -> list[BlockMap]:
        """The hidden blocks' maps."""
        return self.blocks[:-1]

    @property
    def readout(self) -> BlockMap:
        """The readout's map."""
        return self.blocks[-1]

    def push(self, perturbations: Sequence[Tensor | None], site: str) -> Tensor | None:
        """Return the tangent of the network's output when hidden blocks are perturbed together at a site.

        Args:
            perturbations: one per hidden block, (N, …) or (R, N, …), or None for a block left alone.
            site: where they enter.
        """
        tangent = None
        for block, u in zip(self.hidden, perturbations, strict=True):
            tangent = block.push(tangent, u, site)
        return self.readout.push(tangent)


def merge(gradients: Gradients, more: Gradients) -> None:
    """Add gradients by name; a parameter that is used twice sums both."""
    for name, gradient in more.items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _lead(value: Tensor, primal_shape: torch.Size) -> tuple[int, ...]:
    """The extra leading dimensions of a tangent or signal over its primal value."""
    return tuple(value.shape[: value.dim() - len(primal_shape)])
