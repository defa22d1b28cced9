"""What the options of several estimators may be, as annotations of their constructors, and optimisers of states that learn.

`Estimator` checks the options of every class by such annotations (see `fdfa_core.signatures`); a description says in the error
what is accepted.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, SkipValidation
from torch import Tensor

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
Optimizer = Literal["sgd", "adam"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def make_optimizer(name: Optimizer, tensors: list[Tensor], lr: float, decay: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimiser of a state that learns: "sgd" or "adam", with decay λ adding λ·tensor to the gradient."""
    return OPTIMIZERS[name](tensors, lr=lr, weight_decay=decay)
