"""Convergence curves, times to a threshold, areas and the accuracy table, on runs small enough to check by hand."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from analysis import accuracy, convergence, descent, effort
from analysis.rebuilt import flops
from fdfa_core.errors import InvalidInput
from fdfa_core.experiments.tables import RunConfig
from places import ROOT


def metrics(**curves):
    """Return metrics of one-letter methods: name → a list of test accuracies a seed, ``None`` last where it diverged."""
    rows = []
    for method, seeds in curves.items():
        for seed, values in enumerate(seeds):
            status = "diverged" if values[-1] is None else "finished"
            for step, value in enumerate(v for v in values if v is not None):
                row = {"trained_with": method, "seed": seed, "run": f"{method}{seed}", "status": status, "step": step}
                row |= {"epoch": float(step), "test_accuracy": value, "train_loss": 1 - value + 0.01, "dataset": "d"}
                rows.append(row | {"architecture": "n"})
    return pd.DataFrame(rows)


THREE = {"a": [[0.1, 0.5, 0.9], [0.1, 0.7, 0.9], [0.1, 0.6, 0.9]]}


def test_an_accuracy_curve_is_the_mean_over_seeds():
    out = convergence.curves(metrics(**THREE), "test_accuracy")
    assert out["estimate"].tolist() == pytest.approx([0.1, 0.6, 0.9])


def test_a_loss_curve_is_the_geometric_mean_over_seeds():
    frame = metrics(a=[[0.1], [0.1]]).assign(train_loss=[1.0, 4.0])
    assert convergence.curves(frame, "train_loss")["estimate"].item() == pytest.approx(2)


def test_the_band_of_an_accuracy_stays_possible():
    out = convergence.curves(metrics(a=[[0.7], [1.0]]), "test_accuracy")
    assert out["high"].item() == 1


def test_diverged_runs_are_no_part_of_the_mean():
    out = convergence.curves(metrics(a=[[0.1, 0.9], [0.1, 0.9], [0.0, None]]), "test_accuracy")
    assert out["seeds"].tolist() == [2, 2] and out["estimate"].tolist() == pytest.approx([0.1, 0.9])


def test_diverged_runs_are_returned_on_their_own():
    lost = convergence.diverged(metrics(a=[[0.1, 0.9], [0.1, 0.3, None]]), "test_accuracy")
    assert lost[["seed", "epoch", "estimate"]].values.tolist() == [[1, 0, 0.1], [1, 1, 0.3]]


def test_time_to_a_threshold_is_the_median_over_seeds():
    times = metrics(a=[[0, 0.9], [0, 0, 0.9], [0, 0, 0, 0, 0.9]])
    assert convergence.time_to(times, "test_accuracy", 0.8)["estimate"].item() == 2


def test_time_of_a_loss_counts_from_above():
    assert convergence.time_to(metrics(a=[[0, 0.9], [0, 0.9]]), "train_loss", 0.2)["estimate"].item() == 1


def test_a_threshold_that_most_never_reach_is_a_lower_bound():
    out = convergence.time_to(metrics(a=[[0, 0.9, 0.9], [0, 0, 0], [0, 0, 0]]), "test_accuracy", 0.8).iloc[0]
    assert (out["estimate"], out["censored"], out["open"], out["reached"]) == (2, True, True, 1)


def test_a_diverged_run_is_one_that_never_gets_there():
    out = convergence.time_to(metrics(a=[[0, 0.9, 0.9], [0, 0.9, 0.9], [0, None]]), "test_accuracy", 0.8).iloc[0]
    assert (out["estimate"], out["reached"], out["seeds"]) == (1, 2, 3)


def test_area_is_the_mean_height_of_the_curve():
    assert convergence.area(metrics(a=[[0, 1], [0, 0.5]]), "test_accuracy")["estimate"].item() == pytest.approx(0.375)


def test_area_does_not_depend_on_how_often_the_curve_was_looked_at():
    fine, coarse = metrics(a=[[0, 0.5, 1], [0, 0.5, 1]]), metrics(a=[[0, 1], [0, 1]])
    areas = [convergence.area(frame, "test_accuracy")["estimate"].item() for frame in (fine, coarse)]
    assert areas[0] == pytest.approx(areas[1])


def test_an_unknown_quantity_is_refused():
    with pytest.raises(InvalidInput, match="train_loss"):
        convergence.curves(metrics(**THREE), "loss")


def test_accuracy_is_that_of_the_last_evaluation_with_the_best_beside_it():
    out = accuracy.table(metrics(a=[[0.1, 0.9, 0.7], [0.1, 0.9, 0.7]])).iloc[0]
    assert (out["accuracy"], out["best_accuracy"]) == pytest.approx((0.7, 0.9))


def test_a_network_without_a_width_has_its_accuracy_too():
    rows = metrics(a=[[0.8], [0.9]], b=[[0.5], [0.6]]).assign(width=float("nan"))
    out = accuracy.table(rows, ["dataset", "architecture", "width"], against="a")
    assert out["seeds"].tolist() == [2, 2] and out["accuracy"].tolist() == pytest.approx([0.85, 0.55])


def test_accuracy_interval_is_the_t_interval_over_seeds():
    out = accuracy.table(metrics(a=[[0.8], [0.9]])).iloc[0]
    assert out["high"] - out["accuracy"] == pytest.approx(12.706 * 0.05, rel=1e-3)


def test_diverged_runs_are_counted_beside_the_accuracy():
    out = accuracy.table(metrics(a=[[0.8], [0.9], [0.1, None]])).iloc[0]
    assert (out["seeds"], out["diverged"], out["accuracy"]) == (2, 1, pytest.approx(0.85))


def test_a_method_that_always_diverged_keeps_its_row():
    out = accuracy.table(metrics(a=[[0.8], [0.9]], b=[[0.1, None], [0.1, None]])).set_index("trained_with")
    assert out.loc["b", "seeds"] == 0 and np.isnan(out.loc["b", "accuracy"])


def test_differences_are_paired_by_seed():
    pairs = metrics(a=[[0.5], [0.6], [0.7]], b=[[0.51], [0.612], [0.711]])
    out = accuracy.differences(pairs, "a").set_index("trained_with")
    assert out.loc["b", "difference"] == pytest.approx(0.011) and out.loc["b", "p_holm"] < 0.01


def test_differences_are_corrected_for_the_number_of_methods():
    pairs = {"a": [[0.5], [0.6], [0.7]], "b": [[0.51], [0.612], [0.711]]}
    alone = accuracy.differences(metrics(**pairs), "a").set_index("trained_with").loc["b", "p_holm"]
    among = accuracy.differences(metrics(**pairs, c=[[0.5], [0.7], [0.6]]), "a").set_index("trained_with").loc["b", "p_holm"]
    assert among == pytest.approx(2 * alone)


def test_one_seed_is_no_evidence_of_a_difference():
    out = accuracy.differences(metrics(a=[[0.5]], b=[[0.9]]), "a").set_index("trained_with")
    assert (out.loc["b", "difference"], out.loc["b", "p_holm"]) == (pytest.approx(0.4), 1.0)


# --- at equal operations ---------------------------------------------------------------------------------------------


@pytest.fixture
def costs(monkeypatch):
    """A step of method b costs twice one of a; the configuration of a run is the name of its method."""
    monkeypatch.setattr(effort.flops, "per_step", {"a": 10, "b": 20}.__getitem__)

    def compared(frame, quantity="test_accuracy"):
        runs = frame[["run", "trained_with"]].drop_duplicates().rename(columns={"trained_with": "config"})
        return effort.at_equal_operations(frame, runs, quantity).set_index(["trained_with", "kind"]).sort_index()

    return compared


def test_methods_are_compared_at_equal_operations_and_not_at_equal_steps(costs):
    """Both rise from 0 by 0.2 a step; b's step costs twice, so that a's 40 operations take it half as far."""
    rising = [0.0, 0.2, 0.4, 0.6, 0.8]
    found = costs(metrics(a=[rising, rising], b=[rising, rising]))
    assert found.loc[("a", "end"), "estimate"].item() == pytest.approx(0.8)
    assert found.loc[("b", "end"), "estimate"].item() == pytest.approx(0.4)
    assert found.loc[("b", "height"), "estimate"].item() == pytest.approx(0.2)
    assert found.loc[("b", "end"), ["flops", "flops_per_step", "spent", "seeds"]].to_numpy().ravel().tolist() == [
        40,
        20,
        0.5,
        2,
    ]
    curve = found.loc[("b", "curve")]
    assert curve["estimate"].to_numpy() == pytest.approx(curve["flops"].to_numpy() / 100)


def test_a_loss_is_a_straight_line_of_its_logarithm_between_evaluations(costs):
    frame = metrics(a=[[0, 0], [0, 0]], b=[[0, 0], [0, 0]])
    frame["train_loss"] = frame["step"].map({0: 1.0, 1: 0.01})
    found = costs(frame, "train_loss")
    assert found.loc[("b", "end"), "estimate"].item() == pytest.approx(0.1)
    assert found.loc[("b", "height"), "estimate"].item() == pytest.approx(10**-0.5)


def test_a_curve_is_not_averaged_past_an_evaluation_that_no_point_falls_on(costs):
    """All of the drop is in the first 1 % of the range: the mean height must hold it."""
    frame = metrics(a=[[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    frame["step"] = frame["step"].map({0: 0, 1: 1, 2: 100})
    assert costs(frame).loc[("a", "height"), "estimate"].item() == pytest.approx(0.995)


def test_a_diverged_run_does_not_end_the_common_range(costs):
    found = costs(metrics(a=[[0, 0.5, 0.9], [0, 0.5, 0.9], [0, None]]))
    assert found.loc[("a", "end"), ["flops", "seeds"]].to_numpy().ravel().tolist() == [20, 2]


def test_runs_without_operations_in_common_are_refused(costs):
    late = metrics(a=[[0.1, 0.9]], b=[[0.1, 0.9]])
    late.loc[late["trained_with"] == "b", "step"] += 1
    with pytest.raises(InvalidInput, match="operations, one of which begins at 20"):
        costs(late)
    with pytest.raises(InvalidInput, match="no finished run"):
        costs(metrics(a=[[0.1, None]]))


# --- How often an estimate points downhill, on planted cosines, and whether its interval covers


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


# --- Counted operations are kept: another process reads them, and other code counts again


CONFIG = json.dumps(
    {
        "data": {"name": "digits"},
        "network": {"architecture": "fully_connected", "hidden": [8]},
        "estimator": {"name": "frozen"},
        "training": {"steps": 1, "batch_size": 4},
    }
)
COUNT = 2 * 4 * (64 * 8 + 2 * 8 * 10)  # a forward pass, and the readout's gradient
ELSEWHERE = """
import pathlib, sys
from analysis.rebuilt import flops
from fdfa_core.experiments.tables import RunConfig
flops.CACHE = pathlib.Path(sys.argv[1])
print(flops.per_step(RunConfig.from_json(sys.argv[2])), "torch" in sys.modules)
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return the folder in which one count is kept."""
    monkeypatch.setattr(flops, "CACHE", tmp_path)
    flops._count.cache_clear()
    assert flops.per_step(RunConfig.from_json(CONFIG)) == COUNT
    flops._count.cache_clear()
    yield tmp_path
    flops._count.cache_clear()


def test_another_process_reads_the_count_and_loads_no_torch(kept):
    call = [sys.executable, "-c", ELSEWHERE, str(kept), CONFIG]
    said = subprocess.run(call, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert said.split() == [str(COUNT), "False"]


@pytest.mark.parametrize("name, value", [("_code_and_libraries", lambda: "other code"), ("_ours", lambda config: False)])
def test_a_count_of_other_code_is_made_again(kept, monkeypatch, name, value):
    """Of this package after a change, or of an estimator from elsewhere, of whose code the hash knows nothing."""
    monkeypatch.setattr(flops, name, value)
    monkeypatch.setattr(flops, "counted", lambda config: (7, 8))
    assert flops.per_step(RunConfig.from_json(CONFIG)) == 7


def test_an_estimator_or_a_network_from_elsewhere_is_not_ours(monkeypatch):
    config = RunConfig.from_json(CONFIG)
    assert flops._ours(config)
    monkeypatch.setitem(flops.ARCHITECTURES, "fully_connected", lambda: None)
    assert not flops._ours(config)
    monkeypatch.undo()
    monkeypatch.setattr(flops, "packaged", lambda: {})
    assert not flops._ours(config)
