"""Closed forms beside logged runs: small real runs, measured against theory with stated error rates, and drawn."""

import importlib
import json
import warnings

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis import cosines, feedback, logs, momentum, phases, select, statistics
from analysis.rebuilt import closed_forms
from analysis.theory import feedback_law, predict
from analysis.theory.difference import quotient_errors
from fdfa_core import fully_connected, paths
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import recording
from fdfa_core.training.run import train

FIGURES = {
    "bias_decomposition": ("drift",),
    "cosine_vs_dimension": ("cosine",),
    "cross_talk": ("layers",),
    "fair_momentum": ("averaging", "drift"),
    "feedback_error": ("feedback",),
    "phase_diagram": ("batch",),
    "theory_vs_measured": ("width", "batch", "layers"),
    "variance_vs_batch": ("batch",),
    "variance_vs_depth": ("layers",),
    "variance_vs_width": ("width",),
    "zeroth_order": ("width",),
}
ALARM = 1e-3  # rate of false alarms of each family of tests, had the seeds not been fixed

HEAD = """
[data]
name = "digits"
train_size = 256
[network]
architecture = "fully_connected"
hidden = [6, 5]
activation = "tanh"
[estimator]
name = "bp"
[evaluation]
schedule = { kind = "first_and_last" }
"""
FROZEN = '[training]\nbatch_size = 8\nsteps = 12\ndrop_last = true\noptimizer = "none"\n'
FRESH = '[probe]\nschedule = { kind = "at", steps = [11] }\nsampling = "fresh_batches"\nreplicates = 120\nreference_size = 64\n'
EXPERIMENTS = {
    "width": FROZEN + FRESH + """
estimators = [{ name = "self" }, { name = "fg-w" }, { name = "fdfa", feedback_lr = 0.3, warmup = true }]
[grid]
"network.hidden" = [[4, 4], [8, 8]]
seed = [0, 1]
""",
    "batch": FROZEN + FRESH + """
estimators = [{ name = "self" }, { name = "fg-a", site = "post" },
              { name = "fdfa", feedback_lr = 0.3, warmup = true }, { name = "fdfa", feedback_lr = 0.3 },
              { name = "fdfa", feedback_lr = 0.3, warmup = true, joint = "cyclic" }]
[grid]
"training.batch_size" = [2, 8]
seed = [0, 1, 2]
""",
    "layers": FROZEN + FRESH + """
feedback = true
estimators = [{ name = "fg-a" }, { name = "fg-a", joint = false }, { name = "fdfa", feedback_lr = 1.0, warmup = true },
              { name = "fdfa", feedback_lr = 1.0, warmup = true, joint = false }]
[grid]
"network.hidden" = [[5, 5, 5], [5]]
seed = [0, 1]
""",
    "feedback": FROZEN.replace("12", "33") + """
[probe]
schedule = { kind = "at", steps = [0, 1, 4, 32] }
replicates = 60
reference_size = 256
feedback = true
estimators = [{ name = "fdfa", feedback_lr = 0.1 }, { name = "fdfa", feedback_lr = 0.1, warmup = true }]
[grid]
seed = [0, 1]
""",
    "cosine": FROZEN.replace("batch_size = 8", "batch_size = 1").replace("12", "1") + """
[probe]
schedule = { kind = "at", steps = [0] }
replicates = 200
reference_size = 8
estimators = [{ name = "fg-w" }, { name = "fg-w", tangents = 4 }, { name = "fg-a" }, { name = "fg-a", tangents = 4 },
              { name = "fg-a", tangents = 4, combine = "projection" }]
[grid]
"network.hidden" = [[4], [12]]
seed = [0, 1]
""",
    "averaging": FROZEN.replace("12", "41") + """
[probe]
schedule = { kind = "at", steps = [30, 35, 40] }
replicates = 100
reference_size = 256
estimators = [{ name = "fg-a", site = "post" }, { name = "fg-a-averaged", site = "post", gradient_lr = 0.2 },
              { name = "fg-a-averaged", site = "post", gradient_lr = 1e-9 },
              { name = "fdfa", feedback_lr = 0.2, warmup = true },
              { name = "fdfa-averaged", feedback_lr = 0.2, warmup = true, gradient_lr = 1e-9 }]
[grid]
seed = [0, 1, 2]
""",
    "drift": '[training]\nbatch_size = 8\nsteps = 31\nlearning_rate = 1e-2\n' + """
[probe]
schedule = { kind = "at", steps = [3, 30] }
sampling = "fresh_batches"
replicates = 20
reference_size = 64
feedback = true
estimators = [{ name = "fg-a", site = "post" }, { name = "fg-a-averaged", site = "post", gradient_lr = 0.2 },
              { name = "fdfa", feedback_lr = 0.5, warmup = true }, { name = "fdfa", feedback_lr = 0.1, warmup = true },
              { name = "fdfa", feedback_lr = 0.1 },
              { name = "fdfa-averaged", feedback_lr = 0.1, warmup = true, gradient_lr = 0.2 }]
[grid]
seed = [0, 1]
""",
}  # fmt: skip


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Logs of all experiments above, by name, with a cache of closed forms of their own."""
    place = tmp_path_factory.mktemp("theory")
    (place / "tiny").mkdir()
    for name, text in EXPERIMENTS.items():
        (place / "tiny" / f"{name}.toml").write_text(HEAD + text)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_forms, "CACHE", place / "cache")
        for experiment in load_profile("tiny", place).values():
            for config in experiment.runs():
                train(config, place / "runs")
        found = {name: logs.load(place / "runs", name, profile="tiny", experiments=place) for name in EXPERIMENTS}
        yield found | {"experiments": load_profile("tiny", place), "root": place / "runs"}
    torch.set_num_threads(threads)


def holm_of_z(z) -> float:
    """The smallest corrected p-value of standard normal scores."""
    return float(statistics.holm(2 * stats.norm.sf(np.abs(np.asarray(z, float)))).min())


# Measured against theory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["width", "batch", "layers"])
def test_measured_variances_are_those_of_the_closed_forms(logged, name):
    rows = closed_forms.compared(logged[name])
    assert len(rows) >= 24 and holm_of_z(rows["z"]) > ALARM


def test_intervals_over_draws_hold_the_closed_form_as_often_as_they_should(logged):
    """With one common cause of error in each seed's draws, 95 % intervals may miss a few more than 5 %."""
    rows = pd.concat([closed_forms.compared(logged[name]) for name in ("width", "batch", "layers")])
    assert 0.88 < rows["covered"].mean() <= 1


def test_variances_an_eighth_off_would_be_seen(logged):
    """The power of the test above it: theory times 1.125 fails it."""
    rows = pd.concat([closed_forms.compared(logged[name]) for name in ("width", "batch", "layers")])
    z = statistics.variance_z(rows["variance"], rows["variance_se"], 1.125 * rows["predicted"])
    assert abs(rows["z"].mean()) * len(rows) ** 0.5 < 4 < abs(z.mean()) * len(rows) ** 0.5


def test_every_estimator_of_a_frozen_run_has_a_closed_form(logged):
    for name in ("width", "batch", "layers"):
        probes = select.hidden_blocks(logged[name].probes)
        assert len(closed_forms.of(logged[name])) == len(probes), name


def test_feedback_is_as_far_from_the_jacobian_as_its_law_says(logged):
    rows = closed_forms.feedback_errors(logged["feedback"])
    rows = rows[rows["step"] > 0]
    se = rows["error2_se"] / rows["jacobian_norm"] ** 2
    assert holm_of_z(np.log(rows["relative"] / rows["predicted"]) * rows["relative"] / se) > ALARM


def test_feedback_starts_with_the_whole_jacobian_missing(logged):
    found = feedback.error(closed_forms.feedback_errors(logged["feedback"]), ["block", "estimator", "step"])
    start = found[found["step"] == 0]
    assert start["estimate"].to_numpy() == pytest.approx(1) and start["theory"].to_numpy() == pytest.approx(1)


def test_cross_talk_is_as_large_as_its_law_says(logged):
    rows = closed_forms.feedback_errors(logged["layers"])
    se = rows["error2_se"] / rows["jacobian_norm"] ** 2
    assert holm_of_z(np.log(rows["relative"] / rows["predicted"]) * rows["relative"] / se) > ALARM


def test_quotients_of_a_smooth_loss_err_by_its_third_derivatives_until_rounding_takes_over(logged):
    found = closed_forms.quotient_errors(logged["width"], ["tanh"], [1e-6, 1e-4, 1e-3], 1000)
    found = found.set_index(["precision", "epsilon"])
    assert set(found["width"]) == {4, 8} and set(found["seeds"]) == {2}
    smooth = found.loc["float64"].loc[[1e-4, 1e-3]]
    assert (smooth["estimate"] / smooth["leading"]).to_numpy() == pytest.approx(1, abs=1e-3)
    rounded = found.loc["float32"].loc[[1e-6]]
    assert (rounded["estimate"] > 1e3 * rounded["leading"]).all() and (rounded["estimate"] > 1e-3).all()


def test_quotients_across_kinks_err_by_the_root_of_the_distance():
    """A kink lies between the two points with a probability of order ε, and then shifts the quotient whatever ε is."""
    net = fully_connected([64, 128, 128, 10], activation="relu", seed=0)
    x, y = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    found = quotient_errors(net, x, y, [1e-4, 1e-3, 1e-2], directions=64).query("precision == 'float64'")
    slopes = np.diff(np.log10(found["error"]))
    assert slopes == pytest.approx(0.5, abs=0.15) and (found["error"] > 10 * found["leading"]).all()


def test_a_network_too_large_for_quotients_is_refused_with_its_size(logged):
    with pytest.raises(InvalidInput, match="at most 10"):
        closed_forms.quotient_errors(logged["width"], ["tanh"], [1e-3], 10)


def test_cosines_follow_the_beta_law(logged):
    found = cosines.against_dimension(logged["cosine"].probes)
    sure = found["spread"] < 1e-6  # as many directions as dimensions, projected on: the gradient itself
    z = (found["estimate"] - found["theory"]) / (found["spread"] / np.sqrt(200 * found["seeds"]))
    assert holm_of_z(z[~sure]) > ALARM and found.loc[sure, "estimate"].to_numpy() == pytest.approx(1, abs=1e-5)


def test_measured_bias_is_the_exact_sum_of_its_parts(logged):
    rows = logged["drift"].feedback
    assert holm_of_z((rows["gradient_bias2"] - rows["expected_bias2"]) / rows["gradient_bias2_se"]) > ALARM


def test_noise_of_averages_is_that_of_the_closed_form(logged):
    """The ratio over three seeds, whose spread holds that of the few batches measured."""
    found = momentum.frozen(logged["averaging"], [0.2])
    by = ["panel", "method", "rate"]
    both = found[found["kind"] == "measured"].merge(found[found["kind"] == "theory"], on=by, suffixes=("", "_theory"))
    assert len(both) == 5
    assert both["estimate"].to_numpy() == pytest.approx(both["estimate_theory"].to_numpy(), rel=0.3)


def test_measured_ratios_of_fdfa_to_fg_a_are_those_of_the_phase_diagram(logged):
    found = phases.diagram(logged["batch"], np.array([2, 8]), np.array([0.3]))
    by = ["batch_size", "feedback_lr", "criterion", "joint", "tangents"]
    both = found[found["kind"] == "measured"].merge(found[found["kind"] == "grid"], on=by, suffixes=("", "_grid"))
    assert len(both) == 4
    assert both["estimate"].to_numpy() == pytest.approx(both["estimate_grid"].to_numpy(), rel=0.25)


def test_options_spelt_out_are_those_left_out(logged):
    log, grid = logged["batch"], (np.array([2, 8]), np.array([0.3]))
    spelt = log.probes["options"].map(lambda text: json.dumps({"joint": True, "tangents": 1} | json.loads(text)))
    explicit = logs.Logs(log.runs, log.metrics, log.probes.assign(options=spelt), log.timing, log.feedback)
    pd.testing.assert_frame_equal(phases.diagram(explicit, *grid), phases.diagram(log, *grid))


# What averages do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 4), (0.3, 9), (0.05, 12), (0.0, 7)])
def test_weights_of_an_average_are_those_of_its_recursion(rate, steps):
    items, average = np.random.default_rng(0).standard_normal(steps), 0.0
    for t, item in enumerate(items, 1):
        average += max(rate, 1 / t) * (item - average)
        assert momentum.weights(rate, steps)[t] @ items == pytest.approx(average)


def test_factor_settles_at_the_rate_over_two_minus_the_rate():
    assert momentum.factor(0.2, 200) == pytest.approx(0.2 / 1.8)
    assert momentum.factor(0.2, 3, warmup=False) == pytest.approx(0.2 / 1.8 * (1 - 0.8**6))


def test_noise_of_averaged_feedback_and_gradient_is_that_of_a_simulation():
    """Scalars: gradient k is (1 + feedback noise) times error k, which is 1 ∓ its own noise; all errors known."""
    rng, steps, draws, spread = np.random.default_rng(0), 6, 40_000, 0.7
    v, w = momentum.weights(0.25, steps + 1)[-1], momentum.weights(0.4, steps)
    errors = 1 + spread * rng.standard_normal((draws, steps + 1))
    noise = rng.standard_normal((draws, steps)) @ w.T * errors  # column k: the feedback after k updates
    found = np.square(noise @ v).mean()
    coefficients = pd.Series({"perturbation": 0.0, "feedback": 1.0, "cross": spread**2})
    assert momentum.noise(coefficients, 1, steps, 0.4, 0.25) == pytest.approx(found, rel=0.03)


def test_law_of_the_rate_goes_through_the_largest_rate():
    frame = pd.DataFrame({"block": 0, "alpha": [0.1, 1.0], "quantity": "variance", "estimate": [5.0, 2.0]})
    law = momentum.variance_law(frame, 1000, True).set_index("alpha")["estimate"]
    assert law.to_dict() == {0.1: pytest.approx(2 * 0.1 / 1.9), 1.0: 2.0}


# Rebuilding and keeping ----------------------------------------------------------------------------------------------


@pytest.fixture
def recorded_width(logged):
    """Record the runs of the width experiment and their closed forms in a place, and return the logs read from there."""

    def record(place):
        experiment, runs = logged["experiments"]["width"], logged["root"]
        recording.record(experiment, runs, place, allow_dirty=True)
        read_back = logs.read(place, experiment)
        assert closed_forms.record(read_back, place) == read_back.runs["width"].nunique() * 2  # seeds
        return logs.read(place, experiment)

    return record


def changed(log, **changes):
    """Return the logs with another configuration in every run."""
    configs = [json.dumps(json.loads(config) | changes, sort_keys=True) for config in log.runs["config"]]
    return logs.Logs(log.runs.assign(config=configs), log.metrics, log.probes, log.timing, log.feedback)


def test_a_network_that_is_not_the_runs_is_refused(logged):
    with pytest.raises(RunError, match="norm .* the run logged .* make it again"):
        closed_forms.of(changed(logged["width"], seed=99))


def test_runs_whose_weights_move_have_no_closed_form(logged):
    assert closed_forms.of(logged["drift"]).empty


def test_blocks_that_take_turns_have_learnt_less_often(logged):
    """After three steps the first of two blocks has had two turns and the second one."""
    early = logs.Logs(logged["batch"].runs, pd.DataFrame(), logged["batch"].probes.assign(step=3), pd.DataFrame())
    forms = closed_forms.of(early)
    run, label = early.runs.iloc[0], "fdfa(feedback_lr=0.3, joint=cyclic, warmup=True)"
    found = forms[(forms["run"] == run["run"]) & (forms["estimator"] == label)].set_index("block")
    problem = closed_forms.Problem(run["config"])
    options = {"feedback_lr": 0.3, "warmup": True, "joint": "cyclic", "steps": 3}
    law = feedback_law(problem.net, problem.train[0], run["batch_size"], **{k: v for k, v in options.items() if k != "steps"})
    expected = predict("fdfa", problem.net, *problem.reference, run["batch_size"], feedback_law=law, **options).frame()
    expected = expected[(expected["level"] == "block") & (expected["block"] < 2)].set_index("block")
    assert len(found) == 2
    pd.testing.assert_series_equal(found["variance"], expected["variance"])
    pd.testing.assert_series_equal(found["bias2"], expected["bias2"])


def test_figures_of_what_has_no_closed_form_have_no_theory(logged):
    frame = pd.DataFrame({"block": [0], "estimator": ["bp"], "width": [6.0]})
    curve = closed_forms.curve(logged["drift"], ["block", "estimator", "width"])
    assert "theory" not in closed_forms.with_theory(frame, curve, ["block", "estimator", "width"])


def test_agreement_of_nothing_is_an_error(logged):
    with pytest.raises(InvalidInput, match="no probe with a closed form"):
        closed_forms.agreement([logged["drift"]])


def test_closed_forms_are_computed_once(logged, monkeypatch):
    before = closed_forms.of(logged["width"])

    def refuse(*_):
        raise AssertionError("built a second time")

    monkeypatch.setattr(closed_forms, "Problem", refuse)
    pd.testing.assert_frame_equal(closed_forms.of(logged["width"]), before)


def test_recorded_closed_forms_need_neither_data_nor_cache(logged, recorded_width, monkeypatch, tmp_path):
    before, read_back = closed_forms.of(logged["width"]), recorded_width(tmp_path / "record")
    monkeypatch.setattr(closed_forms, "CACHE", tmp_path / "empty")
    monkeypatch.setattr(closed_forms, "Problem", lambda config: pytest.fail("looked at the data"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(closed_forms.of(read_back), before)


def test_recorded_closed_forms_of_other_code_give_one_warning_with_the_remedy(logged, recorded_width, monkeypatch, tmp_path):
    before, read_back = closed_forms.of(logged["width"]), recorded_width(tmp_path / "record")
    monkeypatch.setattr(closed_forms, "made_by", lambda: "other code")
    with pytest.warns(UserWarning) as warned:
        found = closed_forms.of(read_back)
    pd.testing.assert_frame_equal(found, before)
    (said,) = (str(warning.message) for warning in warned)
    assert "experiment 'width'" in said and f"fdfa record {logged['experiments']['width'].path} --out {tmp_path}" in said


def test_closed_forms_of_what_is_not_recorded_are_an_error(logged, tmp_path):
    with pytest.raises(RunError, match="width: is no recorded experiment"):
        closed_forms.record(logged["width"], tmp_path)


def test_what_the_repository_records_is_found_and_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(closed_forms, "CACHE", tmp_path / "empty")
    monkeypatch.setattr(closed_forms, "Problem", lambda config: pytest.fail("looked at the data"))
    width = next(e for e in logs.profile("paper").values() if e.role == "width")
    assert len(closed_forms.of(logs.read(paths.RESULTS / "paper", width)))


def test_an_experiment_without_closed_forms_records_none(logged, tmp_path):
    assert closed_forms.record(logged["drift"], tmp_path) == 0 and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_costs_time_alone(logged, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(closed_forms, "CACHE", tmp_path / "file" / "below")
    assert len(closed_forms.of(logged["width"]))


def test_broken_leftovers_are_computed_anew(logged, monkeypatch, tmp_path):
    monkeypatch.setattr(closed_forms, "CACHE", tmp_path)
    before = closed_forms.of(logged["width"])
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    pd.testing.assert_frame_equal(closed_forms.of(logged["width"]), before)


# Figures -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(logged):
    modules = {name: importlib.import_module(f"figures.{name}") for name in FIGURES}
    return {name: modules[name].compute({e: logged[e] for e in FIGURES[name]}) for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_frame_is_not_empty_and_finite(frames, name):
    frame = frames[name]
    assert len(frame) and np.isfinite(frame.select_dtypes("number").to_numpy()).all()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_from_its_csv(frames, name, tmp_path):
    frames[name].to_csv(tmp_path / "frame.csv", index=False)
    module = importlib.import_module(f"figures.{name}")
    drawn = module.draw(pd.read_csv(tmp_path / "frame.csv", keep_default_na=False, na_values=["nan"]))
    assert isinstance(drawn, matplotlib.figure.Figure) and all(ax.has_data() for ax in drawn.axes)


@pytest.mark.parametrize("name", ["feedback_error", "variance_vs_batch", "variance_vs_depth", "variance_vs_width"])
def test_every_point_has_its_closed_form(frames, name):
    assert frames[name]["theory"].gt(0).all()


def test_last_hidden_block_shows_no_averaging_bias(frames):
    rows = frames["bias_decomposition"].query("quantity == 'averaging'")
    assert rows.query("block == 1")["estimate"].max() < 1e-8 < 1e-4 < rows.query("block == 0")["estimate"].min()


def test_declared_experiments_are_those_it_is_fed():
    for name, experiments in FIGURES.items():
        assert importlib.import_module(f"figures.{name}").EXPERIMENTS == experiments
