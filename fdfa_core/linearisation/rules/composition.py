"""Rules of modules that hold others."""

from __future__ import annotations

from torch import nn

from fdfa_core.linearisation.maps import Gradients, Map, linearize, merge, rule


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
            self.stops = self.stops or link.stops
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
            own, signal = self.maps[i].pull(signal, below)
            merge(gradients, own)
            if not below:
                return gradients, None
        return gradients, signal
