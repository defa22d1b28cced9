"""Commands that are interrupted: exit codes, what they say, and that no process is left."""

import functools
import signal
import subprocess
import sys
import time

import pytest

from fdfa_core.runs.directory import is_complete
from places import ROOT
from processes import left, until, workers

pytestmark = pytest.mark.timeout(300)  # process starts are slow on a busy machine
LONG = """
[data]
name = "digits"
train_size = 128
[network]
hidden = [8]
[training]
epochs = 100_000
batch_size = 16
[[cases]]
estimator = { name = "bp" }
[grid]
seed = [0, 1]
"""
RESUMES = "Interrupted. The same command resumes where it stopped."


def start(*arguments):
    """Start a command as a terminal does; the tests themselves may run in the background of a shell, which ignores Ctrl-C."""
    command = [sys.executable, "-m", "fdfa_cli", *map(str, arguments)]
    hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    output = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=hears, **output)


@pytest.fixture
def sweeping(tmp_path):
    """A sweep of two runs in two processes, in the midst of its work, and these processes."""
    (tmp_path / "long.toml").write_text(LONG)
    process = start("sweep", tmp_path / "long.toml", "--runs", tmp_path / "runs", "--jobs", 2)
    until(lambda: len(list(tmp_path.glob("runs/*.partial/config.json"))) == 2)
    working = workers(process.pid)
    assert len(working) == 2
    yield process, working
    process.kill()
    process.wait()


def interrupted(process, working, number):
    """Interrupt a sweep; return its exit code and what it said."""
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert left(working) == [] and "Traceback" not in said
    return process.returncode, said.splitlines()[-1]


def test_a_sweep_that_is_terminated_says_how_to_resume_and_leaves_no_process(sweeping):
    assert interrupted(*sweeping, signal.SIGTERM) == (143, RESUMES)


def test_ctrl_c_which_reaches_the_workers_too_is_left_to_their_parent(sweeping):
    process, working = sweeping
    for each in working:
        each.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None and len(workers(process.pid)) == 2
    assert interrupted(process, working, signal.SIGINT) == (130, RESUMES)


def test_a_killed_sweep_leaves_no_process(sweeping):
    process, working = sweeping
    process.kill()
    assert left(working) == []


def test_interrupted_training_resumes(tmp_path):
    (tmp_path / "short.toml").write_text(LONG.replace("100_000", "60"))
    runs = tmp_path / "runs"
    process = start("train", tmp_path / "short.toml", "--runs", runs)
    until(lambda: list(runs.glob("*.partial/config.json")))
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and said.splitlines()[-1] == RESUMES
    again = start("train", tmp_path / "short.toml", "--runs", runs)
    again.communicate(timeout=200)
    finished = [path.name for path in runs.iterdir() if is_complete(runs, path.name)]
    assert again.returncode == 0 and len(finished) == 2


def test_interrupted_verification_says_that_it_starts_anew_and_leaves_no_process(tmp_path):
    process = start("verify", "--jobs", 2, "--out", tmp_path / "out")
    until(lambda: len(workers(process.pid)) == 2)
    working = workers(process.pid)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and said.splitlines()[-1] == "Interrupted. The same command starts anew."
    assert left(working) == []
