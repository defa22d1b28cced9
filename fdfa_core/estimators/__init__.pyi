from .base import Estimator
from .registry import (
    available_estimators,
    estimator_class,
    estimator_options,
    filled_options,
    label,
    make_estimator,
    register,
)

__all__ = [
    "Estimator",
    "available_estimators",
    "estimator_class",
    "estimator_options",
    "filled_options",
    "label",
    "make_estimator",
    "register",
]
