"""How often an estimate points downhill, on planted cosines, and whether its interval covers."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis import descent
from fdfa_core.errors import InvalidInput


def probes(cosines, steps=(1, 2, 4, 8, 16, 32), **more):
    """Return probes of one estimator: one list of cosines a seed, one for each step."""
    rows = [
        {"seed": seed, "step": step, "cosine_reference_mean": value}
        for seed, values in enumerate(cosines)
        for step, value in zip(steps, values, strict=True)
    ]
    about = {"estimator": "dfa", "level": "block", "role": "hidden", "block": 0, "valid": True, "reference_norm": 1.0}
    about |= {"cosine_reference_m2": 0.0, "draws": 16, "reference_stability": 0.5, "reference_batches": 16}
    return pd.DataFrame(rows).assign(**about | more)


UP_THEN_DOWN = [0.1, 0.2, 0.1, -0.1, -0.1, -0.1]
DOWN = [-0.1] * 6


def test_shares_are_those_of_the_probes_of_a_window_with_a_positive_cosine():
    found = descent.frequency(probes([UP_THEN_DOWN, DOWN]))
    assert found[["first", "last"]].to_numpy().tolist() == [[1, 2], [4, 8], [16, 32]]
    assert found["estimate"].tolist() == [0.5, 0.25, 0.0]
    assert (found["seeds"].unique().item(), found["probes"].unique().item(), found["draws"].unique().item()) == (2, 4, 1)


def test_the_batch_says_nothing_of_the_reference():
    """A positive cosine with the batch's own gradient does not count."""
    assert descent.frequency(probes([DOWN], cosine_mean=1.0))["estimate"].tolist() == [0, 0, 0]


def test_signs_of_means_over_draws_that_differ_are_told():
    assert set(descent.frequency(probes([DOWN], cosine_reference_m2=1e-4))["draws"]) == {16}


def test_zero_estimates_and_vanished_references_are_left_out_and_counted():
    frame = probes([[np.nan, 0.1, 0.1, 0.1, 0.1, 0.1], UP_THEN_DOWN])
    frame.loc[(frame["seed"] == 1) & (frame["step"] == 1), "reference_norm"] = 1e-9
    first = descent.frequency(frame).iloc[0]
    assert (first["estimate"], first["probes"], first["left_out"]) == (1.0, 2, 2)


def test_one_reference_of_noise_marks_its_window_and_no_other():
    frame = probes([UP_THEN_DOWN, DOWN])
    frame.loc[(frame["seed"] == 1) & (frame["step"] == 16), "reference_stability"] = 0.05  # with 16 batches below 1/17
    assert descent.frequency(frame)["stable"].tolist() == [True, True, False]


@pytest.mark.parametrize("empty", [pd.DataFrame(), probes([DOWN], valid=False)], ids=["no probe", "no reference"])
def test_logs_that_cannot_say_are_refused(empty):
    with pytest.raises(InvalidInput, match="no probe"):
        descent.frequency(empty)


def test_a_coin_per_seed_has_the_interval_of_clopper_and_pearson():
    from statsmodels.stats.proportion import proportion_confint

    found = descent.binomial_interval([1.0, 0.0, 1.0, 1.0])
    assert found == pytest.approx((0.75, *proportion_confint(3, 4, method="beta")))


@pytest.mark.parametrize("spread, count", list(itertools.product([0.2, 2.0, 50.0], [3, 10])))
def test_interval_covers_the_mean_of_shares_whatever_their_spread(spread, count):
    """Shares from nearly coins to nearly constant, with the mean 0.8."""
    rng = np.random.default_rng(0)
    bounds = [descent.binomial_interval(rng.beta(0.8 * spread, 0.2 * spread, count))[1:] for _ in range(400)]
    assert np.mean([low <= 0.8 <= high for low, high in bounds]) >= 0.95
