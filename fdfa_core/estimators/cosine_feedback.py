"""Direct feedback that turns towards a forward-gradient Jacobian by a cosine loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdfa_core.estimators.forward_feedback import OutputResponses
from fdfa_core.estimators.learned_feedback import LearnedFeedback
from fdfa_core.estimators.options import Count, Joint, Optimizer, Perturbation, Positive
from fdfa_core.estimators.registry import register
from fdfa_core.perturbations import Design


@register("cosine-dfa")
class CosineDirectFeedbackAlignment(LearnedFeedback):
    r"""Direct feedback that turns towards a forward-gradient Jacobian after its use: this project's variant of GrAPE.

    As in FDFA, random perturbations of the hidden blocks and one tangent pass give D_l = mean of d ⊗ u_l, an estimate of the
    Jacobian from rank-one pieces. B_l descends the local loss 1 − cos(B_l, D_l) over all its entries,

        ∂B_l = −(D_l/‖D_l‖ − cos(B_l, D_l) B_l/‖B_l‖) / ‖B_l‖,

    which turns B_l and never shortens it: its scale, unlike FDFA's, says nothing of the Jacobian's, so that hidden blocks train
    at a learning rate of their own. Expectation: biased, in direction by the Jacobian's spread as FDFA, and in length. Variance
    given the batch: that of B_l. Cost: as FDFA, and D_l is formed.

    This method was called "grape" up to version 0.1. It departs from GrAPE as published (Caillon et al., ICLR 2026), which is
    "grape" now, in four points: B_l is used first and updated after; the cosine is that of all entries together, not the mean
    of the columns' cosines; the columns of B_l are not normalised; and the step may be one of Adam. B_l starts normal with
    variance 1/n_l.

    Args:
        perturbation: law of u, a name or an object.
        site: "post" or "pre".
        joint: True, False or "cyclic", as for FDFA.
        tangents: directions per sample and step.
        directions: "independent", "orthogonal" or "antithetic", as for FDFA.
        feedback_optimizer: "sgd" or "adam".
        feedback_lr: its learning rate.
        feedback_decay: λ, with which B also shrinks.
    """

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        joint: Joint = True,
        tangents: Count = 1,
        directions: Design = "independent",
        feedback_optimizer: Optimizer = "sgd",
        feedback_lr: Positive = 0.1,
        **common,
    ):
        super().__init__(net, feedback_optimizer=feedback_optimizer, feedback_lr=feedback_lr, **common)
        self.responses = OutputResponses(perturbation, joint, tangents, directions)
        self.steps = 0

    def initial_feedback(self, lead, outputs, shape):
        """Return normal feedback of variance 1/n_l."""
        drawn = torch.empty((*lead, outputs, *shape), dtype=self.dtype, device=self.device)
        return drawn.normal_(0, math.prod(shape) ** -0.5, generator=self.generator)

    def feedback_gradients(self, trace, error):
        """Return the gradient of 1 − cos(B_l, D_l); zero where D_l or B_l is."""
        replicas = () if self.replicas is None else (self.replicas,)
        measured = self.responses.measure(trace, self.site, self.steps, replicas, self.generator)
        self.steps += 1
        gradients: list[Tensor | None] = [None] * len(trace.hidden)
        for i, (d, u) in measured.items():
            feedback = self.feedback[i]
            jacobian = (d.mT @ u).view_as(feedback)  # times K N, which the cosine does not see
            entries = tuple(range(len(replicas), feedback.dim()))
            gradients[i] = cosine_loss_gradient(feedback, jacobian, entries)
        return gradients

    def own_state(self):
        """Return feedback, its optimiser's state and the step count."""
        return {**super().own_state(), "steps": self.steps}

    def load_own_state(self, state):
        """Restore feedback, its optimiser's state and the step count."""
        super().load_own_state(state)
        self.steps = state["steps"]


def cosine_loss_gradient(feedback: Tensor, target: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the gradient of 1 − cos with respect to the feedback, the cosine taken over axes; zero where either is zero.

    Args:
        feedback, target: B and what it shall point along, of shapes that broadcast to one another.
        axes: what one cosine runs over; there is one per index of the other axes.
    """
    length = feedback.square().sum(axes, keepdim=True).sqrt()
    towards, along = unit(target, axes), unit(feedback, axes)
    across = towards - along * (towards * along).sum(axes, keepdim=True)
    return torch.where(length > 0, -across / length, 0)


def unit(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return a tensor scaled to norm one over axes; zero stays zero."""
    length = value.square().sum(axes, keepdim=True).sqrt()
    return torch.where(length > 0, value / length, 0)
