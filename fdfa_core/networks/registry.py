"""The architectures by name, as experiments ask for them.

Builders are named here and imported when they are used, since they load torch, which a list of names does not need.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.signatures import REQUIRED, Option, check_options, options_of

if TYPE_CHECKING:
    from fdfa_core.networks.blocks import BlockNetwork

# A builder, or where it is: "module:function".
ARCHITECTURES: dict[str, str | Callable[..., BlockNetwork]] = {
    "fully_connected": "fdfa_core.networks.dense:build_fully_connected",
    "convolutional": "fdfa_core.networks.convolutional:convolutional",
    "alexnet": "fdfa_core.networks.convolutional:build_alexnet",
    "residual": "fdfa_core.networks.residual:residual",
    "transformer": "fdfa_core.networks.transformer:transformer",
}


def available_architectures() -> list[str]:
    """Return the names that `build` knows."""
    return list(ARCHITECTURES)


def builder(architecture: str) -> Callable[..., BlockNetwork]:
    """Return the function that builds an architecture.

    Raises:
        UnknownName: unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
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
    return builder(architecture)(tuple(input_shape), outputs, seed=seed, **options)
