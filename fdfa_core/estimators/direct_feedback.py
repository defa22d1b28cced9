"""Direct feedback: a teaching signal from the output reaches every hidden block through its own feedback matrix."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.activity_perturbation import exact_readout
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.options import Count, Site
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace, merge
from fdfa_core.losses import check_labels
from fdfa_core.networks.blocks import require_site


class Feedback(list):
    """Feedback tensors, one per block. An item can be replaced by a tensor of the same shape."""

    def __setitem__(self, index, value):
        """Copy a tensor into the feedback of one block; raises `InvalidInput` unless shape, dtype and device fit."""
        held = self[index]
        for what in ("shape", "dtype", "device"):
            given, needed = getattr(value, what, None), getattr(held, what)
            if given != needed:
                shown = tuple(given) if isinstance(given, torch.Size) else given
                raise InvalidInput(f"feedback[{index}]: {what}", shown, str(tuple(needed) if what == "shape" else needed))
        held.copy_(value)


class DirectFeedback(Estimator):
    """Base of the methods whose error at block l is t B_l: a teaching signal t (N, O) through feedback B_l (O, *site shape).

    The block's parameter gradients follow by a local vector–Jacobian product; the readout's gradient is exact. Where t is the
    output error and B_l the mean Jacobian of the outputs with respect to the site, this is the gradient up to the Jacobian's
    spread.

    Args:
        site: "post" injects at the block output (as published), "pre" at the affine output.
        rank: use the best approximation of B_l of this rank in place of B_l (the idea of low-rank feedback is that of LDFA,
            arXiv 2502.20580, which learns two factors). What is held, and what learns, is B_l itself. None for B_l.
    """

    expectation, variance = "biased", 0.0  # given the feedback

    def __init__(self, net, *, site: Site = "post", rank: Count | None = None, **common):
        super().__init__(net, **common)
        self.rank = rank
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.site = site
        self._feedback: Feedback | None = None

    @abstractmethod
    def initial_feedback(self, lead: tuple[int, ...], outputs: int, shape: tuple[int, ...]) -> Tensor:
        """Return new feedback (*lead, O, *site shape); `lead` is (R,) with replicas and () without."""

    @property
    def feedback(self) -> Feedback:
        """Feedback tensors, one per hidden block, (O, *site shape); with replicas (R, O, *site shape)."""
        if self._feedback is None:
            self._make_feedback(self.net.site_shapes(self.site), math.prod(self.net.output_shape()))
        return self._feedback

    @feedback.setter
    def feedback(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        if len(tensors) != len(self.feedback):
            raise InvalidInput("feedback: length", len(tensors), f"{len(self.feedback)}, one tensor per hidden block")
        for block, tensor in enumerate(tensors):
            self.feedback[block] = tensor

    def _make_feedback(self, shapes: list[tuple[int, ...]], outputs: int) -> None:
        lead = () if self.replicas is None else (self.replicas,)
        self._feedback = Feedback(self.initial_feedback(lead, outputs, shape) for shape in shapes)

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the network forward; the first batch gives the feedback its shapes if they are unknown."""
        trace = super().trace(x, **options)
        if self._feedback is None:
            shapes = [tuple(block.site(self.site).shape[1:]) for block in trace.hidden]
            self._make_feedback(shapes, trace.output.shape[-1])
        outputs = self._feedback[0].shape[0 if self.replicas is None else 1]
        if trace.output.shape[-1] != outputs:
            accepted = f"{outputs}, the number that the feedback was made for"
            raise InvalidInput("outputs of a sample", trace.output.shape[-1], accepted)
        return trace

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the local gradients of the errors t B_l, and the readout's exact one."""
        held = [self.held(state) for state in self.feedback]
        return self.gradients_through(held, self.replicated, trace, error, targets, lead)

    def gradients_through(
        self,
        feedback: list[Tensor],
        per_draw: bool,
        trace: Trace,
        error: Tensor,
        targets: Tensor,
        lead: tuple[int, ...],
    ) -> Gradients:
        """Return the local gradients of the errors t B_l for given feedback, and the readout's exact one.

        Args:
            feedback: one tensor per hidden block, (O, *site shape), or (*lead, O, *site shape) with `per_draw`.
            per_draw: whether every draw has feedback of its own.
            trace, error, targets, lead: as for `gradients`.
        """
        teaching = self.teaching_signal(error, targets)
        gradients: Gradients = {}
        for block, matrix in zip(trace.hidden, feedback, strict=True):
            if block.frozen:
                continue
            value = block.site(self.site)
            signal = teaching @ of_rank(matrix.flatten(1 - value.dim()), self.rank)
            merge(gradients, block.pull(signal.view(*signal.shape[:-1], *value.shape[1:]), self.site))
        if not per_draw:
            gradients = repeat(gradients, lead)
        merge(gradients, exact_readout(trace, error, lead))
        return gradients

    def teaching_signal(self, error: Tensor, targets: Tensor) -> Tensor:
        """Return what the feedback carries down, (N, O): the output error."""
        return error

    def own_state(self):
        """Return the feedback."""
        return {"feedback": [] if self._feedback is None else [b.clone() for b in self._feedback]}

    def load_own_state(self, state: Mapping[str, object]):
        """Restore the feedback."""
        self._feedback = Feedback(b.clone() for b in state["feedback"]) if state["feedback"] else None


def of_rank(matrix: Tensor, rank: int | None) -> Tensor:
    """Return the best approximation of matrices (…, O, n) of a rank in the Frobenius norm; themselves for None."""
    if rank is None or rank >= min(matrix.shape[-2:]) or not matrix.isfinite().all():  # a run that diverges goes on to say so
        return matrix
    exact = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()  # no decomposition has less
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]).to(matrix.dtype)


def uniform_feedback(estimator: Estimator, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Return feedback uniform on ±√(6/fan_in) (He et al. 2015) from the estimator's own stream."""
    bound = math.sqrt(6 / fan_in)
    drawn = torch.empty(shape, dtype=estimator.dtype, device=estimator.device)
    return drawn.uniform_(-bound, bound, generator=estimator.generator)


@register("dfa")
class DirectFeedbackAlignment(DirectFeedback):
    r"""DFA: fixed random feedback, error e B_l at block l (Nøkland 2016).

    Biased: a random B_l is not the Jacobian; alignment comes only from training. Given the batch the estimate has no
    variance. B_l is uniform on ±√(6/n_l) for n_l units, as in the released code of Bacho & Chu. Cost: one forward pass,
    one feedback product per block, local gradients.

    Args:
        site: "post" or "pre".
    """

    need_push = False

    def initial_feedback(self, lead, outputs, shape):
        """Return uniform feedback."""
        return uniform_feedback(self, (*lead, outputs, *shape), math.prod(shape))


@register("drtp")
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    r"""DRTP: fixed random feedback of the *target* in place of the error, t B_l at block l (Frenkel, Lefebvre & Bol 2021).

    Hidden blocks need not wait for the output. The error y − t of a one-hot target t is negative for the right class and
    positive for the others; the source's code hands + t B_l on as the gradient, and so does this (B_l is symmetric in law). As
    in the mean loss each sample counts 1/N, t is divided by N; the source's is not, so that its hidden layers learn N times
    faster than its output layer. Biased: the hidden gradients do not vanish when the loss does. No variance given the batch.
    Cost: as DFA.

    Targets are class indices (N,), or one value per output (N, O).

    Args:
        site: "post" or "pre".
    """

    def teaching_signal(self, error, targets):
        """Return the targets, one-hot for classes, divided by N."""
        if not targets.is_floating_point() and targets.dim() == 1:
            check_labels(targets, error.shape[-1])
            targets = F.one_hot(targets.long(), error.shape[-1])
        if self.loss.shape is not None and targets.shape[1:] == self.loss.shape:
            targets = targets.reshape(error.shape)
        if targets.shape != error.shape:
            raise InvalidInput("y: shape", tuple(targets.shape), f"class indices (N,), or {tuple(error.shape)}")
        return targets.to(error.dtype) / len(error)
