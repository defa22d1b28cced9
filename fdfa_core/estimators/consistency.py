"""Whether tangents and local gradients of a network are those of the function that reverse mode sees.

An estimator asks once, when it first meets a network in a mode. Block by block, on the batch at hand, three numbers must agree
along one random direction and for one random signal: what torch's reverse mode gives on the block as it is, what the local
gradient gives (for methods that use it), and what the tangent gives (for methods that use it). A second run of the block must
return the same values, and its parameters must stay what they were. Blocks that rules serve (`fdfa_core.linearisation.rules`)
hold nobody's own code and are passed over. The check costs about as much as two steps, leaves every random stream, the state
and the network as they were, and changes no number that an estimator returns.

It cannot see what happens on other batches only (a branch by value), an error below its tolerance (a hundredth in float32, a
millionth in float64, a fifth in half precision), a network that begins to behave otherwise later on, or a derivative that
reverse mode itself gets wrong: reverse mode is what it compares to, straight-through estimators and `detach` included.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, plain_parameters
from fdfa_core.linearisation.general import TANGENT_FREE
from fdfa_core.linearisation.maps import Context, ruled
from fdfa_core.linearisation.trace import BlockMap
from fdfa_core.losses import Loss
from fdfa_core.networks.batch import explained
from fdfa_core.networks.blocks import BlockNetwork, require_samples
from fdfa_core.perturbations import Rademacher
from fdfa_core.random_state import Streams, preserve_random_stream, sources

SWITCH = "FDFA_CHECK"  # environment variable: 0 switches the check off
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 0.2, torch.bfloat16: 0.2}
_ON: ContextVar[bool] = ContextVar("fdfa_check", default=True)


def enabled() -> bool:
    """Return whether estimators look at a network when they first meet it."""
    return _ON.get() and os.environ.get(SWITCH, "1") != "0"


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let estimators meet networks inside a `with` without the consistency check."""
    token = _ON.set(False)
    try:
        yield
    finally:
        _ON.reset(token)


@dataclass
class BlockFinding:
    """What the check has seen of one block.

    Attributes:
        index: of the block; `kind` is the name of its class.
        value_error: relative difference between two runs of the block.
        gradient_error: relative difference of the local gradient from reverse mode's; None where it was not asked for.
        tangent_error: difference of the tangent from reverse mode's slope, over its size; None where there is no tangent.
        no_tangent: why the block has no tangent, or "".
        stops: whether the block switches gradients off or on by itself.
        unreached: parameters that train and that reverse mode does not reach.
        problem: what is wrong, with the remedy, or "".
    """

    index: int
    kind: str
    value_error: float = 0.0
    gradient_error: float | None = None
    tangent_error: float | None = None
    no_tangent: str = ""
    stops: bool = False
    unreached: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def where(self) -> str:
        """The block in messages."""
        return f"block {self.index} ({self.kind})"


def check(net: BlockNetwork, x: Tensor, y: Tensor, loss: Loss, *, push: bool = True, pull: bool = True) -> list[BlockFinding]:
    """Compare a network's tangents and local gradients with reverse mode, and return what was seen of each block.

    Args:
        net: the network, in the mode in which it is used.
        x: inputs (N, …).
        y: targets.
        loss: a callable loss must depend on outputs and targets only, which is looked at too.
        push: whether tangents matter.
        pull: whether local gradients matter.

    Raises:
        Unsupported: they disagree, a second run returns other values, or running the network changes its parameters.
        InvalidInput: the loss reaches into the network.
    """
    findings = examine(net, x, y, loss, push=push, pull=pull)
    for each in findings:
        if each.problem:
            raise Unsupported(f"{each.where}: {each.problem}")
    return findings


def examine(
    net: BlockNetwork, x: Tensor, y: Tensor, loss: Loss, *, push: bool = True, pull: bool = True, every: bool = False
) -> list[BlockFinding]:
    """Return what `check` looks at, problems included; raises where the network cannot be run or the loss cannot be used.

    Blocks that rules serve hold nobody's own code, and are passed over unless `every` is asked for.
    """
    findings = [BlockFinding(i, type(block).__name__) for i, block in enumerate(net)]
    looked = [every or not ruled(block) for block in net]
    if not any(looked) and not is_callable(loss):
        return findings
    for module in (net, *net):
        sources(module, again=True)
    stream, inputs = torch.Generator().manual_seed(0), x
    attributes = _Attributes(net)
    try:
        with torch.no_grad(), preserve_random_stream(x.device, net, host=True):
            context = Context(net, need_pull=pull)
            for finding, block, look in zip(findings, net, looked, strict=True):
                context.where, context.need_input = finding.where, False
                start, held = Streams(x.device, block, host=look), _Held(block) if look else None
                graph = _graph(finding, block, x, context.names, net, inputs) if look else None
                changed = held.restore() if held else None
                if changed:
                    name = f"{finding.index}.{changed}"
                    finding.problem = (
                        f"running the network changes {name}. A forward pass must leave parameters alone: change them after "
                        "the optimiser's step"
                    )
                    return findings
                start.restore()
                again = None
                if graph is not None and push:
                    again = _without_gradients(block, x)
                    start.restore()
                with explained(net, inputs, context.where):
                    mapped = BlockMap(block, x, context)
                output = require_samples(mapped.output, len(x), finding.index, block)
                if graph is not None:
                    after = Streams(x.device, block, host=True)
                    _compare(finding, graph, mapped, again, push, pull, stream)
                    after.restore()
                    if finding.problem:
                        return findings
                x = output
            loss.shape = None if x.dim() == 2 else tuple(x.shape[1:])
    finally:
        attributes.restore()
    check_loss(net, inputs, y, loss)
    return findings


@dataclass
class _Graph:
    """A block as torch's reverse mode sees it: its value, and the leaves at which its graph ends."""

    value: Tensor
    leaf: Tensor | None  # the input, unless it is the network's or holds integers
    parameters: dict[str, Tensor]  # by name in the network
    trains: set[str]


def _graph(finding, block: nn.Module, x: Tensor, names: dict[Tensor, str], net: BlockNetwork, inputs: Tensor) -> _Graph:
    """Run a block under autograd on leaves of its own."""
    leaves = {name: p.requires_grad_() for name, p in plain_parameters(block).items()}
    buffers = {name: b.clone() for name, b in block.named_buffers()}
    leaf = x.detach().requires_grad_(finding.index > 0 and x.is_floating_point())
    with torch.enable_grad(), as_written(), explained(net, inputs, finding.where):
        value = functional_call(block, leaves | buffers, (leaf.clone(),))  # a block may write into its input
    if not isinstance(value, Tensor):
        raise Unsupported(f"{finding.where}: its result is a {type(value).__name__}; a block returns one tensor")
    named = {names[p]: leaves[name] for name, p in block.named_parameters()}
    trains = {names[p] for p in block.parameters() if p.requires_grad}
    return _Graph(value, leaf if leaf.requires_grad else None, named, trains)


def is_callable(loss: Loss) -> bool:
    """Whether a loss is somebody's own function, which may reach further than the outputs."""
    return type(loss) is Loss


def check_loss(net: BlockNetwork, x: Tensor, y: Tensor, loss: Loss) -> None:
    """Raise `InvalidInput` if a callable loss reaches the network's parameters by another way than the outputs."""
    if not is_callable(loss):
        return
    leaves = {name: p.requires_grad_() for name, p in plain_parameters(net).items()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    attributes = _Attributes(net)
    try:
        with torch.enable_grad(), preserve_random_stream(x.device, net, host=True), as_written():
            with explained(net, x):
                outputs = functional_call(net, leaves | buffers, (x,))  # what blocks keep of it has a history
            _require_plain(loss, outputs.detach().requires_grad_(), y, leaves, dict(net.named_parameters()))
    finally:
        attributes.restore()


def _require_plain(loss: Loss, outputs: Tensor, y: Tensor, *parameters: dict[str, Tensor]) -> None:
    value = loss(outputs, y)
    for named in parameters:
        tensors = {name: p for name, p in named.items() if p.requires_grad}
        if not tensors:
            continue
        reached = torch.autograd.grad(value, list(tensors.values()), allow_unused=True, retain_graph=True)
        for name, gradient in zip(tensors, reached, strict=True):
            if gradient is not None:
                raise InvalidInput(
                    f"loss {loss.name}",
                    f"a function whose graph reaches the parameter {name}",
                    "a function of outputs and targets only",
                    "Methods that work block by block cannot see another way into the network: put a penalty into the "
                    "optimiser (weight_decay) or add its gradient to p.grad after backward().",
                )


def _without_gradients(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block with gradients switched off, as passes of many tangents do."""
    buffers, fused = {name: b.clone() for name, b in block.named_buffers()}, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no tangents, and may fill padding otherwise
    try:
        with torch.no_grad(), as_written():
            return functional_call(block, plain_parameters(block) | buffers, (x.clone(),))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _compare(
    finding: BlockFinding,
    graph: _Graph,
    block: BlockMap,
    again: Tensor | None,
    push: bool,
    pull: bool,
    stream: torch.Generator,
) -> None:
    """Fill in what a block's runs, local gradient and tangent show, and the first problem among them."""
    value, dtype = graph.value.detach(), graph.value.dtype
    tolerance = TOLERANCE.get(dtype, 1e-2)
    if not bool(value.isfinite().all()):
        return  # a network that diverges has no derivative to look at: training goes on to say so
    finding.stops = any(part.stops for part in block.parts)
    runs = [block.output.reshape(value.shape)] + ([] if again is None else [again])
    finding.value_error = max(_relative(own, value) for own in runs)
    if finding.value_error > tolerance:
        finding.problem = (
            "a second run on the same input returns other values (they differ by "
            f"{finding.value_error:.2g} of their size). It draws random numbers that cannot be restored, keeps a state between "
            "calls, or depends on whether gradients are enabled. Draw from torch's global stream or from a torch.Generator "
            "held as an attribute, and keep no state"
        )
        return
    signal = _normal(value, stream)
    leaves = graph.parameters | ({} if graph.leaf is None else {"": graph.leaf})
    gradients = dict.fromkeys(leaves)
    if graph.value.requires_grad and leaves:
        try:
            each = torch.autograd.grad(graph.value, list(leaves.values()), signal, allow_unused=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise Unsupported(f"{finding.where}: reverse-mode AD cannot follow: {reason}") from error
        each = [g if g is None or g.layout is torch.strided else g.to_dense() for g in each]
        gradients = dict(zip(leaves, each, strict=True))
    finding.unreached = sorted(name for name in graph.trains if gradients[name] is None)
    sizes = {name: 0.0 if g is None else _norm(g) for name, g in gradients.items()}
    if not all(map(math.isfinite, sizes.values())):
        return
    signal = signal.reshape(block.output.shape)
    if pull:
        _compare_gradients(finding, block.pull(signal), gradients, sizes, graph, tolerance)
    if push and not finding.problem:
        _compare_tangent(finding, block, signal, gradients, leaves, tolerance, stream)


def _compare_gradients(finding, pulled, gradients, sizes, graph, tolerance) -> None:
    wanted = {name: gradients[name] for name in graph.trains if name in pulled}
    whole = sum(sizes[name] ** 2 for name in wanted) ** 0.5
    errors = {}
    for name, g in wanted.items():
        difference = _norm(pulled[name] if g is None else pulled[name] - g)
        floor = 0.1 * whole + 1e-30 + sizes[name]
        errors[name] = difference / floor
    worst = max(errors, key=errors.get, default=None)
    finding.gradient_error = 0.0 if worst is None else errors[worst]
    if finding.gradient_error > max(tolerance, 1e-3) and whole > 0:
        finding.problem = (
            f"its local gradient of {worst} is not reverse mode's (off by {finding.gradient_error:.2g} of its size). Code in "
            "the block decides by the history of its input, or calls automatic differentiation itself: only bp can serve it"
        )


def _compare_tangent(finding, block, signal, gradients, leaves, tolerance, stream) -> None:
    directions = {name: _signs(leaf, stream) for name, leaf in leaves.items()}
    moved = directions.pop("", None)
    try:
        tangent = block.push(moved, parameters=directions or None)
    except Unsupported as error:  # whoever needs it will hear of it when it is needed
        finding.no_tangent = str(error)
        return
    if tangent is None:
        return
    products = (signal.double() * tangent.double()).flatten()
    every = directions if moved is None else directions | {"": moved}
    slope = sum(float((_wide(g) * _wide(every[name])).sum()) for name, g in gradients.items() if g is not None)
    size = float(products.square().sum().sqrt()) + abs(slope) + 1e-30
    finding.tangent_error = abs(float(products.sum()) - slope) / size
    if not finding.tangent_error <= tolerance:
        finding.problem = (
            "its tangent is not the derivative that reverse mode sees (the slopes along one direction are "
            f"{float(products.sum()):.6g} and {slope:.6g}). An operation in the block differs between the two modes: a "
            "torch.autograd.Function whose jvp is not the transpose of its backward, scripted code, randomness that is not "
            "restored, or a lookup that scales its gradient. " + TANGENT_FREE
        )


class _Held:
    """The parameters of a block, to be put back if running it changes them."""

    def __init__(self, block: nn.Module):
        self.tensors = [(name, p, p.detach().clone()) for name, p in block.named_parameters()]

    def restore(self) -> str:
        """Put parameters back; return the name of one that had changed, or ""."""
        changed = ""
        for name, parameter, before in self.tensors:
            if not _same(parameter, before):
                parameter.data.copy_(before)
                changed = name
        return changed


class _Attributes:
    """Attributes and gradients of a network, to be put back: blocks may keep what they compute."""

    def __init__(self, net: nn.Module):
        self.gradients = [(p, p.grad) for p in net.parameters()]
        self.attributes = [(module, dict(vars(module))) for module in net.modules()]
        loose = (v for _, held in self.attributes for v in held.values() if isinstance(v, Tensor))
        kept = (*loose, *net.buffers())
        self.tensors = [(v, v.detach().clone(), v._version) for v in kept]

    def restore(self) -> None:
        """Put everything back."""
        for tensor, before, version in self.tensors:
            if tensor._version != version:
                tensor.data.copy_(before)
        for parameter, gradient in self.gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for module, before in self.attributes:
            now = vars(module)
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update({name: value for name, value in before.items() if now.get(name) is not value})


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided:
        return True  # sparse tensors are not written into
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _normal(like: Tensor, stream: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, type and place of a tensor, from a stream of the check's own."""
    return torch.randn(like.shape, generator=stream).to(like.device, like.dtype)


def _signs(like: Tensor, stream: torch.Generator) -> Tensor:
    """Return random signs in the same way: millions of normal numbers would take longer than a step."""
    return Rademacher().sample(like.shape, generator=stream, dtype=like.dtype).to(like.device)


def _wide(value: Tensor) -> Tensor:
    """Return a tensor in a type that sums of it fit: float32 does, since torch adds pairwise, and half precision does not."""
    return value.double() if value.dtype in (torch.float16, torch.bfloat16) else value


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(_wide(value.detach())))


def _relative(value: Tensor, other: Tensor) -> float:
    return _norm(value.double() - other.double()) / (_norm(other) + 1e-30)
