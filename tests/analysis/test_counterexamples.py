"""Each side of every claim: a network where it holds and one where it does not."""

import pytest
import torch

from analysis.theory import conditions, predict
from analysis.theory.conditions import example, weights_leak_less
from analysis.theory.laws import contest


@pytest.fixture(scope="module")
def table():
    return conditions()


@pytest.mark.parametrize(
    "claim, verdicts",
    [
        ("Var FG-A < Var FG-W", [True, False, True]),
        ("Var FG-W (a direction per sample) < Var FG-W (shared)", [True]),
        ("Var FDFA < Var FG-A", [True, True, False, True, True]),
        ("MSE FDFA < MSE FG-A", [True, False]),
        ("bias² of FDFA < 10⁻²⁰ ‖∇‖²", [True, True, False]),
        ("Var FDFA (α → 0) < Var BP", [True, False]),
        ("feedback part summed over all lags: α = 0.01 < α = 1", [False]),
    ],
)
def test_where_a_claim_holds(table, claim, verdicts):
    assert table[table.claim == claim].holds.tolist() == verdicts


def test_failures_are_not_marginal(table):
    fails = table[~table.holds & (table.claim != "feedback part summed over all lags: α = 0.01 < α = 1")]
    assert (fails.ratio > 1.15).all()


def test_table_is_complete(table):
    assert table[["claim", "setting", "why"]].map(bool).all(axis=None)
    assert table[["a", "b", "ratio"]].notna().all(axis=None)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("readout", ["perturbed", "exact"])
def test_equal_input_norms_suffice_for_activities_to_beat_weights(seed, readout):
    net, x, y = example([9, 8, 8, 3], seed=seed)
    assert weights_leak_less(net, x, readout)
    activities = predict("fg-a", net, x, y, 4, readout=readout).total()
    assert activities < predict("fg-w", net, x, y, 4, per_sample=True).total() < predict("fg-w", net, x, y, 4).total()


def test_the_counterexample_violates_the_sufficient_condition():
    net, x, _ = example([20, 10, 3], readout=0.1, inputs=6.0)
    assert not weights_leak_less(net, x)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_hidden_layer_never_loses_in_any_component(activation, rate, batch_size):
    net, x, y = example([6, 5, 3], activation, gain=2.0)
    fdfa = predict("fdfa", net, x, y, batch_size, feedback_lr=rate).variance
    fg_a = predict("fg-a", net, x, y, batch_size, site="post").variance
    assert all((fdfa[name] <= fg_a[name] * (1 + 1e-10) + 1e-15).all() for name in fdfa)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_last_hidden_block_has_no_bias(activation):
    net, x, y = example([6, 5, 4, 3], activation, gain=2.0)
    bias = predict("fdfa", net, x, y, 4).bias
    torch.testing.assert_close(bias["1.affine.weight"], torch.zeros_like(bias["1.affine.weight"]), atol=1e-14, rtol=0)
    assert bias["0.affine.weight"].norm() > 1e-3


def test_feedback_rate_limit_is_where_the_errors_cross():
    found = contest(*example([6, 5, 4, 3], gain=2.0, seed=51))
    rate = float(found.feedback_lr_limit(380))
    assert 0 < rate < 1
    assert found.fdfa(380, rate) == pytest.approx(float(found.fg_a(380)), rel=1e-10)


def test_batch_limit_is_where_even_a_vanishing_rate_loses():
    found = contest(*example([6, 5, 4, 3], gain=2.0, seed=51))
    assert found.fdfa(0.99 * found.batch_limit, 1e-9) < found.fg_a(0.99 * found.batch_limit)
    assert found.fdfa(1.01 * found.batch_limit, 1e-9) > found.fg_a(1.01 * found.batch_limit)


def test_contest_equals_predictions():
    net, x, y = example([6, 5, 4, 3], gain=2.0, seed=51)
    found = contest(net, x, y, block=0, perturbation="rademacher")
    fdfa = predict("fdfa", net, x, y, 6, feedback_lr=0.2, perturbation="rademacher")
    fg_a = predict("fg-a", net, x, y, 6, site="post", perturbation="rademacher")
    assert found.fdfa(6, 0.2) == pytest.approx(fdfa.total("mse", 0), rel=1e-12)
    assert found.fg_a(6) == pytest.approx(fg_a.total("mse", 0), rel=1e-12)
