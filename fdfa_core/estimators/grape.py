"""GrAPE as published: direct feedback that turns, column by column, towards a forward-gradient Jacobian before its use."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators.base import repeat
from fdfa_core.estimators.cosine_feedback import cosine_loss_gradient, unit
from fdfa_core.estimators.direct_feedback import DirectFeedback
from fdfa_core.estimators.forward_feedback import OutputResponses
from fdfa_core.estimators.options import Count, Joint, Perturbation, Positive, Site
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace
from fdfa_core.perturbations import Design

Space = Annotated[Literal["activations", "smaller", "weights"], Field(description="'activations' or 'smaller'")]


@register("grape")
class GradientAlignedProjectedError(DirectFeedback):
    r"""GrAPE: direct feedback that turns towards a forward-gradient Jacobian before each use (Caillon et al., ICLR 2026).

    Every sample has one direction p ~ N(0, I) at the output of every hidden block, and Ĵ_l = mean over the batch of (J_l p) pᵀ,
    with J_l = ∂y/∂h_l (O × n_l); E Ĵ_l is the mean Jacobian. One step of descent on 1 − c̄_l, with c̄_l the mean over the n_l
    columns (one per unit) of the cosines between the columns of B_l and of Ĵ_l, then columns of length one:

        B_l[:, k] ← B_l[:, k] + η (Ĵ[:, k]/‖Ĵ[:, k]‖ − cos_k B_l[:, k]/‖B_l[:, k]‖) / (n_l ‖B_l[:, k]‖),
        B_l[:, k] ← B_l[:, k] / ‖B_l[:, k]‖,

    and the error of block l is e B_l with this refined B_l. The mean over columns makes a column turn by at most η/n_l a step,
    so that η is of the order of n_l where B_l shall turn by a fraction of a radian.

    Expectation: biased, in direction by the spread of the Jacobian and by what the cosine's normalisation does to noise, and in
    length, as all columns count alike. Variance given the batch: that of one refinement, small where η/n_l is. The cosine
    between one rank-one piece and J_l has the mean square 1/n_l exactly, and a mean of at least √(2/(π n_l)) ‖J_l‖₂/‖J_l‖_F
    (docs/theory.md, section 8). Cost: one forward pass, one tangent pass, feedback products, local gradients; Ĵ_l is formed.

    What is published in words and how it is read here:

    - The equation has J_l p alone; the published cost of about one more forward pass needs all blocks in one tangent pass, in
      which the response of a sample is Σ_m J_m p_m. That is `joint=True`, with the same mean of Ĵ_l and more noise;
      `joint=False` is the equation to the letter, at a tangent pass per block.
    - Perturbations are "drawn in the space, weights or activations, with fewer dimensions" per layer. B_l lives in activation
      space. A direction V of the weights moves the activations by V h, whose covariance is that of the layer's inputs and not
      the identity, so that (J_l V h)(V h)ᵀ has another mean than J_l; how the source goes from there to B_l is not published in
      a form that can be repeated exactly. `space="smaller"` therefore accepts networks in which every block has at least as
      many weights as activations (all fully connected ones, where both readings agree), and refuses others by name.
    - Once in T epochs one batch is trained by backpropagation. `calibrate_every` counts steps: at the steps T, 2T, … the
      gradient is the true one of that batch, in place of the method's and not besides it, and B_l rests. The published results
      for shallow networks (MNIST, CIFAR-10 and CIFAR-100 with a small convolutional network) are without it, so the default
      is None: no backpropagation. At a step that calibrates, `estimate` returns the true gradient too.
    - η, the law of the first B_l beyond "normal" and the ε of the division are not published: here η has a default of 10, the
      columns of the first B_l are uniform directions of length one, and a column of zeros stays zero.

    Args:
        perturbation: law of p, a name or an object.
        site: "post" perturbs and injects at the block output (as published), "pre" at the affine output.
        joint: perturb all blocks in one tangent pass (True), one at a time (False), or one block per step in turn ("cyclic").
        tangents: directions per sample and step, whose pieces are averaged (published: one).
        directions: "independent", "orthogonal" or "antithetic", as for FDFA.
        space: "activations", or "smaller": see above; "weights" is refused.
        order: "before" refines B_l and uses it (as published); "after" uses B_l and refines it for the next step.
        cosine: "columns", the mean of the columns' cosines (as published), or "frobenius", one cosine over all entries.
        normalise: scale the columns of B_l to length one after every step.
        feedback_lr: η.
        calibrate_every: T in steps, or None for never.
    """

    stateful = True

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        site: Site = "post",
        joint: Joint = True,
        tangents: Count = 1,
        directions: Design = "independent",
        space: Space = "activations",
        order: Literal["before", "after"] = "before",
        cosine: Literal["columns", "frobenius"] = "columns",
        normalise: bool = True,
        feedback_lr: Positive = 10.0,
        calibrate_every: Count | None = None,
        **common,
    ):
        super().__init__(net, site=site, **common)
        self.responses = OutputResponses(perturbation, joint, tangents, directions)
        self.order, self.cosine, self.normalise = order, cosine, normalise
        self.feedback_lr, self.calibrate_every = float(feedback_lr), calibrate_every
        if space == "weights":
            raise Unsupported(
                'space = "weights" cannot be made exact: a direction of the weights moves the activations with the covariance '
                "of the layer's inputs, so that its response is no unbiased estimate of the Jacobian that the feedback stands "
                'for; use space = "activations"'
            )
        self.space = space
        if self.space == "smaller":
            self._require_fewer_activations()
        self.steps = 0

    def initial_feedback(self, lead, outputs, shape):
        """Return normal feedback of variance 1/O, with columns of length one if they are normalised."""
        drawn = torch.empty((*lead, outputs, *shape), dtype=self.dtype, device=self.device)
        drawn.normal_(0, outputs**-0.5, generator=self.generator)
        return unit(drawn, (len(lead),)) if self.normalise else drawn

    @property
    def variance(self) -> float | None:
        """No closed form, unless the feedback is refined after its use or the coming step is one of backpropagation."""
        return 0.0 if self.order == "after" or self.calibrates else None

    @property
    def calibrates(self) -> bool:
        """Whether the coming step is one of backpropagation."""
        return self.calibrate_every is not None and (self.steps + 1) % self.calibrate_every == 0

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the network forward; a step that calibrates keeps what a backward pass needs."""
        return super().trace(x, **{**options, "shortcuts": True} if self.calibrates else options)

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the gradients of the errors e B_l, with B_l refined by fresh directions first if that is the order."""
        if self.calibrates:
            return repeat(trace.gradient(error), lead)
        if self.order == "after":
            return super().gradients(trace, error, targets, lead)
        return self.gradients_through(self.refined(trace, lead), True, trace, error, targets, lead)

    def refined(self, trace: Trace, lead: tuple[int, ...]) -> list[Tensor]:
        """Return every B_l after one step towards a fresh Jacobian estimate, (*lead, O, *site shape); the state rests.

        Args:
            trace: the forward pass.
            lead: () for one refinement; (R,) for R of them, by replica where the state has replicas.
        """
        measured = self.responses.measure(trace, self.site, self.steps, lead, self.generator)
        refined = []
        for i, (block, state) in enumerate(zip(trace.hidden, self.feedback, strict=True)):
            feedback = self.held(state)
            shape = (*lead, *feedback.shape[-block.site(self.site).dim() :])  # without the replicas' dimension
            if i in measured:
                d, p = measured[i]
                feedback = self._step_towards(d.mT @ p, feedback.flatten(1 - block.site(self.site).dim()))
                refined.append(feedback.reshape(shape))
            else:
                refined.append(feedback.expand(shape))
        return refined

    def _step_towards(self, jacobian: Tensor, feedback: Tensor) -> Tensor:
        """One step from feedback (…, O, n) along an estimate (…, O, n), whose length the cosine does not see."""
        axes, cosines = ((-2,), feedback.shape[-1]) if self.cosine == "columns" else ((-2, -1), 1)
        feedback = feedback - self.feedback_lr / cosines * cosine_loss_gradient(feedback, jacobian, axes)
        return unit(feedback, (-2,)) if self.normalise else feedback

    def step(self, trace: Trace, error: Tensor, targets: Tensor) -> Gradients:
        """Return the gradients of one training step; B_l moves before or after its use."""
        if self.order == "after" or self.calibrates:
            return super().step(trace, error, targets)
        self.update(trace, error, targets)
        return super().gradients(trace, error, targets, ())

    def update(self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients | None = None) -> None:
        """Refine the feedback for good; in a step that calibrates it rests."""
        if not self.calibrates:
            lead = () if self.replicas is None else (self.replicas,)
            for state, refined in zip(self.feedback, self.refined(trace, lead), strict=True):
                state.copy_(refined)
        self.steps += 1

    def _require_fewer_activations(self) -> None:
        if self.net.input_shape is None:
            raise InvalidInput("space", self.space, '"activations", or a network whose input_shape is known')
        for i, (block, shape) in enumerate(zip(self.net.hidden, self.net.site_shapes(self.site), strict=True)):
            weights = sum(p.numel() for p in block.parameters() if p.dim() > 1)
            activations = torch.Size(shape).numel()
            if 0 < weights < activations:
                raise Unsupported(
                    f"block {i} ({type(block).__name__}) has {weights} weights and {activations} activations: "
                    'space = "smaller" would perturb its weights, which cannot be made exact; use space = "activations"'
                )

    def own_state(self):
        """Return the feedback and the step count."""
        return {**super().own_state(), "steps": self.steps}

    def load_own_state(self, state):
        """Restore the feedback and the step count."""
        super().load_own_state(state)
        self.steps = state["steps"]
