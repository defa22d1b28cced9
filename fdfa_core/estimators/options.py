"""What the options of several estimators may be, as annotations of their constructors, and optimisers of states that learn.

`Estimator` checks the options of every class by such annotations (see `fdfa_core.signatures`); a description says in the error
what is accepted.
"""

from __future__ import annotations

from typing import Annotated, Literal

import psutil
import torch
from pydantic import Field, SkipValidation
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.perturbations import Law

Count = Annotated[int, Field(ge=1, description="a positive integer")]
Positive = Annotated[float, Field(gt=0, description="a finite positive number")]
NonNegative = Annotated[float, Field(ge=0, description="a finite number of at least 0")]
Weight = Annotated[float, Field(gt=0, le=1, description="a number in (0, 1], the weight of the newest item of an average")]
Site = Annotated[Literal["pre", "post"], Field(description='"pre" or "post"')]
Perturbation = Annotated[str | Law, SkipValidation]  # any object that is like a `Law` will do: `make_law` is the judge
Joint = bool | Literal["cyclic"]
Combination = Literal["mean", "projection"]
Readout = Literal["exact", "perturbed"]
Slope = Literal["sample", "batch"]
Mask = Literal["none", "active"]
Allocation = Literal["equal", "optimal"]
Optimizer = Literal["sgd", "adam"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def require_range(name: str, dtype: torch.dtype) -> None:
    """Raise `InvalidInput` for float16, in which Adam's squares and its ε vanish, and a state turns to NaN after a step."""
    if dtype == torch.float16:
        accepted = f"torch.bfloat16, torch.float32 or torch.float64 for {name}, whose state learns by Adam, e.g. net.bfloat16()"
        raise InvalidInput("net: dtype", dtype, accepted)


def make_optimizer(name: Optimizer, tensors: list[Tensor], lr: float, decay: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimiser of a state that learns: "sgd" or "adam", with decay λ adding λ·tensor to the gradient."""
    return OPTIMIZERS[name](tensors, lr=lr, weight_decay=decay)
