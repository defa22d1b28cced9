"""Claims: verdicts follow the data, and are wrong no more often than they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis import claims, logs
from fdfa_core.errors import InvalidInput

EXPERIMENTS = ("width", "trajectory", "convergence")


@pytest.fixture(scope="module")
def logs_of(tmp_path_factory):
    """Synthetic logs in which FG-W and FG-A are equally noisy and FDFA (α = 0.1) much less so."""
    wanted = {name: synthetic_logs.EXPERIMENTS[name] for name in EXPERIMENTS}
    experiments, root = synthetic_logs.write(tmp_path_factory.mktemp("claims"), wanted)
    return {name: logs.load(root, name, profile="tiny", experiments=experiments) for name in EXPERIMENTS}


def judge(monkeypatch, *samples, direction="greater"):
    """Return verdicts on claims "mean > 0" (or <), each given as the values of its components."""
    made = [
        claims.Claim(str(i), "", "e", "", direction, 0.0, False, lambda _, s=s: {str(k): np.array(v) for k, v in enumerate(s)})
        for i, s in enumerate(samples)
    ]
    monkeypatch.setattr(claims, "CLAIMS", made)
    return claims.verdicts(claims.components({"e": None}))


def test_a_clear_difference_supports_the_claim(monkeypatch):
    assert judge(monkeypatch, [[1.0, 1.1, 0.9, 1.05]])["verdict"].tolist() == ["supported"]


def test_a_clear_difference_the_other_way_does_not(monkeypatch):
    assert judge(monkeypatch, [[-1.0, -1.1, -0.9, -1.05]])["verdict"].tolist() == ["not supported"]


def test_a_claim_below_a_threshold_is_read_the_other_way(monkeypatch):
    assert judge(monkeypatch, [[-1.0, -1.1, -0.9, -1.05]], direction="less")["verdict"].tolist() == ["supported"]


def test_scatter_around_the_threshold_is_inconclusive(monkeypatch):
    assert judge(monkeypatch, [[-1.0, 1.2, 0.3, -0.4]])["verdict"].tolist() == ["inconclusive"]


def test_a_claim_is_as_weak_as_its_weakest_component(monkeypatch):
    row = judge(monkeypatch, [[1.0, 1.1, 0.9], [0.2, -0.1, 0.3]]).iloc[0]
    assert (row["verdict"], row["weakest"], row["components"]) == ("inconclusive", "1", 2)


def test_one_component_the_other_way_is_enough_against_a_claim(monkeypatch):
    assert judge(monkeypatch, [[1.0, 1.1, 0.9, 1], [-1.0, -1.1, -0.9, -1]])["verdict"].item() == "not supported"


@pytest.mark.parametrize("untestable", [[-1.0], [-0.1, -0.1, -0.1], [0.3, 0.1 + 0.2]])
def test_a_component_that_cannot_be_tested_is_still_one_that_must_hold(monkeypatch, untestable):
    """One seed, or seeds that differ by rounding alone, say nothing; left out, they would let the others decide."""
    row = judge(monkeypatch, [[1.0, 1.1, 0.9, 1.05], untestable]).iloc[0]
    assert (row["verdict"], row["components"], row["p"]) == ("inconclusive", 2, 1.0)


def test_a_p_value_that_would_do_alone_may_not_among_ten(monkeypatch):
    border = [[0.5, 1.5, 1.0, 0.1, 0.4]]  # one-sided p = 0.024
    alone = judge(monkeypatch, border)["verdict"].tolist()
    among = judge(monkeypatch, border, *[[[0.3, -0.2, 0.1]]] * 9)["verdict"].tolist()
    assert (alone[0], among[0]) == ("supported", "inconclusive")


def test_true_null_claims_are_rejected_as_often_as_stated(monkeypatch):
    """400 claims whose mean is at the threshold: at level 0.05 the share below it lies in [0.02, 0.085] with probability
    above 0.998; after correction the number of verdicts is about Poisson(0.1), so more than two have probability 0.0002."""
    table = judge(monkeypatch, *np.random.default_rng(0).standard_normal((400, 1, 5)))
    assert 0.02 <= (table["p"] < 0.05).mean() <= 0.085 and (table["verdict"] != "inconclusive").sum() <= 2


def test_all_claims_are_judged_on_the_logs(logs_of):
    table = claims.verdicts(claims.components(logs_of)).set_index("claim")
    assert list(table.index) == ["1a", "1b", "2a", "2b", "3a", "3b", "4", "5", "6a", "6b"]


def test_known_ratios_of_variances_are_found(logs_of):
    """FG-W and FG-A are the same estimator here; FDFA's variance is α/(2 − α) = 1/19 of ‖τ‖² a component."""
    tested = claims.components(logs_of).set_index(["claim", "component"])
    equal = tested.loc[("1b", "hidden block 1, weights of `bp`"), "estimate"]
    quieter = tested.loc[("2b", "hidden block 1, weights of `bp`"), "estimate"]
    assert (equal, quieter) == (pytest.approx(1, rel=0.3), pytest.approx(25 * 19 / 24, rel=0.3))


def test_what_was_not_run_is_inconclusive_and_says_so(logs_of):
    """The synthetic widths hold neither FG-A nor α = 1."""
    table = claims.verdicts(claims.components(logs_of)).set_index("claim")
    assert table.loc["6a", ["components", "verdict", "p"]].tolist() == [0, "inconclusive", 1.0]


def test_one_seed_allows_no_test(logs_of):
    one = {}
    for name, log in logs_of.items():
        frames = (log.runs, log.metrics, log.probes, log.timing)
        one[name] = logs.Logs(*(frame[frame["seed"] == 0] for frame in frames))
    assert set(claims.verdicts(claims.components(one))["verdict"]) == {"inconclusive"}


@pytest.mark.parametrize("frame", ["metrics", "probes"])
def test_runs_that_differ_in_more_than_estimator_network_and_seed_are_refused(logs_of, frame):
    """A swept learning rate: which of the runs would the claim be of?"""

    def doubled(rows):
        return pd.concat([rows, rows.assign(run=rows["run"] + ", at another rate")], ignore_index=True)

    swept = {name: replace(one, **{frame: doubled(getattr(one, frame))}) for name, one in logs_of.items()}
    with pytest.raises(InvalidInput, match="several runs of .*seed 0"):
        claims.components(swept)


def test_numbers_of_the_table_are_finite(logs_of):
    tested = claims.components(logs_of)
    for frame in (tested, claims.verdicts(tested), claims.verdicts(pd.DataFrame(columns=tested.columns))):
        assert np.isfinite(frame.select_dtypes("number").to_numpy(float)).all()
