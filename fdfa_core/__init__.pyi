from .data.registry import register_dataset
from .estimators.base import Estimator
from .estimators.consistency import unchecked
from .estimators.registry import available_estimators, make_estimator, register
from .gradients import true_gradient
from .measuring.diagnose import diagnose
from .measuring.measure import measure
from .networks.blocks import Block, BlockNetwork
from .networks.convolutional import alexnet, convolutional
from .networks.cutting import cut
from .networks.dense import fully_connected
from .networks.registry import register_architecture
from .networks.residual import residual, residual_mlp
from .networks.transformer import transformer
from .training.monitor import Monitor

__all__ = [
    "Block",
    "BlockNetwork",
    "Estimator",
    "Monitor",
    "alexnet",
    "available_estimators",
    "convolutional",
    "cut",
    "diagnose",
    "fully_connected",
    "make_estimator",
    "measure",
    "register",
    "register_architecture",
    "register_dataset",
    "residual",
    "residual_mlp",
    "transformer",
    "true_gradient",
    "unchecked",
]
