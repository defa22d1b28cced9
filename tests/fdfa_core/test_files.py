"""What is no regular file is refused by name and at once, and who waits for a lock is told who holds it."""

import errno
import importlib.util
import json
import os
import re
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from fdfa_core import locks, paths
from fdfa_core.errors import RunError, shown
from fdfa_core.files import read_arrow, read_file
from fdfa_core.locks import held, holder
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


def test_a_lock_is_held_once(tmp_path):
    with held(tmp_path / "lock", "it") as first, held(tmp_path / "lock", "it", wait=False) as second:
        assert first and not second
    with held(tmp_path / "lock", "it", wait=False) as again:
        assert again


def test_who_waits_is_told_at_once_and_again_who_holds_it_and_since_when(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "FIRST", 0.05)
    monkeypatch.setattr(locks, "AGAIN", 0.1)
    begun = threading.Event()

    def hold():
        with held(tmp_path / "lock", "run 7"):
            begun.set()
            time.sleep(0.6)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    with held(tmp_path / "lock", "run 7"):
        thread.join()
    lines = capsys.readouterr().err.splitlines()
    told = rf"waiting for run 7, for \d+ s so far: it is held by process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\dT\S+"
    assert len(lines) >= 2 and all(re.fullmatch(told, line) for line in lines)


def test_the_promise_is_ten_seconds_and_a_minute():
    assert locks.FIRST <= 10 and locks.AGAIN <= 60


@pytest.mark.parametrize("content", [b"", b"[]", b'{"process": "x"}', b"\xff", b"[" * 100_000])
def test_a_note_that_cannot_be_read_stops_nobody(tmp_path, content):
    (tmp_path / "lock.holder").write_bytes(content)
    assert holder(tmp_path / "lock") == "another process, which has not said which it is"


def test_the_note_goes_with_the_lock(tmp_path):
    with held(tmp_path / "lock", "it"):
        assert json.loads((tmp_path / "lock.holder").read_text())["process"] == os.getpid()
    assert not (tmp_path / "lock.holder").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "Function not implemented"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_refused_with_the_remedy(tmp_path, monkeypatch, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(RunError, match="lock: the file system has no locks .*accepted: a directory on another file system"):
        held(tmp_path / "lock", "it").__enter__()


def test_without_flock_no_mere_file_is_taken_for_a_lock(tmp_path, monkeypatch):
    import fcntl

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(RunError, match="has no locks"), held(tmp_path / "lock", "it"):
        pass


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="lock: cannot be written"):
        held(tmp_path / "file" / "lock", "it").__enter__()
