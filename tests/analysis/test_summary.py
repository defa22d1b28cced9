"""All statistics of an experiment as tables, and the best rates of a grid, from logs with a known truth."""

import dataclasses
import json

import pandas as pd
import pytest

import synthetic_logs
from analysis import logs, select, summary, tuning

GRID = """
[data]
name = "digits"
[network]
hidden = [8, 8]
[training]
steps = 5
[probe]
schedule = { kind = "every", k = 1 }
replicates = 8
estimators = [{ name = "self" }]
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "dfa" }
[grid]
"network.activation" = ["relu", "tanh"]
"training.learning_rate" = [1e-3, 1e-2]
seed = [0, 1]
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    experiments, runs = synthetic_logs.write(tmp_path_factory.mktemp("summary"), {"grid": GRID})
    return logs.load(runs, "grid", profile="tiny", experiments=experiments)


def with_optimizer(log, optimizer):
    """The same logs, as if no weight, or every weight, had moved."""
    configs = [json.loads(text) for text in log.runs["config"]]
    changed = [json.dumps(c | {"training": c["training"] | {"optimizer": optimizer}}) for c in configs]
    return dataclasses.replace(log, runs=log.runs.assign(config=changed))


def test_tables_keep_apart_whatever_an_experiment_varies(grid):
    tables = summary.tables(grid)
    assert list(tables) == ["accuracy", "convergence", "variance", "bias", "alignment"]
    for name, table in tables.items():
        assert set(table["network.activation"]) == {"relu", "tanh"} and set(table["learning_rate"]) == {1e-3, 1e-2}, name
        assert (table["seeds"] == 2).all(), name


def test_networks_that_were_not_trained_have_no_accuracy(grid):
    assert list(summary.tables(with_optimizer(grid, "none"))) == ["variance", "bias", "alignment"]


def test_runs_without_probes_have_accuracies_only(grid):
    assert list(summary.tables(dataclasses.replace(grid, probes=pd.DataFrame()))) == ["accuracy", "convergence"]


def test_the_rate_of_a_run_stands_in_place_of_the_optimisers_of_the_moment(grid):
    decayed = dataclasses.replace(grid, metrics=grid.metrics.assign(learning_rate=1e-9))
    assert set(summary.metrics_with_settings(decayed)["learning_rate"]) == {1e-3, 1e-2}


def test_best_rates_name_only_the_settings_that_the_grid_varies(grid):
    rows = tuning.best_rates(grid)
    assert list(rows.columns[: rows.columns.get_loc("trained_with")]) == ["network.activation"]
    assert len(rows) == 4 and (rows["rates"] == 2).all() and (rows["seeds"] == 2).all()


def test_best_rates_are_those_chosen_among_the_same_metrics(grid):
    extra = select.settings(grid)
    chosen = tuning.chosen(summary.metrics_with_settings(grid, extra), [*tuning.SETTING, *extra])
    rows = tuning.best_rates(grid)
    pd.testing.assert_frame_equal(rows, chosen[rows.columns])
