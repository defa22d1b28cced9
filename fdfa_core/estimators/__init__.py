"""The estimators, one class in one file (a family may share a file), and their registry.

To add one, write a subclass of `Estimator` and decorate it with `@register("name")`: in a module of this package, in a
user's own code, or in another package that names it in the entry-point group ``fdfa_core.estimators``.
"""

from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.registry import (
    available_estimators,
    estimator_class,
    estimator_options,
    label,
    make_estimator,
    register,
)

__all__ = [
    "Estimator",
    "available_estimators",
    "estimator_class",
    "estimator_options",
    "label",
    "make_estimator",
    "register",
]
