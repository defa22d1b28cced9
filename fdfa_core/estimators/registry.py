"""Names → estimator classes."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.estimators.labels import label as label

if TYPE_CHECKING:
    from fdfa_core.estimators.base import Estimator
    from fdfa_core.networks.blocks import BlockNetwork

_CLASSES: dict[str, type[Estimator]] = {}


def register(name: str) -> Callable[[type[Estimator]], type[Estimator]]:
    """Register an estimator class under a name, as a decorator.

    Raises:
        InvalidInput: the name is taken by another class.
    """

    def decorate(cls: type[Estimator]) -> type[Estimator]:
        taken = _CLASSES.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise InvalidInput("estimator name", name, f"a name that is not taken (it is {taken.__qualname__})")
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return decorate


@functools.cache
def _discover() -> None:
    """Import every module of this package and every estimator that an installed package offers."""
    package = importlib.import_module("fdfa_core.estimators")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"fdfa_core.estimators.{module.name}")
    for entry in entry_points(group="fdfa_core.estimators"):
        entry.load()


def available_estimators() -> list[str]:
    """Return the names of all registered estimators, BP first, then by name."""
    _discover()
    return sorted(_CLASSES, key=lambda name: (name != "bp", name))


def estimator_class(name: str) -> type[Estimator]:
    """Return the class registered under a name; raises `UnknownName` for any other."""
    _discover()
    if name not in _CLASSES:
        raise UnknownName("estimator", name, available_estimators())
    return _CLASSES[name]


def estimator_options(name: str) -> dict[str, object]:
    """Return an estimator's own options and their defaults."""
    found: dict[str, object] = {}
    for cls in reversed(estimator_class(name).__mro__):
        if "__init__" in vars(cls):
            for parameter in inspect.signature(cls.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("loss", "seed", "replicas"):
                    found[parameter.name] = parameter.default
    return found


def make_estimator(
    name: str, net: BlockNetwork, loss="cross_entropy", seed: int = 0, replicas: int | None = None, **options
) -> Estimator:
    """Return a registered estimator for a network.

    Args:
        name: one of `available_estimators()`.
        net: the network whose parameters' gradients it estimates.
        loss: "cross_entropy", "mse", or a callable (outputs, targets) → per-sample losses (N,).
        seed: seeds the estimator's own random stream.
        replicas: hold this many independent copies of the state (only meaningful for stateful estimators).
        **options: the estimator's own, see `estimator_options(name)`.

    Raises:
        UnknownName: unknown estimator, option or loss.
        InvalidInput: an impossible value.
        Unsupported: the estimator cannot serve this network.
    """
    cls = estimator_class(name)
    known = estimator_options(name)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {name}", option, known or ["none: it has no options"])
    return cls(net, loss=loss, seed=seed, replicas=replicas, **options)
