"""Rules of layers without parameters that act on every entry by itself, or change only the shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdfa_core.linearisation.maps import Map, lead_of, rule, works_in_place

aten = torch.ops.aten


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
    """y = f(x) entry by entry: both products multiply by the slope f′(x), which autograd computes once."""

    stands_in = True
    slope: Tensor | None  # None stands for one

    def __init__(self, module, x, context):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = type(module).forward(
                module, leaf.clone() if works_in_place(module) else leaf
            )  # only the layer, without hooks
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
