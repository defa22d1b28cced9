"""One forward pass of a module's own code, and how tangents pass through the operations that it called.

A tape sees every call of torch's functions. It replays none of the module's code: a tangent pass is a loop over what was put
down. Torch's reverse mode runs beside it, and tells which values depend on the input and the parameters: those that require a
gradient. One of them that no operation on the tape has made shows that something was missed (code that calls no function of
torch, such as a custom `autograd.Function` or a script; work in place on memory that another value shares). The tape is then of
no use, says so, and torch's forward mode takes its place.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from fdfa_core.linearisation import composites, recurrence  # noqa: F401 (their rules register themselves)
from fdfa_core.linearisation.operations import OPERATIONS, Uncovered
from fdfa_core.random_state import random_state

SET_GRAD = torch._C._set_grad_enabled  # what `no_grad`, `enable_grad` and `set_grad_enabled` call
_BACKWARD = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
# asked of tensors all the time, with answers that are no tensors
_ASKED = ("dim", "size", "stride", "numel", "item", "tolist", "__len__", "__bool__", "is_contiguous", "is_floating_point")
_QUESTIONS = frozenset(getattr(Tensor, name) for name in _ASKED)


class Lost(Exception):
    """The tape cannot follow the module any further."""


class Tape(TorchFunctionMode):
    """The operations of one forward pass inside a `with`, with their tangents.

    Args:
        leaves: the tensors at which the pass begins, by name; all of a floating-point type require a gradient.
        detached: hold values without their graph, which would live as long as the tape.

    Attributes:
        lost: why the tape cannot be used, or "".
        stops: whether the module switches gradients off or on by itself.
        differentiates: whether it takes gradients by itself, as an energy-based block does.
        bare: whether every operation has a rule of its own.
    """

    def __init__(self, leaves: Mapping[str, Tensor], detached: bool = True):
        super().__init__()
        self.detached = detached
        self.lost, self.stops, self.differentiates, self.bare = "", False, False, True
        self._steps: list[tuple[Callable, tuple[int | None, ...], int | tuple[int | None, ...]]] = []
        self._slots: dict[int, tuple[int, int, weakref.ref]] = {}
        self._kept: list[tuple[Tensor, int]] = []
        self._count, self._result = 0, None
        self._drops: list[tuple[int, ...]] | None = None
        self.leaves: dict[str, int] = {}
        try:
            self.leaves |= {name: self._place(leaf) for name, leaf in leaves.items() if leaf.requires_grad}
        except Lost as error:
            self.lose(str(error))

    # What rules call -------------------------------------------------------------------------------------------------------

    def slot(self, value: object) -> int | None:
        """Return the place of a tensor whose derivative counts, None for a constant; raises `Lost` if it is unknown."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return None
        known = self._slots.get(id(value))
        if known is None or known[2]() is not value:
            raise Lost("a value that no function of torch has returned")
        if known[1] != value._version:
            raise Lost("work in place on memory that another value shares")
        return known[0]

    def keep(self, value: Any) -> Any:
        """Return a tensor for use in tangents; it must not change from now on."""
        if not isinstance(value, Tensor):
            return value
        if self.detached and not value.is_leaf:
            value = value.detach()
        self._kept.append((value, value._version))
        return value

    def constants(self, values: Any) -> Any:
        """Return arguments that are not differentiated, such as an index; raises `Uncovered` if one of them is."""
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, tuple | list):
                self.constants(tuple(value))
            elif isinstance(value, Tensor):
                if value.requires_grad:
                    raise Uncovered
                self._kept.append((value, value._version))
        return values

    def put(self, value: Any, inputs: tuple[int | None, ...], tangent: Callable) -> Any:
        """Put down an operation: its value, the places of its arguments, and the map from their tangents to the value's."""
        if isinstance(value, Tensor):
            if value.requires_grad:
                known = self._slots.get(id(value))
                if known is None or known[2]() is not value or known[1] != value._version:  # else there was nothing to do
                    self._steps.append((tangent, inputs, self._place(value)))
        elif any(isinstance(v, Tensor) and v.requires_grad for v in value):
            places = tuple(self._place(v) if isinstance(v, Tensor) and v.requires_grad else None for v in value)
            self._steps.append((tangent, inputs, places))
        return value

    def _place(self, value: Tensor) -> int:
        if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
            raise Lost(f"a {type(value).__name__} of layout {value.layout}")
        self._slots[id(value)] = (self._count, value._version, weakref.ref(value))
        self._count += 1
        return self._count - 1

    def alias(self, value: Tensor, of: Tensor) -> None:
        """Let a value, such as a copy, stand at the place of another."""
        if value.requires_grad and id(of) in self._slots:
            self._slots[id(value)] = (self._slots[id(of)][0], value._version, weakref.ref(value))

    # The forward pass ------------------------------------------------------------------------------------------------------

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _QUESTIONS:
            return function(*args, **kwargs)
        if function in _BACKWARD:
            self.differentiates = True
            self.lose("a gradient inside the block")
        self.stops |= function is SET_GRAD
        if self.lost or function is SET_GRAD:
            return function(*args, **kwargs)
        rule = OPERATIONS.get(function)
        if rule is None and type(function) is FunctionType and (inside := opened(function)) is not None:
            if kwargs.get("max_norm") is None:  # else a lookup that rewrites its table
                with self:
                    return inside(*args, **kwargs)
        try:
            if not _any_requires_grad(args, kwargs):
                return function(*args, **kwargs)
            if torch._C._is_any_autocast_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
                raise Lost("autocast, or a transform of torch.func")
            try:
                return self._unruled(function, args, kwargs) if rule is None else rule(self, function, *args, **kwargs)
            except Uncovered:
                return self._unruled(function, args, kwargs)
        except (Lost, TypeError, RuntimeError) as error:  # one of the module's own arises again
            self.lose(str(error))
            return function(*args, **kwargs)

    def _unruled(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Call an operation without a rule. Its tangent is torch's forward-mode derivative, by a second call of it alone."""
        name = getattr(function, "__name__", "")
        if name == "__get__":  # an attribute: another view of the tensor (`T`, `mT`, `real`), or no tensor
            value = function(*args, **kwargs)
            if isinstance(value, Tensor) and value.requires_grad:
                self.put(value, (self.slot(args[0]),), lambda t: function(t))
            return value
        if name == "__set__":
            raise Lost("an attribute of a tensor is set")
        given, spec = tree_flatten((args, kwargs))
        places = tuple(map(self.slot, given))
        device = next(v.device for v in given if isinstance(v, Tensor))
        versions, before = [v._version if isinstance(v, Tensor) else 0 for v in given], random_state(device)
        value = function(*args, **kwargs)
        if versions != [v._version if isinstance(v, Tensor) else 0 for v in given]:
            self.lose(f"{name} works in place")
        elif not all(map(torch.equal, before, random_state(device))):
            self.lose(f"{name} draws random numbers")
        elif _any_requires_grad((value,), {}):
            held = [self.keep(v) for v in given]
            self.bare = False
            self.put(value, places, functools.partial(_forward_mode, function, held, spec))
        return value

    def lose(self, reason: str) -> None:
        """Give the tape up."""
        self.lost = self.lost or reason
        self._steps, self._kept = [], []

    def finish(self, result: Tensor) -> None:
        """End the forward pass with its result."""
        try:
            self._result = None if self.lost else self.slot(result)
        except Lost as error:
            self.lose(str(error))
        if any(value._version != version for value, version in self._kept):
            self.lose("work in place on a value that a tangent needs")
        self._slots, self._kept = {}, []

    # Tangents --------------------------------------------------------------------------------------------------------------

    def push(self, moved: Mapping[str, Tensor]) -> Tensor | None:
        """Return the tangent of the result for tangents of the leaves, None for zero."""
        if self._result is None:
            return None
        if self._drops is None:
            self._drops = self._last_uses()
        tangents: list[Tensor | None] = [None] * self._count
        for name, tangent in moved.items():
            if name in self.leaves:
                tangents[self.leaves[name]] = tangent
        for (tangent, inputs, place), drops in zip(self._steps, self._drops, strict=True):
            given = [None if i is None else tangents[i] for i in inputs]
            if any([v is not None for v in given]):  # `count` and `in` would ask tensors whether they equal None
                value = tangent(*given)
                if type(place) is int:
                    tangents[place] = value
                else:
                    for i, v in zip(place, value, strict=True):
                        if i is not None:
                            tangents[i] = v
                del value
            del given
            for i in drops:
                tangents[i] = None
        return tangents[self._result]

    def _last_uses(self) -> list[tuple[int, ...]]:
        """Return, for each operation, what no later one needs."""
        seen, drops = {self._result}, []
        for _, inputs, _ in reversed(self._steps):
            drops.append(tuple({i for i in inputs if i is not None and i not in seen}))
            seen.update(drops[-1])
        return drops[::-1]


def _any_requires_grad(args: Sequence, kwargs: Mapping) -> bool:
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, tuple | list) and _any_requires_grad(value, {}):
            return True
    return False


def _forward_mode(function: Callable, held: list, spec: Any, *tangents: Tensor | None) -> Any:
    """Return the tangent of a function's value by dual numbers."""
    with forward_ad.dual_level():
        pairs = zip(held, tangents, strict=True)
        args, kwargs = tree_unflatten([v if t is None else forward_ad.make_dual(v, t) for v, t in pairs], spec)
        value = function(*args, **kwargs)
        if isinstance(value, Tensor):
            return forward_ad.unpack_dual(value).tangent
        return [forward_ad.unpack_dual(v).tangent if isinstance(v, Tensor) else None for v in value]


@functools.cache
def opened(function: FunctionType) -> FunctionType | None:
    """Return one of torch's functions written in Python such that a tape sees what it calls; None for any other."""
    if function.__module__ != F.__name__ or vars(F).get(function.__name__) is not function or function.__closure__:
        return None
    closed = {name: _never for name in vars(F) if name.startswith("has_torch_function")}
    twin = FunctionType(function.__code__, vars(F) | closed, function.__name__, function.__defaults__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _never(*arguments: object) -> bool:
    return False
