"""From a grid of trials to the settings of an experiment, by the command alone."""

import pytest

from fdfa_core.experiments.loading import load_experiment
from tiny import TOML

GRID = """
description = "Round 1 of tuning on digits."
role = "trials"
[data]
name = "digits"
train_size = 256
evaluate_on = "validation"
[network]
hidden = [16]
batch_norm = true
[training]
epochs = 1
batch_size = 32
[[cases]]
estimator = { name = "bp" }
[grid]
"training.learning_rate" = [1e-6, 0.01, 30.0]
seed = [100]
"""
TARGET = """
open = "fdfa tuned FINALS --apply THIS"
[network]
hidden = [16]
[training]
epochs = 1
[[cases]]
estimator = { name = "bp" }
"""


@pytest.fixture
def grid(fdfa, tmp_path):
    path = tmp_path / "mnist_cnn_trials.toml"
    path.write_text(GRID)
    return path


def test_from_trials_to_the_settings_of_an_experiment(fdfa, grid, tmp_path):
    target = tmp_path / "target.toml"
    target.write_text(TARGET)
    refused = fdfa("train", target)
    assert refused.exit_code == 2 and "target.toml: open" in refused.stderr and "--apply THIS" in refused.stderr

    assert fdfa("train", grid).exit_code == 0
    shown = fdfa("tuned", grid, "--finalists", "mnist_cnn_finals.toml")
    assert shown.exit_code == 0, shown.output
    assert "3 of 3 trials" in shown.output and "1. learning rate 0.01" in shown.output
    finals = tmp_path / "mnist_cnn_finals.toml"
    assert "fdfa tuned mnist_cnn_trials.toml --finalists mnist_cnn_finals.toml" in finals.read_text()

    assert fdfa("train", finals).exit_code == 0
    shown = fdfa("tuned", finals, "--apply", target)
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.output.splitlines() if "best" in line]
    assert "learning rate 0.01" in line and "(3 seeds)" in line and "chosen" in line and "±" in line
    (run,) = load_experiment(target).runs()
    assert run.training.learning_rate == 0.01 and "open" not in target.read_text()
    assert fdfa("train", target).exit_code == 0


def test_a_partial_grid_says_how_many_trials_there_are_and_chooses_nothing(fdfa, grid, tmp_path):
    assert fdfa("train", grid).exit_code == 0
    grid.write_text(GRID.replace("1e-6, 0.01", "1e-6, 1e-4, 0.01"))
    shown = fdfa("tuned", grid)
    assert shown.exit_code == 0 and "3 of 4 trials: nothing is chosen" in shown.output and "accuracy" not in shown.output
    refused = fdfa("tuned", grid, "--finalists", "finals.toml")
    assert refused.exit_code == 2 and "bp 3 of 4" in refused.stderr and not (tmp_path / "finals.toml").exists()


def test_a_best_trial_at_the_edge_extends_the_grid(fdfa, grid):
    grid.write_text(GRID.replace("[1e-6, 0.01, 30.0]", "[1e-6, 1e-5, 0.01]"))
    assert fdfa("train", grid).exit_code == 0
    assert "to be extended above to 0.016" in fdfa("tuned", grid).output
    assert fdfa("tuned", grid, "--extend").exit_code == 0
    assert [run.training.learning_rate for run in load_experiment(grid).runs()] == [1e-6, 1e-5, 0.01, 0.016]
    assert "3 of 4 trials" in fdfa("tuned", grid).output


@pytest.mark.parametrize("options", [["--extend"], ["--extend", "--finalists", "out.toml"]])
def test_what_writes_reads_one_file_and_does_one_thing(fdfa, grid, options):
    files = [grid] if len(options) > 1 else []
    refused = fdfa("tuned", *files, *options)
    assert refused.exit_code == 2 and "one of these options, and one FILE" in refused.stderr


def test_an_older_grid_has_a_rate_for_each_network(fdfa, tmp_path):
    swept = tmp_path / "swept.toml"
    grid = '"network.activation" = ["relu", "tanh"]\n"training.learning_rate" = [1e-3, 1e-2]\nseed = [0, 1]'
    swept.write_text(TOML.replace("seed = [0, 1]", grid))
    assert fdfa("train", swept).exit_code == 0
    lines = fdfa("tuned", swept).output.splitlines()[1:]
    assert [line.split("  ")[1] for line in lines] == ["bp, network.activation relu", "bp, network.activation tanh"]
    assert all("of 2 rates" in line for line in lines)
    refused = fdfa("tuned", swept, "--extend")
    assert refused.exit_code == 2 and "a grid of this protocol" in refused.stderr
