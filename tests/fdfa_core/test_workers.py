"""Workers end with their parent, however it ends, and are not replaced for holding memory."""

import os
import pickle
import subprocess
import sys
import time
import warnings

import joblib
import psutil
import pytest

from fdfa_core import errors, workers
from fdfa_core.workers import worker_processes
from places import ROOT
from processes import left, until

SLEEPERS = """
import os, sys, time
from joblib import Parallel, delayed
from fdfa_core.workers import worker_processes

def sleep(i):
    os.write(1, b"%d\\n" % os.getpid())  # at once: what two processes print can mix
    time.sleep(60)

with worker_processes():
    Parallel(2)(delayed(sleep)(i) for i in range(2))
"""


def test_workers_end_within_seconds_where_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    working = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    parent.wait()
    assert left(working) == []


def test_a_worker_whose_parent_ended_before_it_began_ends_at_once():
    code = "from fdfa_core import workers; workers._end_with(1 << 30); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_elsewhere_than_on_linux_a_worker_watches_its_parent(monkeypatch):
    """As on macOS: a thread waits for the end of the parent."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(sys, "platform", "darwin")
    workers._end_with(parent.pid)
    time.sleep(0.2)
    assert ended == []
    parent.communicate(b"\n")
    until(lambda: ended, 10)
    assert ended == [1]


def test_no_worker_outlives_the_block():
    with worker_processes():
        pids = joblib.Parallel(2)(joblib.delayed(slowly)(os.getpid) for _ in range(2))
    assert os.getpid() not in pids and not any(map(psutil.pid_exists, pids))


def test_a_worker_that_holds_more_memory_than_after_its_first_task_is_neither_replaced_nor_warned_of():
    with worker_processes(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = joblib.Parallel(2, batch_size=1, pre_dispatch=2)
        pids = engine(joblib.delayed(hold)(megabytes) for megabytes in [0, 0, 350, 350, *[0] * 8])
    assert len(set(pids)) == 2 and [str(warning.message) for warning in said] == []


def slowly(function):
    time.sleep(0.2)  # so that both workers get one
    return function()


def hold(megabytes):
    """Hold memory from now on, as a process does that keeps what it frees; returns which process does."""
    import builtins  # which lives as long as the process
    import os
    import time

    builtins.held = b"x" * (megabytes * 10**6) if megabytes else getattr(builtins, "held", b"")
    time.sleep(0.6)  # loky looks at most once a second
    return os.getpid()


@pytest.mark.parametrize(
    "error",
    [
        errors.FdfaError("a text"),
        errors.InvalidInput("alpha", 3, "a rate from 0 to 1", "It is a rate."),
        errors.UnknownName("estimator", "fgd", ["fg-w", "fg-a"]),
        errors.UnknownKey("training", "lr", ["learning_rate"], what="option"),
        *(kind("a text") for kind in (errors.Unsupported, errors.DataError, errors.OutOfMemory, errors.RunError)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_worker_is_raised_here_as_it_was_there(error):
    assert vars(type(error).__new__(type(error))) == {}  # as libraries do that give errors their tracebacks
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
