"""What is no regular file is refused by name, and at once: a pipe without a writer would be waited for, a device has no end."""

import importlib.util
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdfa_core import paths
from fdfa_core.errors import RunError, shown
from fdfa_core.files import read_arrow, read_file
from places import ROOT


def loop(path):
    path.symlink_to(path.name)


KINDS = {
    "pipe": (os.mkfifo, "not a regular file but a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file but a pipe, a socket or a device"),
    "directory": (os.mkdir, "Is a directory"),
    "loop": (loop, "Too many levels of symbolic links"),
    "too large": (lambda path: path.write_bytes(b"12345"), "larger than 4 bytes"),
    "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("make, said", KINDS.values(), ids=KINDS)
@pytest.mark.timeout(20)
def test_what_is_no_readable_file_is_refused_at_once(tmp_path, make, said):
    make(tmp_path / "file")
    with pytest.raises(OSError, match=said):
        read_file(tmp_path / "file", 4)


def test_a_file_of_the_greatest_size_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    assert read_file(tmp_path / "file", 4) == b"1234"


def test_a_name_with_a_zero_byte_is_refused():
    with pytest.raises(OSError, match="holds a zero byte"):
        read_file("a\0b")


@pytest.mark.timeout(20)
def test_a_table_that_is_a_pipe_is_no_missing_file(tmp_path):
    os.mkfifo(tmp_path / "metrics.parquet")
    with pytest.raises(RunError, match="metrics.parquet: cannot be read .not a regular file.*; make it"):
        read_arrow(tmp_path / "metrics.parquet", "make it")


def test_a_table_is_read(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    assert read_arrow(tmp_path / "t.parquet", "").to_pydict() == {"a": [1, 2]}


def test_a_value_that_has_no_short_text_is_shown_by_its_type():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a value of the type list, too large to show" and "int, too large" in shown(10**5000)
    assert shown("x" * 300) == "'" + "x" * 199 + "…"
    while nested:  # an interpreter that frees it at once would recurse too deep
        nested = nested.pop()


# --- where the project's own files are -------------------------------------------------------------------------------


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
