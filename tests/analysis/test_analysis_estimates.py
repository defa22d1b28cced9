"""Variance, bias and alignment from logged moments, against draws whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from analysis import alignment, bias, layers, variance
from fdfa_core.errors import InvalidInput
from synthetic_logs import row

SIZE, DRAWS, TRIALS = 30, 200, 120
TARGET = np.linspace(0.1, 1, SIZE)
NORM = np.linalg.norm(TARGET)
OFFSET = 0.3 * NORM * np.eye(SIZE)[0]  # the bias of the biased estimator


def probes(draws_of, trials=TRIALS, draws=DRAWS, target=TARGET):
    """Return a probe table of independent repetitions; `seed` counts them."""
    rng = np.random.default_rng(1)
    rows = [
        {"run": str(t), "seed": t, "step": 0, "estimator": "x", "block": 0, "level": "block", "role": "hidden", "draws": draws}
        | row(draws_of(rng, draws), target, target)
        for t in range(trials)
    ]
    return pd.DataFrame(rows)


def forward(rng, draws):
    v = rng.standard_normal((draws, SIZE))
    return (v @ TARGET)[:, None] * v


def noisy(rng, draws):
    return TARGET + OFFSET + 0.5 * rng.standard_normal((draws, SIZE))


@pytest.fixture(scope="module")
def unbiased():
    return probes(forward)


@pytest.fixture(scope="module")
def biased():
    return probes(noisy)


def inside(frame, truth, low="low", high="high"):
    return float(((frame[low] <= truth) & (truth <= frame[high])).mean())


# --- variance --------------------------------------------------------------------------------------------------------


def test_noise_to_signal_ratio_of_a_forward_gradient_is_its_size_plus_one(unbiased):
    assert variance.normalised(unbiased)["nsr"].mean() == pytest.approx(SIZE + 1, rel=0.05)


def test_interval_of_a_total_variance_covers_it(unbiased):
    assert inside(variance.total(unbiased), (SIZE + 1) * NORM**2) >= 0.85


def test_mean_variance_of_a_component_is_the_total_over_the_size(biased):
    assert variance.per_component(biased)["component_variance"].mean() == pytest.approx(0.25, rel=0.02)


def test_data_noise_is_that_of_the_reference_whatever_the_estimator(unbiased):
    assert variance.data_noise(unbiased)["nsr"].to_numpy() == pytest.approx(0.3)


def test_data_noise_is_counted_once_for_all_estimators_of_a_run(unbiased):
    twice = pd.concat([unbiased, unbiased.assign(estimator="y")])
    assert len(variance.data_noise(twice)) == len(unbiased)


def test_a_vanished_reference_normalises_nothing(unbiased):
    assert variance.normalised(unbiased.assign(reference_norm=1e-9)).empty


def test_noise_over_that_of_the_batch_is_a_ratio_of_variances_whatever_the_norms(unbiased):
    """The yardstick is 1, and so is an estimator of equal variance, although the norms of the two gradients differ by 50."""
    planted = unbiased.assign(reference_variance=8.0, variance=8.0, variance_se=0.8, target_norm=0.1, reference_norm=5.0)
    assert variance.over_data_noise(variance.data_noise(planted))["ratio"].to_numpy() == pytest.approx(1)
    assert variance.over_data_noise(planted)["ratio"].to_numpy() == pytest.approx(1)
    found = variance.over_data_noise(planted.assign(variance=24.0))
    assert found["ratio"].to_numpy() == pytest.approx(3) and found["ratio_se"].to_numpy() == pytest.approx(0.1)


def test_batches_that_do_not_differ_are_no_yardstick(unbiased):
    assert variance.over_data_noise(unbiased.assign(reference_variance=0.0)).empty


def test_component_intervals_cover_the_variance_of_products():
    v = np.random.default_rng(2).standard_normal((1000, 200, 2))
    frame = variance.components(v[..., 0] * v[..., 1])  # a product of two normal factors: variance 1, kurtosis 9
    assert 0.88 <= inside(frame, 1.0) <= 0.97


def test_components_report_the_kurtosis_that_rules_out_chi_square():
    v = np.random.default_rng(2).standard_normal((20000, 2))
    assert variance.components(v[:, :1] * v[:, 1:])["kurtosis"].item() == pytest.approx(9, rel=0.25)


@pytest.mark.parametrize("draws", [np.ones((3, 2)), np.full((5, 2), np.nan)], ids=["too few", "not finite"])
def test_components_refuse_what_has_no_fourth_moment(draws):
    with pytest.raises(InvalidInput):
        variance.components(draws)


# --- bias ------------------------------------------------------------------------------------------------------------


def test_squared_bias_of_an_unbiased_estimator_averages_to_zero(unbiased):
    """The naive ‖ḡ − τ‖² would average to (n + 1)/R ≈ 0.16 of ‖τ‖², ten standard errors away."""
    relative = unbiased["bias2"] / NORM**2
    assert abs(relative.mean()) < 4 * relative.std() / np.sqrt(TRIALS)


def test_bias_is_detected_where_there_is_one(biased):
    assert bias.norm(biased)["detected"].mean() > 0.95


def test_bias_is_seldom_detected_where_there_is_none(unbiased):
    assert bias.norm(unbiased)["detected"].mean() < 0.1


def test_interval_of_the_relative_bias_covers_it(biased):
    assert inside(bias.norm(biased), 0.3, "relative_bias_low", "relative_bias_high") >= 0.88


def test_direction_of_the_mean_is_freed_of_noise(unbiased):
    """cos(ḡ, τ) of an unbiased estimator is pulled to 0.93 by the noise of 200 draws; corrected it is 1."""
    frame = bias.mean_direction(unbiased)
    assert frame["mean_cosine"].mean() < 0.95 < 0.985 < frame["direction_cosine"].mean()


def test_direction_of_the_mean_is_not_resolved_by_too_few_draws():
    assert not bias.mean_direction(probes(forward, trials=20, draws=3))["resolved"].all()


def test_mean_squared_error_is_squared_bias_plus_variance_row_by_row(biased):
    wide = bias.split(biased).pivot(index="seed", columns="quantity", values="value")
    np.testing.assert_allclose(wide["mse"], wide["bias2"] + wide["variance"], rtol=1e-10)


def test_standard_error_of_the_mean_squared_error_is_its_scatter_over_repetitions(biased):
    mse = bias.split(biased).query("quantity == 'mse'")
    assert mse["se"].mean() == pytest.approx(mse["value"].std(), rel=0.25)


def test_split_over_seeds_averages_negative_squared_biases_too(unbiased):
    out = bias.split_over_seeds(unbiased, ["estimator"]).set_index("quantity")
    assert not out.loc["bias2", "detected"] and out.loc["bias2", "low"] < 0 < out.loc["bias2", "high"]


# --- alignment -------------------------------------------------------------------------------------------------------


def test_angle_of_a_forward_gradient_is_that_of_its_mean_cosine(unbiased):
    from scipy.special import gammaln

    cosine = np.exp(gammaln(SIZE / 2) - gammaln((SIZE + 1) / 2)) / np.sqrt(np.pi)
    out = alignment.angles(unbiased, ["estimator"]).iloc[0]
    assert out["low"] <= np.degrees(np.arccos(cosine)) <= out["high"]


def test_angles_are_not_averaged_as_angles():
    frame = probes(forward, trials=2, draws=4).assign(cosine_mean=[1.0, 0.0])
    assert alignment.angles(frame, ["estimator"])["estimate"].item() == pytest.approx(60)


def test_bp_has_angle_zero():
    exact = probes(lambda rng, draws: np.tile(TARGET, (draws, 1)), trials=3)
    assert alignment.angles(exact, ["estimator"])["high"].item() == pytest.approx(0, abs=1e-5)


def test_angles_to_a_vanished_reference_are_left_out_and_counted():
    frame = probes(forward, trials=4)
    frame.loc[0, "valid"], frame.loc[0, "cosine_mean"] = False, -1.0
    out = alignment.angles(frame, ["estimator"]).iloc[0]
    assert (out["seeds"], out["untrusted"], out["of"]) == (3, 1, 4)


def test_a_group_without_reference_has_no_angle_and_is_listed():
    frame = probes(forward, trials=4).assign(valid=False)
    assert len(alignment.angles(frame, ["estimator"])) == 0
    assert alignment.vanished(frame, ["estimator"])["rows"].item() == 4


def test_an_estimate_of_zero_has_no_angle():
    frame = probes(forward, trials=3).assign(cosine_mean=np.nan, cosine_m2=np.nan)
    assert len(alignment.angles(frame, ["estimator"])) == 0


def test_angle_to_the_reference_is_not_that_to_the_batch():
    """The estimate follows its batch's gradient to the bit, and stands 60° from that of all data."""
    frame = probes(forward, trials=3).assign(cosine_mean=1.0, cosine_reference_mean=0.5)
    found = {against: alignment.angles(frame, ["estimator"], against)["estimate"].item() for against in alignment.AGAINST}
    assert found == {"target": pytest.approx(0), "reference": pytest.approx(60)}


def test_share_of_a_reference_is_what_it_has_in_common_with_the_gradient_behind_it():
    """Batches of gradient μ and noise of 9 ‖μ‖²: the mean of 16 has cos² = 1/(1 + 9/16) to μ, and two have the cosine 0.1."""
    rng, batches, size = np.random.default_rng(3), 16, 20_000
    batch = np.ones(size) + 3 * rng.standard_normal((batches, size))
    mean, unit = batch.mean(0), batch / np.linalg.norm(batch, axis=1, keepdims=True)
    stability = ((unit @ unit.T).sum() - batches) / (batches * (batches - 1))
    truth = mean.sum() ** 2 / (size * (mean @ mean))
    assert truth == pytest.approx(1 / (1 + 9 / 16), abs=0.01)
    assert alignment.share(stability, batches) == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("stability, stable", [([0.06, 0.06], True), ([0.9, 0.05], False), ([0.9, np.nan], False)])
def test_a_mean_over_seeds_is_stable_only_where_every_seed_is(stability, stable):
    """With 16 batches the threshold is a cosine of 1/17 = 0.059; one seed below it does not hide behind another."""
    frame = probes(forward, trials=2).assign(reference_stability=stability, reference_batches=16)
    found = alignment.angles(frame, ["estimator"]).iloc[0]
    assert found["stable"] == stable and found["stability"] == pytest.approx(np.nan_to_num(stability).mean())


def test_chance_is_the_spread_of_random_directions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 100))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert alignment.degrees(cosine).std() == pytest.approx(alignment.chance(100), rel=0.05)


def test_an_unknown_reference_is_refused(unbiased):
    with pytest.raises(InvalidInput, match='"target" or "reference"'):
        alignment.cosines(unbiased, against="truth")


# --- what batches agree on, and how activations grow -----------------------------------------------------------------


def pairs(draws):
    """Return the mean of ⟨g_r, g_s⟩ over r ≠ s, the slow way."""
    return np.mean([draws[r] @ draws[s] for r in range(len(draws)) for s in range(len(draws)) if r != s])


@pytest.mark.parametrize("equally_long", [True, False])
def test_agreement_is_the_mean_over_all_pairs_of_draws(equally_long):
    draws = TARGET + np.random.default_rng(3).standard_normal((9, SIZE))
    draws *= 1 / np.linalg.norm(draws, axis=1)[:, None] if equally_long else np.arange(1, 10)[:, None]
    frame = pd.DataFrame([row(draws, TARGET, TARGET) | {"sampling": "fresh_batches"}])
    found = layers.agreement(frame)["agreement"].item()
    assert found == pytest.approx(pairs(draws) / (draws**2).sum(1).mean(), rel=1e-9)
    cosines = pairs(draws / np.linalg.norm(draws, axis=1)[:, None])
    assert (found == pytest.approx(cosines, rel=1e-9)) == equally_long


def test_batches_without_any_signal_agree_on_the_samples_that_they_share():
    """N/(N + M) for batches of N that are drawn with replacement from M samples, as the docstring says."""
    rng, batch, samples = np.random.default_rng(4), 20, 60
    each = rng.standard_normal((samples, 400))
    draws = np.stack([each[rng.integers(samples, size=batch)].mean(0) for _ in range(600)])
    frame = pd.DataFrame([row(draws, each[0], each[0]) | {"sampling": "fresh_batches"}])
    assert layers.agreement(frame)["agreement"].item() == pytest.approx(batch / (batch + samples), rel=0.08)


def test_draws_that_share_a_batch_have_no_agreement(unbiased):
    with pytest.raises(InvalidInput, match="sampling: got 'given_batch'; accepted: \"fresh_batches\".*run it again"):
        layers.agreement(unbiased.assign(sampling="given_batch"))


def test_estimates_that_are_all_zero_have_no_direction_to_agree_on():
    frame = pd.DataFrame({"sampling": "fresh_batches", "variance": [0.0, 1.0], "norm2_mean": [0.0, 2.0]})
    assert layers.agreement(frame)["agreement"].tolist() == [0.5]


def stream(**rms):
    """Return probes of two estimators: run → {(step, block): root mean square}."""
    rows = [
        {"run": run, "seed": i, "step": step, "block": block, "estimator": estimator, "activation_rms": value}
        for i, (run, values) in enumerate(rms.items())
        for (step, block), value in values.items()
        for estimator in ("bp", "fg-w")
    ]
    return pd.DataFrame(rows).assign(level="block", role="hidden")


def test_growth_is_over_the_first_probe_and_amplification_over_the_block_below():
    one = {(1, 0): 2.0, (1, 1): 4.0, (1, 3): 1.0, (9, 0): 3.0, (9, 1): 12.0, (9, 3): 5.0}  # block 2 has no parameters
    other = {key: value * (8 if key == (9, 1) else 1) for key, value in one.items()}
    found = layers.growth(stream(a=one, b=other), ["block", "step"]).set_index(["quantity", "block", "step"])
    last = found.xs(9, level="step")["estimate"]
    assert last["growth"].to_dict() == pytest.approx({0: 1.5, 1: 3 * 8**0.5, 3: 5.0})
    assert last["amplification"].to_dict() == pytest.approx({1: 4 * 8**0.5})  # nothing is known below blocks 0 and 3
    assert (found.loc["growth"].xs(1, level="step")["estimate"] == 1).all() and (found["seeds"] == 2).all()


def test_activations_that_vanished_or_were_not_measured_divide_nothing():
    rows = layers.activations(stream(a={(1, 0): 0.0, (1, 1): 1.0, (9, 0): 3.0, (9, 1): 0.0}))
    assert rows[["growth", "amplification"]].isna().to_numpy().sum() == 5
    assert rows.set_index(["step", "block"]).loc[(9, 1), ["growth", "amplification"]].tolist() == [0, 0]
    assert layers.growth(stream(a={(1, 0): np.nan}), ["block"]).empty
