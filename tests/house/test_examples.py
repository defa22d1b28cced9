"""The examples and the code of the documentation run, and print what they promise."""

import re
import runpy
import sys

import pytest

from fdfa_core.estimators import registry
from places import ROOT

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
