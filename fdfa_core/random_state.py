"""Random streams that a network may draw from: read, restored, and left as they were.

Torch's global streams are always kept. Those of Python and NumPy cost more to read than a small block to run, and are kept for
modules that draw from them: whose code refers to them, or which have been seen to move them. A generator of torch, Python or
NumPy that a module holds as an attribute is kept too.
"""

from __future__ import annotations

import contextlib
import random
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's global random streams that code on a device draws from: the CPU's, and CUDA's on CUDA."""
    return [torch.random.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.random.set_rng_state(state[0])
    for cuda in state[1:]:
        torch.cuda.set_rng_state(cuda, device)


@dataclass
class Sources:
    """What a module draws from beside torch's global streams.

    Attributes:
        host: whether it draws from the global streams of Python or NumPy, as far as is known.
        generators: generators that the module or its submodules hold.
        seen: the modes (`training`) in which a pass has shown whether the module moves the host's streams.
    """

    host: bool
    generators: list[object]
    seen: set[bool] = field(default_factory=set)


_SOURCES: weakref.WeakKeyDictionary[nn.Module, Sources] = weakref.WeakKeyDictionary()


def sources(module: nn.Module, again: bool = False) -> Sources:
    """Return what a module draws from; `again` looks once more, in case its attributes have changed."""
    known = _SOURCES.get(module)
    if known is None or again:
        generators = list({id(g): g for part in module.modules() for g in _generators(part)}.values())
        host = any(map(_refers_to_host, module.modules())) or (known is not None and known.host)
        known = _SOURCES[module] = Sources(host, generators, set() if known is None else known.seen)
    if not known.host and any(_SOURCES[child].host for child in module.children() if child in _SOURCES):
        known.host = True
    return known


class Streams:
    """The state of all random streams that a module may draw from, at the moment this is made.

    Args:
        device: where the module's tensors are.
        module: the module, or None for torch's global streams only.
        host: keep the global streams of Python and NumPy whatever is known of the module.
    """

    def __init__(self, device: torch.device, module: nn.Module | None = None, host: bool = False):
        self.device = device
        self.source = None if module is None else sources(module)
        self.mode = module is not None and module.training
        new = self.source is not None and self.mode not in self.source.seen
        self.torch = random_state(device)
        self.host = (random.getstate(), np.random.get_state()) if host or new or (self.source and self.source.host) else None
        self.own = [(g, _state(g)) for g in self.source.generators] if self.source else []

    def moved(self) -> bool:
        """Return whether anything has been drawn since; what a first pass shows of the module is remembered."""
        host = self.host is not None and not _equal(self.host, (random.getstate(), np.random.get_state()))
        if self.source is not None:
            self.source.seen.add(self.mode)
            self.source.host |= host
            if not self.source.host:
                self.host = None
        pairs = zip(self.torch, random_state(self.device), strict=True)
        return host or any(not torch.equal(*both) for both in pairs) or any(not _equal(s, _state(g)) for g, s in self.own)

    def restore(self) -> None:
        """Put every stream back to where it was."""
        set_random_state(self.torch, self.device)
        if self.host is not None:
            random.setstate(self.host[0])
            np.random.set_state(self.host[1])
        for generator, state in self.own:
            _set_state(generator, state)


@contextlib.contextmanager
def preserve_random_stream(device: torch.device, module: nn.Module | None = None, host: bool = False) -> Iterator[None]:
    """Leave torch's global random stream, and with a module all others it draws from, as they were."""
    streams = Streams(device, module, host)
    try:
        yield
    finally:
        streams.restore()


_HOST = (random, np.random, np)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


def _generators(module: nn.Module) -> Iterator[object]:
    """Generators among a module's attributes, in lists and dicts of them, and behind bound methods such as `rng.normal`."""
    if type(module).__module__.startswith(("torch.nn.", "torch.jit")):
        return
    for value in vars(module).values():
        many = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        for each in many:
            owner = each if isinstance(each, _GENERATORS) else getattr(each, "__self__", None)
            if isinstance(owner, _GENERATORS) and not _is_global(owner):
                yield owner


def _is_global(generator: object) -> bool:
    return generator is getattr(random.random, "__self__", None) or generator is getattr(np.random.rand, "__self__", None)


def _refers_to_host(module: nn.Module) -> bool:
    """Whether a module's forward, or an attribute, refers to the global streams of Python or NumPy."""
    if type(module).__module__.startswith(("torch.nn.", "torch.jit")):
        return False
    function = getattr(type(module).forward, "__wrapped__", type(module).forward)
    names = {name for code in _codes(getattr(function, "__code__", None)) for name in (*code.co_names, *code.co_freevars)}
    scope = getattr(function, "__globals__", {})
    values = [*(scope[name] for name in names if name in scope), *vars(module).values()]
    return any(any(v is m for m in _HOST) or _is_global(getattr(v, "__self__", None)) for v in values)


def _codes(code: types.CodeType | None) -> Iterator[types.CodeType]:
    if code is not None:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from _codes(constant)


def _state(generator: object) -> object:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return getattr(generator, "bit_generator", generator).state


def _set_state(generator: object, state: object) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        getattr(generator, "bit_generator", generator).state = state


def _equal(a: object, b: object) -> bool:
    """Whether two states, nested in tuples and dicts, are the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a == b
