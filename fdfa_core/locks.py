"""Locks that several processes share, and that nobody waits for in the dark.

The operating system frees the lock of a process that dies. Beside the lock stands who holds it, for those who wait.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fdfa_core.errors import RunError
from fdfa_core.files import read_file, unwritable

FIRST, AGAIN = 5.0, 60.0  # seconds after which a wait is announced, and announced again
# A lock that is a mere file stays when its holder is killed. Versions of filelock that would fall back to it are told not to.
_HARD = {"fallback_to_soft": False} if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters else {}


@contextmanager
def held(path: Path, what: str, wait: bool = True) -> Iterator[bool]:
    """Hold a lock inside a `with`; yields False, if not to `wait`, where another process holds it.

    Who waits is told on standard error within seconds, and then every minute, who holds the lock and since when.

    Args:
        path: of the lock file, whose directory is there.
        what: the lock is for, as messages call it, such as "run 0123456789abcdef".
        wait: for another process to free it.

    Raises:
        RunError: the lock file cannot be written, or its file system has no locks.
    """
    lock = FileLock(path, **_HARD)
    try:
        if not _acquire(lock, path, what, wait):
            yield False
            return
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise RunError(
                f"{path}: the file system has no locks (flock), without which two processes could write to one place; "
                "accepted: a directory on another file system, such as a local disk"
            ) from error
        raise unwritable(path, error) from error
    note = _note(path)
    try:
        with suppress(OSError):  # the lock holds without it
            note.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": _now()}))
        yield True
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str:
    """Say who holds a lock, and since when, as far as the holder has said so."""
    try:
        told = json.loads(read_file(_note(path), 10_000))
        return f"process {int(told['process'])} on {str(told['host'])[:80]} since {str(told['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process, which has not said which it is"


def say(text: str) -> None:
    """Write a line on standard error at once, above any progress bar."""
    from tqdm import tqdm

    if sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def _acquire(lock: FileLock, path: Path, what: str, wait: bool) -> bool:
    began, patience = time.monotonic(), FIRST if wait else 0
    while True:
        try:
            lock.acquire(timeout=patience)
            return True
        except Timeout:
            if not wait:
                return False
        say(f"waiting for {what}, for {time.monotonic() - began:.0f} s so far: it is held by {holder(path)}")
        patience = AGAIN


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
