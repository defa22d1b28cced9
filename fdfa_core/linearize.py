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

import contextlib
import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fdfa_core.checks import random_state, set_random_state
from fdfa_core.draws import Gradient, Outer
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.functional import functional_call
from fdfa_core.network import Block, BlockNetwork, require_site

Gradients = dict[str, Gradient]
RULES: dict[type[nn.Module], type[Map]] = {}
INPUT = "<input>"  # stands beside parameter names for a module's input
aten = torch.ops.aten


class Context:
    """What every map of one pass needs to know.

    Attributes:
        names: parameter → its name in the network (the first one where a parameter is shared).
        update_buffers: let this pass move running statistics, as a training step does.
        need_pull: keep what `pull` needs.
        need_input: whether `pull` may be asked for the signal at the input of the map to be made.
        where: the block at hand, for messages.
    """

    def __init__(self, net: nn.Module, update_buffers: bool = False, need_pull: bool = True):
        self.names = {p: name for name, p in net.named_parameters()}
        self.update_buffers, self.need_pull = update_buffers, need_pull
        self.need_input, self.where = True, type(net).__name__

    @contextlib.contextmanager
    def above(self, parametric: bool) -> Iterator[None]:
        """While maps are made above others, of which some may have parameters: these need the signal at their output."""
        before, self.need_input = self.need_input, self.need_input or parametric
        try:
            yield
        finally:
            self.need_input = before


class Map(ABC):
    """One module linearised at one input.

    Attributes:
        output: the module's detached value. Whoever holds the map may drop it; the products do without.
        parametric: whether the module has parameters.
        mixes: whether a sample's value may depend on other samples.
        stands_in: whether the map may stand for its layer inside a module that has no rule.
    """

    output: Tensor
    parametric: bool = False
    mixes: bool = False
    stands_in: ClassVar[bool] = False

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether the rule covers the options of this module."""
        return True

    @abstractmethod
    def __init__(self, module: nn.Module, x: Tensor, context: Context):
        """Run the module on x and keep what the two products need."""

    @abstractmethod
    def push(self, tangent: Tensor | None, parameters: Mapping[str, Tensor] | None) -> Tensor | None:
        """Return the output tangent; None stands for zero. `parameters` holds directions by parameter name."""

    @abstractmethod
    def pull(self, signal: Tensor, need_input: bool) -> tuple[Gradients, Tensor | None]:
        """Return parameter gradients and, if asked for, the signal at the input."""

    def back(self, signal: Tensor) -> Tensor:
        """Return the signal at the input alone."""
        return self.pull(signal, True)[1]


def rule(*types: type[nn.Module]):
    """Register a `Map` as the fast path of layer types. It serves exactly these types, not their subclasses."""

    def register(cls):
        RULES.update(dict.fromkeys(types, cls))
        return cls

    return register


def linearize(module: nn.Module, x: Tensor, context: Context) -> Map:
    """Return the fast map of the module's type where there is one that is safe, and the general map otherwise."""
    fast = RULES.get(type(module))
    if fast is None or _hooked(module) or not fast.serves(module):
        return GeneralMap(module, x, context)
    return fast(module, x, context)


# Layers without parameters -----------------------------------------------------------------------------------------------


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
        self.output = module(x)
        self.before, self.after = x.shape, self.output.shape

    def push(self, tangent, parameters):
        return None if tangent is None else tangent.reshape(_lead(tangent, self.before) + self.after)

    def pull(self, signal, need_input):
        return {}, signal.reshape(_lead(signal, self.after) + self.before)


@rule(nn.ReLU)
class ReLUMap(Map):
    """max(a, 0); the mask is read off the output, so nothing more is kept."""

    stands_in = True

    def __init__(self, module, x, context):
        self.output = self.value = torch.relu(x)

    def push(self, tangent, parameters):
        return None if tangent is None else aten.threshold_backward(tangent, self.value, 0)

    def pull(self, signal, need_input):
        return {}, aten.threshold_backward(signal, self.value, 0)


@rule(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign)
@rule(nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh)
class ElementwiseMap(Map):
    """y = f(x) entry by entry: both products multiply by the slope f′(x), which autograd tells once and for all."""

    stands_in = True
    slope: Tensor | None  # None stands for one

    def __init__(self, module, x, context):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = type(module).forward(module, leaf.clone() if _inplace(module) else leaf)  # the layer alone, without hooks
            (self.slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
        self.output = value.detach()

    def push(self, tangent, parameters):
        return tangent if tangent is None or self.slope is None else tangent * self.slope

    def pull(self, signal, need_input):
        return {}, signal if self.slope is None else signal * self.slope


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
class DropoutMap(ElementwiseMap):
    """x times a random mask, drawn once: value, tangents and signals all see the same one.

    The mask is what the layer makes of ones, which takes the same random numbers as the layer itself would have.
    """

    stands_in = False  # inside a module every pass must draw the mask anew, to keep the random stream in step

    def __init__(self, module, x, context):
        self.slope = module(torch.ones_like(x)) if module.training else None
        self.output = x if self.slope is None else x * self.slope


@rule(nn.MaxPool2d)
class MaxPoolMap(Map):
    """The greatest entry of each window; tangents and signals take its place."""

    stands_in = True

    @staticmethod
    def serves(module):
        return not module.return_indices

    def __init__(self, module, x, context):
        self.window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        self.output, self.index = F.max_pool2d_with_indices(x, *self.window)
        self.x = x

    def push(self, tangent, parameters):
        if tangent is None:
            return None
        lead = _lead(tangent, self.x.shape)
        index = self.index.flatten(-2).expand(*lead, -1, -1, -1)
        return tangent.flatten(-2).gather(-1, index).view(lead + self.index.shape)

    def pull(self, signal, need_input):
        if signal.dim() == self.x.dim():
            return {}, aten.max_pool2d_with_indices_backward(signal, self.x, *self.window, self.index)
        lead = _lead(signal, self.index.shape)
        below = signal.new_zeros(lead + self.x.shape[:-2] + (math.prod(self.x.shape[-2:]),))
        below.scatter_add_(-1, self.index.flatten(-2).expand(*lead, -1, -1, -1), signal.flatten(-2))
        return {}, below.view(lead + self.x.shape)


@rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
@rule(nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d)
class LinearOperatorMap(Map):
    """A linear map without parameters that takes every sample by itself: R directions pass as R N samples."""

    def __init__(self, module, x, context):
        self.module, self.output = module, module(x)
        self.before, self.after = x.shape, self.output.shape

    def push(self, tangent, parameters):
        if tangent is None:
            return None
        return self.module(_fold(tangent, self.before)).view(_lead(tangent, self.before) + self.after)

    def pull(self, signal, need_input):
        rows = _fold(signal, self.after)
        with torch.enable_grad():  # the transpose: the derivative at zero, as anywhere else
            leaf = rows.new_zeros(rows.shape[:1] + self.before[1:], requires_grad=True)
            (below,) = torch.autograd.grad(self.module(leaf), leaf, rows)
        return {}, below.view(_lead(signal, self.after) + self.before)


# Layers with parameters --------------------------------------------------------------------------------------------------


@rule(nn.Linear)
class LinearMap(Map):
    """a = x Wᵀ + b; gradients Σ_p signal_p ⊗ x_p and Σ_p signal_p, over samples (and tokens) p."""

    parametric = stands_in = True

    def __init__(self, module, x, context):
        self.x, self.weight = x, module.weight.detach()
        self.weight_name, self.bias_name = _names(module, context)
        self.output = F.linear(x, self.weight, _detached(module.bias))

    def push(self, tangent, parameters):
        out = None if tangent is None else F.linear(tangent, self.weight)
        if parameters is not None:
            v = parameters[self.weight_name]  # (*lead, n_out, n_in)
            # one matrix product for all directions: the rows of every direction side by side
            moved = F.linear(self.x, v.flatten(0, -2))
            if v.dim() == 3:
                moved = moved.unflatten(-1, v.shape[:2]).movedim(-2, 0)
            out = _add(out, moved)
            if self.bias_name is not None:
                out = out + _spread(parameters[self.bias_name], 1, (1,) * (self.x.dim() - 1) + (-1,))
        return out

    def pull(self, signal, need_input):
        below = self.back(signal) if need_input else None
        lead, x = _lead(signal, self.x.shape), self.x.flatten(0, -2)
        rows = signal.reshape(*lead, len(x), -1)
        gradients: Gradients = {self.weight_name: Outer(rows, x) if lead else rows.T @ x}
        if self.bias_name is not None:
            gradients[self.bias_name] = rows.sum(-2)
        return gradients, below

    def back(self, signal):
        return signal @ self.weight


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionMap(Map):
    """A convolution, in groups or not. In one call, R kernels stand for R times the output channels, and so do R signals.

    Its weight gradient is dense: a sum over N × positions outer products, which outnumber a kernel's entries.
    """

    parametric = stands_in = True

    @staticmethod
    def serves(module):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def __init__(self, module, x, context):
        self.x, self.weight = x, module.weight.detach()
        self.weight_name, self.bias_name = _names(module, context)
        self.geometry = (module.stride, module.padding, module.dilation, False, (0,) * (x.dim() - 2), module.groups)
        self.output = torch.convolution(x, self.weight, _detached(module.bias), *self.geometry)
        self.after = self.output.shape
        self.channels = (module.groups, module.out_channels // module.groups)

    def push(self, tangent, parameters):
        out = None
        if tangent is not None:
            out = torch.convolution(_fold(tangent, self.x.shape), self.weight, None, *self.geometry)
            out = out.view(_lead(tangent, self.x.shape) + self.after)
        if parameters is not None:
            v = parameters[self.weight_name]  # (*lead, out channels, in channels of a group, *kernel)
            if v.dim() == self.weight.dim():
                moved = torch.convolution(self.x, v, None, *self.geometry)
            else:
                grouped = v.unflatten(1, self.channels).transpose(0, 1)  # (groups, R, out channels of a group, …)
                moved = torch.convolution(self.x, grouped.flatten(0, 2), None, *self.geometry)
                moved = moved.unflatten(1, grouped.shape[:3]).movedim(2, 0).flatten(2, 3)
            out = _add(out, moved)
            if self.bias_name is not None:
                out = out + _spread(parameters[self.bias_name], 1, (1, -1) + (1,) * (self.x.dim() - 2))
        return out

    def pull(self, signal, need_input):
        with_bias = self.bias_name is not None
        if signal.dim() == self.x.dim():
            below, weight, bias = self._backward(signal, self.x, self.weight, (need_input, True, with_bias))
        else:
            below = self.back(signal) if need_input else None
            weight = self._kernels(signal)
            bias = signal.sum((1, *range(3, signal.dim()))) if with_bias else None
        return {self.weight_name: weight} | ({self.bias_name: bias} if with_bias else {}), below

    def back(self, signal):
        if signal.dim() == self.x.dim():
            return self._backward(signal, self.x, self.weight, (True, False, False))[0]
        # R signals act as R N samples
        samples = self.x.new_empty(1).expand(len(signal) * len(self.x), *self.x.shape[1:])  # its shape alone matters
        below, _, _ = self._backward(signal.flatten(0, 1), samples, self.weight, (True, False, False))
        return below.view(signal.shape[:2] + self.x.shape[1:])

    def _kernels(self, signal: Tensor) -> Tensor:
        """Return the weight gradients for R signals, as R times the output channels."""
        groups, channels = self.channels
        grouped = signal.unflatten(2, self.channels).movedim(0, 2).flatten(1, 3)  # (N, groups R channels, …)
        kernels = self.weight.new_empty(grouped.shape[1], *self.weight.shape[1:])  # its shape alone matters
        _, found, _ = self._backward(grouped, self.x, kernels, (False, True, False))
        found = found.view(groups, len(signal), channels, *self.weight.shape[1:])
        return found.transpose(0, 1).reshape(len(signal), *self.weight.shape)

    def _backward(self, signal, x, weight, wanted):
        return aten.convolution_backward(signal, x, weight, [len(weight)], *self.geometry, wanted)


class NormalisationMap(Map):
    """y = γ x̂ + β with x̂ = (x − μ)/σ, where μ and σ² are mean and variance of x over some axes, or constants.

    The Jacobian of x → x̂ is (I − 11ᵀ/M − x̂x̂ᵀ/M)/σ over the M values that share μ and σ, and 1/σ where they are constants.
    It is symmetric, so one function serves tangents and signals. Axes count from the right: R directions may lead.

    Attributes:
        mean, inverse: μ and 1/σ, shaped to broadcast over x.
        over: axes that share μ and σ; None where these are constants.
        summed: axes over which γ and β are shared.
        shape: γ and β broadcast over x in this shape.
    """

    stands_in = True

    def _keep(self, module, x, context, mean, inverse, over, summed, shape):
        self.x, self.mean, self.inverse, self.over = x, mean, inverse, over
        self.summed, self.shape = summed, shape
        self.weight_name, self.bias_name = _names(module, context)
        self.parametric = self.weight_name is not None
        self.gamma = module.weight.detach().view(shape) if self.parametric else None
        self.dims = module.weight.dim() if self.parametric else 0

    @property
    def normalised(self) -> Tensor:
        """x̂, made when it is needed: cheaper than one more activation held."""
        return (self.x - self.mean) * self.inverse

    def _differentiate(self, v: Tensor) -> Tensor:
        """Apply ∂x̂/∂x to tangents or signals."""
        if self.over is None:
            return v * self.inverse
        normalised = self.normalised
        slopes = (v * normalised).mean(self.over, keepdim=True)
        return (v - v.mean(self.over, keepdim=True)).addcmul_(normalised, slopes, value=-1).mul_(self.inverse)

    def push(self, tangent, parameters):
        out = None
        if tangent is not None:
            out = self._differentiate(tangent)
            out = out if self.gamma is None else out.mul_(self.gamma)
        if parameters is not None and self.weight_name is not None:
            out = _add(out, self.normalised * _spread(parameters[self.weight_name], self.dims, self.shape))
        if parameters is not None and self.bias_name is not None:
            out = out + _spread(parameters[self.bias_name], self.dims, self.shape)
        return out

    def pull(self, signal, need_input):
        weight = None if self.weight_name is None else (signal * self.normalised).sum(self.summed)
        bias = None if self.bias_name is None else signal.sum(self.summed)
        gradients = self._named((weight, bias))
        if not need_input:
            return gradients, None
        return gradients, self._differentiate(signal if self.gamma is None else signal * self.gamma)

    def _named(self, found: Sequence[Tensor | None]) -> Gradients:
        """Name the gradients of weight and bias, where there are such."""
        names = (self.weight_name, self.bias_name)
        return {name: gradient for name, gradient in zip(names, found, strict=True) if name is not None}


@rule(nn.LayerNorm)
class LayerNormMap(NormalisationMap):
    """Every sample (or token) is normalised by itself, over its last axes."""

    def __init__(self, module, x, context):
        self.size, self.affine = module.normalized_shape, (_detached(module.weight), _detached(module.bias))
        self.output, *self.statistics = torch.native_layer_norm(x, self.size, *self.affine, module.eps)
        axes = tuple(range(-x.dim(), 0))
        over, summed = axes[-len(self.size) :], axes[: -len(self.size)]
        self._keep(module, x, context, *self.statistics, over, summed, (1,) * len(summed) + tuple(self.size))

    def _differentiate(self, v):
        if v.dim() > self.x.dim():
            return super()._differentiate(v)
        return aten.native_layer_norm_backward(
            v, self.x, self.size, *self.statistics, None, None, (True, False, False)
        )[0]

    def pull(self, signal, need_input):
        if signal.dim() > self.x.dim():
            return super().pull(signal, need_input)
        wanted = (need_input, self.weight_name is not None, self.bias_name is not None)
        below, *found = aten.native_layer_norm_backward(signal, self.x, self.size, *self.statistics, *self.affine, wanted)
        return self._named(found), below


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormMap(NormalisationMap):
    """Every channel is normalised, by the batch's statistics in training mode and the running ones otherwise.

    In training mode samples are coupled: a tangent of one moves the outputs of all.
    """

    def __init__(self, module, x, context):
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var, momentum = module.running_mean, module.running_var, module.momentum
        self.batch_statistics = module.training or mean is None
        if self.batch_statistics and x.numel() // x.shape[1] < 2:
            accepted = "more than one value per channel in training mode"
            raise InvalidInput("x: shape at batch normalisation", tuple(x.shape), accepted)
        if module.training and not (module.track_running_stats and context.update_buffers):
            mean = var = None
        elif module.training:
            module.num_batches_tracked.add_(1)
            momentum = 1 / module.num_batches_tracked.item() if momentum is None else momentum
        self.output, *statistics = torch.native_batch_norm(
            x, _detached(module.weight), _detached(module.bias), mean, var, self.batch_statistics, momentum or 0.0, module.eps
        )
        # γ, running and batch statistics, as torch's own backward takes them
        self.held = (_detached(module.weight), mean, var, *statistics, self.batch_statistics, module.eps)
        if not self.batch_statistics:
            statistics = mean, (var + module.eps).rsqrt()
        summed = (-x.dim(), *range(2 - x.dim(), 0))
        over, self.mixes = (summed, True) if self.batch_statistics else (None, False)
        self._keep(module, x, context, *(s.view(shape) for s in statistics), over, summed, shape)

    def push(self, tangent, parameters):
        if tangent is None or tangent.dim() > self.x.dim() or parameters is not None:
            return super().push(tangent, parameters)
        # γ is constant where samples mix, so the whole Jacobian is symmetric and torch's backward is its tangent map too
        return aten.native_batch_norm_backward(tangent, self.x, *self.held, (True, False, False))[0]

    def pull(self, signal, need_input):
        if signal.dim() > self.x.dim():
            return super().pull(signal, need_input)
        wanted = (need_input, self.weight_name is not None, self.bias_name is not None)
        below, *found = aten.native_batch_norm_backward(signal, self.x, *self.held, wanted)
        return self._named(found), below


# Compositions ------------------------------------------------------------------------------------------------------------


@rule(nn.Sequential)
class SequentialMap(Map):
    """A chain of maps."""

    def __init__(self, module, x, context):
        self.maps = []
        for child in module:
            with context.above(self.parametric):
                link = linearize(child, x, context)
            x = link.output
            del link.output  # lives on only where a product needs it
            self.maps.append(link)
            self.parametric = self.parametric or link.parametric
            self.mixes = self.mixes or link.mixes
        self.output = x

    def push(self, tangent, parameters):
        for link in self.maps:
            tangent = link.push(tangent, parameters)
        return tangent

    def back(self, signal):
        for link in reversed(self.maps):
            signal = link.back(signal)
        return signal

    def pull(self, signal, need_input):
        gradients: Gradients = {}
        for i in reversed(range(len(self.maps))):
            below = need_input or any(link.parametric for link in self.maps[:i])
            found, signal = self.maps[i].pull(signal, below)
            merge(gradients, found)
            if not below:
                return gradients, None
        return gradients, signal


class GeneralMap(Map):
    """Any module, by torch's forward-mode AD for tangents and by reverse-mode AD inside the module for signals.

    Inner layers that have a rule take part with it. A tangent pass calls the module again, with the layers' values of the first
    pass, on copies of its buffers, and from the point of the random stream where the first pass began: both see the same
    dropout masks. R directions pass together by `vmap` where it can follow and nothing is random (it may fill a mask in another
    order), and one after the other elsewhere.
    """

    mixes = True  # for all that is known

    def __init__(self, module, x, context):
        self.module, self.where = module, context.where
        parameters = dict(module.named_parameters())
        self.names = {name: context.names[p] for name, p in parameters.items()}
        self.parametric = bool(parameters)
        self.primal = {INPUT: x.detach(), **{name: p.detach() for name, p in parameters.items()}}
        parts = dict(module.named_modules())
        self.overwrites = any(map(_inplace, parts.values()))
        # inner layers with a rule: their maps, in the order of the calls
        self.layers: dict[nn.Module, list[Map]] = {part: [] for part in parts.values() if _stands_in(part)}
        self.buffers = _copies({path: part for path, part in parts.items() if part not in self.layers})
        self.stream, version = random_state(x.device), x._version
        # the graph ends at the module's own parameters, or at stand-ins for those that do not train
        frozen = {name: p.detach().requires_grad_() for name, p in parameters.items() if not p.requires_grad}
        self.leaves = {**parameters, **frozen, INPUT: x.detach().requires_grad_(context.need_input and x.is_floating_point())}
        given = frozen | {INPUT: self.leaves[INPUT]} | ({} if context.update_buffers else self._fresh_buffers())
        with torch.set_grad_enabled(context.need_pull), self._followed("reverse-mode AD inside the block", "in-place"):
            functions = _Functions()
            self.graph = self._call(given, lambda layer: self._linearized(layer, context.update_buffers), functions)
            self.kept = functions.kept
        self.random = any(not torch.equal(*both) for both in zip(self.stream, random_state(x.device), strict=True))
        if not isinstance(self.graph, Tensor):
            raise Unsupported(f"{self.where}: its result is a {type(self.graph).__name__}; a block returns one tensor")
        if x._version != version:
            raise Unsupported(f"{self.where} changes its input in place, which is the output of the block below")
        self.output = self.graph.detach()

    def _call(
        self,
        tensors: dict[str, Tensor],
        replace: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None = None,
        functions: _Functions | None = None,
    ) -> Tensor:
        """Call the module on other tensors: its input, parameters and buffers, of which those not given are its own.

        `replace` gives inner layers with a rule another `forward` for this call, and `functions` replaces functions.
        """
        tensors = dict(tensors)
        x = tensors.pop(INPUT, self.primal[INPUT])
        if self.overwrites:
            x = x.clone()  # it is also the output of the block below
        replaced = [] if replace is None else list(self.layers)
        try:
            for layer in replaced:
                layer.forward = replace(layer)
            with functions or contextlib.nullcontext():
                return functional_call(self.module, tensors, (x,)) if tensors else self.module(x)
        finally:
            for layer in replaced:
                del layer.forward

    def _linearized(self, layer: nn.Module, update_buffers: bool) -> Callable[[Tensor], Tensor]:
        """Return the forward of an inner layer in the first pass: it leaves its map in `self.layers`."""

        def forward(input: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():  # `_Functions` are for what stands between layers
                return _Layer.apply(input, layer, update_buffers, self.layers[layer], *layer.parameters())

        return forward

    def _pushed(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the forward of an inner layer in a tangent pass: dual numbers go through its map."""
        maps = iter(self.layers[layer])

        def forward(input: Tensor) -> Tensor:
            mapped = next(maps)
            with torch._C.DisableTorchFunction():
                x, tangent = forward_ad.unpack_dual(input)
                tangent = mapped.push(tangent, _tangents(dict(layer.named_parameters())))
                value, version = mapped.result
                if value._version != version:  # what came after the layer has worked on its value in place
                    value = forward_ad.unpack_dual(type(layer).forward(layer, x)).primal
                return value if tangent is None else forward_ad.make_dual(value, tangent)

        return forward

    def _fresh_buffers(self) -> dict[str, Tensor]:
        return {name: b.clone() for name, b in self.buffers.items()}

    def push(self, tangent, parameters):
        moved = {} if tangent is None else {INPUT: tangent}
        if parameters is not None:
            moved |= {name: parameters[known] for name, known in self.names.items()}
        if not moved:
            return None
        axes = {name: 0 if v.dim() > self.primal[name].dim() else None for name, v in moved.items()}
        counts = [len(moved[name]) for name, axis in axes.items() if axis == 0]
        with self._replayed(), self._followed("forward-mode AD"):
            if not counts:
                return self._dual(moved)
            if not self.random:
                with contextlib.suppress(RuntimeError):
                    return vmap(self._tangent, (axes,))(moved)
            each = ({name: v if axes[name] is None else v[r] for name, v in moved.items()} for r in range(counts[0]))
            return torch.stack([self._dual(direction) for direction in each])

    def _dual(self, moved: Mapping[str, Tensor]) -> Tensor:
        """Return the tangent of one direction by dual numbers: quicker than `jvp`, but `vmap` does not know them."""
        set_random_state(self.stream, self.primal[INPUT].device)
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(self.primal[name], v) for name, v in moved.items()}
            found = self._call(duals | self._fresh_buffers(), self._pushed, _Functions(self.kept))
            found = forward_ad.unpack_dual(found).tangent
        return torch.zeros_like(self.graph) if found is None else found

    def _tangent(self, moved: dict[str, Tensor]) -> Tensor:
        """Return the tangent of one direction in a way that `vmap` can follow."""
        at = {name: self.primal[name] for name in moved}
        layers = _copies(dict(self.module.named_modules()))  # the rules hold on to none: all are called as they are
        return jvp(lambda tensors: self._call(tensors | layers | self._fresh_buffers()), (at,), (moved,))[1]

    @contextlib.contextmanager
    def _replayed(self) -> Iterator[None]:
        """Around a second run: the random stream is put back, and fused attention, which has no tangents, is switched off."""
        device = self.primal[INPUT].device
        state, fused = random_state(device), torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            set_random_state(state, device)

    def pull(self, signal, need_input):
        wanted = {name: self.leaves[name] for name in self.names} | ({INPUT: self.leaves[INPUT]} if need_input else {})
        if not wanted:
            return {}, None
        if not self.graph.requires_grad:  # the module computes without gradients
            lead = _lead(signal, self.graph.shape)
            found = [leaf.new_zeros(lead + leaf.shape) for leaf in wanted.values()]
        else:
            with self._followed("reverse-mode AD inside the block"):
                found = self._backward(signal, list(wanted.values()))
        named = dict(zip(wanted, found, strict=True))
        below = named.pop(INPUT, None)
        gradients: Gradients = {}
        for name, gradient in named.items():
            merge(gradients, {self.names[name]: gradient})
        return gradients, below

    def _backward(self, signal: Tensor, wanted: list[Tensor]) -> Sequence[Tensor]:
        options = {"retain_graph": True, "materialize_grads": True, "allow_unused": True}
        if signal.dim() == self.graph.dim():
            return torch.autograd.grad(self.graph, wanted, signal, **options)
        with contextlib.suppress(RuntimeError):
            return torch.autograd.grad(self.graph, wanted, signal, is_grads_batched=True, **options)
        each = [torch.autograd.grad(self.graph, wanted, s, **options) for s in signal]
        return [torch.stack(gradients) for gradients in zip(*each, strict=True)]

    @contextlib.contextmanager
    def _followed(self, by: str, about: str = "") -> Iterator[None]:
        """Turn errors of automatic differentiation (whose text holds `about`) into `Unsupported`: block, operation, reason."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or about not in str(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise Unsupported(f"{self.where}: {by} cannot follow {_operation(error)}: {reason}") from error


class _Functions(TorchFunctionMode):
    """What a general block computes between its layers, by functions whose tangents are known by hand.

    The first pass keeps their values. A tangent pass takes these and works out the tangents alone, where torch's forward mode
    would compute both again, some of them in many steps.

    Args:
        kept: what the first pass kept (its `kept`); None in the first pass.
    """

    def __init__(self, kept: Sequence[tuple[Callable, Tensor, int]] | None = None):
        super().__init__()
        self.replayed = None if kept is None else iter(kept)
        self.kept: list[tuple[Callable, Tensor, int]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tangent_of = _TANGENTS.get(function)
        if tangent_of is None or (kwargs and function not in _SOFTMAX):
            return function(*args, **kwargs)
        if self.replayed is None:
            value = function(*args, **kwargs)
            self.kept.append((function, value.detach(), value._version))
            return value
        known, value, version = next(self.replayed, (None, None, None))
        primals, tangents = zip(*(forward_ad.unpack_dual(v) if isinstance(v, Tensor) else (v, None) for v in args), strict=True)
        if known is not function:  # the block takes another way than in the first pass
            self.replayed = iter(())
        if known is not function or value._version != version:  # or has worked on the value in place
            value = function(*primals, **kwargs)
        if all(tangent is None for tangent in tangents):
            return value
        tangent = tangent_of(function, value, primals, tangents, kwargs)
        return function(*args, **kwargs) if tangent is None else forward_ad.make_dual(value, tangent)


def _sum_tangent(function, value, primals, tangents, kwargs):
    s, t = tangents
    if s is not None and t is not None:
        return function(s, t)
    one = s if t is None else function(torch.zeros_like(t), t)
    return one.to(value.dtype).expand_as(value).clone()  # what comes after may work on it in place


def _product_tangent(function, value, primals, tangents, kwargs):
    (a, b), (s, t) = primals, tangents
    if s is not None and t is not None:
        return torch.addcmul(function(s, b), a, t)
    return function(a, t) if s is None else function(s, b)


def _quotient_tangent(function, value, primals, tangents, kwargs):
    (_, b), (s, t) = primals, tangents
    if t is None:
        return function(s, b)
    return function(-value * t if s is None else torch.addcmul(s, value, t, value=-1), b)


def _matrix_product_tangent(function, value, primals, tangents, kwargs):
    (a, b), (s, t) = primals, tangents
    if s is None or t is None:
        return function(a, t) if s is None else function(s, b)
    if a.dim() < 3 or a.shape[:-2] != b.shape[:-2]:
        return function(s, b) + function(a, t)
    a, s, b, t = (v.reshape(-1, *v.shape[-2:]) for v in (a, s, b, t))
    return torch.bmm(s, b).baddbmm_(a, t).view(value.shape)


def _softmax_tangent(function, value, primals, tangents, kwargs):
    dim = kwargs.get("dim", primals[1] if len(primals) > 1 else None)
    if dim is None or any(isinstance(v, torch.dtype) for v in (*primals, *kwargs.values())):
        return None
    return aten._softmax_backward_data(tangents[0], value, dim, value.dtype)  # the Jacobian is symmetric


_SOFTMAX = (Tensor.softmax, torch.softmax, F.softmax)
_TANGENTS: dict[Callable, Callable[..., Tensor | None]] = {
    **dict.fromkeys((Tensor.add, torch.add, Tensor.sub, torch.sub), _sum_tangent),
    **dict.fromkeys((Tensor.mul, torch.mul), _product_tangent),
    **dict.fromkeys((Tensor.div, torch.div), _quotient_tangent),
    **dict.fromkeys((Tensor.matmul, torch.matmul, Tensor.bmm, torch.bmm), _matrix_product_tangent),
    **dict.fromkeys(_SOFTMAX, _softmax_tangent),
}


class _Layer(torch.autograd.Function):
    """An inner layer with a rule, as one operation of the graph of a module without one."""

    @staticmethod
    def forward(ctx, x, layer, update_buffers, maps, *parameters):
        context = Context(layer, update_buffers)
        ctx.map, ctx.names = RULES[type(layer)](layer, x.detach(), context), list(context.names.values())
        output = ctx.map.output
        ctx.map.result = output.detach(), output._version  # without the graph that autograd will hang on the output
        del ctx.map.output
        maps.append(ctx.map)
        return output

    @staticmethod
    def backward(ctx, signal):
        gradients, below = ctx.map.pull(signal, ctx.needs_input_grad[0])
        return below, None, None, None, *(gradients[name] for name in ctx.names)


# Blocks and networks -----------------------------------------------------------------------------------------------------


class BlockMap:
    """One block linearised at one input, with its sites.

    Attributes:
        output: value at the post site (N, …).
        shapes: of the values at both sites; where a block has no pre site it is the output's.
    """

    def __init__(self, block: nn.Module, x: Tensor, context: Context, site: str = "post"):
        self.above: Map | None = None
        if isinstance(block, Block) and type(block).forward is Block.forward and not _hooked(block):
            self.below = linearize(block.affine, x, context)
            with context.above(self.below.parametric):
                self.above = linearize(block.activation, self.below.output, context)
        elif site == "pre":
            raise Unsupported(f'{context.where} has no "pre" site: a hook or a forward of its own joins its two parts')
        else:
            self.below = linearize(block, x, context)
        self.output = (self.above or self.below).output
        self.shapes = {"pre": self.below.output.shape, "post": self.output.shape}
        self._values = {"post": self.output} | ({"pre": self.below.output} if site == "pre" else {})
        self.parts = [part for part in (self.below, self.above) if part is not None]
        for part in self.parts:
            del part.output  # lives on only where a product or a site needs it

    @property
    def mixes(self) -> bool:
        """Whether a sample's value may depend on other samples."""
        return any(part.mixes for part in self.parts)

    def site(self, site: str) -> Tensor:
        """Value at a site (N, …): "post", or the one that the trace was made for."""
        return self._values[site]

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
            found, signal = self.above.pull(signal, self.below.parametric)
            merge(gradients, found)
        if self.below.parametric:
            merge(gradients, self.below.pull(signal, False)[0])
        return gradients


    def back(self, signal: Tensor, site: str = "post", to: str = "input") -> Tensor:
        """Carry a signal from a site down to another site or to the block's input, within the block."""
        if site == to:
            return signal
        if site == "post" and self.above is not None:
            signal = self.above.back(signal)
        return signal if to == "pre" else self.below.back(signal)


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
        shortcuts: let many directions share backward passes through the blocks where that gives the same numbers for less.
            For whoever measures a method: the method itself, which trains without such passes, must not.

    Raises:
        Unsupported: a block that lacks the site, changes the number of samples, returns no tensor, or (here, in `push` or in
            `pull`) does what automatic differentiation cannot follow; the message names block and operation.
    """

    def __init__(
        self, net: BlockNetwork, x: Tensor, *, site: str = "post", update_buffers: bool = False, need_pull: bool = True
    ):
        context = Context(net, update_buffers, need_pull)
        self.input = x
        self.blocks: list[BlockMap] = []
        self.shortcuts = False
        self._jacobians: dict[str, list[Tensor]] = {}
        last = len(net) - 1
        context.need_input = False  # of a block: its signals come from elsewhere
        with torch.no_grad():
            for i, block in enumerate(net):
                context.where = f"block {i} ({type(block).__name__})"
                if i < last:
                    require_site(net, i, site)
                self.blocks.append(BlockMap(block, x, context, site if i < last else "post"))
                previous, x = x, self.blocks[-1].output
                if x.shape[:1] != previous.shape[:1]:
                    raise Unsupported(
                        f"{context.where} changes the batch dimension from {len(previous)} to {tuple(x.shape)[:1]}; "
                        "a block maps N samples to N samples"
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

        With `shortcuts`, more directions than outputs take their tangents from the samples' Jacobians where samples keep apart:
        these are then no larger than the directions, and together cheaper than a pass for each direction.

        Args:
            perturbations: one per hidden block, (N, …) or (R, N, …), or None for a block left alone.
            site: where they enter.
        """
        if self.output.dim() == 2 and self._directions(perturbations, site) > self.output.shape[1]:
            if site not in self._jacobians:
                samples, outputs = self.output.shape
                each = torch.eye(outputs, dtype=self.output.dtype, device=self.output.device)
                self._jacobians[site] = self.back(each.unsqueeze(1).expand(outputs, samples, outputs), site)
            return _along(perturbations, self._jacobians[site]).movedim(1, 2)
        tangent = None
        for block, u in zip(self.hidden, perturbations, strict=True):
            tangent = block.push(tangent, u, site)
        return self.readout.push(tangent)

    def slopes(
        self, perturbations: Sequence[Tensor | None], site: str, error: Tensor, outputs: Tensor | None = None
    ) -> Tensor:
        """Return the slope of each sample's part of the loss, its error times its tangent: (N,) or (R, N).

        With `shortcuts`, several directions share one backward pass in place of a tangent pass each, where samples keep apart.

        Args:
            perturbations, site: as for `push`.
            error: gradient of the loss with respect to the output (N, O).
            outputs: a perturbation of the output itself, (N, O) or (R, N, O), or None.
        """
        if self._directions(perturbations, site) > 1:
            slopes = _along(perturbations, self.back(error.unsqueeze(0), site)).squeeze(1)
            return slopes if outputs is None else slopes + (outputs * error).sum(-1)
        tangent = _add(self.push(perturbations, site), outputs)
        return (tangent * error).sum(-1)

    def back(self, signal: Tensor, site: str) -> list[Tensor]:
        """Carry R signals (R, N, O) from the output down to a site of every hidden block: (R, N, …) each."""
        signal, found = self.readout.back(signal), []
        for block in reversed(self.hidden):
            signal = block.back(signal, to=site)
            found.insert(0, signal)
            if len(found) < len(self.hidden):
                signal = block.back(signal, site)
        return found

    def _directions(self, perturbations: Sequence[Tensor | None], site: str) -> int:
        """How many directions stand side by side in all perturbations and may take a shortcut, if any."""
        leads = [
            _lead(u, block.shapes[site]) for block, u in zip(self.hidden, perturbations, strict=True) if u is not None
        ]
        if not self.shortcuts or not leads or not all(leads) or any(block.mixes for block in self.blocks):
            return 0
        return leads[0][0]


def _along(directions: Sequence[Tensor | None], signals: Sequence[Tensor]) -> Tensor:
    """Return the inner products (R, K, N) of R directions with K signals, sample by sample, over all blocks.

    One product of matrices a sample, signals first: with the tall factor on the left it is ten times slower.
    """
    found = sum(
        s.flatten(2).transpose(0, 1) @ u.flatten(2).permute(1, 2, 0)
        for u, s in zip(directions, signals, strict=True)
        if u is not None
    )
    return found.permute(2, 1, 0).contiguous()


def merge(gradients: Gradients, more: Gradients) -> None:
    """Add gradients by name; a parameter that is used twice sums both."""
    for name, gradient in more.items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient


# Small helpers -----------------------------------------------------------------------------------------------------------


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two tangents, of which None stands for zero."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _lead(value: Tensor, primal: torch.Size) -> tuple[int, ...]:
    """The extra leading dimensions of a tangent or signal over its primal value: () or (R,)."""
    return tuple(value.shape[: value.dim() - len(primal)])


def _fold(value: Tensor, primal: torch.Size) -> Tensor:
    """R directions of N samples as R N samples."""
    return value.flatten(0, 1) if value.dim() > len(primal) else value


def _spread(value: Tensor, dims: int, shape: tuple[int, ...]) -> Tensor:
    """Give a direction of a parameter with `dims` dimensions the shape in which that parameter broadcasts."""
    return value.reshape(value.shape[: value.dim() - dims] + shape)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _names(module: nn.Module, context: Context) -> tuple[str | None, str | None]:
    """The network's names of a layer's weight and bias, None for one that it does not have."""
    return tuple(None if p is None else context.names[p] for p in (module.weight, module.bias))


def _tangents(parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tangents of dual numbers, zero for those without; None if none has one."""
    found = {name: forward_ad.unpack_dual(p).tangent for name, p in parameters.items()}
    if all(v is None for v in found.values()):
        return None
    return {name: torch.zeros_like(parameters[name]) if v is None else v for name, v in found.items()}


def _hooked(module: nn.Module) -> bool:
    """Whether a hook, or a forward of the instance's own, may change the module's value, so that only a real call tells it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _copies(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of the buffers of some modules of a module, by name."""
    named = ((path, *buffer) for path, part in parts.items() for buffer in part.named_buffers(recurse=False))
    return {f"{path}.{name}".lstrip("."): b.clone() for path, name, b in named}


def _inplace(module: nn.Module) -> bool:
    return getattr(module, "inplace", False)


def _stands_in(module: nn.Module) -> bool:
    """Whether the rule of an inner layer may stand for it. Hooks go on around it; a layer that works in place has to do so."""
    fast = RULES.get(type(module))
    if fast is None or _inplace(module) or "forward" in vars(module):
        return False
    return fast.stands_in and fast.serves(module)


_TORCH = Path(torch.__file__).parent


def _operation(error: BaseException) -> str:
    """The line of the block's own code where an error arose, or a name for it if it arose in torch's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename != __file__ and _TORCH not in Path(frame.filename).parents:
            return f"`{frame.line}` ({Path(frame.filename).name}, line {frame.lineno})"
    return "an operation"
