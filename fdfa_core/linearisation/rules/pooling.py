"""Rules of pooling and of other linear operators without parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdfa_core.linearisation.maps import Map, lead_of, rule
from fdfa_core.linearisation.rules.elementwise import aten
from fdfa_core.linearisation.rules.helpers import fold


@rule(nn.MaxPool2d)
class MaxPoolMap(Map):
    """The greatest entry of each window; tangents and signals take its place."""

    stands_in = True

    @staticmethod
    def serves(module):
        return not module.return_indices

    def __init__(self, module, x, context):
        self.window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        self.output, self.index = _largest(x, *self.window)
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


def _largest(x: Tensor, *window) -> tuple[Tensor, Tensor]:
    """Return the greatest entry of each window and where it stands.

    Torch's kernel for processors works on one number at a time, unless channels come last, where it works on many. The results
    are the same, also among equal entries, and two copies take less than they save.
    """
    if x.device.type != "cpu" or x.dim() != 4 or x.shape[1] < 8 or x.numel() < 2**16:
        return F.max_pool2d_with_indices(x, *window)
    values, index = F.max_pool2d_with_indices(x.contiguous(memory_format=torch.channels_last), *window)
    return values.contiguous(), index.contiguous()


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
        return self.module(fold(tangent, self.before)).view(lead_of(tangent, self.before) + self.after)

    def pull(self, signal, need_input):
        rows = fold(signal, self.after)
        with torch.enable_grad():  # the transpose: the derivative at zero, as anywhere else
            leaf = rows.new_zeros(rows.shape[:1] + self.before[1:], requires_grad=True)
            (below,) = torch.autograd.grad(self.module(leaf), leaf, rows)
        return {}, below.view(lead_of(signal, self.after) + self.before)
