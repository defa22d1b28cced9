"""Rules of linear layers and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdfa_core.linearisation.factored import Outer
from fdfa_core.linearisation.maps import Gradients, Map, added, lead_of, rule
from fdfa_core.linearisation.rules.elementwise import aten
from fdfa_core.linearisation.rules.helpers import detached, fold, parameter_names, spread


@rule(nn.Linear)
class LinearMap(Map):
    """a = x Wᵀ + b; gradients Σ_p signal_p ⊗ x_p and Σ_p signal_p, over samples (and tokens) p."""

    parametric = stands_in = True

    def __init__(self, module, x, context):
        self.x, self.weight = x, module.weight.detach()
        self.weight_name, self.bias_name = parameter_names(module, context)
        self.output = F.linear(x, self.weight, detached(module.bias))

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
                out = out + spread(parameters[self.bias_name], 1, (1,) * (self.x.dim() - 1) + (-1,))
        return out

    def pull(self, signal, need_input):
        below = self.back(signal) if need_input else None
        lead, x = lead_of(signal, self.x.shape), self.x.reshape(-1, self.x.shape[-1])
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

    @staticmethod
    def takes(module, x):
        return x.dim() == module.weight.dim()  # a sample without its batch is torch's own matter

    def __init__(self, module, x, context):
        self.x, self.weight = x, module.weight.detach()
        self.weight_name, self.bias_name = parameter_names(module, context)
        self.geometry = (module.stride, module.padding, module.dilation, False, (0,) * (x.dim() - 2), module.groups)
        self.output = torch.convolution(x, self.weight, detached(module.bias), *self.geometry)
        self.after = self.output.shape
        self.channels = (module.groups, module.out_channels // module.groups)

    def push(self, tangent, parameters):
        out = None
        if tangent is not None:
            out = torch.convolution(fold(tangent, self.x.shape), self.weight, None, *self.geometry)
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
                out = out + spread(parameters[self.bias_name], 1, (1, -1) + (1,) * (self.x.dim() - 2))
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
        samples = self.x.new_empty(1).expand(len(signal) * len(self.x), *self.x.shape[1:])  # only its shape matters
        below, _, _ = self._backward(signal.flatten(0, 1), samples, self.weight, (True, False, False))
        return below.view(signal.shape[:2] + self.x.shape[1:])

    def _kernels(self, signal: Tensor) -> Tensor:
        """Return the weight gradients for R signals, as R times the output channels."""
        groups, channels = self.channels
        grouped = signal.unflatten(2, self.channels).movedim(0, 2).flatten(1, 3)  # (N, groups R channels, …)
        kernels = self.weight.new_empty(grouped.shape[1], *self.weight.shape[1:])  # only its shape matters
        _, weights, _ = self._backward(grouped, self.x, kernels, (False, True, False))
        weights = weights.view(groups, len(signal), channels, *self.weight.shape[1:])
        return weights.transpose(0, 1).reshape(len(signal), *self.weight.shape)

    def _backward(self, signal, x, weight, wanted):
        return aten.convolution_backward(signal, x, weight, [len(weight)], *self.geometry, wanted)
