"""Where things are: beside the package in its source tree, in the package and the working directory where it is installed."""

import importlib.util
from pathlib import Path

import pytest

from fdfa_core import paths
from places import ROOT


def copied(place: Path):
    """Load the module from a copy of it in `place`/fdfa_core."""
    (place / "fdfa_core").mkdir()
    path = place / "fdfa_core" / "paths.py"
    path.write_text(Path(paths.__file__).read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("copied_paths", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_source_tree_holds_all_places():
    assert paths.IN_SOURCE_TREE
    assert (ROOT / "experiments", ROOT / "results", ROOT / ".cache") == (paths.EXPERIMENTS, paths.RESULTS, paths.CACHE)
    assert paths.BENCHMARKS == ROOT / "benchmarks" / "results"
    assert paths.EXPERIMENTS.is_dir() and paths.RESULTS.is_dir() and paths.BENCHMARKS.is_dir()


def test_installed_package_reads_its_own_experiments_and_writes_into_the_working_directory(tmp_path):
    installed = copied(tmp_path)
    assert installed.EXPERIMENTS == tmp_path / "fdfa_core" / "experiments" / "files"
    assert (installed.RESULTS, installed.CACHE) == (Path("results"), Path(".cache"))
    assert installed.BENCHMARKS == Path("benchmarks/results")


@pytest.mark.parametrize("other", ["experiments", "pyproject.toml"])
def test_a_neighbour_of_the_same_name_does_not_make_a_source_tree(tmp_path, other):
    """Another distribution may install a folder `experiments` at the top, or leave a file there."""
    (tmp_path / other).mkdir() if other == "experiments" else (tmp_path / other).touch()
    assert not copied(tmp_path).IN_SOURCE_TREE
