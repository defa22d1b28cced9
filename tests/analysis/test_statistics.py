"""Intervals cover what they say they cover, on heavy-tailed draws, with sample sizes fixed beforehand.

Coverage of a nominal 95 % interval is counted over TRIALS independent experiments with fixed seeds. A count that is truly
0.95 lies within 0.95 ∓ 0.025 with probability above 0.999 at 1000 trials.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis import statistics
from fdfa_core.errors import InvalidInput

TRIALS = 1000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def forward_gradients(rng, trials, draws, size=40):
    """Return ‖g − ḡ‖² of weight-perturbed draws g = (τ·v)v, (trials, draws), and their true total variance."""
    target = np.linspace(0.1, 1, size)
    v = rng.standard_normal((trials, draws, size))
    g = (v @ target)[..., None] * v
    return ((g - g.mean(1, keepdims=True)) ** 2).sum(-1), (size + 1) * (target**2).sum()


def covered(low, high, truth):
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


def log_interval_coverage(rng, draws):
    q, truth = forward_gradients(rng, TRIALS, draws)
    variance = q.sum(1) / (draws - 1)
    se = q.std(1, ddof=1) / np.sqrt(draws) * draws / (draws - 1)
    return covered(*statistics.log_interval(variance, se, draws), truth)


def test_log_interval_covers_the_total_variance_of_forward_gradients(rng):
    assert 0.90 <= log_interval_coverage(rng, 300) <= 0.975


def test_log_interval_at_few_draws_falls_short_by_as_much_as_its_documentation_says(rng):
    assert 0.86 <= log_interval_coverage(rng, 32) <= 0.95


def test_a_chi_square_interval_for_the_same_component_would_not_cover(rng):
    """The reason why no such interval is used: kurtosis, not sample size."""
    v = rng.standard_normal((TRIALS, 300, 2))
    s2, df = (v[..., 0] * v[..., 1]).var(axis=1, ddof=1), 299
    assert covered(s2 * df / stats.chi2.ppf(0.975, df), s2 * df / stats.chi2.ppf(0.025, df), 1.0) < 0.75


def test_variance_z_is_standard_normal_under_the_truth(rng):
    q, truth = forward_gradients(rng, TRIALS, 300)
    z = statistics.variance_z(q.sum(1) / 299, q.std(1) / np.sqrt(300), truth)
    assert abs(z.mean()) < 0.35 and 0.9 < z.std() < 1.2


def test_slope_t_rejects_an_unbiased_estimator_about_as_often_as_nominal(rng):
    v = rng.standard_normal((TRIALS, 300))
    slope = v**2  # of a weight-perturbed draw: (v·τ)²/‖τ‖²
    _, p = statistics.slope_t(slope.mean(1), slope.var(1), 300)
    assert np.mean(p < 0.05) < 0.09


def test_slope_t_finds_a_scale_error_of_a_tenth(rng):
    slope = 1.1 * rng.standard_normal((200, 3500)) ** 2
    _, p = statistics.slope_t(slope.mean(1), slope.var(1), 3500)
    assert np.mean(p < 0.01) > 0.7


def test_interval_over_seeds_covers_the_geometric_mean_with_five_seeds(rng):
    values = np.exp(rng.normal(1.0, 0.7, (TRIALS, 5)))
    frame = pd.DataFrame({"trial": np.repeat(np.arange(TRIALS), 5), "seed": np.tile(np.arange(5), TRIALS), "v": values.ravel()})
    out = statistics.over_seeds(frame, "v", ["trial"], log=True)
    assert abs(covered(out["low"], out["high"], np.e) - 0.95) < 0.025


def test_over_seeds_agrees_with_the_interval_of_one_sample(rng):
    values = rng.normal(size=6)
    out = statistics.over_seeds(pd.DataFrame({"g": "a", "seed": range(6), "v": values}), "v", ["g"]).iloc[0]
    assert tuple(out[["estimate", "low", "high"]]) == pytest.approx(statistics.mean_interval(values)[:3])


def test_repeated_rows_of_a_seed_do_not_narrow_the_interval(rng):
    """A seed is the unit: a hundred dependent probe steps of five seeds are five values."""
    one = pd.DataFrame({"g": "a", "seed": range(5), "v": rng.normal(size=5)})
    many = pd.concat([one] * 100, ignore_index=True)
    once, again = (statistics.over_seeds(f, "v", ["g"]) for f in (one, many))
    pd.testing.assert_frame_equal(once, again)


def test_one_seed_falls_back_to_the_interval_over_draws():
    frame = pd.DataFrame({"g": ["a"], "seed": [0], "v": [10.0], "se": [1.0]})
    out = statistics.over_seeds(frame, "v", ["g"], se="se", log=True).iloc[0]
    assert (out["interval"], out["low"]) == ("draws", pytest.approx(10 * np.exp(-1.959964 / 10)))


def test_one_seed_without_standard_error_says_that_it_has_no_interval():
    out = statistics.over_seeds(pd.DataFrame({"g": ["a"], "seed": [0], "v": [10.0]}), "v", ["g"]).iloc[0]
    assert (out["interval"], out["low"], out["high"]) == ("none", 10.0, 10.0)


def test_zero_variance_of_a_deterministic_estimator_stays_zero():
    out = statistics.over_seeds(pd.DataFrame({"g": "bp", "seed": [0, 1], "v": 0.0}), "v", ["g"], log=True).iloc[0]
    assert tuple(out[["estimate", "low", "high"]]) == (0, 0, 0)


def test_a_seed_that_is_zero_alone_is_left_out_of_a_geometric_mean_and_counted():
    """A block that died in one network (no unit was alive) must not cost the others their average."""
    frame = pd.DataFrame({"g": ["a"] * 4 + ["bp"] * 4, "seed": [0, 1, 2, 3] * 2, "v": [0.0, 2.0, 3.0, 5.0, *[0.0] * 4]})
    out = statistics.over_seeds(frame, "v", ["g"], log=True).set_index("g")
    alive = statistics.over_seeds(frame[frame["v"] > 0], "v", ["g"], log=True).set_index("g").loc["a"]
    pd.testing.assert_series_equal(out.loc["a"].drop("zeros"), alive)
    assert out["seeds"].to_dict() == {"a": 3, "bp": 4} and out["zeros"].to_dict() == {"a": 1, "bp": 0}


def test_one_seed_left_beside_zeros_has_the_interval_of_its_draws():
    frame = pd.DataFrame({"g": "a", "seed": [0, 1], "v": [0.0, 10.0], "se": [0.0, 1.0]})
    out = statistics.over_seeds(frame, "v", ["g"], se="se", log=True).iloc[0]
    assert (out["seeds"], out["zeros"], out["interval"]) == (1, 1, "draws")
    assert out["low"] == pytest.approx(10 * np.exp(-1.959964 / 10))


def test_settings_mixed_in_one_group_are_refused():
    frame = pd.DataFrame({"g": "a", "run": ["x", "y"], "seed": 0, "v": [1.0, 2.0]})
    with pytest.raises(InvalidInput, match="several runs of one seed"):
        statistics.over_seeds(frame, "v", ["g"])


@pytest.mark.parametrize(
    "frame, said",
    [
        (pd.DataFrame({"g": ["a"], "v": [1.0]}), "seed"),
        (pd.DataFrame({"g": ["a"], "seed": [0], "v": [np.nan]}), "not finite"),
    ],
    ids=["missing column", "not finite"],
)
def test_over_seeds_names_what_is_wrong_with_a_frame(frame, said):
    with pytest.raises(InvalidInput, match=said):
        statistics.over_seeds(frame, "v", ["g"])


def test_slope_interval_covers_the_exponent(rng):
    widths, seeds, trials = np.array([32, 64, 128, 256]), 8, 200
    frame = pd.DataFrame(
        [(t, s, w) for t in range(trials) for s in range(seeds) for w in widths], columns=["trial", "seed", "width"]
    )
    offset = rng.normal(0, 0.5, (trials, seeds)).repeat(4)
    frame["nsr"] = frame["width"] ** 1.5 * np.exp(offset + rng.normal(0, 0.2, len(frame)))
    out = statistics.slopes(frame, "width", "nsr", ["trial"])
    assert 0.90 <= covered(out["low"], out["high"], 1.5) <= 0.99


def test_curvature_of_a_power_law_is_zero_and_of_a_crossover_is_not():
    frame = pd.DataFrame([(s, w) for s in range(2) for w in (32, 128, 512)], columns=["seed", "width"])
    frame["v"] = frame["width"] ** 2.0
    frame["w"] = frame["width"] + frame["width"] ** 2 / 128
    frame["g"] = "a"
    power, crossover = (statistics.slopes(frame, "width", c, ["g"])["curvature"].item() for c in "vw")
    assert abs(power) < 1e-9 and crossover > 0.05


def test_slope_of_one_seed_has_the_interval_of_its_fit():
    frame = pd.DataFrame({"g": "a", "seed": 0, "width": [1, 2, 4, 8], "v": [1.0, 2.2, 3.9, 8.3]})
    out = statistics.slopes(frame, "width", "v", ["g"]).iloc[0]
    assert out["interval"] == "fit" and out["low"] < 1 < out["high"]


def test_seeds_without_a_slope_leave_the_interval_alone():
    """A seed with one width left, after its other runs diverged, says nothing of the slope, nor of its degrees of freedom."""
    frame = pd.DataFrame({"g": "a", "seed": 0, "width": [1, 2, 4], "v": [1.0, 2.2, 3.9]})
    lost = pd.DataFrame({"g": "a", "seed": [1, 2, 3], "width": [8, 8, 16], "v": [9.0, 9.0, 20.0]})
    alone, both = (statistics.slopes(rows, "width", "v", ["g"]) for rows in (frame, pd.concat([frame, lost])))
    pd.testing.assert_frame_equal(alone, both)


def test_slope_needs_two_distinct_widths():
    with pytest.raises(InvalidInput, match="two or more distinct"):
        statistics.slopes(pd.DataFrame({"g": "a", "seed": [0, 1], "width": 32, "v": 1.0}), "width", "v", ["g"])


def test_difference_on_the_logarithmic_scale_is_a_ratio(rng):
    b = np.exp(rng.normal(size=20))
    test = statistics.difference(3 * b, b * np.exp(rng.normal(0, 0.01, 20)), paired=True, log=True)
    assert test.estimate == pytest.approx(3, rel=0.02) and test.low < test.estimate < test.high


def test_pairing_finds_what_welch_misses(rng):
    common = rng.normal(0, 1, 8)
    a, b = common + 0.1 + rng.normal(0, 0.02, 8), common
    assert statistics.difference(a, b, paired=True).p < 0.001 < 0.1 < statistics.difference(a, b).p


def test_one_sided_alternative_halves_or_completes_the_p_value(rng):
    a, b = rng.normal(1, 1, 10), rng.normal(0, 1, 12)
    greater, less = (statistics.difference(a, b, alternative=side).p for side in ("greater", "less"))
    assert greater + less == pytest.approx(1)


def test_equivalence_is_not_shown_by_a_wide_interval(rng):
    near, wide = 1 + rng.normal(0, 0.01, 8), 1 + rng.normal(0, 1, 8)
    assert statistics.equivalence(near, 1, 0.1) < 0.01 < statistics.equivalence(wide, 1, 0.1)


def test_holm_multiplies_by_the_number_of_hypotheses_left():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_equals_the_library_with_ties_zeros_and_ones(rng):
    for p in ([], [0.3], [0.02, 0.02, 0.5, 1.0, 0.0], rng.random(50), rng.random(200) ** 8):
        expected = multipletests(p, method="holm")[1] if len(p) else []
        np.testing.assert_allclose(statistics.holm(p), expected, rtol=1e-15)


def test_bootstrap_interval_covers_a_median(rng):
    samples = rng.exponential(size=(200, 30))
    bounds = [statistics.bootstrap_interval(s, np.median, resamples=499)[1:3] for s in samples]
    assert 0.88 <= covered(*zip(*bounds, strict=True), np.log(2)) <= 1


def test_bootstrap_interval_is_reproducible(rng):
    values = rng.exponential(size=25)
    assert statistics.bootstrap_interval(values, resamples=99) == statistics.bootstrap_interval(values, resamples=99)


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean_interval([1.0]),
        lambda: statistics.geometric_interval([1.0, -1.0]),
        lambda: statistics.log_interval(-1.0, 1.0),
        lambda: statistics.difference([1, 2], [1, 2, 3], paired=True),
        lambda: statistics.difference([1, 2], [1, 2], alternative="bigger"),
        lambda: statistics.equivalence([1, 2], 1, 0),
        lambda: statistics.holm([0.5, 1.5]),
    ],
    ids=["one value", "negative", "negative variance", "unequal pairs", "alternative", "margin", "not a probability"],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
