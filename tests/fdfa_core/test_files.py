"""What is no regular file is refused by name, and at once: a pipe without a writer would be waited for, a device has no end."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdfa_core.errors import RunError, shown
from fdfa_core.files import read_arrow, read_file


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
