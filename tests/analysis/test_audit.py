"""A run made anew is told from the recorded one by the first number that differs, and judged by how much it differs."""

import json
import shutil

import numpy as np
import pytest

import synthetic_logs
from analysis import audit
from fdfa_core.errors import InvalidInput
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs.store import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment of three seeds, and its runs."""
    experiments, root = synthetic_logs.write(
        tmp_path_factory.mktemp("audit"), {"convergence": synthetic_logs.EXPERIMENTS["convergence"]}
    )
    return load_profile("tiny", experiments)["convergence"], root


@pytest.fixture
def found(made, tmp_path):
    """What the audit finds of a run whose tables were changed: a function of the changes by table."""
    experiment, root = made
    config = next(run for run in experiment.runs() if run.probe and run.estimator.name == "fdfa")
    run = tmp_path / "anew" / config.id

    def of(siblings=True, summary=None, **changes):
        shutil.copytree(root, tmp_path / "anew")
        for table, change in changes.items():
            synthetic_logs.rewrite(run, table, change)
        content = json.loads((run / "summary.json").read_text())
        last = open_store(tmp_path / "anew").table("metrics", [config.id]).iloc[-1]
        content["final"] = {key: float(last[key]) if key != "step" else int(last[key]) for key in content["final"]}
        (run / "summary.json").write_text(json.dumps(content | (summary or {})))
        others = audit.siblings(config, experiment) if siblings else []
        return audit.compare(open_store(root), open_store(tmp_path / "anew"), config, others)

    return of


def scaled(column, factor, first=0):
    """Multiply the numbers of a column from a row on."""

    def change(frame):
        frame.loc[frame.index[first:], column] *= factor
        return frame

    return change


def test_the_same_run_is_equal_in_every_bit_whatever_time_it_took(found):
    assert found(timing=scaled("training_seconds", 2.0)) == (audit.EQUAL, "")


def test_columns_that_did_not_exist_when_a_run_was_recorded_are_not_held_against_it(found):
    later = dict(own_error=1.0, own_error_se=0.1, own_norm=2.0, activation_rms=0.5)
    assert found(probes=lambda frame: frame.assign(**later)).outcome == audit.EQUAL


def test_another_order_of_sums_is_rounding_and_the_first_number_is_named(found):
    outcome, where = found(metrics=scaled("train_loss", 1 + 1e-6, first=2))
    assert outcome == audit.ROUNDED and where.startswith("metrics, row 2, train_loss: recorded ")


def test_another_path_to_an_end_like_that_of_other_seeds_is_noise(found):
    outcome, where = found(metrics=scaled("train_loss", 1.001, first=2))
    assert outcome == audit.NOISE and where.startswith("metrics, row 2, train_loss")


def test_training_that_is_equal_in_every_bit_is_told_from_what_measured_it(found):
    outcome, where = found(probes=scaled("variance", 1.001, first=5))
    assert outcome == audit.NOISE and where.startswith("training is equal in every bit; probes, row 6, variance: recorded ")
    assert "float64" not in where


@pytest.mark.parametrize("changes, said", [
    ({"metrics": scaled("train_loss", 1.001)}, "metrics, row 0, train_loss"),
    ({"metrics": scaled("test_accuracy", 0.5, first=2)}, "metrics, row 2, test_accuracy"),
    ({"metrics": scaled("train_loss", 1.001, first=2), "siblings": False}, "metrics, row 2, train_loss"),
    ({"probes": lambda frame: frame.assign(method="bp")}, "probes, row 0, method: recorded 'fdfa', anew 'bp'"),
    ({"probes": scaled("variance", np.nan, first=5)}, "probes, row 5, variance"),
    ({"summary": {"status": "banana"}}, "banana"),
], ids=["before training", "another end", "no other seeds", "a word", "a number that is gone", "damaged"])  # fmt: skip
def test_what_neither_rounding_nor_seeds_explain_is_different_and_named(found, changes, said):
    outcome, where = found(**changes)
    assert outcome == audit.DIFFERENT and said in where


def test_runs_are_drawn_from_all_experiments_before_any_is_drawn_from_twice(tmp_path):
    names = ("convergence", "trajectory", "width")
    experiments, root = synthetic_logs.write(tmp_path, {name: synthetic_logs.EXPERIMENTS[name] for name in names})
    planned, store = list(load_profile("tiny", experiments).values()), open_store(root)
    drawn = audit.draw(store, planned, 6, seed=1)
    assert list(drawn["experiment"].value_counts()) == [2, 2, 2] and drawn["run"].is_unique
    assert audit.draw(store, planned, 6, seed=1).equals(drawn) and not audit.draw(store, planned, 6, seed=2).equals(drawn)
    with pytest.raises(InvalidInput, match="sample: got 6; accepted: at most 0, .*that took at most 0.01 s"):
        audit.draw(store, planned, 6, seed=1, longest=0.01)
