"""What a linearisation is made of: one module at one input, and the registry of the rules for layer types.

Tangents and signals have the shape (N, …) of the primal value, or (R, N, …) for R directions at once.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fdfa_core.linearisation.factored import Gradient
from fdfa_core.linearisation.functional import Members, members
from fdfa_core.networks.blocks import Block, has_pre_site

Gradients = dict[str, Gradient]
RULES: dict[type[nn.Module], type[Map]] = {}


class Context:
    """What every map of one pass needs to know.

    Attributes:
        names: parameter → its name in the network (the first one where a parameter is shared).
        partial: whether some parameter does not train.
        update_buffers: let this pass move running statistics, as a training step does.
        need_pull: keep what `pull` needs.
        need_input: whether `pull` may be asked for the signal at the input of the map to be made.
        release: whether a map may let go of what it holds once `pull` has been called.
        where: the block at hand, for messages.
    """

    def __init__(self, net: nn.Module, update_buffers: bool = False, need_pull: bool = True, held: Members | None = None):
        self.names = {p: name for name, p in (held or members(net)).parameters.items()}
        self.partial = not all([p.requires_grad for p in self.names])
        self.update_buffers, self.need_pull = update_buffers, need_pull
        self.need_input, self.release, self.where = True, False, type(net).__name__

    @contextlib.contextmanager
    def above(self, parametric: bool) -> Iterator[None]:
        """While maps are made above others, of which some may have parameters: these need the signal at their output."""
        before, self.need_input = self.need_input, self.need_input or parametric
        try:
            yield
        finally:
            self.need_input = before


class Map(ABC):
    """One module linearised at one input.

    Attributes:
        output: the module's detached value. Whoever holds the map may drop it; the products do without.
        parametric: whether the module has parameters.
        mixes: whether a sample's value may depend on other samples.
        stops: whether the module switches gradients off or on by itself.
        stands_in: whether the map may stand for its layer inside a module that has no rule.
    """

    output: Tensor
    parametric: bool = False
    mixes: bool = False
    stops: bool = False
    stands_in: ClassVar[bool] = False

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether the rule covers the options of this module."""
        return True

    @staticmethod
    def takes(module: nn.Module, x: Tensor) -> bool:
        """Whether the rule covers an input of this shape."""
        return True

    @abstractmethod
    def __init__(self, module: nn.Module, x: Tensor, context: Context):
        """Run the module on x and keep what the two products need."""

    @abstractmethod
    def push(self, tangent: Tensor | None, parameters: Mapping[str, Tensor] | None) -> Tensor | None:
        """Return the output tangent; None stands for zero. `parameters` holds directions by parameter name."""

    @abstractmethod
    def pull(self, signal: Tensor, need_input: bool) -> tuple[Gradients, Tensor | None]:
        """Return parameter gradients and, if asked for, the signal at the input."""

    def back(self, signal: Tensor) -> Tensor:
        """Return only the signal at the input."""
        return self.pull(signal, True)[1]


def rule(*types: type[nn.Module]):
    """Register a `Map` as the fast path of layer types. It serves exactly these types, not their subclasses.

    The one of `nn.Module` itself serves all that have none of their own.
    """

    def register(cls):
        RULES.update(dict.fromkeys(types, cls))
        return cls

    return register


def linearize(module: nn.Module, x: Tensor, context: Context) -> Map:
    """Return the fast map of the module's type where there is one that is safe, and the general map otherwise."""
    fast = RULES.get(type(module))
    if fast is None or hooked(module) or not fast.serves(module):
        fast = RULES[nn.Module]
    return fast(module, x, context)


def ruled(module: nn.Module) -> bool:
    """Whether a module is served by rules alone, so that no code of its own is differentiated."""
    fast = RULES.get(type(module))
    if fast is None or hooked(module) or not fast.serves(module):
        return isinstance(module, Block) and has_pre_site(module) and all(map(ruled, module.children()))
    return not isinstance(module, nn.Sequential) or all(map(ruled, module))


def merge(gradients: Gradients, more: Gradients) -> None:
    """Add gradients by name; a parameter that is used twice sums both."""
    for name, gradient in more.items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two tangents, of which None stands for zero."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


def lead_of(value: Tensor, primal: torch.Size) -> tuple[int, ...]:
    """Return the extra leading dimensions of a tangent or signal over its primal value: () or (R,)."""
    return tuple(value.shape[: value.dim() - len(primal)])


def hooked(module: nn.Module) -> bool:
    """Whether a hook, or a forward of the instance's own, may change the module's value: only a real call can show it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def works_in_place(module: nn.Module) -> bool:
    """Whether a layer declares that it overwrites its input."""
    return getattr(module, "inplace", False)
