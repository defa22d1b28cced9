import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import joblib
import psutil
import pytest
import torch
from click.testing import CliRunner

import fdfa_cli
import synthetic_logs
from fdfa_core import errors
from fdfa_core.errors import InvalidInput, RunError, Unsupported
from fdfa_core.runs.directory import claim, is_complete, open_root, read_provenance, read_summary
from fdfa_core.sweeps import sweep as sweeping
from fdfa_core.sweeps.sweep import sweep
from fdfa_core.training.run import train
from fdfa_core.workers import _end_with, worker_processes
from places import ROOT
from processes import left, until, workers
from tiny import PROBE, Child, tables, tiny

pytestmark = pytest.mark.timeout(300)  # process starts are slow on a busy machine
FINE = [tiny(seed=seed) for seed in range(3)]
FAILS = tiny(training={"batch_size": 129})
DIVERGES = tiny(training={"optimizer": "sgd", "learning_rate": 1e25}, network={"batch_norm": False})
EXPERIMENT = """
[data]
name = "digits"
train_size = 256
[network]
hidden = [8, 8]
[training]
epochs = 60
batch_size = 16
[probe]
schedule = { kind = "every", k = 100 }
replicates = 4
reference_size = 64
estimators = [{ name = "self" }, { name = "fdfa" }]
[[cases]]
estimator = { name = "fdfa" }
[grid]
seed = [0, 1, 2, 3]
"""


@pytest.fixture
def one_core(monkeypatch):
    """One thread each: a forked child has none of its parent's threads and would wait for them for ever."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    torch.set_num_threads(1)


def all_tables(root):
    return {path.name: tables(path) for path in sorted(root.iterdir()) if path.is_dir() and path.name != ".locks"}


def command(file, root, *more):
    return [sys.executable, "-m", "fdfa_cli", "sweep", str(file), "--runs", str(root), "--jobs", "2", *more]


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A sweep in which one run fails and one diverges, and what it said."""
    root = tmp_path_factory.mktemp("mixed")
    return root, sweep([FAILS, DIVERGES, *FINE, FINE[0]], root, processes=2, quiet=True)


def test_a_failing_run_is_reported_and_does_not_stop_the_others(mixed):
    root, summary = mixed
    assert list(summary.failed) == [FAILS.id] and "batch_size: got 129" in summary.failed[FAILS.id]
    assert all(is_complete(root, run.id) for run in FINE)


def test_a_diverging_run_is_recorded_and_does_not_stop_the_others(mixed):
    root, summary = mixed
    assert summary.diverged == [DIVERGES.id] and read_summary(root / DIVERGES.id)["status"] == "diverged"


def test_a_run_given_twice_counts_once(mixed):
    assert sorted(mixed[1].finished) == sorted(run.id for run in FINE)


def test_a_sweep_gives_the_bits_of_single_runs(mixed, tmp_path):
    assert tables(mixed[0] / FINE[1].id) == tables(train(FINE[1], tmp_path, threads=1))


def test_processes_times_threads_is_the_number_of_cores(mixed):
    assert read_provenance(mixed[0] / FINE[0].id)["hardware"]["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


def test_the_summary_in_one_line(mixed):
    assert str(mixed[1]) == "0 runs were there already; 3 finished, 1 diverged, 1 failed"


def test_a_thousand_finished_runs_are_skipped_without_starting_or_reading_anything(tmp_path, monkeypatch):
    root = open_root(tmp_path / "runs")
    runs = [tiny(seed=seed) for seed in range(1000)]
    for run in runs:
        synthetic_logs.write_run(root, run)
    monkeypatch.setattr(sweeping, "process_engine", lambda *_: pytest.fail("started processes"))
    monkeypatch.setattr("fdfa_core.sweeps.local.read_summary", lambda *_: pytest.fail("read a log"))
    assert len(sweep(runs, root).skipped) == 1000


@pytest.fixture
def damaged(tmp_path):
    """A directory of runs, one with a table that was cut off."""
    train(FINE[0], tmp_path, threads=1)
    path = tmp_path / FINE[0].id / "metrics.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return tmp_path


def test_a_damaged_run_is_named_set_aside_and_made_again(damaged, one_core):
    whole = tables(train(FINE[0], damaged / "elsewhere", threads=1))
    cut = (damaged / FINE[0].id / "metrics.parquet").read_bytes()
    with pytest.warns(UserWarning, match=f"run {FINE[0].id} is damaged: metrics.parquet is trunc.*damaged-1 and made again"):
        summary = sweep([FINE[0]], damaged, processes=1, quiet=True)
    assert (damaged / f"{FINE[0].id}.damaged-1" / "metrics.parquet").read_bytes() == cut
    assert summary.finished == [FINE[0].id] and tables(damaged / FINE[0].id) == whole
    assert str(summary).endswith("; 1 damaged runs were set aside and made again")
    assert sweep([FINE[0]], damaged).skipped == [FINE[0].id]


def test_what_was_set_aside_before_is_kept(damaged, one_core):
    (damaged / f"{FINE[0].id}.damaged-1").mkdir()
    with pytest.warns(UserWarning, match="damaged-2"):
        sweep([FINE[0]], damaged, processes=1, quiet=True)
    assert (damaged / f"{FINE[0].id}.damaged-2" / "metrics.parquet").exists() and is_complete(damaged, FINE[0].id)


def test_a_damaged_run_that_another_sweep_holds_is_left_to_it(damaged):
    with claim(damaged, FINE[0].id):
        summary = sweeping.Summary()
        assert Child(sweeping.damaged, damaged, FINE[0].id, summary).result()
    assert (damaged / FINE[0].id).exists()


def test_a_single_run_names_the_damage_and_the_remedy(damaged):
    with pytest.raises(RunError, match="is damaged .metrics.parquet is truncated.*move it away.*fdfa sweep"):
        train(FINE[0], damaged, threads=1)


def test_a_run_held_by_another_sweep_is_waited_for_at_the_end(tmp_path, one_core):
    root = open_root(tmp_path / "runs")
    seen = []

    def release_when_the_others_are_done():
        with claim(root, FINE[0].id):
            held.set()
            while not all(is_complete(root, run.id) for run in FINE[1:]):
                time.sleep(0.01)
            seen.append(is_complete(root, FINE[0].id))

    held = threading.Event()
    holder = threading.Thread(target=release_when_the_others_are_done)
    holder.start()
    held.wait()
    summary = sweep(FINE, root, processes=1, quiet=True)
    holder.join()
    assert seen == [False] and len(summary.finished) == 3 and is_complete(root, FINE[0].id)


def test_a_killed_worker_costs_no_run(tmp_path):
    """As when the system runs out of memory: one of the two workers dies in the middle of a run."""
    runs = [tiny(seed=seed, training={"epochs": 80}) for seed in range(2)]

    def kill_one_worker():
        while not list(tmp_path.glob("*.partial/checkpoint.pt")):
            time.sleep(0.01)
        workers(os.getpid())[0].kill()

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    summary = sweep(runs, tmp_path, processes=2, quiet=True, checkpoint_seconds=0.05)
    killer.join()
    assert sorted(summary.finished) == sorted(run.id for run in runs)


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_moments_ends_with_the_bits_of_an_unbroken_one(kills, tmp_path, one_core):
    runs = [tiny(seed=seed, training={"epochs": 10}, estimator={"name": "fdfa"}, probe=PROBE) for seed in range(3)]
    in_this_process = {"processes": 1, "quiet": True}
    sweep(runs, tmp_path / "unbroken", **in_this_process)
    moments = random.Random(0)
    for _ in range(kills):
        child = Child(sweep, runs, tmp_path / "broken", checkpoint_seconds=0, **in_this_process)
        time.sleep(moments.uniform(0.02, 3 / kills))
        child.kill()
    assert sweep(runs, tmp_path / "broken", **in_this_process).failed == {}
    assert all_tables(tmp_path / "broken") == all_tables(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_command_whose_processes_are_all_killed_ends_with_the_bits_of_an_unbroken_one(experiment, tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    frequent = command(experiment, broken, "--checkpoint-seconds", "0")
    for kill in range(3):
        process = subprocess.Popen(frequent, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        begun = newest_checkpoint(broken)
        while process.poll() is None and newest_checkpoint(broken) <= begun:
            time.sleep(0.01)
        time.sleep(0.2 * kill)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(frequent, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(command(experiment, unbroken), cwd=ROOT, check=True, capture_output=True)
    assert len(all_tables(unbroken)) == 4 and all_tables(broken) == all_tables(unbroken)


def newest_checkpoint(root):
    times = [0]
    for path in root.glob("*.partial/checkpoint.pt"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def test_two_sweeps_at_once_share_the_work(tmp_path, one_core):
    runs = [tiny(seed=seed, training={"epochs": 10}) for seed in range(6)]
    sweeps = [Child(sweep, runs, tmp_path / "shared", processes=1, quiet=True) for _ in range(2)]
    assert [len(child.result().finished) for child in sweeps] == [6, 6]
    sweep(runs, tmp_path / "alone", processes=1, quiet=True)
    assert all_tables(tmp_path / "shared") == all_tables(tmp_path / "alone")


@pytest.mark.parametrize("processes", [0, -1])
def test_fewer_than_one_process_is_refused(processes, tmp_path):
    with pytest.raises(InvalidInput, match=f"processes: got {processes}; accepted: a positive integer"):
        sweep(FINE, tmp_path, processes=processes)


def test_steps_in_other_processes_cannot_be_watched(tmp_path):
    with pytest.raises(InvalidInput, match="processes: got 2; accepted: 1 with `watch`"):
        sweep(FINE, tmp_path, processes=2, watch=print)


def test_fewer_than_one_thread_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="threads: got 0; accepted: a positive integer"):
        sweep(FINE, tmp_path, threads=0)


def test_every_outcome_is_reported_and_every_step_is_seen(tmp_path):
    sweep(FINE[:1], tmp_path, processes=1, quiet=True)
    outcomes, steps = [], []
    options = {"report": outcomes.append, "watch": lambda run, done, total: steps.append((run.id, done, total))}
    sweep([*FINE[:2], FAILS], tmp_path, processes=1, quiet=True, **options)
    assert [(o.run, o.status) for o in outcomes] == [(FINE[0].id, "skipped"), (FINE[1].id, "finished"), (FAILS.id, "failed")]
    assert steps == [(FINE[1].id, done, 12) for done in range(1, 13)]


def test_threads_and_device_reach_the_run(tmp_path):
    sweep(FINE[:1], tmp_path, processes=1, threads=1, quiet=True)
    assert read_provenance(tmp_path / FINE[0].id)["hardware"]["threads"] == 1
    assert "device: got 'gpu'" in sweep(FINE[1:2], tmp_path, processes=1, device="gpu", quiet=True).failed[FINE[1].id]


def test_a_directory_of_something_else_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds files that no run wrote"):
        sweep(FINE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_cluster_without_the_package_for_it_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(Unsupported, match=r"needs the packages dask and distributed: pip install -e '.\[cluster\]'"):
        sweep(FINE, tmp_path, cluster="tcp://localhost:1")


def test_a_dask_cluster_that_loses_a_worker_finishes_all_runs(tmp_path):
    import distributed

    runs = [tiny(seed=seed, training={"epochs": 30}) for seed in range(4)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:

        def kill_one_worker():
            while not list(tmp_path.glob("*.partial/checkpoint.pt")):
                time.sleep(0.01)
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_one_worker)
        killer.start()
        summary = sweep(runs, tmp_path, cluster=cluster.scheduler_address, quiet=True, checkpoint_seconds=0.05)
        killer.join()
    assert sorted(summary.finished) == sorted(run.id for run in runs)
    assert tables(tmp_path / runs[0].id) == tables(train(runs[0], tmp_path / "single", threads=1))


def test_a_scheduler_that_dies_ends_the_command_with_one_line(tmp_path, monkeypatch, capfd, experiment):
    from fdfa_core.sweeps import dask

    monkeypatch.setattr(dask, "FIRST", 0.2)
    place = tmp_path / "scheduler.json"
    options = ["--port", "0", "--no-dashboard", "--scheduler-file", str(place)]
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *options], stderr=subprocess.DEVNULL)
    try:
        until(place.exists)
        address = json.loads(place.read_text())["address"]
        said = []

        def kill_it_once_runs_wait(text):
            said.append(text)
            scheduler.kill()

        monkeypatch.setattr(dask, "say", kill_it_once_runs_wait)
        where = ["--runs", str(tmp_path / "runs"), "--cluster", address]
        result = CliRunner().invoke(fdfa_cli.main, ["sweep", str(experiment), *where])
    finally:
        scheduler.kill()
        scheduler.wait()
    assert len(said) == 1 and "has no worker" in said[0] and "4 runs wait" in said[0]
    assert result.exit_code == 2
    lost = f"Error: cluster {address}: the scheduler does not answer any more; 4 runs are unfinished. The same command resumes"
    assert [line for line in result.stderr.splitlines() if lost in line] == [result.stderr.splitlines()[-1]]
    assert "Traceback" not in result.output + capfd.readouterr().err


def test_complete_runs_in_a_directory_that_cannot_be_written_to_are_skipped(tmp_path, monkeypatch):
    root = open_root(tmp_path / "runs")
    synthetic_logs.write_run(root, FINE[0])
    monkeypatch.setattr(sweeping, "open_root", lambda _: pytest.fail("it wanted to write"))
    assert sweep([FINE[0]], root).skipped == [FINE[0].id]


def test_a_cluster_without_workers_is_announced_at_once_and_every_minute(monkeypatch, capsys):
    from fdfa_core.sweeps import dask

    clock = iter([100.0, 105.0, 161.0, 170.0, 200.0])
    monkeypatch.setattr(dask.time, "monotonic", lambda: next(clock))
    watch = dask._Watch("tcp://here:1")
    for count in (0, 0, 0, 1, 0):
        watch.look(count, 7)
    lines = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"waiting: the cluster tcp://here:1 has no worker, for {n} s so far" for n in (0, 61, 0)]


# --- Workers end with their parent, and are not replaced for holding memory ----------------------------------------


SLEEPERS = """
import os, sys, time
from joblib import Parallel, delayed
from fdfa_core.workers import _end_with, worker_processes

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
    _end_with(parent.pid)
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
