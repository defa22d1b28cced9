"""The processes that work for another one, and whether they have ended."""

import time

import psutil


def workers(pid: int) -> list[psutil.Process]:
    """Return the processes in which joblib works for a process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "popen_loky" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:  # ended meanwhile
            pass
    return found


def left(processes: list[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Return those that still run after some seconds, at once if none does.

    One that has ended and that nobody has asked for its exit code yet does not run.
    """
    deadline = time.monotonic() + seconds
    while running := [p for p in processes if p.is_running() and not _has_ended(p)]:
        if time.monotonic() > deadline:
            return running
        time.sleep(0.02)
    return []


def until(true, seconds: float = 120) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
