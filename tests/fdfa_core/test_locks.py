"""Who waits for a lock is told who holds it; a file system without locks is refused."""

import errno
import json
import os
import re
import threading
import time

import pytest
from filelock import FileLock

from fdfa_core import locks
from fdfa_core.errors import RunError
from fdfa_core.locks import held, holder


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
