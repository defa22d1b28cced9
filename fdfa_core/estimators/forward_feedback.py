"""Direct feedback that learns from forward gradients of the outputs: FDFA."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import averages
from fdfa_core.estimators.direct_feedback import DirectFeedback
from fdfa_core.estimators.options import Count, Joint, Perturbation, Positive, Site, require_range
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace, frozen
from fdfa_core.perturbations import Design, design_sample, make_law

Responses = dict[int, tuple[Tensor, Tensor]]
DEFAULT_FEEDBACK_LR = {"momentum": 1e-2, "adam": 1e-4}


class OutputResponses:
    """Measures how the outputs respond to random perturbations of the hidden blocks, a forward gradient of the *outputs*.

    A sample's directional derivative is d = Σ_l J_l u_l, with J_l = ∂y/∂h_l (O × n_l) and u_l its perturbation of block l;
    D_l = mean over the batch of d ⊗ u_l has the mean E[J_l].

    Args:
        perturbation: law of u, a name or an object.
        joint: True perturbs all blocks in one tangent pass; False one block at a time (a pass per block, no cross-talk in D_l);
            "cyclic" one block per step, in turn (one pass, no cross-talk, each block learns every (L−1)th step).
        tangents: directions per sample and step.
        directions: how the directions of a step's samples are arranged, see `fdfa_core.perturbations.design_sample`.
    """

    def __init__(self, perturbation: Perturbation, joint: Joint, tangents: Count, directions: Design):
        self.law = make_law(perturbation)
        self.joint, self.tangents, self.directions = joint, tangents, directions

    def groups(self, blocks: int, step: int) -> list[list[int]]:
        """Return the blocks that are perturbed together, pass by pass, at a step counted from zero."""
        if self.joint == "cyclic":
            return [[step % blocks]]
        return [list(range(blocks))] if self.joint else [[i] for i in range(blocks)]

    def measure(
        self, trace: Trace, site: str, step: int, replicas: tuple[int, ...], generator: torch.Generator
    ) -> Responses:
        """Return for each perturbed block the responses d (*replicas, K N, O) and perturbations u (*replicas, K N, n_l)."""
        values = [block.site(site) for block in trace.hidden]
        samples = len(trace.output)
        many = math.prod(replicas) * self.tangents
        axes = (many,) if replicas or self.tangents > 1 else ()
        responses = {}
        live = [i for i, block in enumerate(trace.hidden) if not block.frozen]  # what does not train needs no feedback
        for turns in self.groups(len(live), step) if live else ():
            group = [live[i] for i in turns]
            sizes = [values[i][0].numel() for i in group]
            shape = (*replicas, self.tangents * samples, sum(sizes))
            u = design_sample(self.law, self.directions, shape, generator=generator, dtype=trace.output.dtype)
            parts = dict(zip(group, u.split(sizes, dim=-1), strict=True))
            pushed = [parts[i].reshape(*axes, *v.shape) if i in parts else None for i, v in enumerate(values)]
            d = trace.push(pushed, site).reshape(*replicas, self.tangents * samples, -1)
            responses |= {i: (d, part) for i, part in parts.items()}
        return responses


@register("fdfa")
class ForwardDirectFeedbackAlignment(DirectFeedback):
    r"""FDFA: direct feedback whose matrices learn the network's mean output Jacobian (Bacho & Chu, arXiv 2212.07282).

    Every hidden block is perturbed, u_l per sample; one tangent pass gives d = Σ_l J_l u_l, the directional derivative of the
    *outputs*. D_l = mean over the batch of d ⊗ u_l has the mean E[J_l], and B_l keeps its running mean. The gradient at a
    step uses the B_l of the steps before it; the update follows. B_l starts at zero.

    Expectation at frozen weights: the gradient with every J_l replaced by its mean over samples; the difference is a bias
    that is zero in the last hidden block and in linear networks. Variance: that of B_l, α/(2−α) of one D_l's, seen through
    the mean error. With batch normalisation in training mode D_l's mean is that of the samples' own Jacobians: paths from one
    sample to another's output are lost, a further bias. Cost: one forward pass, one tangent pass, feedback products, local
    gradients.

    Args:
        perturbation: law of u, a name or an object.
        site: "post" perturbs and injects at the block output (as published), "pre" at the affine output.
        joint: perturb all blocks in one tangent pass (True, as published), one block at a time (False: more passes, no
            cross-talk in D_l), or one block per step in turn ("cyclic": no cross-talk for one pass, but each B_l learns every
            (L−1)th step only).
        tangents: directions per sample and step, whose D_l are averaged.
        directions: "independent"; "orthogonal": a step's K N isotropic directions stand in orthogonal blocks, which lowers the
            noise of D_l by about the factor 1 − K N/n for n units perturbed together, to zero at K N = n for a Jacobian that
            all samples share; "antithetic": half of the samples get the negatives of the other half's directions. D_l is even
            in u, so that antithetic pairs repeat one another and about double its noise. D_l stays unbiased with all three,
            as each sample's direction has identity covariance.
        feedback_rule: "momentum": B ← (1−α) B + α D. "adam": the difference B − D is handed to Adam as B's gradient, as
            in the authors' released code.
        feedback_lr: α in (0, 1] for "momentum" (default 1e-2); Adam's learning rate for "adam" (default 1e-4).
        warmup: use α_t = max(α, 1/t) at update t: a plain mean until 1/t falls to α, which forgets B = 0 at once
            (only with "momentum").
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
        feedback_rule: Literal["momentum", "adam"] = "momentum",
        feedback_lr: Positive | None = None,
        warmup: bool = False,
        **common,
    ):
        super().__init__(net, site=site, **common)
        rate = DEFAULT_FEEDBACK_LR[feedback_rule] if feedback_lr is None else feedback_lr
        self.feedback_rule, self.feedback_lr, self.warmup = feedback_rule, float(rate), warmup
        if feedback_rule == "momentum" and rate > 1:
            raise InvalidInput("feedback_lr", rate, "a number in (0, 1], the weight of the newest estimate")
        if feedback_rule == "adam":
            require_range(self.name, self.dtype)
        if warmup and feedback_rule != "momentum":
            raise InvalidInput("warmup", warmup, 'False with feedback_rule="adam"')
        self.responses = OutputResponses(perturbation, joint, tangents, directions)
        self.steps = 0
        self._measured: Responses | None = None  # within a training step
        self._adam: torch.optim.Adam | None = None

    @classmethod
    def filled_options(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Return the given options and the defaults of the others; that of `feedback_lr` is its rule's."""
        options = super().filled_options(given)
        if options["feedback_lr"] is None:
            options["feedback_lr"] = DEFAULT_FEEDBACK_LR.get(options["feedback_rule"])
        return options

    def initial_feedback(self, lead, outputs, shape):
        """Return zeros: nothing is known of the Jacobian yet."""
        return torch.zeros((*lead, outputs, *shape), dtype=self.dtype, device=self.device)

    def weight(self, step: int) -> float:
        """Return α_t, the weight of the newest D_l at the t-th step, counted from one: α, or max(α, 1/t) with `warmup`.

        With ``joint="cyclic"`` t counts a block's own updates, as blocks take turns.
        """
        if self.responses.joint == "cyclic":
            step = math.ceil(step / max(1, len(self.net) - 1 - sum(map(frozen, self.net.hidden))))
        return averages.weight(self.feedback_lr, step, self.warmup)

    def jacobian_average(self) -> averages.JacobianAverage:
        """Return site and weights of the average that B_l is; Adam and blocks that take turns make another of it."""
        if self.feedback_rule != "momentum" or self.responses.joint == "cyclic":
            given = f"feedback_rule = {self.feedback_rule!r} and joint = {self.responses.joint!r}"
            raise Unsupported(
                f"the feedback of {self.name} with {given} is no moving average over all steps; "
                'feedback_rule = "momentum" and joint = true or false make it one'
            )
        return averages.JacobianAverage(self.site, self.weight)

    def step(self, trace: Trace, error: Tensor, targets: Tensor) -> Gradients:
        """Return the gradients of one training step and advance the state.

        The tangents are taken first, so that each block can let go of its values as soon as it has its gradients.
        """
        self._measured = self._measure(trace)
        try:
            kind, own = type(self), ForwardDirectFeedbackAlignment
            if all(getattr(kind, name) is getattr(own, name) for name in ("gradients", "gradients_through", "update")):
                trace.release()  # these ask each block once; those of a subclass may ask again
            return super().step(trace, error, targets)
        finally:
            self._measured = None

    def _measure(self, trace: Trace) -> Responses:
        replicas = () if self.replicas is None else (self.replicas,)
        return self.responses.measure(trace, self.site, self.steps, replicas, self.generator)

    def update(self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients | None = None) -> None:
        """Move the feedback towards this batch's Jacobian estimate D."""
        replicas = () if self.replicas is None else (self.replicas,)
        measured = self._measure(trace) if self._measured is None else self._measured
        self.steps += 1
        alpha = self.weight(self.steps)
        if self.feedback_rule == "adam":
            self._adam = self._adam or torch.optim.Adam(self.feedback, lr=self.feedback_lr)
        product = torch.baddbmm if replicas else torch.addmm  # D is never formed: B is updated by one matrix product
        for i, (d, u) in measured.items():
            feedback = self.feedback[i].flatten(len(replicas) + 1)
            if self.feedback_rule == "momentum":
                product(feedback, d.mT, u, beta=1 - alpha, alpha=alpha / u.shape[-2], out=feedback)
            else:
                gradient = product(feedback, d.mT, u, beta=1, alpha=-1 / u.shape[-2])
                _adam_step(self._adam, self.feedback[i], gradient.view_as(self.feedback[i]))

    def stationary_steps(self) -> int:
        """Return the steps after which less than 1e-3 of the start's bias is left.

        From zero (1−α)^t of it is left after t updates. A plain mean has none, but twice the stationary variance; that excess
        falls as (1−α)^2t. Adam moves an entry by about its rate per step, so the time depends on the Jacobian's scale: here
        enough steps for entries up to 0.1.
        """
        turns = len(self.net) - 1 if self.responses.joint == "cyclic" else 1  # steps from one update of a block to the next
        if self.feedback_rule == "adam":
            return turns * math.ceil(0.1 / self.feedback_lr)
        if self.feedback_lr == 1:
            return turns
        forget = math.log(1e-3) / math.log1p(-self.feedback_lr)
        return turns * math.ceil(1 / self.feedback_lr + forget / 2 if self.warmup else forget)

    def own_state(self):
        """Return feedback, step count and Adam's moments."""
        adam = None if self._adam is None else copy.deepcopy(self._adam.state_dict())
        return {**super().own_state(), "steps": self.steps, "adam": adam}

    def load_own_state(self, state):
        """Restore feedback, step count and Adam's moments."""
        super().load_own_state(state)
        self.steps, self._adam = state["steps"], None
        if state["adam"] is not None:
            self._adam = torch.optim.Adam(self.feedback, lr=self.feedback_lr)
            self._adam.load_state_dict(state["adam"])


def _adam_step(adam: torch.optim.Adam, parameter: Tensor, gradient: Tensor) -> None:
    """Move one tensor as `adam.step()` does on a processor, bit by bit, and write over its gradient.

    For few small tensors most of the time of `adam.step()` goes to what surrounds these lines.
    """
    if parameter not in adam.state:  # torch makes the moments
        parameter.grad = gradient
        adam.step()
        parameter.grad = None
        return
    group, state = adam.param_groups[0], adam.state[parameter]
    state["step"] += 1
    step, (beta1, beta2), mean, square = state["step"].item(), group["betas"], state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = torch.sqrt(square, out=gradient).div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    parameter.addcdiv_(mean, scale, value=-(group["lr"] / (1 - beta1**step)))
