"""Examples in the documents and docstrings run, and what the documents name exists."""

import doctest
import importlib
import re

import pytest

from fdfa_core.estimators import registry
from imports import MODULES, dotted
from places import ROOT

PACKAGES = ("fdfa_core", "analysis")


def has_examples(source: str) -> bool:
    return ">>> " in source


def with_examples() -> list[str]:
    """Name the modules that hold examples, without importing any, so that collecting the tests stays fast."""
    modules = [module for module in MODULES if module.parts[0] in PACKAGES]
    return [dotted(module) for module in modules if has_examples((ROOT / module).read_text(encoding="utf-8"))]


def failures(module, flags: int) -> tuple[int, int, str]:
    """Run the examples of a module. Return how many failed, how many ran, and what the failures say."""
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    return runner.failures, runner.tries, "".join(said)


@pytest.fixture
def flags(pytestconfig) -> int:
    """The flags that `pytest --doctest-modules` uses too."""
    names = pytestconfig.getini("doctest_optionflags")
    return sum(doctest.OPTIONFLAGS_BY_NAME[name] for name in names)


@pytest.fixture(autouse=True)
def own_place(monkeypatch, tmp_path):
    """An example leaves nothing behind: no file in the tree, no estimator that it registers."""
    registry.available_estimators()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", with_examples())
def test_examples_print_what_they_promise(name, flags):
    failed, tried, said = failures(importlib.import_module(name), flags)
    assert tried and not failed, said


@pytest.mark.parametrize(("printed", "failed"), [("2", 0), ("3", 1), ("1...", 1), ("2...", 0)])
def test_a_false_example_is_noticed(flags, printed, failed):
    module = type(doctest)("with_an_example", f"An example.\n\n>>> 1 + 1\n{printed}\n")
    assert failures(module, flags)[:2] == (failed, 1)


# --- what the documents name -----------------------------------------------------------------------------------------


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) >= 15
    absent = [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert absent == []
