"""Checks and small tools that several estimators' options share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def one_of(name: str, value: object, choices: Iterable[object]) -> object:
    """Return the value if it is one of the choices; raises `InvalidInput` otherwise."""
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return value
    raise InvalidInput(name, value, " or ".join(repr(c) for c in choices))


def positive_integer(name: str, value: object) -> int:
    """Return the value if it is an integer of at least one; raises `InvalidInput` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(name, value, "a positive integer")
    return value


def non_negative(name: str, value: object, positive: bool = False) -> float:
    """Return a finite number ≥ 0 (> 0 if `positive`) as a float; raises `InvalidInput` otherwise."""
    accepted = "a finite positive number" if positive else "a finite number of at least 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidInput(name, value, accepted)
    if not (0 < value if positive else 0 <= value) or value == float("inf"):
        raise InvalidInput(name, value, accepted)
    return float(value)


def make_optimizer(name: str, tensors: list[Tensor], lr: float, decay: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimiser of a state that learns: "sgd" or "adam", with decay λ adding λ·tensor to the gradient."""
    return OPTIMIZERS[name](tensors, lr=lr, weight_decay=decay)
