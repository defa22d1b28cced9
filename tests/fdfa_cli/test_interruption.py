"""Commands that are interrupted: exit codes, what they say, and that no process is left."""

import collections
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import joblib
import psutil
import pytest
import torch

import fdfa_cli
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


def last_word(said):
    """The last line that the command says itself: joblib's tracker, a process of its own, may warn after it."""
    return [line for line in said.splitlines() if "resource_tracker" not in line and not line.startswith(" ")][-1]


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
    return process.returncode, last_word(said)


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
    assert process.returncode == 143 and last_word(said) == RESUMES
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
    assert process.returncode == 143 and last_word(said) == "Interrupted. The same command starts anew."
    assert left(working) == []


# --- killed at any moment ----------------------------------------------------------------------------------------------

SHORT = LONG.replace("100_000", "5").replace("train_size = 128", "train_size = 256")
# moments of each command, 100 in all; those of "figures" draw runs that are there, or train them first
KILLS = {"sweep": 35, "sweep in two processes": 5, "figures": 20, "figures and runs": 5, "record": 35}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def forked(arguments, said):
    """Start a command in a forked process, which spares it the seconds that imports take; it writes into the file `said`."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    code = 1
    try:
        fdfa_cli.main([str(argument) for argument in arguments], prog_name="fdfa")
    except SystemExit as end:
        code = end.code or 0
    except KeyboardInterrupt:  # before the command or after it
        code = 130
    finally:
        os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def commands(place, made):
    """Return each command: its arguments, to work in a place, with the runs that are made for it where it takes runs."""
    sweep = ["sweep", made / "short.toml", "--runs", place / "runs", "--checkpoint-seconds", 0.02]
    drawn = ["--profile", "smoke", "--only", "momentum_tradeoff", "--jobs", 1, "--runs", place / "runs", "--out", place / "out"]
    return {
        "sweep": [*sweep, "--jobs", 1],
        "sweep in two processes": [*sweep, "--jobs", 2],
        "figures": ["figures", *drawn],
        "figures and runs": ["figures", *drawn],
        "record": ["record", made / "short.toml", "--runs", made / "runs", "--out", place / "record", "--allow-dirty"],
    }


def bits(place):
    """All files that the commands leave but those that hold times, or hashes of files that do, or say who wrote them."""
    times = {"timing.parquet", "provenance.json", "said", ".lock", ".locks", ".stamps"}
    files = {path.relative_to(place): path for path in sorted(place.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not times & {*name.parts}}


def prepared(made, monkeypatch):
    """Import what forked commands would otherwise import for themselves, and make runs; returns their directory."""
    import analysis.rebuilt.closed_forms  # noqa: F401
    import figures.render  # noqa: F401

    # one thread each: a forked process has none of its parent's threads, and would wait for them for ever
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    torch.set_num_threads(1)
    made.mkdir()
    (made / "short.toml").write_text(SHORT)
    with pytest.raises(SystemExit, match="0"):
        fdfa_cli.main([str(argument) for argument in commands(made, made)["sweep"]])
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_commands_that_train_and_draw_for_the_first_time_at_once_both_end(tmp_path, monkeypatch):
    made, place = prepared(tmp_path / "made", monkeypatch), tmp_path / "place"
    place.mkdir()
    command = commands(place, made)["figures"]
    both = [forked(command, place / f"said-{i}") for i in range(2)]
    said = [((place / f"said-{i}").read_text(), code) for i, code in enumerate(map(ended, both))]
    assert all(code == 0 and "momentum_tradeoff" in text and "Traceback" not in text for text, code in said), said
    assert len(list((place / "out").glob("momentum_tradeoff.*"))) == 3 and not list(place.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KILLS)
def test_a_command_killed_at_random_moments_ends_with_the_bits_of_an_unbroken_one(kind, tmp_path, monkeypatch):
    moments, made, codes = random.Random(kind), prepared(tmp_path / "made", monkeypatch), collections.Counter()
    if kind == "figures":
        assert ended(forked(commands(made / "drawn", made)[kind], made / "said")) == 0

    def new(name):
        place = tmp_path / name
        place.mkdir()
        if kind == "figures":
            shutil.copytree(made / "drawn" / "runs", place / "runs")
        return place

    unbroken = new("unbroken")
    began = time.monotonic()
    assert ended(forked(commands(unbroken, made)[kind], unbroken / "said")) == 0, (unbroken / "said").read_text()
    seconds, expected = time.monotonic() - began, bits(unbroken)
    assert len(expected) >= 2
    for kill in range(KILLS[kind]):
        place, number = new(f"broken-{kill}"), SIGNALS[kill % len(SIGNALS)]
        command = commands(place, made)[kind]
        pid = forked(command, place / "said")
        time.sleep(moments.uniform(0, seconds))
        working = psutil.Process(pid).children(recursive=True)
        os.kill(pid, number)
        code = ended(pid)
        assert code in (0, -number, 128 + number), (place / "said").read_text()
        codes[f"{number.name} {code}"] += 1
        assert left(working) == []
        assert ended(forked(command, place / "said")) == 0, (place / "said").read_text()
        assert bits(place) == expected and "Traceback" not in (place / "said").read_text()
        shutil.rmtree(place)
    print(f"\n{kind}: {KILLS[kind]} kills within {seconds:.1f} s, exit codes {dict(codes)}")
