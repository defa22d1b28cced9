"""PEPITA: the error changes the input of a second forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fdfa_core.errors import Unsupported
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.direct_feedback import Feedback, uniform_feedback
from fdfa_core.estimators.options import NonNegative
from fdfa_core.estimators.registry import register
from fdfa_core.linearisation.trace import Gradients, Trace, merge
from fdfa_core.random_state import Streams


@register("pepita")
class Pepita(Estimator):
    r"""PEPITA: two forward passes, on x and on x′ = x + ê F, ΔW_l ∝ (h_l − h′_l)ᵀ h′_{l−1} (Dellaferrera & Kreiman 2022).

    ê = N e is a sample's own output error and F (O × *input shape) fixed and random. The change h_l − h′_l of a block's output
    stands for its error; divided by N it enters at the affine output, without the activation's derivative, as published, and
    the local vector–Jacobian product at the *second* pass gives the parameters' gradients. Where a block has no such site, or
    its output has another shape there (pooling), it enters at the block's output. The readout's gradient is the true one of the
    second pass, e′ᵀ h′. Both passes use the same dropout masks; running statistics move with the first.

    Biased; to first order h_l − h′_l = −J ê F with J the block's input Jacobian, so that F = 0 gives no hidden update at all.
    No variance given the batch. F is uniform on ±`scale` √(6/n) for n inputs, as in the released code. Cost: two forward
    passes, local gradients.

    Args:
        scale: of F.
    """

    need_push = False
    expectation, variance = "biased", 0.0

    def __init__(self, net, *, scale: NonNegative = 0.05, **common):
        super().__init__(net, **common)
        self.scale = float(scale)
        self._feedback: Feedback | None = None

    @property
    def feedback(self) -> Feedback:
        """A list of one tensor, F (O, *input shape)."""
        if self._feedback is None:
            outputs = math.prod(self.net.output_shape())
            self._make_feedback(outputs, self.net.input_shape)
        return self._feedback

    def _make_feedback(self, outputs: int, shape: tuple[int, ...]) -> None:
        self._feedback = Feedback([uniform_feedback(self, (outputs, *shape), math.prod(shape)) * self.scale])

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the first pass; keep where the random stream stood, for the masks of the second."""
        if not x.is_floating_point():
            raise Unsupported(f"pepita adds the error to the input, which must hold floating-point numbers (it is {x.dtype})")
        self._streams = Streams(self.device, self.net)
        trace = super().trace(x, **options)
        if self._feedback is None:
            self._make_feedback(trace.output.shape[-1], tuple(x.shape[1:]))
        return trace

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Run the second pass and compare."""
        x, samples = trace.input, len(error)
        (projection,) = self.feedback
        moved = x + samples * (error @ projection.flatten(1)).view_as(x)
        self._streams.restore()
        second = Trace(self.net, moved)
        gradients: Gradients = {}
        for before, after in zip(trace.hidden, second.hidden, strict=True):
            learns = after.above is not None and after.above.parametric  # an activation with parameters needs its own gradient
            site = "pre" if after.shapes["pre"] == after.output.shape and not learns else "post"
            merge(gradients, after.pull((before.output - after.output) / samples, site))
        merge(gradients, second.readout.pull(self.loss.error(second.output, targets)[1]))
        return repeat(gradients, lead)

    def own_state(self):
        """Return F."""
        return {"feedback": [] if self._feedback is None else [f.clone() for f in self._feedback]}

    def load_own_state(self, state: Mapping[str, object]):
        """Restore F."""
        self._feedback = Feedback(f.clone() for f in state["feedback"]) if state["feedback"] else None
