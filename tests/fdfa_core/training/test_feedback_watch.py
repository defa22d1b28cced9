"""The table of feedback errors: exact parts against definitions, measured columns against replicas, and what it refuses."""

import copy

import pandas as pd
import pytest
import torch
from torch.func import jacrev

from fdfa_core import fully_connected, make_estimator, true_gradient
from fdfa_core.data import load
from fdfa_core.errors import Unsupported
from fdfa_core.estimators.forward_feedback import ForwardDirectFeedbackAlignment
from fdfa_core.training.feedback_watch import PARTS, FeedbackWatch, mean_jacobian
from fdfa_core.training.run import train
from fdfa_core.training.session import Session
from tiny import tiny

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
