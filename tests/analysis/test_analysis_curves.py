"""Convergence curves, times to a threshold, areas and the accuracy table, on runs small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis import accuracy, convergence, effort
from fdfa_core.errors import InvalidInput


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
