"""The architectures by name, as experiments ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.convolutional import build_alexnet, convolutional
from fdfa_core.networks.dense import build_fully_connected
from fdfa_core.networks.residual import residual
from fdfa_core.networks.transformer import transformer
from fdfa_core.signatures import REQUIRED, Option, check_options, options_of

ARCHITECTURES: dict[str, Callable[..., BlockNetwork]] = {
    "fully_connected": build_fully_connected,
    "convolutional": convolutional,
    "alexnet": build_alexnet,
    "residual": residual,
    "transformer": transformer,
}


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
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
    return {name: option for name, option in options_of(ARCHITECTURES[architecture]).items() if name != "seed"}


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
    return ARCHITECTURES[architecture](tuple(input_shape), outputs, seed=seed, **options)
