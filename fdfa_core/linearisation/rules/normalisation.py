"""Rules of layer and batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput
from fdfa_core.linearisation.maps import Gradients, Map, added, rule
from fdfa_core.linearisation.rules.elementwise import aten
from fdfa_core.linearisation.rules.helpers import detached, parameter_names, spread


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
        self.weight_name, self.bias_name = parameter_names(module, context)
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
            out = added(out, self.normalised * spread(parameters[self.weight_name], self.dims, self.shape))
        if parameters is not None and self.bias_name is not None:
            out = out + spread(parameters[self.bias_name], self.dims, self.shape)
        return out

    def pull(self, signal, need_input):
        weight = None if self.weight_name is None else (signal * self.normalised).sum(self.summed)
        bias = None if self.bias_name is None else signal.sum(self.summed)
        gradients = self._named((weight, bias))
        if not need_input:
            return gradients, None
        return gradients, self._differentiate(signal if self.gamma is None else signal * self.gamma)

    def _named(self, gradients: Sequence[Tensor | None]) -> Gradients:
        """Name the gradients of weight and bias, where there are such."""
        names = (self.weight_name, self.bias_name)
        return {name: gradient for name, gradient in zip(names, gradients, strict=True) if name is not None}


@rule(nn.LayerNorm)
class LayerNormMap(NormalisationMap):
    """Every sample (or token) is normalised by itself, over its last axes."""

    def __init__(self, module, x, context):
        self.size, self.affine = module.normalized_shape, (detached(module.weight), detached(module.bias))
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
        below, *gradients = aten.native_layer_norm_backward(signal, self.x, self.size, *self.statistics, *self.affine, wanted)
        return self._named(gradients), below


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
            x, detached(module.weight), detached(module.bias), mean, var, self.batch_statistics, momentum or 0.0, module.eps
        )
        # γ, running and batch statistics, as torch's own backward takes them
        self.held = (detached(module.weight), mean, var, *statistics, self.batch_statistics, module.eps)
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
        below, *gradients = aten.native_batch_norm_backward(signal, self.x, *self.held, wanted)
        return self._named(gradients), below
