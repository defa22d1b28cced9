"""Backpropagation-free gradient estimators, and training that is measured against the true gradient."""

from fdfa_core.architectures import fully_connected
from fdfa_core.estimators import available_estimators, make_estimator, register
from fdfa_core.gradients import true_gradient
from fdfa_core.measure import measure
from fdfa_core.network import Block, BlockNetwork

__all__ = [
    "Block",
    "BlockNetwork",
    "available_estimators",
    "fully_connected",
    "make_estimator",
    "measure",
    "register",
    "true_gradient",
]
