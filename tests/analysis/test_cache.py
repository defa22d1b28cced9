"""What a result depends on: the code that makes it, however it is imported, and nothing else."""

import shutil

import pandas as pd
import pytest

from analysis.rebuilt import cache, closed_forms
from places import ROOT

FILES = {
    "fdfa_core/__init__.py": "import lazy_loader\n",
    "fdfa_core/__init__.pyi": "from .networks import net\nfrom .other import other\n",
    "fdfa_core/networks.py": "def net():\n    pass\n",
    "fdfa_core/other.py": "other = 1\n",
    "analysis/__init__.py": "",
    "analysis/makes.py": "import analysis.direct\n\n\ndef f():\n    from fdfa_core import net\n    from . import lazy\n",
    "analysis/direct.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import figures.shown\n",
    "analysis/lazy.py": '"""What it is."""\n\nX = 1  # why\n',
    "analysis/unrelated.py": "",
    "figures/shown.py": "",
    "fdfa_core/found/__init__.py": "",
    "fdfa_core/found/registry.py": "import pkgutil\n",
    "fdfa_core/found/one.py": "",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def changes(tree, name, text, **how):
    """Whether the hash of `analysis.makes` changes with the text of a file."""
    before = cache.code("analysis.makes", tree=tree, **how)
    (tree / name).write_text(text)
    return cache.code("analysis.makes", tree=tree, **how) != before


@pytest.mark.parametrize(
    "name",
    ["analysis/makes.py", "analysis/direct.py", "analysis/lazy.py", "analysis/__init__.py", "fdfa_core/networks.py"],
    ids=["its own module", "an import", "an import inside a function", "a package", "a name that a lazy package passes on"],
)
def test_a_result_depends_on(tree, name):
    assert changes(tree, name, (tree / name).read_text() + "Y = 2\n")


@pytest.mark.parametrize(
    "name",
    ["analysis/unrelated.py", "fdfa_core/other.py", "figures/shown.py"],
    ids=["no import", "another lazy name", "a type"],
)
def test_a_result_does_not_depend_on(tree, name):
    assert not changes(tree, name, "Y = 2\n")


def test_a_package_that_discovers_its_modules_depends_on_all(tree):
    assert set(cache.sources("fdfa_core.found.registry", tree=tree)) >= {"fdfa_core.found.registry", "fdfa_core.found.one"}


def test_what_is_left_out_does_not_count(tree):
    assert "analysis.lazy" not in cache.sources("analysis.makes", without={"analysis.lazy"}, tree=tree)


@pytest.mark.parametrize(
    "text, changed",
    [
        ('"""What else it is.\n\nAt length."""\n\nX = 1\n', False),
        ('"""What it is."""\n\n\n\nX = 1  # because\n', False),
        ('"""What it is."""\n\nX = 2  # why\n', True),
        ('"""What it is."""\n\nX = "1  # why"\n', True),
    ],
    ids=["docstring", "comment", "number", "text that looks like a comment"],
)
def test_prose_counts_only_if_asked(tree, text, changed):
    assert changes(tree, "analysis/lazy.py", text, prose=False) == changed
    (tree / "analysis/lazy.py").write_text(FILES["analysis/lazy.py"])
    assert changes(tree, "analysis/lazy.py", text)


def test_closed_forms_depend_on_theory_and_networks_and_on_no_figure_command_or_log():
    modules = set(cache.sources(closed_forms.ANSWERS))
    assert {"analysis.theory.feedback_form", "fdfa_core.networks.dense", "fdfa_core.training.build"} <= modules
    above = ("figures", "fdfa_cli", "fdfa_core.sweeps", "fdfa_core.runs", "fdfa_core.measuring", "analysis.logs")
    assert not [name for name in modules if name.startswith(above)]


def test_figures_that_count_operations_depend_on_the_estimators():
    assert "fdfa_core.estimators.forward_feedback" in cache.sources("figures.convergence_cost", without={"figures.plan"})


def test_a_figure_depends_on_no_other_figure():
    modules = cache.sources("figures.convergence", "figures.render", without={"figures.plan"})
    assert "figures.variance_vs_width" not in modules and "analysis.convergence" in modules


def test_the_hash_is_that_of_the_contents_wherever_the_tree_is(tmp_path):
    for package in ("analysis", "fdfa_core"):
        shutil.copytree(ROOT / package, tmp_path / package)
    assert cache.code(closed_forms.ANSWERS, tree=tmp_path) == cache.code(closed_forms.ANSWERS)


def test_a_frame_is_computed_once_and_again_if_what_is_kept_is_broken(tmp_path):
    made = []

    def compute():
        made.append(1)
        return pd.DataFrame({"a": [1.0]})

    for _ in range(2):
        pd.testing.assert_frame_equal(cache.kept(tmp_path, "key", compute), pd.DataFrame({"a": [1.0]}))
    assert len(made) == 1
    (tmp_path / "key.frame").write_bytes(b"half")
    cache.kept(tmp_path, "key", compute)
    cache.kept(tmp_path, "another key", compute)
    assert len(made) == 3


def test_a_kept_frame_of_another_question_is_not_the_answer(tmp_path):
    cache.kept(tmp_path, "one", lambda: pd.DataFrame({"a": [1.0]}))
    (tmp_path / "one.frame").rename(tmp_path / "two.frame")
    assert cache.kept(tmp_path, "two", lambda: pd.DataFrame({"b": [2.0]})).columns.tolist() == ["b"]
