"""A monitor measures what a session's instruments measure, and leaves the user's loop as it is, bit for bit."""

import copy
import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev

from fdfa_core import Monitor, cut, fully_connected, make_estimator, true_gradient
from fdfa_core.data import load
from fdfa_core.errors import InvalidInput, RunError, UnknownName, Unsupported
from fdfa_core.estimators.forward_feedback import ForwardDirectFeedbackAlignment
from fdfa_core.runs import validation
from fdfa_core.runs.directory import RunDirectory, read_summary, read_table
from fdfa_core.training.feedback_watch import PARTS, FeedbackWatch, mean_jacobian
from fdfa_core.training.run import train
from fdfa_core.training.session import Session
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


# --- The table of feedback errors ----------------------------------------------------------------------------------


PLAIN = {"architecture": "fully_connected", "hidden": [8, 8], "activation": "tanh"}
FDFA = [{"name": "fdfa", "feedback_lr": 0.2}, {"name": "fdfa", "feedback_lr": 0.5, "warmup": True}, {"name": "fg-w"}]
WATCHED = {
    "network": PLAIN,
    "probe": {
        "schedule": {"kind": "every", "k": 4, "last": True},
        "replicates": 24,
        "reference_size": 64,
        "estimators": FDFA,
        "feedback": True,
    },
}


def problem():
    generator = torch.Generator().manual_seed(3)
    net = fully_connected([5, 6, 4, 3], activation="tanh", seed=1).double()
    return net, torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)


def watch(steps: int, *, frozen: bool, **options):
    """Follow some steps of gradient descent (or none of it), and return the table, the watch, and networks and batches met."""
    net, x, y = problem()
    shadow = make_estimator("fdfa", net, seed=5, replicas=40, **options)
    found = FeedbackWatch(net, {"fdfa": shadow}, {"fdfa": options}, (x, y), "cross_entropy", frozen)
    met = []
    for step in range(steps):
        batch = slice(4 * (step % 3), 4 * (step % 3) + 4)
        met.append((jacobians(net, x), jacobians(net, x[batch])))
        found.follow(x[batch])
        shadow.advance(x[batch], y[batch])
        if not frozen:
            for name, gradient in true_gradient(net, x, y).items():
                net.get_parameter(name).data -= 0.3 * gradient
    found.observe(steps, 0.0)
    return found.rows.table().to_pandas(), found, met


def jacobians(net, x, site="post"):
    """Mean Jacobian per hidden block, sample by sample."""
    each = []
    for sample in x:
        values, h = [], sample[None]
        for block in list(net)[:-1]:
            values.append(block.affine(h) if site == "pre" else block(h))
            h = block(h)
        rest = []
        for i, value in enumerate(values):

            def tail(v, i=i):
                v = net[i].activation(v) if site == "pre" else v
                for block in list(net)[i + 1 :]:
                    v = block(v)
                return v[0]

            rest.append(jacrev(tail)(value.detach())[:, 0])
        each.append(rest)
    return [torch.stack(block).mean(0).detach() for block in zip(*each, strict=True)]


@pytest.mark.parametrize("site", ["pre", "post"])
def test_mean_jacobian_is_that_of_the_samples(site):
    net, x, _ = problem()
    for found, expected in zip(mean_jacobian(net, x, site), jacobians(net, x, site), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("site", ["pre", "post"])
def test_mean_jacobian_of_activations_that_work_in_place(site):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    found, wanted = fully_connected([6, 5, 4, 3], seed=0), fully_connected([6, 5, 4, 3], seed=0)
    for block in found.hidden:
        block.activation = torch.nn.ReLU(inplace=True)
    for a, b in zip(mean_jacobian(found, x, site), mean_jacobian(wanted, x, site), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("warmup", [False, True])
def test_averages_weigh_every_step_as_the_feedback_does(warmup):
    _, found, met = watch(5, frozen=False, feedback_lr=0.3, warmup=warmup)
    rates = [max(0.3, 1 / t) if warmup else 0.3 for t in range(1, 6)]
    weights = [rate * torch.tensor([1 - r for r in rates[i + 1 :]]).prod() for i, rate in enumerate(rates)]
    for block, average in enumerate(found.averages["fdfa"]):
        for which in (0, 1):
            expected = sum(w * jacobian[which][block] for w, jacobian in zip(weights, met, strict=True))
            torch.testing.assert_close(average[which], expected)


def test_frozen_weights_have_no_lag():
    table, _, _ = watch(6, frozen=True, feedback_lr=0.3)
    assert table["lag2"].max() < 1e-25 and table["averaging2"].max() > 1e-6


def test_last_hidden_block_has_no_averaging_bias():
    """Its Jacobian is the readout's weights, whatever the sample."""
    table, _, _ = watch(3, frozen=False, feedback_lr=0.3)
    assert table.loc[1, "averaging2"] < 1e-25 < 1e-6 < table.loc[0, "averaging2"]


def test_start_is_the_share_of_zero_that_is_left():
    table, _, _ = watch(3, frozen=True, feedback_lr=0.25)
    last = table.loc[1]  # its gradient is exact but for this
    assert last["start2"] == pytest.approx((0.75**3 * last["gradient_norm"]) ** 2)


def test_warmup_forgets_the_start():
    table, _, _ = watch(3, frozen=False, feedback_lr=0.1, warmup=True)
    assert table["start2"].max() < 1e-25


def test_before_the_first_step_the_feedback_misses_the_whole_jacobian():
    table, _, _ = watch(0, frozen=True, feedback_lr=0.5)
    torch.testing.assert_close(torch.tensor(table["error2"]), torch.tensor(table["jacobian_norm"]) ** 2)


def test_measured_bias_is_the_sum_of_the_exact_parts():
    """Within four standard errors over the replicas, at every one of ten steps and two blocks."""
    off = []
    for steps in range(1, 11):
        table, _, _ = watch(steps, frozen=False, feedback_lr=0.3)
        off += list((table["gradient_bias2"] - table["expected_bias2"]) / table["gradient_bias2_se"])
    assert max(map(abs, off)) < 4


def test_error_of_the_feedback_is_its_variance_and_bias():
    table, _, _ = watch(4, frozen=False, feedback_lr=0.3)
    torch.testing.assert_close(torch.tensor(table["error2"]), torch.tensor(table["variance"] + table["bias2"]))


# In a run ------------------------------------------------------------------------------------------------------------


def test_run_writes_a_row_per_probe_shadow_of_fdfa_and_block(tmp_path):
    table = pd.read_parquet(train(tiny(**WATCHED), tmp_path) / "feedback.parquet")
    assert len(table) == 4 * 2 * 2 and set(table["method"]) == {"fdfa"} and (table["replicates"] == 24).all()
    assert {f"{part}2" for part in PARTS} <= set(table.columns) and table.select_dtypes("number").notna().all(axis=None)


def test_watching_leaves_weights_and_probes_alone(tmp_path):
    watched, plain = tiny(**WATCHED), tiny(**WATCHED | {"probe": {**WATCHED["probe"], "feedback": None}})
    probes = [pd.read_parquet(train(config, tmp_path) / "probes.parquet") for config in (watched, plain)]
    pd.testing.assert_frame_equal(*probes)


def test_a_resumed_run_writes_the_same_table():
    def finish(session):
        while not session.done:
            session.advance()
        return session.instruments.feedback.rows.table().to_pandas()

    config, dataset = tiny(**WATCHED), load("digits")
    first, second = (Session(config, dataset, torch.device("cpu")) for _ in range(2))
    for _ in range(5):
        first.advance()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    pd.testing.assert_frame_equal(finish(first), finish(second))


def test_runs_without_the_table_keep_their_ids():
    assert '"feedback":' not in tiny(probe=WATCHED["probe"] | {"feedback": None}).canonical()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": PLAIN | {"batch_norm": True}}, "probe.feedback.*BatchNorm1d"),
        ({"probe": {**WATCHED["probe"], "estimators": [{"name": "fdfa", "feedback_rule": "adam"}]}}, "feedback_rule"),
        ({"probe": {**WATCHED["probe"], "estimators": [{"name": "fdfa", "joint": "cyclic"}]}}, "joint"),
    ],
)
def test_what_it_cannot_follow_is_refused(change, message):
    with pytest.raises(Unsupported, match=message):
        Session(tiny(**WATCHED | change), load("digits"), torch.device("cpu"))


def test_whom_it_follows_is_a_matter_of_what_a_method_says_not_of_its_name():
    class ByAnotherName(ForwardDirectFeedbackAlignment):
        """FDFA from another package."""

        name = "another"

    net, x, y = problem()
    shadows = {
        "another": ByAnotherName(net, seed=5, replicas=4),
        "dfa": make_estimator("dfa", net, replicas=4),
        "fdfa-averaged": make_estimator("fdfa-averaged", net, replicas=4),  # whose gradient is of many steps' feedback
    }
    found = FeedbackWatch(net, shadows, {}, (x, y), "cross_entropy", True)
    found.follow(x)
    shadows["another"].advance(x, y)
    found.observe(1, 0.0)
    assert set(found.rows.table().to_pandas()["method"]) == {"another"}
