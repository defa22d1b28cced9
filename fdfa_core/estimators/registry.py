"""Names → estimator classes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from fdfa_core.errors import FdfaError, InvalidInput, UnknownName
from fdfa_core.estimators.index import packaged
from fdfa_core.estimators.labels import label as label

if TYPE_CHECKING:
    from fdfa_core.estimators.base import Estimator
    from fdfa_core.networks.blocks import BlockNetwork

_CLASSES: dict[str, type[Estimator]] = {}
_PLUGINS: dict[str, str] = {}


def register(name: str) -> Callable[[type[Estimator]], type[Estimator]]:
    """Register an estimator class under a name, as a decorator.

    Raises:
        InvalidInput: another class has this name.

    Examples:
        >>> from fdfa_core import register
        >>> register("bp")(type("Mine", (), {}))
        Traceback (most recent call last):
            ...
        fdfa_core.errors.InvalidInput: estimator name: got 'bp'; accepted: a name that is not taken (it is Backpropagation).
    """

    def decorate(cls: type[Estimator]) -> type[Estimator]:
        taken = _CLASSES[name].__qualname__ if name in _CLASSES else None
        if name in packaged():
            taken = packaged()[name].class_name
        if taken is not None and taken != cls.__qualname__:
            raise InvalidInput("estimator name", name, f"a name that is not taken (it is {taken})")
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return decorate


@functools.cache
def _load_plugins() -> None:
    """Import every estimator that another installed distribution offers; they register themselves.

    One that cannot be imported is named in a warning and left out: it is no fault of the others.
    """
    for entry in entry_points(group="fdfa_core.estimators"):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever foreign code raises
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the estimators {entry.name!r} ({entry.value}) of the distribution {origin} cannot be loaded ({reason}); they "
                "are left out. Mend or uninstall that distribution",
                stacklevel=2,
            )
        else:
            _PLUGINS[f"{entry.name} = {entry.value}"] = origin


def loaded_plugins() -> dict[str, str]:
    """Return the entry points whose estimators this process has loaded, each with its distribution and version."""
    return dict(_PLUGINS)


def available_estimators() -> list[str]:
    """Return the names of all registered estimators, BP first, then by name. The package's own are known without torch.

    Examples:
        >>> from fdfa_core import available_estimators
        >>> available_estimators()[:4]
        ['bp', 'cosine-dfa', 'dfa', 'dkp']
    """
    _load_plugins()
    return sorted({*packaged(), *_CLASSES}, key=lambda name: (name != "bp", name))


def estimator_class(name: str) -> type[Estimator]:
    """Return the class registered under a name; raises `UnknownName` for any other."""
    if name not in _CLASSES and name in packaged():
        entry = packaged()[name]
        _CLASSES[name] = getattr(importlib.import_module(entry.module), entry.class_name)
    if name not in _CLASSES:
        _load_plugins()
    if name not in _CLASSES:
        raise UnknownName("estimator", name, available_estimators())
    return _CLASSES[name]


def registered_in(file: str | Path) -> list[str]:
    """Import a file, and return the names of the estimators that it registers, in order.

    Modules beside the file are found while it is imported.

    Raises:
        InvalidInput: there is no such file, it cannot be imported, or it registers nothing.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise InvalidInput("FILE", str(file), "a file of Python code that registers an estimator", "There is no such file.")
    available_estimators()  # those of other distributions, too
    known = dict(_CLASSES)
    specification = importlib.util.spec_from_file_location(f"fdfa_checked_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise InvalidInput("FILE", str(file), "a file of Python code, whose name ends in .py")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent))
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever foreign code raises
        reason = str(error) if isinstance(error, FdfaError) else f"{type(error).__name__}: {error}"
        raise InvalidInput("FILE", str(file), "a file that can be imported", f"It raises {reason}") from error
    finally:
        sys.path.remove(str(path.parent))
    found = [name for name, cls in _CLASSES.items() if cls is not known.get(name) and name not in packaged()]
    if not found:
        hint = 'Write @register("name") above the class.'
        raise InvalidInput("FILE", str(file), "a file that registers an estimator", hint)
    return found


def estimator_options(name: str) -> dict[str, object]:
    """Return an estimator's own options and their defaults; those of the package's own are known without torch.

    Raises:
        UnknownName: unknown estimator.

    Examples:
        >>> from fdfa_core.estimators import estimator_options
        >>> estimator_options("dkp")
        {'site': 'post', 'rank': None, 'feedback_optimizer': 'adam', 'feedback_lr': 0.0001, 'feedback_decay': 1e-06}
    """
    if name not in _CLASSES and name in packaged():
        return dict(packaged()[name].options)
    return {option.name: option.default for option in estimator_class(name).options().values()}


def filled_options(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Return all of an estimator's own options: those that were given, and the others at the values they have without.

    Raises:
        UnknownName: no estimator of this name.
    """
    return estimator_class(name).filled_options(given)


def make_estimator(
    name: str,
    net: BlockNetwork,
    loss="cross_entropy",
    seed: int = 0,
    replicas: int | None = None,
    *,
    check: bool = True,
    **options,
) -> Estimator:
    """Return a registered estimator for a network.

    Args:
        name: one of `available_estimators()`.
        net: the network whose parameters' gradients it estimates.
        loss: "cross_entropy", "mse", or a callable (outputs, targets) → per-sample losses (N,).
        seed: seeds the estimator's own random stream.
        replicas: hold this many independent copies of the state (only meaningful for stateful estimators).
        check: compare the network's tangents and local gradients with reverse mode at the first batch, which costs about two
            steps and changes no number (docs/own-network.md says what it cannot see). `fdfa_core.unchecked()` and the
            environment variable FDFA_CHECK=0 switch it off for all.
        **options: the estimator's own, see `estimator_options(name)`.

    Raises:
        UnknownName: unknown estimator, option or loss.
        InvalidInput: an impossible value.
        Unsupported: the estimator cannot serve this network.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from fdfa_core import make_estimator
        >>> estimator = make_estimator("fdfa", net, seed=0, feedback_lr=0.5)
        >>> loss = estimator.backward(x, y)  # writes p.grad, then advances the feedback
        >>> f"{loss:.3f}", estimator.feedback[0].shape
        ('1.114', torch.Size([3, 6]))
        >>> estimator.sample(x, y, replicates=5)["1.bias"].shape
        torch.Size([5, 3])
    """
    cls = estimator_class(name)
    known = estimator_options(name)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of {name}", option, known or ["none: it has no options"])
    if not isinstance(check, bool):
        raise InvalidInput("check", check, "True or False")
    estimator = cls(net, loss=loss, seed=seed, replicas=replicas, **options)
    estimator.check = check
    return estimator
