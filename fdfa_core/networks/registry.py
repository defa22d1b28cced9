"""The architectures by name, as experiments ask for them.

Builders are named here and imported when they are used, since they load torch, which a list of names does not need.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.references import ACCEPTED, is_reference, resolve
from fdfa_core.signatures import REQUIRED, Option, check_options, options_of

if TYPE_CHECKING:
    from fdfa_core.networks.blocks import BlockNetwork

# A builder, or where it is: "module:function".
ARCHITECTURES: dict[str, str | Callable[..., BlockNetwork]] = {
    "fully_connected": "fdfa_core.networks.dense:build_fully_connected",
    "convolutional": "fdfa_core.networks.convolutional:convolutional",
    "alexnet": "fdfa_core.networks.convolutional:build_alexnet",
    "residual": "fdfa_core.networks.residual:residual",
    "residual_mlp": "fdfa_core.networks.residual:residual_mlp",
    "transformer": "fdfa_core.networks.transformer:transformer",
}


def available_architectures() -> list[str]:
    """Return the names that `build` knows."""
    return list(ARCHITECTURES)


def register_architecture(name: str) -> Callable[[Callable[..., BlockNetwork]], Callable[..., BlockNetwork]]:
    """Register a function that builds networks under a name, as a decorator.

    The function takes the shape of one sample, the number of outputs, and keyword-only options; `seed` among them if it draws
    from a stream of its own. It is known in this process. An experiment file that others carry out names the function itself,
    "my_package.models:build".

    Raises:
        InvalidInput: another architecture has this name.

    Examples:
        >>> from fdfa_core import register_architecture
        >>> register_architecture("residual")(lambda input_shape, outputs: None)
        Traceback (most recent call last):
            ...
        fdfa_core.errors.InvalidInput: architecture name: got 'residual'; accepted: a name that is not taken, without a colon.
    """

    def decorate(function: Callable[..., BlockNetwork]) -> Callable[..., BlockNetwork]:
        mine = getattr(ARCHITECTURES.get(name), "__qualname__", None) == function.__qualname__  # made again, as in a notebook
        if is_reference(name) or name in ARCHITECTURES and not mine:
            raise InvalidInput("architecture name", name, "a name that is not taken, without a colon")
        ARCHITECTURES[name] = function
        return function

    return decorate


def builder(architecture: str) -> Callable[..., BlockNetwork]:
    """Return the function that builds an architecture: one of the registered names, or "module:function" of the user's.

    Raises:
        UnknownName: unknown architecture.
        InvalidInput: no such function.
    """
    if is_reference(architecture) and architecture not in ARCHITECTURES:
        return resolve("architecture", architecture)
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, [*ARCHITECTURES, ACCEPTED])
    registered = ARCHITECTURES[architecture]
    return pkgutil.resolve_name(registered) if isinstance(registered, str) else registered


def architecture_options(architecture: str) -> dict[str, object]:
    """Return an architecture's options and their defaults (`inspect.Parameter.empty` where there is none).

    Raises:
        UnknownName: unknown architecture.
    """
    return {option.name: option.default for option in signature_of(architecture).values()}


def signature_of(architecture: str) -> Mapping[str, Option]:
    """Return an architecture's options as its builder's signature states them: names, defaults and what values they take.

    Raises:
        UnknownName: unknown architecture.
    """
    return {name: option for name, option in options_of(builder(architecture)).items() if name != "seed"}


def build(architecture: str, input_shape: Sequence[int], outputs: int, *, seed: int | None = None, **options) -> BlockNetwork:
    """Return a registered architecture for samples of `input_shape` and `outputs` classes.

    Raises:
        UnknownName: unknown architecture or option.
        InvalidInput: an option without default is missing, or an impossible value.
    """
    known = signature_of(architecture)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {architecture}", option, known)
    for name, option in known.items():
        if option.default is REQUIRED and name not in options:
            raise InvalidInput(f"{name} of {architecture}", "nothing", f"a value for {name}; it has no default")
    check_options(known, options)
    function = builder(architecture)
    if str(ARCHITECTURES.get(architecture, "")).startswith("fdfa_core."):
        return function(tuple(input_shape), outputs, seed=seed, **options)
    return _built(architecture, function, tuple(input_shape), outputs, seed, options)


def _built(
    name: str, function: Callable, input_shape: tuple[int, ...], outputs: int, seed: int | None, options: Mapping[str, object]
) -> BlockNetwork:
    """Build a network by a function of the user's, and check that it is one.

    Torch's global stream stands where `seed` puts it, for functions that draw from it, and is left as it was.
    """
    import torch

    from fdfa_core.networks.blocks import BlockNetwork

    takes_seed = "seed" in options_of(function)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = function(input_shape, outputs, **options, **({"seed": seed} if takes_seed else {}))
    if not isinstance(net, BlockNetwork):
        hint = "Cut another module into blocks: fdfa_core.cut(model, example=…)."
        raise InvalidInput(name, f"a {type(net).__name__}", "a function that returns a BlockNetwork", hint)
    return net
