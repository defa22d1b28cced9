import pandas as pd
import pytest

from fdfa_core.experiments.loading import load_experiment
from tiny import TOML


def test_analyse_shows_accuracies_and_writes_tables(fdfa, file, trained, tmp_path):
    result = fdfa("analyse", file, "--out", "statistics")
    assert result.exit_code == 0, result.output
    assert "bp" in result.output and "accuracy" in result.output
    written = sorted(path.name for path in (tmp_path / "statistics" / "experiment").iterdir())
    assert written == ["accuracy.csv", "alignment.csv", "bias.csv", "convergence.csv", "variance.csv"]


@pytest.fixture
def swept(fdfa, tmp_path):
    """Runs that differ in what no column of their logs holds, and in the rate."""
    path = tmp_path / "swept.toml"
    grid = '"network.activation" = ["relu", "tanh"]\n"training.learning_rate" = [1e-3, 1e-2]\nseed = [0, 1]'
    path.write_text(TOML.replace("seed = [0, 1]", grid))
    assert fdfa("train", path).exit_code == 0
    return path


def test_analyse_keeps_apart_whatever_an_experiment_varies(fdfa, swept, tmp_path):
    result = fdfa("analyse", swept, "--out", "statistics")
    assert result.exit_code == 0, result.output
    for name in ("accuracy", "alignment", "bias", "convergence", "variance"):
        table = pd.read_csv(tmp_path / "statistics" / "swept" / f"{name}.csv")
        assert set(table["network.activation"]) == {"relu", "tanh"} and (table["seeds"] == 2).all()
    assert len(pd.read_csv(tmp_path / "statistics" / "swept" / "accuracy.csv")) == 4


def test_analyse_refuses_two_experiments_of_one_name_in_one_place(fdfa, file, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / file.name).write_text(TOML)
    result = fdfa("analyse", file, f"other/{file.name}", "--out", "statistics")
    assert result.exit_code == 2 and "experiments of different names" in result.stderr and "other/" in result.stderr


def test_analyse_names_a_place_that_cannot_be_written_to(fdfa, file):
    result = fdfa("analyse", file, "--out", file)
    assert result.exit_code == 2 and "experiment.toml/experiment: cannot be made" in result.stderr


def test_a_truncated_log_is_named(fdfa, file, trained):
    run = load_experiment(file).runs()[0]
    path = trained / run.id / "metrics.parquet"
    path.write_bytes(path.read_bytes()[:50])
    result = fdfa("analyse", file)
    assert result.exit_code == 2 and f"{run.id}/metrics.parquet: is truncated or not Parquet" in result.stderr
