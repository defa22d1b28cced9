from .estimators.base import Estimator
from .estimators.registry import available_estimators, make_estimator, register
from .gradients import true_gradient
from .measuring.measure import measure
from .networks.blocks import Block, BlockNetwork
from .networks.convolutional import alexnet, convolutional
from .networks.cutting import cut
from .networks.dense import fully_connected
from .networks.residual import residual
from .networks.transformer import transformer

__all__ = [
    "Block",
    "BlockNetwork",
    "Estimator",
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
