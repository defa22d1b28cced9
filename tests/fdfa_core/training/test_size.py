"""A run that cannot fit into memory is refused before it is built, with its key; one that fits is not."""

import subprocess
import sys

import pytest
import torch

from fdfa_core.errors import InvalidInput, OutOfMemory, Unsupported
from fdfa_core.experiments.schedules import build, first
from fdfa_core.experiments.tables import At, Epochs, Every, FirstAndLast, Geometric
from fdfa_core.training import size
from fdfa_core.training.check import check
from fdfa_core.training.run import train
from fdfa_core.training.size import memory_reported, total_memory
from places import ROOT
from tiny import PROBE, tiny

TOO_LARGE = {
    "hidden": ({"network": {"hidden": [10**6, 10**6]}}, r"network.hidden: got \[1000000, 1000000\]; accepted: what fits into"),
    "hidden beyond any address": ({"network": {"hidden": [2**62, 8]}}, "network.hidden: got .*the weights"),
    "width beyond any address": (
        {"network": {"architecture": "alexnet", "width": 2.0**62}, "data": {"image_size": 32}},
        "network: got .*the weights take",
    ),
    "image_size": ({"data": {"image_size": 10**6}}, "data.image_size: got 1000000; .* images take"),
    "tangents": ({"estimator": {"name": "fg-w", "tangents": 10**9}}, "estimator.tangents: got 1000000000; .*directions take"),
    "tangents of activities": ({"estimator": {"name": "fdfa", "tangents": 10**10}}, "estimator.tangents: got 10000000000"),
    "replicates": ({"probe": PROBE | {"replicates": 10**9}}, "probe.replicates: got 1000000000; .*the states of fdfa take"),
}


@pytest.mark.parametrize("change, said", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_no_memory_holds_is_refused_before_it_is_built(change, said):
    with pytest.raises(InvalidInput, match=said):
        check(tiny(**change))


def test_the_limit_is_the_sum_of_what_is_held(monkeypatch):
    """Weights of [64, 8, 8, 10] with batch normalisation: four copies of 714 numbers; 360 images of 64 numbers beside them."""
    config = tiny()
    exact = 4 * (4 * (64 * 8 + 8 + 16 + 8 * 8 + 8 + 16 + 8 * 10 + 10)) + 4 * 360 * 64
    monkeypatch.setattr(size, "total_memory", lambda device: exact)
    check(config)
    monkeypatch.setattr(size, "total_memory", lambda device: exact - 1)
    with pytest.raises(InvalidInput, match="network.hidden"):
        check(config)


LACKS = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")]
LACKS += [TypeError("empty(): Overflow when unpacking long long")]


@pytest.mark.parametrize("error", LACKS)
def test_a_lack_of_memory_is_named_whatever_torch_calls_it(error):
    with pytest.raises(OutOfMemory, match="run 7: needs more memory than there is; make batch_size"), memory_reported("run 7"):
        raise error


def test_another_error_passes():
    with pytest.raises(RuntimeError, match="^other$"), memory_reported("run 7"):
        raise RuntimeError("other")


def test_a_limit_of_the_shell_counts():
    code = "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (7 << 30, 7 << 30));"
    code += "from fdfa_core.training.size import total_memory; print(total_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) <= 7 << 30
    assert total_memory(torch.device("cpu")) > 0


def test_more_layers_than_can_be_built_in_minutes_are_refused():
    with pytest.raises(InvalidInput, match="network.hidden: got 'a list of 1001'; accepted: at most 1000"):
        check(tiny(network={"hidden": [8] * 1001}))


@pytest.mark.timeout(20)
def test_a_probe_that_no_step_of_billions_reaches_is_refused_at_once():
    probe = PROBE | {"schedule": {"kind": "at", "steps": [5 * 10**9]}}
    training = {"steps": 4 * 10**9, "epochs": None}
    with pytest.raises(InvalidInput, match="probe.schedule: .*a schedule with a step below 4000000000"):
        check(tiny(probe=probe, training=training))


SCHEDULES = [
    Every(kind="every", k=3),
    Geometric(kind="geometric", first=5, ratio=1.5),
    Geometric(kind="geometric", first=50, ratio=2.0, last=True),
    At(kind="at", steps=[7, 4]),
    At(kind="at", steps=[40], last=True),
    Epochs(kind="epochs", every=2),
    FirstAndLast(kind="first_and_last"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind} {getattr(s, 'last', '')}")
def test_the_first_step_of_a_schedule_is_the_first_that_is_due(schedule):
    due = build(schedule, steps_per_epoch=4, last=29)
    assert first(schedule, last=29) == next(step for step in range(100) if due(step))


def test_a_watch_of_feedback_without_any_to_watch_is_refused():
    probe = PROBE | {"estimators": [{"name": "fg-w"}], "feedback": True}
    with pytest.raises(Unsupported, match="probe.feedback: feedback = true needs a probed estimator .* such as fdfa"):
        check(tiny(probe=probe, network={"batch_norm": False}))


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, "x", True])
def test_seconds_that_no_clock_passes_are_refused(tmp_path, seconds):
    with pytest.raises(InvalidInput, match="checkpoint_seconds: got .*; accepted: a number of seconds"):
        train(tiny(), tmp_path, checkpoint_seconds=seconds)
