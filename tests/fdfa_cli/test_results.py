"""The commands that read results, and those that go from a grid of trials to the settings of an experiment."""

import json
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from fdfa_cli import results
from fdfa_core.estimators import registry
from fdfa_core.experiments.loading import load_experiment
from places import ROOT
from tiny import TOML


def test_analyse_shows_accuracies_and_writes_tables(fdfa, file, trained, tmp_path):
    result = fdfa("analyse", file, "--out", "statistics")
    assert result.exit_code == 0, result.output
    assert "bp" in result.output and "accuracy" in result.output
    written = sorted(path.name for path in (tmp_path / "statistics" / "experiment").iterdir())
    assert written == ["accuracy.csv", "activations.csv", "alignment.csv", "bias.csv", "convergence.csv", "variance.csv"]


def test_cost_says_times_in_a_unit_that_shows_them(fdfa, file, trained):
    shown = fdfa("cost", file, "--runs", "runs").output
    assert re.search(r"2 of +2 runs recorded; all take +[1-9]\d* s", shown) and "0.0" not in shown, shown
    assert [results._duration(hours) for hours in (0.0, 59 / 3600, 1 / 60, 0.5, 1.0, 22.04)] == [
        "1 s", "59 s", "1 min", "30 min", "1.0 h", "22.0 h",
    ]  # fmt: skip


def test_power_names_the_seeds_that_each_comparison_needs(fdfa):
    """A clear difference needs three or four seeds, whatever is drawn; numbers that do not count for a verdict count here."""
    shown = fdfa("power", "--profile", "paper", "--families", 100, "--runs", ROOT / "results" / "paper")
    assert shown.exit_code == 0, shown.output
    needed = re.search(r"Q2 epoch +cifar_cnn +fg-a +momentum +\d+ +(\d+) ", shown.output)
    assert int(needed[1]) <= 4 and re.search(r"M1 +width +fg-w, fg-a, hidden block 1 +momentum +10 +3 ", shown.output)


def test_power_without_two_seeds_says_so(fdfa, tmp_path):
    (tmp_path / "runs").mkdir()
    said = fdfa("power", "--profile", "paper", "--runs", "runs")
    assert said.exit_code == 1 and "runs: holds two seeds of no comparison" in said.output


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
    for name in ("accuracy", "activations", "alignment", "bias", "convergence", "variance"):
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


# --- Maintain


# A file of somebody else: one estimator that is right, and one that sees only the first sample.
FILE = """
from beside import scale
from fdfa_core import register
from fdfa_core.estimators.frozen import Frozen

@register("still")
class Still(Frozen):
    pass

@register("still-first")
class First(Frozen):
    def gradients(self, trace, error, targets, lead):
        return super().gradients(trace, scale * error * (error == error[:1]), targets, lead)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file, with a module beside it; what it registers is gone after the test."""
    registry.available_estimators()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beside.py").write_text("scale = 1.0")
    path = tmp_path / "elsewhere" / "mine.py"
    path.write_text(FILE)
    return path


def test_check_shows_what_each_check_of_a_file_has_found_and_writes_it_as_junit(fdfa, mine, tmp_path):
    result = fdfa("check", mine, "--junit", "out/report.xml")
    assert result.exit_code == 1, result.output
    right, wrong = result.output.split("\n\n")[:2]
    assert "21 of 21 checks have nothing against it" in right and "20 of 21" in wrong
    assert "order-of-samples           fails           the batch in another order has another gradient in" in wrong
    first, second = ElementTree.parse(tmp_path / "out" / "report.xml").getroot()
    assert dict(first.attrib) == {"name": "still", "tests": "21", "failures": "0", "skipped": "2", "errors": "0"}
    (failure,) = second.iter("failure")
    assert second.get("failures") == "1" and failure.get("message").startswith("fails: the batch in another order")


def test_check_of_the_chosen_estimator_alone_succeeds_on_a_network_of_ones_own(fdfa, mine, tmp_path, monkeypatch):
    source = """
import torch
from fdfa_core import fully_connected

def problem():
    return fully_connected([2, 3, 3], seed=0).double(), torch.ones(5, 2).double().cumsum(0), torch.arange(5) % 3
"""
    (tmp_path / "networks_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = fdfa("check", mine, "--estimator", "still", "--seed", "3", "--network", "networks_of_mine:problem")
    assert result.exit_code == 0 and "still-first" not in result.output and "4 parameters" in result.output


def test_check_takes_a_file_whose_estimators_are_known_already(fdfa, mine):
    """Say, since a distribution that is installed offers them: the file defines them again."""
    names = registry.registered_in(mine)
    assert names == ["still", "still-first"] == registry.registered_in(mine)


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (None, [], "There is no such file"),
        ("x = 1", [], "accepted: a file that registers an estimator. Write"),
        ("import nonesuch", [], "It raises ModuleNotFoundError: No module named 'nonesuch'"),
        ("def", [], "It raises SyntaxError"),
        ("raise SystemExit(3)", [], "It raises SystemExit: 3"),
        (FILE.replace('"still"', '"bp"'), [], "It raises estimator name: got 'bp'"),
        (FILE, ["--estimator", "stil"], "--estimator: got 'stil'"),
        (FILE, ["--option", "rank"], "--option: got 'rank'; accepted: NAME=VALUE"),
        (FILE, ["--network", "nonesuch:problem"], "--network: got 'nonesuch:problem'"),
        (FILE, ["--option", "rank=2"], "option of still: got 'rank'; accepted: one of none"),
    ],
)
def test_check_refuses_what_it_cannot_check(fdfa, mine, content, arguments, said):
    mine.unlink() if content is None else mine.write_text(content)
    result = fdfa("check", mine, *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_verify_names_a_place_that_cannot_be_written_to_before_it_computes(fdfa, file, monkeypatch):
    monkeypatch.setattr("verification.run", lambda *_, **__: pytest.fail("it computed"))
    result = fdfa("verify", "--out", file)
    assert result.exit_code == 2 and "experiment.toml: cannot be made" in result.stderr


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_readme_names_a_file_that_cannot_be_read(fdfa, tmp_path, content):
    if content:
        (tmp_path / "page.md").write_bytes(content)
    result = fdfa("readme", "--file", "page.md")
    assert result.exit_code == 2 and "--file: got 'page.md'" in result.stderr


@pytest.mark.parametrize("content", ["no mark", "<!-- end of results -->\n<!-- results: written by `make readme` -->"])
def test_readme_names_the_file_and_the_mark_that_was_lost(fdfa, tmp_path, content):
    (tmp_path / "page.md").write_text(content)
    result = fdfa("readme", "--file", "page.md")
    assert result.exit_code == 2 and "--file: got 'page.md'; accepted: a file with the lines" in result.stderr
    assert (tmp_path / "page.md").read_text() == content


def test_previews_of_an_unknown_profile_are_refused_as_such(fdfa):
    result = fdfa("previews", "--profile", "quik")
    assert result.exit_code == 2 and "profile: got 'quik'" in result.stderr and "Did you mean 'quick'?" in result.stderr


@pytest.mark.parametrize(
    ("changed", "sealed", "said"),
    [
        (False, True, "1 equal in every bit; 0"),
        (True, True, "metrics.parquet, run {run}: was altered after the run wrote it"),
        (True, False, "first: metrics, row 0, train_loss: recorded"),
    ],
)
def test_audit_makes_recorded_runs_anew_and_names_one_that_was_changed(
    fdfa, file, trained, tmp_path, monkeypatch, changed, sealed, said
):
    monkeypatch.setattr("fdfa_core.paths.RESULTS", tmp_path / "results")
    assert fdfa("record", file, "--profile", "mine", "--allow-dirty").exit_code == 0
    place = tmp_path / "results" / "mine" / "experiment"
    runs, metrics = (pd.read_parquet(place / f"{name}.parquet") for name in ("runs", "metrics"))
    if changed:
        metrics.loc[metrics["step"] == 0, "train_loss"] += 1e-2  # of every run
        metrics.to_parquet(place / "metrics.parquet", index=False)
    if not sealed:  # as runs of earlier versions are
        origins = [{key: value for key, value in json.loads(text).items() if key != "seal"} for text in runs["provenance"]]
        origin = [json.dumps(each, separators=(",", ":")) for each in origins]
        runs.assign(provenance=origin).to_parquet(place / "runs.parquet", index=False)
    result = fdfa("audit", file, "--profile", "mine", "--sample", "1", "--jobs", "1")
    assert result.exit_code == int(changed), result.output
    assert said.format(run=runs["run"].iloc[0]) in result.output


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
