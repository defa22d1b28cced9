"""The estimators of this package by name, with their options and defaults, read from the source: no estimator is imported.

Importing an estimator loads torch, which takes seconds; lists, labels and checks of names need the names and the options only.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import MappingProxyType

COMMON = ("loss", "seed", "replicas")  # keyword arguments of every estimator; none is an option of its own
_PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Entry:
    """An estimator of this package.

    Attributes:
        module: dotted name of its module.
        class_name: name of its class in that module.
        options: the estimator's own options and their defaults (`inspect.Parameter.empty` where there is none).
    """

    module: str
    class_name: str
    options: Mapping[str, object]


@functools.cache
def packaged() -> Mapping[str, Entry]:
    """Return every estimator of this package by the name under which it is registered.

    Raises:
        ValueError: the source uses what cannot be read without importing it: a name or a default that is no literal, or a
            base class that is neither defined in the module nor imported by `from … import`.
    """
    modules = [f"{_PACKAGE}.{module.name}" for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__)]
    entries = {}
    for module in modules:
        for node in _tree(module).body:
            if isinstance(node, ast.ClassDef) and (name := _registered_name(node)) is not None:
                entries[name] = Entry(module, node.name, MappingProxyType(_options(module, node.name)))
    return MappingProxyType(entries)


@functools.cache
def _tree(module: str) -> ast.Module:
    source = importlib.util.find_spec(module).loader.get_source(module)
    return ast.parse(source, filename=module)


def _registered_name(node: ast.ClassDef) -> str | None:
    """Return the argument of the decorator `@register(…)`; None without one."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "register":
            return ast.literal_eval(decorator.args[0])
    return None


def _options(module: str, name: str) -> dict[str, object]:
    """Return the options of a class as Python itself would collect them: along its method resolution order, bases first."""
    options: dict[str, object] = {}
    for cls in reversed(_skeleton(module, name).__mro__):
        options |= vars(cls).get("options", {})
    return options


@functools.cache
def _skeleton(module: str, name: str) -> type:
    """Return a class with the bases of the one named, and nothing but the options of its own `__init__`."""
    node = next(n for n in _tree(module).body if isinstance(n, ast.ClassDef) and n.name == name)
    bases = [base for base in (_base(module, base) for base in node.bases) if base is not None]
    return type(name, tuple(bases), {"options": _own_options(node)})


def _base(module: str, base: ast.expr) -> type | None:
    """Return the skeleton of a base class; None for a class from outside this package, which has no options."""
    name = ast.unparse(base)
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _skeleton(module, name)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    inside = node.level == 0 and node.module.startswith(f"{_PACKAGE}.")
                    return _skeleton(node.module, alias.name) if inside else None
    if hasattr(builtins, name):
        return None
    raise ValueError(f"{module}: cannot tell where the base class {name} comes from; import it by `from … import {name}`")


def _own_options(node: ast.ClassDef) -> dict[str, object]:
    """Return the keyword-only parameters of the class's own `__init__`, with their defaults."""
    options: dict[str, object] = {}
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            for argument, default in zip(method.args.kwonlyargs, method.args.kw_defaults, strict=True):
                if argument.arg not in COMMON:
                    options[argument.arg] = Parameter.empty if default is None else ast.literal_eval(default)
    return options
