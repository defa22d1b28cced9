"""Blocks without a rule of their own: torch's automatic differentiation, helped by the rules of the layers inside."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fdfa_core.errors import Unsupported
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, rewrites
from fdfa_core.linearisation.functions import Functions, transformed
from fdfa_core.linearisation.maps import RULES, Context, Gradients, Map, lead_of, merge, rule, works_in_place
from fdfa_core.random_state import Streams

FORWARD = "forward-mode AD"
TANGENT_FREE = "Methods that take no tangents may serve it: bp, fa, dfa, drtp, dkp, pepita."
INPUT = "<input>"  # stands beside parameter names for a module's input


@rule(nn.Module)
class GeneralMap(Map):
    """Any module, by torch's forward-mode AD for tangents and by reverse-mode AD inside the module for signals.

    Inner layers that have a rule take part with it. A tangent pass calls the module again, with the layers' values of the first
    pass, on copies of its buffers, and from the point of the random stream where the first pass began: both see the same
    dropout masks. R directions pass together by `vmap` where it can follow and nothing is random (it may fill a mask in another
    order), and one after the other elsewhere.
    """

    mixes = True  # for all that is known

    def __init__(self, module, x, context):
        self.module, self.where = module, context.where
        parameters = dict(module.named_parameters())
        self.names = {name: context.names[p] for name, p in parameters.items()}
        self.parametric = bool(parameters)
        self.primal = {INPUT: x.detach(), **{name: p.detach() for name, p in parameters.items()}}
        parts = dict(module.named_modules())
        self.overwrites = any(map(works_in_place, parts.values()))
        # inner layers with a rule: their maps, in the order of the calls
        self.layers: dict[nn.Module, list[Map]] = {part: [] for part in parts.values() if _stands_in(part)}
        self.buffers = _copies({path: part for path, part in parts.items() if part not in self.layers})
        self.streams, version = Streams(x.device, module), x._version
        self.rewrites = any(map(rewrites, parts.values()))
        self.recurrent = any(isinstance(part, nn.LSTM) for part in parts.values())
        # the graph ends at the module's own parameters, or at stand-ins for those that do not train
        frozen = {name: p.detach().requires_grad_() for name, p in parameters.items() if not p.requires_grad}
        self.leaves = {**parameters, **frozen, INPUT: x.detach().requires_grad_(context.need_input and x.is_floating_point())}
        given = frozen | {INPUT: self.leaves[INPUT]} | ({} if context.update_buffers else self._fresh_buffers())
        with torch.set_grad_enabled(context.need_pull), self._followed("reverse-mode AD inside the block", "in-place"):
            functions = Functions()
            self.graph = self._call(given, lambda layer: self._linearized(layer, context.update_buffers), functions)
            self.kept, self.stops = functions.kept, functions.stops
        self.random = self.streams.moved()
        if not isinstance(self.graph, Tensor):
            raise Unsupported(f"{self.where}: its result is a {type(self.graph).__name__}; a block returns one tensor")
        if x._version != version:
            raise Unsupported(f"{self.where} changes its input in place, which is the output of the block below")
        self.output = self.graph.detach()

    def _call(
        self,
        tensors: dict[str, Tensor],
        replace: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None = None,
        functions: Functions | None = None,
    ) -> Tensor:
        """Call the module on other tensors: its input, parameters and buffers, of which those not given are its own.

        `replace` gives inner layers with a rule another `forward` for this call, and `functions` replaces functions.
        """
        tensors = dict(tensors)
        x = tensors.pop(INPUT, self.primal[INPUT])
        if self.overwrites:
            x = x.clone()  # it is also the output of the block below
        replaced = [] if replace is None else list(self.layers)
        try:
            for layer in replaced:
                layer.forward = replace(layer)
            with as_written(), functions or contextlib.nullcontext():
                return functional_call(self.module, tensors, (x,)) if tensors else self.module(x)
        finally:
            for layer in replaced:
                del layer.forward

    def _linearized(self, layer: nn.Module, update_buffers: bool) -> Callable[[Tensor], Tensor]:
        """Return the forward of an inner layer in the first pass: it leaves its map in `self.layers`."""

        def forward(input: Tensor) -> Tensor:
            if not _fits(layer, input):
                self.layers[layer].append(None)
                return type(layer).forward(layer, input)
            with torch._C.DisableTorchFunction():  # `Functions` are for what stands between layers
                return _Layer.apply(input, layer, update_buffers, self.layers[layer], *layer.parameters())

        return forward

    def _pushed(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the forward of an inner layer in a tangent pass: dual numbers go through its map."""
        maps = iter(self.layers[layer])

        def forward(input: Tensor) -> Tensor:
            mapped = next(maps, self)
            if mapped is self:
                raise Unsupported(f"{self.where} takes another way when it is called again: {type(layer).__name__} once more")
            if mapped is None:
                return type(layer).forward(layer, input)
            with torch._C.DisableTorchFunction():
                x, tangent = forward_ad.unpack_dual(input)
                tangent = mapped.push(tangent, _tangents(dict(layer.named_parameters())))
                value, version = mapped.result
                if value._version != version:  # what came after the layer has worked on its value in place
                    value = forward_ad.unpack_dual(type(layer).forward(layer, x)).primal
                return value if tangent is None else forward_ad.make_dual(value, tangent)

        return forward

    def _fresh_buffers(self) -> dict[str, Tensor]:
        return {name: b.clone() for name, b in self.buffers.items()}

    def push(self, tangent, parameters):
        moved = {} if tangent is None else {INPUT: tangent}
        if parameters is not None:
            moved |= {name: parameters[known] for name, known in self.names.items()}
        if not moved:
            return None
        axes = {name: 0 if v.dim() > self.primal[name].dim() else None for name, v in moved.items()}
        counts = [len(moved[name]) for name, axis in axes.items() if axis == 0]
        with self._replayed(), self._followed(FORWARD):
            if not counts:
                return self._dual(moved)
            if not (self.random or self.stops or self.rewrites):
                with contextlib.suppress(RuntimeError):
                    return vmap(self._tangent, (axes,))(moved)
            each = ({name: v if axes[name] is None else v[r] for name, v in moved.items()} for r in range(counts[0]))
            return torch.stack([self._dual(direction) for direction in each])

    def _dual(self, moved: Mapping[str, Tensor]) -> Tensor:
        """Return the tangent of one direction by dual numbers: quicker than `jvp`, but `vmap` does not know them."""
        self.streams.restore()
        # a block that switches gradients by itself must find them on, as in the first pass, but no graph to build
        still = self.primal if self.stops else {}
        with forward_ad.dual_level(), forward_ad._set_fwd_grad_enabled(True), torch.set_grad_enabled(self.stops):
            duals = {**still, **{name: forward_ad.make_dual(self.primal[name], v) for name, v in moved.items()}}
            tangent_out = self._call(duals | self._fresh_buffers(), self._pushed, Functions(self.kept))
            tangent_out = forward_ad.unpack_dual(tangent_out).tangent
        return torch.zeros_like(self.graph) if tangent_out is None else tangent_out

    def _tangent(self, moved: dict[str, Tensor]) -> Tensor:
        """Return the tangent of one direction in a way that `vmap` can follow."""
        at = {name: self.primal[name] for name in moved}
        layers = _copies(dict(self.module.named_modules()))  # the rules hold on to none: all are called as they are
        return jvp(lambda tensors: self._call(tensors | layers | self._fresh_buffers()), (at,), (moved,))[1]

    @contextlib.contextmanager
    def _replayed(self) -> Iterator[None]:
        """Around a second run: random streams are put back, and fused kernels without tangents are switched off."""
        now, fused = Streams(self.primal[INPUT].device, self.module), torch.backends.mha.get_fastpath_enabled()
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
        wanted = {name: self.leaves[name] for name in self.names} | ({INPUT: self.leaves[INPUT]} if need_input else {})
        if not wanted:
            return {}, None
        if not self.graph.requires_grad:  # the module computes without gradients
            lead = lead_of(signal, self.graph.shape)
            values = [leaf.new_zeros(lead + leaf.shape) for leaf in wanted.values()]
        else:
            with self._followed("reverse-mode AD inside the block"):
                values = self._backward(signal, list(wanted.values()))
        named = {name: g if g.layout is torch.strided else g.to_dense() for name, g in zip(wanted, values, strict=True)}
        below = named.pop(INPUT, None)
        gradients: Gradients = {}
        for name, gradient in named.items():
            merge(gradients, {self.names[name]: gradient})
        return gradients, below

    def _backward(self, signal: Tensor, wanted: list[Tensor]) -> Sequence[Tensor]:
        options = {"retain_graph": True, "materialize_grads": True, "allow_unused": True}
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


class _Layer(torch.autograd.Function):
    """An inner layer with a rule, as one operation of the graph of a module without one."""

    @staticmethod
    def forward(ctx, x, layer, update_buffers, maps, *parameters):
        context = Context(layer, update_buffers)
        ctx.map, ctx.names = RULES[type(layer)](layer, x.detach(), context), list(context.names.values())
        output = ctx.map.output
        ctx.map.result = output.detach(), output._version  # without the graph that autograd will hang on the output
        del ctx.map.output
        maps.append(ctx.map)
        return output

    @staticmethod
    def backward(ctx, signal):
        gradients, below = ctx.map.pull(signal, ctx.needs_input_grad[0])
        return below, None, None, None, *(gradients[name] for name in ctx.names)


def _tangents(parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tangents of dual numbers, zero for those without; None if none has one."""
    tangents = {name: forward_ad.unpack_dual(p).tangent for name, p in parameters.items()}
    if all(v is None for v in tangents.values()):
        return None
    return {name: torch.zeros_like(parameters[name]) if v is None else v for name, v in tangents.items()}


def _copies(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of the buffers of some modules of a module, by name."""
    named = ((path, *buffer) for path, part in parts.items() for buffer in part.named_buffers(recurse=False))
    return {f"{path}.{name}".lstrip("."): b.clone() for path, name, b in named}


def _stands_in(module: nn.Module) -> bool:
    """Whether the rule of an inner layer may stand for it. Hooks go on around it; a layer that works in place has to do so."""
    fast = RULES.get(type(module))
    if fast is None or works_in_place(module) or "forward" in vars(module):
        return False
    if any(isinstance(vars(module).get(name), Tensor) for name in ("weight", "bias")):
        return False  # computed from other parameters before each call, as by `torch.nn.utils.weight_norm`
    return fast.stands_in and fast.serves(module)


def _fits(layer: nn.Module, x: Tensor) -> bool:
    """Whether the rule of an inner layer may stand for this call: not under autocast or a transform of torch.func."""
    return RULES[type(layer)].takes(layer, x) and not torch.is_autocast_enabled(x.device.type) and not transformed()


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
