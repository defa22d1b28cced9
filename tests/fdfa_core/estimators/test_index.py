"""The index that is read from the source says what the imported classes say."""

import ast
import importlib
import pkgutil

import pytest

from fdfa_core import estimators
from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.estimators import index, register, registry
from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.index import packaged


def live_options(name):
    """Options as the imported class has them, in order, with types: 1 and True are equal, and differ."""
    registry.estimator_class(name)
    assert name in registry._CLASSES  # so that what follows comes from the class and not from the index
    return [(option, default, type(default)) for option, default in registry.estimator_options(name).items()]


@pytest.mark.parametrize("name", packaged())
def test_options_and_defaults_are_those_of_the_class(name):
    indexed = [(option, default, type(default)) for option, default in packaged()[name].options.items()]
    assert indexed == live_options(name)


@pytest.mark.parametrize("name", packaged())
def test_module_and_class_are_those_registered(name):
    cls = registry.estimator_class(name)
    assert (cls.name, cls.__module__, cls.__qualname__) == (name, packaged()[name].module, packaged()[name].class_name)


def test_no_estimator_of_the_package_is_missing():
    for module in pkgutil.iter_modules(estimators.__path__):
        importlib.import_module(f"fdfa_core.estimators.{module.name}")
    live = {name for name, cls in registry._CLASSES.items() if cls.__module__.startswith("fdfa_core.")}
    assert live == set(packaged())


def test_names_come_in_the_order_of_the_registry_bp_first():
    names = registry.available_estimators()
    assert names[0] == "bp" and names[1:] == sorted(names[1:]) and set(packaged()) <= set(names)


def test_name_of_the_package_cannot_be_taken_before_its_module_is_imported(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {})
    with pytest.raises(InvalidInput, match=r"estimator name: got 'fg-w'; .*\(it is WeightPerturbation\)"):
        register("fg-w")(type("Impostor", (Estimator,), {}))


def test_unknown_estimator_has_no_options():
    with pytest.raises(UnknownName, match="estimator: got 'pb'; accepted: one of bp, "):
        registry.estimator_options("pb")


@pytest.fixture
def source(monkeypatch):
    """Let the index read a source in place of a module of the package."""
    index._skeleton.cache_clear()
    yield lambda text: monkeypatch.setattr(index, "_tree", lambda _: ast.parse(text))
    index._skeleton.cache_clear()


def test_options_are_collected_along_the_base_classes_as_python_orders_them(source):
    source("""
class A:
    def __init__(self, net, *, a=1, shared="a", seed=0): ...
class B(A):
    def __init__(self, net, *, b, **common): ...
class C(A):
    def __init__(self, net, *, c=-1.5, shared="c", **common): ...
class D(B, C): ...
""")
    options = index._options("fdfa_core.estimators.x", "D")
    assert list(options.items()) == [("a", 1), ("shared", "c"), ("c", -1.5), ("b", index.Parameter.empty)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class D(base.Estimator): ...", "cannot tell where the base class base.Estimator comes from"),
        ("class D:\n    def __init__(self, net, *, lr=RATE): ...", "malformed node"),
    ],
)
def test_source_that_cannot_be_read_is_an_error_and_no_guess(source, text, said):
    source(text)
    with pytest.raises(ValueError, match=said):
        index._options("fdfa_core.estimators.x", "D")
