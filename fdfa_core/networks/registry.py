"""The architectures by name, as experiments ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, signature

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.convolutional import build_alexnet, convolutional
from fdfa_core.networks.dense import build_fully_connected
from fdfa_core.networks.residual import residual
from fdfa_core.networks.transformer import transformer

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
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
    parameters = signature(ARCHITECTURES[architecture]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name != "seed"}


def build(architecture: str, input_shape: Sequence[int], outputs: int, *, seed: int | None = None, **options) -> BlockNetwork:
    """Return a registered architecture for samples of `input_shape` and `outputs` classes.

    Raises:
        UnknownName: unknown architecture or option.
        InvalidInput: an option without default is missing, or an impossible value.
    """
    known = architecture_options(architecture)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {architecture}", option, known)
    for option, default in known.items():
        if default is Parameter.empty and option not in options:
            raise InvalidInput(f"{option} of {architecture}", "nothing", f"a value for {option}; it has no default")
    return ARCHITECTURES[architecture](tuple(input_shape), outputs, seed=seed, **options)
