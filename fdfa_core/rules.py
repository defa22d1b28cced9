"""Rules: hand-derived tangents and local gradients of layers, on the values that the forward pass saved.

To add one, write a `Map` and decorate it with the layer types that it serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdfa_core.draws import Outer
from fdfa_core.errors import InvalidInput
from fdfa_core.maps import Context, Gradients, Map, added, lead_of, linearize, merge, rule, works_in_place

aten = torch.ops.aten

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
        return None if tangent is None else tangent.reshape(lead_of(tangent, self.before) + self.after)

    def pull(self, signal, need_input):
        return {}, signal.reshape(lead_of(signal, self.after) + self.before)


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
            value = type(module).forward(
                module, leaf.clone() if works_in_place(module) else leaf
            )  # the layer alone, without hooks
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
        lead = lead_of(tangent, self.x.shape)
        index = self.index.flatten(-2).expand(*lead, -1, -1, -1)
        return tangent.flatten(-2).gather(-1, index).view(lead + self.index.shape)

    def pull(self, signal, need_input):
        if signal.dim() == self.x.dim():
            return {}, aten.max_pool2d_with_indices_backward(signal, self.x, *self.window, self.index)
        lead = lead_of(signal, self.index.shape)
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
        return self.module(_fold(tangent, self.before)).view(lead_of(tangent, self.before) + self.after)

    def pull(self, signal, need_input):
        rows = _fold(signal, self.after)
        with torch.enable_grad():  # the transpose: the derivative at zero, as anywhere else
            leaf = rows.new_zeros(rows.shape[:1] + self.before[1:], requires_grad=True)
            (below,) = torch.autograd.grad(self.module(leaf), leaf, rows)
        return {}, below.view(lead_of(signal, self.after) + self.before)


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
            out = added(out, moved)
            if self.bias_name is not None:
                out = out + _spread(parameters[self.bias_name], 1, (1,) * (self.x.dim() - 1) + (-1,))
        return out

    def pull(self, signal, need_input):
        below = self.back(signal) if need_input else None
        lead, x = lead_of(signal, self.x.shape), self.x.flatten(0, -2)
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
            out = out.view(lead_of(tangent, self.x.shape) + self.after)
        if parameters is not None:
            v = parameters[self.weight_name]  # (*lead, out channels, in channels of a group, *kernel)
            if v.dim() == self.weight.dim():
                moved = torch.convolution(self.x, v, None, *self.geometry)
            else:
                grouped = v.unflatten(1, self.channels).transpose(0, 1)  # (groups, R, out channels of a group, …)
                moved = torch.convolution(self.x, grouped.flatten(0, 2), None, *self.geometry)
                moved = moved.unflatten(1, grouped.shape[:3]).movedim(2, 0).flatten(2, 3)
            out = added(out, moved)
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
            out = added(out, self.normalised * _spread(parameters[self.weight_name], self.dims, self.shape))
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
        return aten.native_layer_norm_backward(v, self.x, self.size, *self.statistics, None, None, (True, False, False))[0]

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


# Small helpers -----------------------------------------------------------------------------------------------------------


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
