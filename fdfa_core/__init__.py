"""Backpropagation-free gradient estimators, and training that is measured against the true gradient."""

from fdfa_core.architectures import alexnet, convolutional, fully_connected, residual, transformer
from fdfa_core.cutting import cut
from fdfa_core.estimators import available_estimators, make_estimator, register
from fdfa_core.gradients import true_gradient
from fdfa_core.measure import measure
from fdfa_core.network import Block, BlockNetwork

__all__ = [
    "Block",
    "BlockNetwork",
    "alexnet",
    "available_estimators",
    "convolutional",
    "cut",
    "fully_connected",
    "make_estimator",
    "measure",
    "register",
    "residual",
    "transformer",
    "true_gradient",
]
