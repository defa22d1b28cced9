"""Runs of a user's own loops are drawn as far as their logs allow, and never mixed up with those of experiment files."""

import pytest
import torch

from analysis import logs, own
from fdfa_core import Monitor, fully_connected


def measured(directory, estimators=("fg-a",), widths=(4, 6, 6, 3), curves=True, **options):
    """A run of three steps at weights that do not move."""
    net = fully_connected(list(widths), activation="tanh", seed=0)
    x, y = torch.randn(24, widths[0], generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    options = {"reference": (x, y), "directory": directory, "every": 2, "replicates": 3, "steps_per_epoch": 3} | options
    with Monitor(net, list(estimators), **options) as monitor:
        for _ in range(3):
            monitor.observe(x[:8], y[:8])
        if curves:
            monitor.log(train_loss=1.0, test_accuracy=0.4)
    return monitor.config.id


def test_figures_of_a_directory_of_own_runs_need_no_profile(fdfa, tmp_path):
    for seed in range(2):
        measured("runs/mine", seed=seed)
    result = fdfa("figures", "--runs", "runs/mine")
    assert result.exit_code == 0, result.output
    drawn = {path.stem for path in (tmp_path / "figures/out/own").glob("*.csv")}
    assert drawn == {"alignment_angles", "variance_during_training", "bias_variance", "convergence", "accuracy"}
    assert "Not drawn" not in result.output


def test_what_the_logs_do_not_allow_is_named(fdfa):
    measured("runs/mine", curves=False)
    result = fdfa("figures", "--runs", "runs/mine")
    assert result.exit_code == 0 and "needs runs that all log train_loss and test_accuracy" in result.output, result.output
    assert "accuracy, convergence" in result.output.replace("convergence, accuracy", "accuracy, convergence")


def test_an_experiments_runs_beside_them_are_left_out(fdfa, file):
    assert fdfa("train", file).exit_code == 0
    run = measured("runs")
    assert fdfa("figures", "--runs", "runs", "--only", "bias_variance", "--profile", "own").exit_code == 0
    (experiment,) = [e for e in own.experiments("runs").values() if e.role == "trajectory"]
    assert [config.id for config in experiment.runs()] == [run]


@pytest.mark.parametrize(
    ("change", "loops", "compared"),
    [
        ({"seed": 1}, 1, 1),  # a replicate
        ({"name": "b"}, 2, 1),  # another loop on the same network
        ({"widths": (4, 5, 6, 3)}, 2, 2),
        ({"data": "b"}, 2, 2),
        ({"replicates": 4}, 2, 2),
        ({"estimators": ("fg-w",)}, 2, 2),
    ],
)
def test_only_seeds_are_averaged_over_and_only_equal_networks_compared(change, loops, compared, tmp_path):
    measured(tmp_path / "runs")
    measured(tmp_path / "runs", **change)
    roles = [experiment.role for experiment in own.experiments(tmp_path / "runs").values()]
    assert (roles.count("trajectory"), roles.count("convergence")) == (loops, compared)


def test_logs_of_own_runs_carry_what_is_known(tmp_path):
    measured(tmp_path / "runs", name="mine", data="bits")
    log = logs.read(tmp_path / "runs", own.experiments(tmp_path / "runs")["trajectory/mine"])
    row = log.runs.iloc[0]
    assert (row["trained_with"], row["dataset"], row["architecture"], row["batch_size"]) == ("mine", "bits", "own", 8)
    assert row[["learning_rate", "width", "depth"]].isna().all()
    assert set(log.probes["source"]) == {"shadow"}
