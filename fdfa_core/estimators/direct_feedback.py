"""Direct feedback: the output error reaches every hidden block through its own feedback matrix."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.activity_perturbation import exact_readout, perturbations
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.registry import register
from fdfa_core.linearize import Gradients, Trace, merge
from fdfa_core.network import require_site
from fdfa_core.perturbations import make_law


class Feedback(list):
    """The feedback of every hidden block; an item can be replaced by a tensor of the same shape."""

    def __setitem__(self, index, value):
        """Copy a tensor into the feedback of one block; raises `InvalidInput` unless shape, dtype and device fit."""
        held = self[index]
        for what in ("shape", "dtype", "device"):
            given = getattr(value, what, None)
            if given != getattr(held, what):
                raise InvalidInput(f"feedback[{index}]: {what}", given, str(getattr(held, what)))
        held.copy_(value)


class DirectFeedback(Estimator):
    """Base of the methods whose error at block l is e B_l, with a feedback tensor B_l of shape (O, *site shape).

    The block's parameter gradients follow by a local vector–Jacobian product; the readout's gradient is exact. Where B_l is
    the mean Jacobian of the outputs with respect to the site, this is the gradient up to the Jacobian's spread.

    Args:
        site: "post" injects at the block output (as published), "pre" at the affine output.
    """

    def __init__(self, net, *, site="post", **common):
        super().__init__(net, **common)
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.site = site
        self._feedback: Feedback | None = None

    @abstractmethod
    def initial_feedback(self, shape: tuple[int, ...]) -> Tensor:
        """Return a new feedback tensor of shape (O, *site shape), or (R, O, *site shape) with replicas."""

    @property
    def feedback(self) -> Feedback:
        """Feedback tensors, one per hidden block, (O, *site shape); with replicas (R, O, *site shape)."""
        if self._feedback is None:
            self._make_feedback(self.net.site_shapes(self.site), self._outputs())
        return self._feedback

    @feedback.setter
    def feedback(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        if len(tensors) != len(self.feedback):
            raise InvalidInput("feedback: length", len(tensors), f"{len(self.feedback)}, one tensor per hidden block")
        for block, tensor in enumerate(tensors):
            self.feedback[block] = tensor

    def _outputs(self) -> int:
        return self.net.output_shape()[0]

    def _make_feedback(self, shapes: list[tuple[int, ...]], outputs: int) -> None:
        lead = () if self.replicas is None else (self.replicas,)
        self._feedback = Feedback(self.initial_feedback((*lead, outputs, *shape)) for shape in shapes)

    def trace(self, x: Tensor, update_buffers: bool = False) -> Trace:
        """Run the network forward; the first batch tells the feedback's shapes if nothing else did."""
        trace = super().trace(x, update_buffers)
        if self._feedback is None:
            shapes = [tuple(block.site(self.site).shape[1:]) for block in trace.hidden]
            self._make_feedback(shapes, trace.output.shape[-1])
        return trace

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the local gradients of the errors e B_l, and the readout's exact one."""
        found: Gradients = {}
        replicated = self.replicas is not None and self._replica is None
        for block, held in zip(trace.hidden, self.feedback, strict=True):
            feedback = held if self._replica is None or self.replicas is None else held[self._replica]
            signal = (self.teaching_signal(error, targets) @ feedback.flatten(-block.site(self.site).dim() + 1)).view(
                *(lead if replicated else ()), *block.site(self.site).shape
            )
            merge(found, block.pull(signal, self.site))
        if not replicated:
            return repeat({**found, **trace.readout.pull(error)}, lead)
        merge(found, exact_readout(trace, error, lead))
        return found

    def teaching_signal(self, error: Tensor, targets: Tensor) -> Tensor:
        """Return what the feedback carries down, (N, O): the output error."""
        return error

    def own_state(self):
        """Return the feedback."""
        return {"feedback": [] if self._feedback is None else [b.clone() for b in self._feedback]}

    def load_own_state(self, state: Mapping[str, object]):
        """Restore the feedback."""
        self._feedback = Feedback(b.clone() for b in state["feedback"]) if state["feedback"] else None


@register("dfa")
class DirectFeedbackAlignment(DirectFeedback):
    r"""DFA: fixed random feedback, error e B_l at block l (Nøkland 2016).

    Biased: a random B_l is not the Jacobian; alignment comes from training alone. Given the batch the estimate has no
    variance. B_l is uniform on ±√(6/n_l) for n_l units, as in the released code of Bacho & Chu. Cost: one forward pass,
    one feedback product a block, local gradients.

    Args:
        site: "post" or "pre".
    """

    def initial_feedback(self, shape):
        """Return uniform feedback."""
        bound = math.sqrt(6 / math.prod(shape[1:]))
        drawn = torch.empty(shape, dtype=self.dtype, device=self.device)
        return drawn.uniform_(-bound, bound, generator=self.generator)


RULES = ("momentum", "adam")
DEFAULT_FEEDBACK_LR = {"momentum": 1e-2, "adam": 1e-4}


@register("fdfa")
class ForwardDirectFeedbackAlignment(DirectFeedback):
    r"""FDFA: direct feedback whose matrices learn the network's mean output Jacobian (Bacho & Chu, arXiv 2212.07282).

    Every hidden block is perturbed, u_l per sample; one tangent pass gives d = Σ_l J_l u_l, the directional derivative of the
    *outputs*. D_l = mean over the batch of d ⊗ u_l has the mean E[J_l], and B_l keeps its running mean. The gradient at a
    step uses the B_l of the steps before it; the update follows. B_l starts at zero.

    Expectation at frozen weights: the gradient with every J_l replaced by its mean over samples; the difference is a bias
    that is zero in the last hidden block and in linear networks. Variance: that of B_l, α/(2−α) of one D_l's, seen through
    the mean error. Cost: one forward pass, one tangent pass, feedback products, local gradients.

    Args:
        perturbation: law of u, a name or an object.
        site: "post" perturbs and injects at the block output (as published), "pre" at the affine output.
        joint: perturb all blocks in one tangent pass, or one block at a time (more passes, no cross-talk in D_l).
        tangents: directions per sample and step, whose D_l are averaged.
        feedback_rule: "momentum": B ← (1−α) B + α D. "adam": the difference B − D is handed to Adam as B's gradient, as
            in the authors' released code.
        feedback_lr: α in (0, 1] for "momentum" (default 1e-2); Adam's learning rate for "adam" (default 1e-4).
        warmup: use α_t = max(α, 1/t) at step t: a plain mean until 1/t falls to α, which forgets B = 0 at once
            ("momentum" alone).
    """

    stateful = True

    def __init__(
        self,
        net,
        *,
        perturbation="gaussian",
        site="post",
        joint=True,
        tangents=1,
        feedback_rule="momentum",
        feedback_lr=None,
        warmup=False,
        **common,
    ):
        super().__init__(net, site=site, **common)
        if feedback_rule not in RULES:
            raise InvalidInput("feedback_rule", feedback_rule, '"momentum" or "adam"')
        rate = DEFAULT_FEEDBACK_LR[feedback_rule] if feedback_lr is None else feedback_lr
        if feedback_rule == "momentum" and not 0 < rate <= 1:
            raise InvalidInput("feedback_lr", rate, "a number in (0, 1], the weight of the newest estimate")
        if not 0 < rate < math.inf:
            raise InvalidInput("feedback_lr", rate, "a positive learning rate")
        if not isinstance(tangents, int) or tangents < 1:
            raise InvalidInput("tangents", tangents, "a positive integer")
        if warmup and feedback_rule != "momentum":
            raise InvalidInput("warmup", warmup, 'False with feedback_rule="adam"')
        self.law, self.joint, self.tangents = make_law(perturbation), bool(joint), tangents
        self.feedback_rule, self.feedback_lr, self.warmup = feedback_rule, float(rate), bool(warmup)
        self.steps = 0
        self._adam: torch.optim.Adam | None = None

    def initial_feedback(self, shape):
        """Return zeros: nothing is known of the Jacobian yet."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def update(self, trace: Trace, error: Tensor, targets: Tensor) -> None:
        """Move the feedback towards this batch's Jacobian estimate D."""
        self.steps += 1
        alpha = max(self.feedback_lr, 1 / self.steps) if self.warmup else self.feedback_lr
        if self.feedback_rule == "adam":
            self._adam = self._adam or torch.optim.Adam(self.feedback, lr=self.feedback_lr)
        for held, (d, u) in zip(self.feedback, self.responses(trace), strict=True):
            b = held.flatten(d.dim() - 1)  # (*replicas, O, n_l)
            product = torch.addmm if d.dim() == 2 else torch.baddbmm
            if self.feedback_rule == "momentum":
                product(b, d.mT, u, beta=1 - alpha, alpha=alpha / u.shape[-2], out=b)
            else:
                held.grad = product(b, d.mT, u, beta=1, alpha=-1 / u.shape[-2]).view_as(held)
        if self.feedback_rule == "adam":
            self._adam.step()

    def responses(self, trace: Trace) -> list[tuple[Tensor, Tensor]]:
        """Return per hidden block the output response d (*replicas, K N, O) and its perturbation u (*replicas, K N, n_l)."""
        replicas = () if self.replicas is None else (self.replicas,)
        lead = replicas + ((self.tangents,) if self.tangents > 1 else ())
        us = perturbations(
            self.law, [block.site(self.site) for block in trace.hidden], _one_axis(lead), self.generator, self.joint
        )

        def rows(value: Tensor, batch_axes: int) -> Tensor:
            return value.flatten(batch_axes).reshape(*replicas, -1, math.prod(value.shape[batch_axes:]))

        axes = len(_one_axis(lead)) + 1
        if self.joint:
            d = rows(trace.push(us, self.site), axes)
            return [(d, rows(u, axes)) for u in us]
        found = []
        for i, u in enumerate(us):
            d = trace.push([u if i == j else None for j in range(len(us))], self.site)
            found.append((rows(d, axes), rows(u, axes)))
        return found

    def stationary_steps(self) -> int:
        """Return the steps after which less than 1e-3 of the start's bias is left.

        From zero (1−α)^t of it is left. A plain mean has none, but twice the stationary variance; that excess falls as
        (1−α)^2t. Adam moves an entry by about its rate a step, so that the time depends on the Jacobian's scale: here enough
        steps for entries up to 0.1.
        """
        if self.feedback_rule == "adam":
            return math.ceil(0.1 / self.feedback_lr)
        if self.feedback_lr == 1:
            return 1
        forget = math.log(1e-3) / math.log1p(-self.feedback_lr)
        return math.ceil(1 / self.feedback_lr + forget / 2) if self.warmup else math.ceil(forget)

    def own_state(self):
        """Return feedback, step count and Adam's moments."""
        adam = None if self._adam is None else self._adam.state_dict()
        return {**super().own_state(), "steps": self.steps, "adam": adam}

    def load_own_state(self, state):
        """Restore feedback, step count and Adam's moments."""
        super().load_own_state(state)
        self.steps, self._adam = state["steps"], None
        if state["adam"] is not None:
            self._adam = torch.optim.Adam(self.feedback, lr=self.feedback_lr)
            self._adam.load_state_dict(state["adam"])


def _one_axis(lead: tuple[int, ...]) -> tuple[int, ...]:
    """Fold replicas and tangents into the one leading axis that a linearisation knows."""
    return (math.prod(lead),) if lead else ()
