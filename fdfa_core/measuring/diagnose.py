"""What the estimators' check of a network sees, on demand and of every block."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fdfa_core.errors import Unsupported
from fdfa_core.estimators.consistency import BlockFinding, examine
from fdfa_core.gradients import true_gradient
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, plain_parameters
from fdfa_core.losses import make_loss
from fdfa_core.networks.batch import check_batch, explained
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.cutting import cut
from fdfa_core.networks.served import require_blockwise
from fdfa_core.random_state import Streams, preserve_random_stream

STEP = 1e-6  # of the central difference, over the size of each parameter


@dataclass
class Diagnosis:
    """What was seen of a network on a batch.

    Attributes:
        blocks: of each block, how far its second run, local gradient and tangent are from reverse mode's, and what is wrong.
        slope: of the loss along one random direction of the parameters that train, by reverse mode.
        difference: the same by a central difference in float64; None where the network cannot run in it. It differs where
            reverse mode is no derivative: straight-through estimators, `detach`, kinks.
        coupled: whether a sample's output depends on the other samples (batch normalisation, graphs); None for one sample.
        refusal: why no estimator that works block by block serves the network, or "".
    """

    blocks: list[BlockFinding]
    slope: float
    difference: float | None
    coupled: bool | None
    refusal: str = ""

    @property
    def problems(self) -> list[str]:
        """What makes an estimator refuse the network, block by block."""
        refused = [self.refusal] if self.refusal else []
        return refused + [f"{each.where}: {each.problem}" for each in self.blocks if each.problem]

    @property
    def ok(self) -> bool:
        """Whether all that was looked at agrees."""
        return not self.problems

    def __str__(self) -> str:
        lines = []
        for each in self.blocks:
            parts = [f"second run {each.value_error:.1g}"]
            parts += [] if each.gradient_error is None else [f"local gradient {each.gradient_error:.1g}"]
            parts += [] if each.tangent_error is None else [f"tangent {each.tangent_error:.1g}"]
            parts += ["no tangent"] if each.no_tangent else []
            parts += ["switches gradients off"] if each.stops else []
            parts += [f"reverse mode does not reach {', '.join(each.unreached)}"] if each.unreached else []
            lines.append(f"{each.where}: {'; '.join(parts)}")
        shown = "not available" if self.difference is None else f"{self.difference:.6g}"
        lines.append(f"slope along one direction: {self.slope:.6g} by reverse mode, {shown} by a central difference in float64")
        if self.coupled:
            lines.append("samples are coupled: outputs depend on other samples. fg-a needs slope='batch'; lg-fg-a is biased")
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


def diagnose(net: nn.Module, x: Tensor, y: Tensor, loss="cross_entropy") -> Diagnosis:
    """Compare tangents and local gradients of every block of a network with reverse mode, and say what else is to know.

    Nothing of the network changes, nor does a random stream. Errors are relative: rounding is about 1e-7 in float32.

    Args:
        net: a `BlockNetwork`, or an `nn.Sequential`, which is cut at its activations (`fdfa_core.cut`).
        x: inputs (N, …).
        y: targets.
        loss: as in `make_estimator`.

    Raises:
        InvalidInput: x, y or the loss cannot be used, or the network cannot be run.
    """
    if not isinstance(net, BlockNetwork):
        net = cut(net, example=x)
    x, y = check_batch(net, x, y)
    refusal, blocks = "", []
    try:
        require_blockwise(net)
        blocks = examine(net, x, y, make_loss(loss), every=True)
    except Unsupported as error:
        refusal = str(error)
    stream = torch.Generator().manual_seed(0)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    direction = {name: torch.randn(p.shape, generator=stream).to(p.device, p.dtype) for name, p in trained.items()}
    gradient = true_gradient(net, x, y, loss)
    slope = sum(float((gradient[name].double() * v.double()).sum()) for name, v in direction.items())
    return Diagnosis(blocks, slope, _difference(net, x, y, loss, direction), _coupled(net, x), refusal)


def _difference(net: BlockNetwork, x: Tensor, y: Tensor, loss, direction: dict[str, Tensor]) -> float | None:
    """The slope of the loss along a direction by a central difference in float64, or None where that fails."""
    loss = make_loss(loss)
    values = []
    with preserve_random_stream(x.device, net, host=True), torch.no_grad(), as_written():
        start = Streams(x.device, net, host=True)
        try:
            twin = copy.deepcopy(net).double()
            parameters = dict(twin.named_parameters())
            for sign in (1, -1):
                start.restore()
                moved = {name: parameters[name] + sign * STEP * v.double() for name, v in direction.items()}
                buffers = {name: b.clone() for name, b in twin.named_buffers()}
                inputs = x.double() if x.is_floating_point() else x
                values.append(float(loss(functional_call(twin, moved | buffers, (inputs,)), y)))
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
    return (values[0] - values[1]) / (2 * STEP)


def _coupled(net: BlockNetwork, x: Tensor) -> bool | None:
    """Whether the outputs of the other samples change when the first one is replaced by the last."""
    if len(x) < 2 or torch.equal(x[0], x[-1]):
        return None
    outputs = []
    with preserve_random_stream(x.device, net, host=True), torch.no_grad(), as_written(), explained(net, x):
        start = Streams(x.device, net, host=True)
        for inputs in (x, torch.cat([x[-1:], x[1:]])):
            start.restore()
            tensors = plain_parameters(net) | {name: b.clone() for name, b in net.named_buffers()}
            outputs.append(functional_call(net, tensors, (inputs,))[1:])
    return not torch.allclose(*outputs, rtol=1e-4, atol=1e-6, equal_nan=True)
