"""Blocks without a rule of their own: a tape of their operations, and torch's automatic differentiation."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fdfa_core.errors import Unsupported
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, members, rewrites
from fdfa_core.linearisation.maps import Gradients, Map, lead_of, merge, rule, works_in_place
from fdfa_core.linearisation.tape import SET_GRAD, Tape
from fdfa_core.random_state import Streams

FORWARD = "forward-mode AD"
TANGENT_FREE = "Methods that take no tangents may serve it: bp, fa, dfa, drtp, dkp, pepita."
INPUT = "<input>"  # stands beside parameter names for a module's input


@rule(nn.Module)
class GeneralMap(Map):
    """Any module, by a tape of its operations for tangents and by reverse-mode AD inside the module for signals.

    Where the tape cannot follow, a tangent pass calls the module again, in torch's forward-mode AD, on copies of its buffers,
    and from the point of the random stream where the first pass began: both see the same dropout masks. R directions pass
    together by `vmap` where it can follow and nothing is random (it may fill a mask in another order), and one after the other
    elsewhere.

    Attributes:
        taped: follow modules by a tape (a class attribute: without it all tangents are torch's own).
    """

    mixes = True  # for all that is known
    taped: ClassVar[bool] = True

    def __init__(self, module, x, context):
        self.module, self.context, self.where = module, context, context.where
        held = members(module)
        parameters, parts = held.parameters, held.parts
        self.names = {name: context.names[p] for name, p in parameters.items()}
        self.parametric = bool(parameters)
        self.dims = {INPUT: x.dim(), **{name: p.dim() for name, p in parameters.items()}}
        self.overwrites = any(map(works_in_place, parts))
        self.buffers = {name: b if name in held.counted else b.clone() for name, b in held.buffers.items()}
        self.streams, version = Streams(x.device, module), x._version
        self.rewrites = any(map(rewrites, parts))
        self.recurrent = any(isinstance(part, nn.LSTM) for part in parts)
        # the graph ends at the module's own parameters, or at stand-ins for those that do not train
        frozen = {name: p.detach().requires_grad_() for name, p in parameters.items() if not p.requires_grad}
        follow = self.taped and x.device.type in ("cpu", "cuda")  # the tape needs to see what depends on the input
        needed = (context.need_input or follow) and x.is_floating_point()
        self.leaves = {**parameters, **frozen, INPUT: x.detach().requires_grad_(needed)}
        given = frozen | {INPUT: self.leaves[INPUT]} | ({} if context.update_buffers else self._fresh_buffers())
        self.tape = Tape(self.leaves, detached=not context.need_pull)
        if not follow:
            self.tape.lose("not asked for")
        recording = torch.set_grad_enabled(context.need_pull or follow)
        with recording, self._followed("reverse-mode AD inside the block", "in-place"):
            self.graph = self._call(given, self.tape)
        self.random, self.stops, self.differentiates = self.streams.moved(), self.tape.stops, self.tape.differentiates
        if not isinstance(self.graph, Tensor):
            raise Unsupported(f"{self.where}: its result is a {type(self.graph).__name__}; a block returns one tensor")
        if x._version != version:
            raise Unsupported(f"{self.where} changes its input in place, which is the output of the block below")
        self.tape.finish(self.graph)
        self.output = self.graph.detach()
        if not context.need_pull or not (self.parametric or context.need_input):
            self.graph = self.output  # nobody asks for a gradient: let go of what it would need

    @functools.cached_property
    def primal(self) -> dict[str, Tensor]:
        """The input and the parameters, without history."""
        return {name: leaf.detach() for name, leaf in self.leaves.items()}

    def _call(self, tensors: dict[str, Tensor], tape: Tape | None = None) -> Tensor:
        """Call the module on other tensors: its input, parameters and buffers, of which those not given are its own."""
        tensors = dict(tensors)
        x = tensors.pop(INPUT) if INPUT in tensors else self.primal[INPUT]
        if self.overwrites:
            below, x = x, x.clone()  # it is also the output of the block below
            if tape is not None:
                tape.alias(x, below)
        with as_written(), tape or contextlib.nullcontext():
            return functional_call(self.module, tensors, (x,)) if tensors else self.module(x)

    def _fresh_buffers(self) -> dict[str, Tensor]:
        return {name: b.clone() for name, b in self.buffers.items()}

    def push(self, tangent, parameters):
        moved = {} if tangent is None else {INPUT: tangent}
        if parameters is not None:
            moved |= {name: parameters[known] for name, known in self.names.items()}
        if not moved:
            return None
        axes = {name: 0 if v.dim() > self.dims[name] else None for name, v in moved.items()}
        counts = [len(moved[name]) for name, axis in axes.items() if axis == 0]
        if not counts and (taped := self._taped(moved)) is not None:
            return taped
        with self._replayed(), self._followed(FORWARD):
            if not counts:
                return self._dual(moved)
            if not (self.random or self.stops or self.differentiates or self.rewrites):
                with contextlib.suppress(RuntimeError):
                    return vmap(self._tangent, (axes,))(moved)
            each = ({name: v if axes[name] is None else v[r] for name, v in moved.items()} for r in range(counts[0]))
            return torch.stack([self._dual(part) if (t := self._taped(part)) is None else t for part in each])

    def _taped(self, moved: Mapping[str, Tensor]) -> Tensor | None:
        """Return the tangent of one direction by the tape, or None where it could not follow."""
        if self.tape.lost:
            return None
        try:
            with torch.no_grad() if self.tape.bare else self._replayed():
                tangent = self.tape.push(moved)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.tape.lose(str(error))
            return None
        return torch.zeros_like(self.graph) if tangent is None else tangent

    def _dual(self, moved: Mapping[str, Tensor]) -> Tensor:
        """Return the tangent of one direction by dual numbers: quicker than `jvp`, but `vmap` does not know them."""
        self.streams.restore()
        # a block that switches gradients by itself must find them on, as in the first pass, but no graph to build,
        # unless it takes gradients itself
        primal = {name: v.requires_grad_(self.differentiates and v.is_floating_point()) for name, v in self.primal.items()}
        still = primal if self.stops or self.differentiates else {}
        recording = torch.set_grad_enabled(self.stops or self.differentiates)
        with forward_ad.dual_level(), forward_ad._set_fwd_grad_enabled(True), recording:
            duals = {**still, **{name: forward_ad.make_dual(primal[name], v) for name, v in moved.items()}}
            with _Stops() if self.stops else contextlib.nullcontext():
                tangent_out = forward_ad.unpack_dual(self._call(duals | self._fresh_buffers())).tangent
        return torch.zeros_like(self.graph) if tangent_out is None else tangent_out.detach()

    def _tangent(self, moved: dict[str, Tensor]) -> Tensor:
        """Return the tangent of one direction in a way that `vmap` can follow."""
        at = {name: self.primal[name] for name in moved}
        return jvp(lambda tensors: self._call(tensors | self._fresh_buffers()), (at,), (moved,))[1]

    @contextlib.contextmanager
    def _replayed(self) -> Iterator[None]:
        """Around a second run: random streams are put back, and fused kernels without tangents are switched off."""
        now, fused = Streams(self.leaves[INPUT].device, self.module), torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        onednn = torch.backends.mkldnn.set_flags(_enabled=False)[0] if self.recurrent else None
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            if onednn is not None:
                torch.backends.mkldnn.set_flags(_enabled=onednn)
            now.restore()

    def pull(self, signal, need_input):
        if self.context.release:
            self.tape.lose("let go")
        wanted = {name: self.leaves[name] for name in self.names} | ({INPUT: self.leaves[INPUT]} if need_input else {})
        if not wanted:
            return {}, None
        if not self.graph.requires_grad:  # the module computes without gradients
            lead = lead_of(signal, self.graph.shape)
            values = [leaf.new_zeros(lead + leaf.shape) for leaf in wanted.values()]
        else:
            with self._followed("reverse-mode AD inside the block"):
                values = self._backward(signal, list(wanted.values()))
            if self.context.release:
                self.graph = self.graph.detach()
        named = {name: g if g.layout is torch.strided else g.to_dense() for name, g in zip(wanted, values, strict=True)}
        below = named.pop(INPUT, None)
        gradients: Gradients = {}
        for name, gradient in named.items():
            merge(gradients, {self.names[name]: gradient})
        return gradients, below

    def _backward(self, signal: Tensor, wanted: list[Tensor]) -> Sequence[Tensor]:
        options = {"retain_graph": not self.context.release, "materialize_grads": True, "allow_unused": True}
        if signal.dim() == self.graph.dim():
            return torch.autograd.grad(self.graph, wanted, signal, **options)
        with contextlib.suppress(RuntimeError):
            batched = torch.autograd.grad(self.graph, wanted, signal, is_grads_batched=True, **options)
            # torch makes the zeros of what the signal does not reach without the batch
            pairs = zip(batched, wanted, strict=True)
            return [g if g.dim() > leaf.dim() else g.expand(len(signal), *g.shape) for g, leaf in pairs]
        each = [torch.autograd.grad(self.graph, wanted, s, **options) for s in signal]
        return [torch.stack(gradients) for gradients in zip(*each, strict=True)]

    @contextlib.contextmanager
    def _followed(self, by: str, about: str = "") -> Iterator[None]:
        """Turn errors of automatic differentiation (whose text holds `about`) into `Unsupported`: block, operation, reason."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or about not in str(error):
                raise
            reason = str(error).strip().splitlines()[0]
            hint = f" {TANGENT_FREE}" if by == FORWARD else ""
            raise Unsupported(f"{self.where}: {by} cannot follow {_operation(error)}: {reason}{hint}") from error


class _Stops(TorchFunctionMode):
    """Where a block calls `torch.no_grad()` reverse mode stops. Torch's forward mode would go on; inside this it stops too."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is SET_GRAD:
            torch._C._set_fwd_grad_enabled(args[0])
        return function(*args, **(kwargs or {}))


_TORCH, _OWN = Path(torch.__file__).parent, Path(__file__).parents[1]
_LAYERS = tuple(_TORCH / part for part in ("nn", "ao", "distributions", "utils"))  # torch's code that calls operations


def _operation(error: BaseException) -> str:
    """The line of the block's own code where an error arose, or the function of torch if all is torch's."""
    frames = list(reversed(traceback.extract_tb(error.__traceback__)))
    for frame in frames:
        if not {_TORCH, _OWN} & set(Path(frame.filename).parents):
            return f"`{frame.line}` ({Path(frame.filename).name}, line {frame.lineno})"
    for frame in frames:
        called = frame.name in ("forward", "_call_impl", "_wrapped_call_impl")
        if not called and set(_LAYERS) & set(Path(frame.filename).parents):
            return f"torch's {frame.name}"
    return "an operation"
