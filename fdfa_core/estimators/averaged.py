"""Estimators whose gradient is averaged over steps: what momentum on the gradient buys by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fdfa_core.estimators.activity_perturbation import ActivityPerturbation
from fdfa_core.estimators.averages import weight
from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.forward_feedback import ForwardDirectFeedbackAlignment
from fdfa_core.estimators.options import Weight
from fdfa_core.estimators.registry import register
from fdfa_core.gradients import true_gradient
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
    needs_gradients = True

    def __init__(self, net, *, gradient_lr: Weight = 0.1, **common):
        super().__init__(net, **common)
        self.gradient_lr = float(gradient_lr)
        self.averaged = 0  # gradients in the average
        self.average: dict[str, Tensor] = {}

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the average with a new gradient in it; the state stays as it was."""
        gradients = super().gradients(trace, error, targets, lead)
        if self.averaged:
            gradients = {name: torch.lerp(self.held(self.average[name]), dense(g), self.rate) for name, g in gradients.items()}
        return gradients

    @property
    def rate(self) -> float:
        """Weight of the next gradient."""
        return weight(self.gradient_lr, self.averaged + 1)

    def update(self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients) -> None:
        """Keep the average that the step wrote as its gradient, and then move what the method itself learns."""
        self.average, self.averaged = {name: dense(g).clone() for name, g in gradients.items()}, self.averaged + 1
        super().update(trace, error, targets, gradients)

    @property
    def expectation(self):
        """What the method itself declares; with an average in hand, that average with the declared gradient in it."""
        declared = super().expectation
        if not self.averaged or declared in (None, "biased"):
            return declared

        def blended(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            new = true_gradient(self.net, x, y, self.loss) if declared == "gradient" else declared(x, y)
            return {name: torch.lerp(self.average[name], g, self.rate) for name, g in new.items()}

        return blended

    def variance(self, x: Tensor, y: Tensor) -> float | Mapping[str, float] | None:
        """Return that of the method itself, with an average in hand times the squared weight of the newest gradient."""
        declared, factor = super().variance, self.rate**2 if self.averaged else 1.0
        own = declared(x, y) if callable(declared) else declared
        if isinstance(own, Mapping):
            return {name: factor * part for name, part in own.items()}
        return None if own is None else factor * own

    def jacobian_average(self) -> None:
        """Return None: the gradient is an average of products with feedback of many steps, whatever the feedback is."""

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
