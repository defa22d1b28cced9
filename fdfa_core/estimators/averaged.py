"""Estimators whose gradient is averaged over steps: what momentum on the gradient buys by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.activity_perturbation import ActivityPerturbation
from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.forward_feedback import ForwardDirectFeedbackAlignment
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.factored import dense
from fdfa_core.linearisation.trace import Gradients, Trace


class GradientAverage(Estimator):
    r"""Base of estimators that hand on m ← (1−a) m + a g in place of their gradient g.

    The rate is a_t = max(a, 1/t) at step t, a plain mean until 1/t falls to a, so that m never remembers its start at zero.
    Expectation at frozen weights: that of g. Variance: for independent g, a/(2−a) times that of g in the long run. Where the
    weights move, m lags behind. A class that combines this with an estimator names it first among its bases.

    Args:
        gradient_lr: a in (0, 1], the weight of the newest gradient.
    """

    stateful = True

    def __init__(self, net, *, gradient_lr=0.1, **common):
        super().__init__(net, **common)
        if not isinstance(gradient_lr, int | float) or isinstance(gradient_lr, bool) or not 0 < gradient_lr <= 1:
            raise InvalidInput("gradient_lr", gradient_lr, "a number in (0, 1], the weight of the newest gradient")
        self.gradient_lr = float(gradient_lr)
        self.averaged = 0  # gradients in the average
        self.average: dict[str, Tensor] = {}
        self._trains = False
        self._newest: Gradients = {}  # the average that the step at hand wrote as its gradient

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the average with a new gradient in it; the state stays as it was."""
        gradients = super().gradients(trace, error, targets, lead)
        if self.averaged:
            gradients = {name: torch.lerp(self.held(self.average[name]), dense(g), self.rate) for name, g in gradients.items()}
        if self._trains:
            self._newest = gradients
        return gradients

    @property
    def rate(self) -> float:
        """Weight of the next gradient."""
        return max(self.gradient_lr, 1 / (self.averaged + 1))

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the average of this step's gradient and those before, and keep it."""
        self._trains = True
        try:
            return super().backward(x, y)
        finally:
            self._trains, self._newest = False, {}

    def update(self, trace: Trace, error: Tensor, targets: Tensor) -> None:
        """Move the average on, and then what the method itself learns."""
        lead = () if self.replicas is None else (self.replicas,)
        gradients = self._newest or self.gradients(trace, error, targets, lead)
        self.average, self.averaged = {name: dense(g).clone() for name, g in gradients.items()}, self.averaged + 1
        super().update(trace, error, targets)

    def stationary_steps(self) -> int:
        """Return the steps until the average's variance is within 1 % of its long-run value."""
        return super().stationary_steps() + math.ceil(3.5 / self.gradient_lr)

    def own_state(self):
        """Return the method's own state, the average and its age."""
        return {**super().own_state(), "average": dict(self.average), "averaged": self.averaged}

    def load_own_state(self, state):
        """Restore what `own_state` returned."""
        super().load_own_state(state)
        self.average, self.averaged = {name: m.clone() for name, m in state["average"].items()}, state["averaged"]


@register("fg-a-averaged")
class AveragedActivityPerturbation(GradientAverage, ActivityPerturbation):
    """FG-A with momentum on its gradient: the fair opponent of FDFA, whose momentum is on the feedback.

    Unbiased at frozen weights; its per-step variance is gradient_lr/(2−gradient_lr) of FG-A's. Its lag behind moving weights
    concerns the whole gradient, error and inputs included. Options: those of "fg-a" and `gradient_lr`. Cost: as FG-A, and one
    copy of the gradient.
    """


@register("fdfa-averaged")
class AveragedForwardFeedback(GradientAverage, ForwardDirectFeedbackAlignment):
    """FDFA with momentum on its gradient too.

    Tells what FDFA's noise does to an optimiser that averages over many steps: slow feedback repeats its error for
    1/feedback_lr steps, so that its noise averages out no sooner than the feedback forgets it. Options: those of "fdfa" and
    `gradient_lr`. Cost: as FDFA, and one copy of the gradient.
    """
