"""The documents and the examples: what they show runs and prints what they promise, and what they name exists."""

import doctest
import importlib
import importlib.util
import re
import runpy
import sys
import types

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


# --- The examples and the code of the documentation run, and print what they promise


EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
DOCUMENTS = ["README.md", "docs/index.md", "docs/adding-an-estimator.md", "docs/own-network.md", "docs/checking.md"]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What an example registers is gone after it."""
    registry.available_estimators()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example as a script in an empty directory; returns what it prints."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.S | re.M)


def test_no_example_goes_untested():
    assert EXAMPLES == ["own_estimator", "own_loss", "own_network", "tutorial", "variance_of_fg"]


def test_own_network_learns_better_with_fdfa_than_with_frozen_hidden_blocks(run):
    accuracy = {name: float(percent) for name, percent in re.findall(r"^  (\S+) +([\d.]+)%", run("own_network"), re.M)}
    assert accuracy["fdfa"] > accuracy["frozen"] + 3


def test_own_estimator_trains(run):
    losses = [float(loss) for loss in re.findall(r"step +\d+: ([\d.]+)", run("own_estimator"))]
    assert losses[-1] < 0.8 * losses[0]


def test_own_loss_is_robust_where_the_squared_error_is_not(run):
    squared, huber = (float(miss) for miss in re.findall(r"misses the true function by ([\d.]+)", run("own_loss")))
    assert huber < squared / 2


def test_variance_of_forward_gradients_is_drawn(run, tmp_path):
    run("variance_of_fg", str(tmp_path / "here.png"))
    assert (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")


def test_the_tutorial_agrees_with_the_record_and_with_its_closed_forms(run):
    said = run("tutorial")
    here, recorded = (int(n) for n in re.search(r"FG-A: (\d+) here .*, (\d+) in the record", said).groups())
    assert 5 < here < recorded  # narrower layers, hence a smaller gap
    assert all(abs(float(z)) < 4 for z in re.findall(r"([+-][\d.]+) standard errors", said))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_of_the_documentation_runs(document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "documentation"}
    for code in blocks(document):
        exec(compile(code, document, "exec"), names)


def test_the_page_on_choosing_shows_what_its_code_prints(capsys):
    (code,) = blocks("docs/choosing.md")
    exec(compile(code, "docs/choosing.md", "exec"), {"__name__": "documentation"})
    page = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
    assert [line for line in capsys.readouterr().out.splitlines() if line not in page] == []


def test_readme_example_trains_its_network():
    names = {}
    exec(compile(blocks("README.md")[0], "README.md", "exec"), names)
    assert 0 < names["loss"] < 10


def test_documentation_shows_the_estimator_of_the_example():
    shown = blocks("docs/adding-an-estimator.md")[0]
    example = (ROOT / "examples/own_estimator.py").read_text(encoding="utf-8")
    assert shown[shown.index("@register") :] in example


# --- What the site adds to the documents; `make docs` itself is strict about links, navigation and formulas


pytest.importorskip("mkdocs", reason="`make docs` installs what the site needs")
pytest.importorskip("math_core", reason="`make docs` installs what the site needs")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "_site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(hooks, content, name="theory.md"):
    return hooks.on_page_content(content, types.SimpleNamespace(file=types.SimpleNamespace(src_uri=name)), None, None)


def test_a_formula_becomes_mathml_with_its_number(hooks):
    inline = shown(hooks, r'<p><span class="arithmatex">\(\alpha &lt; 1\)</span></p>')
    assert inline.startswith("<p><math>") and "α" in inline and "arithmatex" not in inline
    assert "(3)" in shown(hooks, r'<div class="arithmatex">\[x = 1 \tag{3}\]</div>')


def test_a_formula_that_cannot_be_shown_stops_the_build_and_is_named(hooks):
    with pytest.raises(Exception, match=r"theory.md: the formula .*nosuch.* cannot be shown"):
        shown(hooks, r'<span class="arithmatex">\(\nosuch{a}\)</span>')


def test_a_formula_that_was_not_recognised_stops_the_build(hooks):
    with pytest.raises(Exception, match="not recognised"):
        shown(hooks, r"<p>text $\alpha text</p>")
    assert shown(hooks, r"<p><code>$\alpha</code></p>") == r"<p><code>$\alpha</code></p>"


def test_reference_lists_every_public_name_of_the_package(hooks):
    import fdfa_core

    page = hooks._public("fdfa_core")
    assert all(f"::: fdfa_core.{name}\n" in page + "\n" for name in fdfa_core.__all__)


def test_every_page_of_the_reference_finds_modules(hooks):
    for title, patterns in hooks.REFERENCE.values():
        for pattern in patterns:
            assert list(ROOT.glob(pattern)), f"{title}: {pattern}"
