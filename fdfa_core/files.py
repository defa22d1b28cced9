"""Files that are whole or absent, and errors that say what could not be written, or read."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fdfa_core.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa


MOST_BYTES = 2**26  # of a file that is read as text or JSON: far more than any that this project writes


def read_file(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file; links are followed.
        most: bytes that it may hold.

    Raises:
        OSError: as `open_file`, or it is larger; `strerror` says which.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return content


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file to read its bytes; never waits for the writer of a pipe, and takes no device.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer
    except ValueError as error:
        raise OSError(errno.EINVAL, "no name of a file: it holds a zero byte", str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file but a pipe, a socket or a device", str(path))


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, if it is not there; raises `RunError` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); accepted: a directory to write to") from error


def write_atomically(path: Path, content: bytes | memoryview, *, lasting: bool = True) -> None:
    """Write a file such that it is whole or absent whatever happens; raises `RunError` where it cannot be written.

    Args:
        path: of the file.
        content: of the file.
        lasting: wait until the disk holds it. Without, a failure of power may leave an empty or a broken file: for what is
            looked at before it is trusted, and made again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with reported(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                if lasting:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if lasting:
            sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the entries of a directory on the disk before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_arrow(path: Path, remedy: str) -> pa.Table:
    """Return a Parquet file's table; a `RunError` names the file, what is wrong with it, and the remedy."""
    import pyarrow.parquet as pq

    try:
        with open_file(path) as content, pq.ParquetFile(content, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)  # small files: starting threads costs more
            table.validate(full=True)
            return table
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing; {remedy}") from error
    except Exception as error:  # whatever its readers raise at bytes that no writer wrote
        if refused := getattr(error, "strerror", None):  # by the system; what pyarrow says of a file's content has none
            raise RunError(f"{path}: cannot be read ({refused}); {remedy}") from error
        reason = next(iter(str(error).splitlines()), type(error).__name__).removesuffix(".")
        raise RunError(f"{path}: is truncated or not Parquet ({reason}); {remedy}") from error


def parquet(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a Parquet file, whose pages carry checksums that `read_arrow` verifies; `options` go to pyarrow."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return buffer.getvalue()


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
    """Turn what the system refuses inside a `with` into a `RunError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str | Path, error: OSError) -> RunError:
    """Return the error for a file or directory that the system does not let us write to."""
    return RunError(f"{path}: cannot be written ({error.strerror or error})")
