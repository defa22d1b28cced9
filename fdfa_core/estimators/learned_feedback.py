"""Direct feedback that learns by the gradient of an objective of its own, with its own optimiser."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod

import torch
from torch import Tensor

from fdfa_core.estimators.direct_feedback import DirectFeedback, uniform_feedback
from fdfa_core.estimators.options import NonNegative, Optimizer, Positive, make_optimizer, require_range
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace


class LearnedFeedback(DirectFeedback):
    """Base of the methods whose feedback follows `feedback_gradients` by SGD or Adam, with decay λ (λB joins the gradient).

    The gradient at a step uses the feedback of the steps before it; the update follows.

    Args:
        site: "post" or "pre".
        feedback_optimizer: "sgd" or "adam".
        feedback_lr: its learning rate.
        feedback_decay: λ.
    """

    stateful = True

    def __init__(
        self,
        net,
        *,
        feedback_optimizer: Optimizer = "adam",
        feedback_lr: Positive = 1e-4,
        feedback_decay: NonNegative = 0.0,
        **common,
    ):
        super().__init__(net, **common)
        self.feedback_optimizer = feedback_optimizer
        self.feedback_lr, self.feedback_decay = float(feedback_lr), float(feedback_decay)
        if feedback_optimizer == "adam":
            require_range(self.name, self.dtype)
        self._optimizer: torch.optim.Optimizer | None = None

    @abstractmethod
    def feedback_gradients(self, trace: Trace, error: Tensor) -> list[Tensor | None]:
        """Return the gradient of each B_l, without replicas' dimension where all have the same; None leaves B_l as it is."""

    def update(self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients | None = None) -> None:
        """Let the feedback's optimiser take a step."""
        self._optimizer = self._optimizer or self._make_optimizer()
        for feedback, gradient in zip(self.feedback, self.feedback_gradients(trace, error), strict=True):
            feedback.grad = None if gradient is None else gradient.expand_as(feedback)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.feedback_optimizer, self.feedback, self.feedback_lr, self.feedback_decay)

    def own_state(self):
        """Return the feedback and its optimiser's state."""
        optimizer = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())
        return {**super().own_state(), "optimizer": optimizer}

    def load_own_state(self, state):
        """Restore the feedback and its optimiser's state."""
        super().load_own_state(state)
        self._optimizer = None
        if state["optimizer"] is not None:
            self._optimizer = self._make_optimizer()
            self._optimizer.load_state_dict(state["optimizer"])


@register("dkp")
class DirectKolenPollack(LearnedFeedback):
    r"""DKP: direct feedback that learns as the readout does, ∂B_l = eᵀ h_l + λ B_l (Webster, Choi & Ahn 2021).

    h_l (N × n_l) is the value at the site. In the last hidden block eᵀ h is the very gradient of a linear readout's weight W,
    so with plain SGD at *equal* rate η and decay λ on B and on W, B_t − W_t = (1 − ηλ)^t (B_0 − W_0): B becomes the Jacobian
    (Kolen & Pollack 1994). It does not with decay only on B; with Adam and no decay the difference B − W never shrinks; and in
    earlier blocks, which have no such W, B_l settles at −E[eᵀ h_l]/λ, which is not the Jacobian.

    Expectation: biased, by the distance of B_l to the Jacobian. No variance given the batch and the state. B_l starts uniform
    on ±√(6/n_l); rate and decay default to those of the released code. Cost: as DFA, and one more product per block.

    Args:
        site: "post" or "pre".
        feedback_optimizer: "adam" or "sgd".
        feedback_lr: learning rate of B.
        feedback_decay: λ.
    """

    need_push = False

    def __init__(self, net, *, feedback_decay: NonNegative = 1e-6, **common):
        super().__init__(net, feedback_decay=feedback_decay, **common)

    def initial_feedback(self, lead, outputs, shape):
        """Return uniform feedback."""
        return uniform_feedback(self, (*lead, outputs, *shape), math.prod(shape))

    def feedback_gradients(self, trace, error):
        """Return eᵀ h_l, (O, *site shape)."""
        values = [block.site(self.site) for block in trace.hidden]
        return [(error.T @ value.flatten(1)).view(-1, *value.shape[1:]) for value in values]
