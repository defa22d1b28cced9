"""The rule of decorrelating layers."""

from __future__ import annotations

from fdfa_core.linearisation.maps import Map, rule
from fdfa_core.networks.decorrelation import Decorrelation


@rule(Decorrelation)
class DecorrelationMap(Map):
    """x* = x Rᵀ, with R as it was used: a step that trains moves it afterwards."""

    stands_in = True

    def __init__(self, module, x, context):
        module.check(x)
        moves = module.training and context.update_buffers
        self.matrix = module.matrix.clone() if moves else module.matrix
        self.output = x @ self.matrix.mT
        if moves:
            module.move(self.output)

    def push(self, tangent, parameters):
        return None if tangent is None else tangent @ self.matrix.mT

    def pull(self, signal, need_input):
        return {}, signal @ self.matrix if need_input else None
