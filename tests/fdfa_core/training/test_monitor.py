"""A monitor measures what a session's instruments measure, and leaves the user's loop as it is, bit for bit."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fdfa_core import Monitor, cut, make_estimator, true_gradient
from fdfa_core.errors import InvalidInput, RunError, UnknownName, Unsupported
from fdfa_core.runs import validation
from fdfa_core.runs.directory import RunDirectory, read_summary, read_table
from fdfa_core.training.run import train
from tiny import PROBE, tiny

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3
ESTIMATORS = ["fg-a", ("fdfa", {"feedback_lr": 0.1})]


class Noisy(nn.Module):
    """Draws from every global stream, as a loop's own layers may."""

    def forward(self, x):
        return x + 0.01 * (random.random() + np.random.rand()) if self.training else x


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), Noisy(), nn.Linear(8, 3)
    )


def monitor(net, directory, **changes) -> Monitor:
    """A monitor of a short run."""
    options = {"estimators": ESTIMATORS, "reference": (X, Y), "directory": directory, "every": 3, "replicates": 3}
    return Monitor(net, **(options | changes))


class Loop:
    """A loop with momentum, a schedule, clipping, accumulation and a loader that shuffles."""

    def __init__(self, observe=None):
        self.net = model()
        torch.manual_seed(2), random.seed(2), np.random.seed(2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4)
        self.loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True)
        self.seen = []  # all that a monitor could have changed, after every step

    def run(self, steps: int, observe=None, after=None):
        for step in range(steps):
            x, y = next(iter(self.loader))
            if observe:
                observe(x, y)
                assert self.net.training
            (F.cross_entropy(self.net(x), y) / 2).backward()  # gradients add up over two batches
            if step % 2:
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimizer.step()
                self.schedule.step()
            self.seen.append([t.clone() for t in (*self.net.state_dict().values(), *(p.grad for p in self.net.parameters()))])
            if step % 2:
                self.optimizer.zero_grad()
            if after:
                after(step)
        return [*self.seen[-1], torch.get_rng_state(), torch.tensor([random.random(), np.random.rand()])]


def same(a, b) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_loop_is_the_same_to_the_bit_with_and_without_a_monitor(tmp_path):
    end = (alone := Loop()).run(8)
    watched = Loop()
    with monitor(watched.net, tmp_path / "runs", every=2, raw_gradients=True) as instrument:
        watched_end = watched.run(8, instrument.observe)
    assert same(end, watched_end)
    assert all(map(same, alone.seen, watched.seen))


def test_making_a_monitor_draws_no_random_number_and_changes_no_mode(tmp_path):
    net = model().eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    monitor(net, tmp_path / "runs")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    assert not any(module.training for module in net.modules())


def test_a_monitor_measures_what_the_instruments_of_an_experiment_measure(tmp_path):
    """The loop of a session, written by hand, gives the rows that the session's own probes give."""
    from fdfa_core.training.process import loaded_dataset
    from fdfa_core.training.session import Session

    estimators = [{"name": "fg-w"}, {"name": "fdfa", "feedback_lr": 0.1}]
    config = tiny(probe=PROBE | {"estimators": estimators, "schedule": {"kind": "every", "k": 4}}, seed=3)
    own = read_table(train(config, tmp_path / "experiment"), "probes")
    session = Session(config, loaded_dataset("digits", None, False), torch.device("cpu"))
    reference = session.instruments.reference
    session.instruments = None
    changes = {"estimators": ["fg-w", ("fdfa", {"feedback_lr": 0.1})], "every": 4, "seed": 3}
    with monitor(session.net, tmp_path / "runs", reference=reference, **changes) as instrument:
        while not session.done:
            instrument.observe(*session._batch())
            session.advance()
    measured = read_table(instrument.path, "probes")
    assert measured.drop(columns="epoch").equals(own.drop(columns="epoch"))


def test_a_shadow_follows_every_step_and_raw_gradients_are_stored(tmp_path):
    net = cut(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    instrument = monitor(net, tmp_path / "runs", raw_gradients=True)
    shadow = instrument.instruments.shadows["fdfa(feedback_lr=0.1)"]
    twin = make_estimator("fdfa", net, replicas=3, feedback_lr=0.1)
    twin.load_state_dict(shadow.state_dict())
    for step in range(4):
        if step != 3:  # a probe draws from the shadow's stream, too
            instrument.observe(X[:8], Y[:8])
            if step in (1, 2):
                twin.advance(X[:8], Y[:8])
            else:
                twin.load_state_dict(shadow.state_dict())
    assert torch.equal(shadow.feedback[0], twin.feedback[0]) and shadow.feedback[0].any()
    raw = RunDirectory(instrument.close().parent).gradients(instrument.config.id, 0)
    torch.testing.assert_close(torch.from_numpy(raw["bp/0.affine.weight"]), true_gradient(net, X[:8], Y[:8])["0.affine.weight"])


def test_the_run_is_sound_and_holds_what_was_logged(tmp_path):
    with monitor(model(), tmp_path / "runs", steps_per_epoch=6, name="mine", data="bits") as instrument:
        instrument.log(test_accuracy=0.3)
        for step in range(7):
            instrument.observe(X[:8], Y[:8])
            if step == 5:
                instrument.log(test_accuracy=torch.tensor(0.5), train_loss=0.7)
                instrument.log(learning_rate=0.1, test_accuracy=0.5)
    contents = validation.checked(RunDirectory(tmp_path / "runs"), [instrument.config])
    metrics = contents.tables["metrics"]
    assert metrics["step"].tolist() == [0, 6] and metrics["epoch"].tolist() == [0, 1]
    assert metrics["test_accuracy"].tolist() == pytest.approx([0.3, 0.5]) and metrics["learning_rate"].tolist()[1] == 0.1
    assert math.isnan(metrics["train_loss"][0]) and metrics["test_loss"].isna().all()
    assert sorted(set(contents.tables["probes"]["step"])) == [0, 3, 6]
    summary, origin = contents.summaries[instrument.config.id], contents.provenances[instrument.config.id]
    assert (summary["steps"], summary["batch_size"], summary["final"]["test_loss"]) == (7, 8, None)
    assert origin["data"]["name"] == "bits" and "reference set" in origin["data"]["notes"][0]
    timing = contents.tables["timing"]
    assert (timing["instrument_seconds"].diff().iloc[1:] > 0).all() and timing["training_seconds"].isna().all()


@pytest.mark.parametrize(
    ("change", "same_run"),
    [({}, True), ({"seed": 1}, False), ({"name": "b"}, False), ({"every": 4}, False), ({"data": "b"}, False)],
)
def test_the_id_tells_runs_apart(change, same_run, tmp_path):
    one, other = monitor(model(), tmp_path / "a"), monitor(model(), tmp_path / "b", **change)
    assert (one.config.id == other.config.id) == same_run
    wider = monitor(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), tmp_path / "c")
    assert wider.config.id != one.config.id


# Interruptions ------------------------------------------------------------------------------------------------------------


def interrupted(directory, after: int) -> dict:
    """Run some steps and stop without closing; returns what a checkpoint would hold."""
    loop, kept = Loop(), {}
    with pytest.raises(KeyboardInterrupt), monitor(loop.net, directory) as instrument:

        def save(step):
            if step == after:
                parts = {"net": loop.net, "optimizer": loop.optimizer, "schedule": loop.schedule, "monitor": instrument}
                kept.update({name: copy.deepcopy(part.state_dict()) for name, part in parts.items()})
                kept["streams"] = torch.get_rng_state(), random.getstate(), np.random.get_state()
                torch.save(kept["monitor"], directory.parent / "monitor.pt")
            if step == after + 2:
                raise KeyboardInterrupt

        loop.run(10, instrument.observe, save)
    return kept


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    with monitor((loop := Loop()).net, tmp_path / "whole") as whole:
        loop.run(10, whole.observe)
    kept = interrupted(tmp_path / "runs", after=3)
    assert [path.name for path in (tmp_path / "runs").glob("[0-9a-f]*")] == [f"{whole.config.id}.partial"]
    loop = Loop()
    with monitor(loop.net, tmp_path / "runs") as again:
        for name, part in {"net": loop.net, "optimizer": loop.optimizer, "schedule": loop.schedule}.items():
            part.load_state_dict(kept[name])
        again.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
        torch.set_rng_state(kept["streams"][0]), random.setstate(kept["streams"][1]), np.random.set_state(kept["streams"][2])
        loop.run(6, again.observe)
    assert again.path.name == whole.path.name and read_summary(again.path)["steps"] == 10
    assert read_table(again.path, "probes").equals(read_table(whole.path, "probes"))
    assert json.loads((again.path / "provenance.json").read_text())["resumed"][0]["step"] == 4


def test_an_interrupted_run_is_not_begun_anew_under_weights_that_have_moved(tmp_path):
    interrupted(tmp_path / "runs", after=3)
    with pytest.raises(RunError, match=r"unfinished run that had come to step 4; load what its state_dict"):
        monitor(model(), tmp_path / "runs").observe(X[:8], Y[:8])


def test_a_run_that_saved_no_state_begins_anew(tmp_path):
    with pytest.raises(ZeroDivisionError), monitor(model(), tmp_path / "runs") as instrument:
        instrument.observe(X[:8], Y[:8])
        1 / 0  # noqa: B018
    assert not instrument.path.exists()
    with monitor(model(), tmp_path / "runs") as instrument:
        instrument.observe(X[:8], Y[:8])
    assert instrument.path.is_dir()


def test_a_state_of_another_run_is_refused(tmp_path):
    one = monitor(model(), tmp_path / "runs")
    with pytest.raises(InvalidInput, match="state: got 'the state of run .*accepted: that of run"):
        monitor(model(), tmp_path / "runs", seed=1).load_state_dict(one.state_dict())


def test_a_run_that_is_there_or_being_written_is_refused(tmp_path):
    with monitor(model(), tmp_path / "runs") as instrument:
        with pytest.raises(RunError, match=r"written by another monitor: end that one .*or give another name"):
            monitor(model(), tmp_path / "runs")
        instrument.observe(X[:8], Y[:8])
    with pytest.raises(RunError, match="holds this run already; give another name or seed"):
        monitor(model(), tmp_path / "runs")
    for act in (lambda: instrument.observe(X, Y), lambda: instrument.log(train_loss=1.0), instrument.state_dict):
        with pytest.raises(RunError, match="the monitor is closed"):
            act()
    assert instrument.close() == instrument.path


def test_a_run_that_was_left_may_be_taken_up_by_another_monitor(tmp_path):
    one = monitor(model(), tmp_path / "runs")
    one.observe(X[:8], Y[:8])
    state = one.state_dict()
    one.leave()
    other = monitor(model(), tmp_path / "runs")
    other.load_state_dict(state)
    assert other.step == 1 and not other.path.exists() and other.close().exists()


def test_nothing_observed_leaves_no_run(tmp_path):
    instrument = monitor(model(), tmp_path / "runs")
    with pytest.raises(RunError, match="has observed no batch"):
        instrument.close()
    assert not instrument.path.exists()


# Divergence and refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "loss"])
def test_a_diverged_loop_is_recorded_as_such(how, tmp_path):
    net = model()
    with monitor(net, tmp_path / "runs") as instrument:
        for step in range(8):
            instrument.observe(X[:8], Y[:8])
            if step == 4 and how == "weights":
                with torch.no_grad():
                    net[0].weight.fill_(math.nan)
            if step == 4:
                instrument.log(train_loss=0.5 if how == "weights" else math.inf)
    summary = validation.checked(RunDirectory(tmp_path / "runs"), [instrument.config]).summaries[instrument.config.id]
    assert (summary["status"], summary["diverged_step"], summary["steps"]) == ("diverged", 6 if how == "weights" else 5, 8)
    assert read_table(instrument.path, "probes")["step"].max() == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"estimators": ["fgw"]}, UnknownName, r"Monitor: estimators\[0\]: estimator: got 'fgw'"),
        ({"estimators": ["bp", ("fdfa", {"rate": 1})]}, UnknownName, r"option of fdfa: got 'rate'.*feedback_lr"),
        ({"estimators": ["self"]}, InvalidInput, "none of this project trains"),
        ({"estimators": ["bp", "bp"]}, InvalidInput, "distinct estimators"),
        ({"estimators": [("fdfa", 0.1)]}, InvalidInput, r"names or \(name, options\) pairs"),
        ({"every": 0}, InvalidInput, "Monitor: every: got 0"),
        ({"every": {"kind": "first_and_last"}}, InvalidInput, "how long the loop runs is not known"),
        ({"every": {"kind": "every", "k": 5, "last": True}}, InvalidInput, "how long the loop runs is not known"),
        ({"every": {"kind": "epochs"}}, InvalidInput, "steps_per_epoch: got None"),
        ({"replicates": 1}, InvalidInput, "Monitor: replicates: got 1"),
        ({"sampling": "mine"}, InvalidInput, "Monitor: sampling: got 'mine'"),
        ({"loss": "nll"}, UnknownName, "loss: got 'nll'"),
        ({"name": "self"}, InvalidInput, "name: got 'self'"),
        ({"seed": -1}, InvalidInput, "Monitor: seed: got -1"),
        ({"reference": X}, InvalidInput, r"reference: got 'Tensor'; accepted: a pair"),
        ({"reference": (X, Y[:4])}, InvalidInput, "number of samples"),
        ({"net": nn.Linear(6, 3)}, InvalidInput, "module: got 'Linear'"),
        ({"feedback": True}, Unsupported, "Monitor: feedback.*BatchNorm1d"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(changes, error, message, tmp_path):
    net = changes.pop("net", None) or model()
    with pytest.raises(error, match=message):
        monitor(net, tmp_path / "runs", **changes)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": 0.5}, "log: got 'accuracy'.*test_accuracy"),
        ({"test_accuracy": 97.0}, "a share between 0 and 1, not a percentage"),
        ({"learning_rate": 0}, "a positive number"),
        ({"train_loss": "low"}, "a number"),
        ({"train_loss": 2.0}, "one value at step 0, which has 1.0 already"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(metrics, message, tmp_path):
    instrument = monitor(model(), tmp_path / "runs")
    instrument.log(train_loss=1.0)
    with pytest.raises(InvalidInput, match=message):
        instrument.log(**metrics)


def test_a_reference_smaller_than_two_batches_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="reference set: size: got 48; accepted: at least two batches of 30"):
        monitor(model(), tmp_path / "runs").observe(X[:30], Y[:30])


def test_results_of_the_project_are_no_place_for_own_runs():
    from fdfa_core import paths

    with pytest.raises(InvalidInput, match="outside the recorded results"):
        monitor(model(), paths.RESULTS / "mine")


def test_steps_without_anything_to_do_are_passed_over(tmp_path, monkeypatch):
    """Between two probes, estimators without a state cost nothing: no stream is saved, and no clock is read."""
    looked = []
    monkeypatch.setattr(Monitor, "_look", lambda self, x, y: looked.append(self.step))
    for name, estimators in {"without": ["bp", "fg-a"], "with": ESTIMATORS}.items():
        with monitor(model(), tmp_path, estimators=estimators, name=name) as instrument:
            for _ in range(5):
                instrument.observe(X[:8], Y[:8])
    assert looked == [0, 3, 0, 1, 2, 3, 4]
