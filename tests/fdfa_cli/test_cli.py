from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import fdfa_cli
from fdfa_core.errors import FdfaError
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.runs.directory import is_complete
from tiny import tables

TOML = """
description = "Two short runs."
[data]
name = "digits"
train_size = 128
[network]
hidden = [8, 8]
[training]
steps = 6
batch_size = 32
[probe]
schedule = { kind = "at", steps = [3] }
estimators = [{ name = "self" }, { name = "fg-w" }]
replicates = 4
reference_size = 64
[grid]
seed = [0, 1]
[[cases]]
estimator = { name = "bp" }
"""


@pytest.fixture
def fdfa(tmp_path, monkeypatch):
    """The command, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(fdfa_cli.main, [str(a) for a in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def trained(fdfa, file, tmp_path):
    assert fdfa("train", file).exit_code == 0
    return tmp_path / "runs"


def only_the_file(tmp_path):
    return [path.name for path in tmp_path.iterdir()] == ["experiment.toml"]


def test_help_lists_the_commands(fdfa):
    lines = fdfa("--help").output
    assert all(name in lines for name in ("analyse", "data", "figures", "list", "sweep", "train"))


@pytest.mark.parametrize("command", ["analyse", "data", "figures", "list", "sweep", "train"])
def test_every_command_has_help(fdfa, command):
    assert "Usage: " in fdfa(command, "--help").output


def test_help_imports_nothing_heavy():
    source = Path(fdfa_cli.__file__).read_text().split("\ndef ")[0] + Path(fdfa_cli.__file__).read_text()
    top_level = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top_level if any(name in line for name in ("torch", "fdfa_core", "analysis", "pandas"))]


def test_train_carries_out_every_run_of_a_file(fdfa, file, tmp_path):
    result = fdfa("train", file)
    assert result.output.count("finished after 6 steps, test accuracy 0.") == 2
    assert all(is_complete(tmp_path / "runs", run.id) for run in load_experiment(file).runs())


def test_train_can_be_told_one_run(fdfa, file, tmp_path):
    first, second = (run.id for run in load_experiment(file).runs())
    fdfa("train", file, "--run", second[:6])
    assert is_complete(tmp_path / "runs", second) and not is_complete(tmp_path / "runs", first)


def test_output_that_is_no_terminal_holds_no_progress_bar(fdfa, file):
    result = fdfa("train", file)
    assert "\r" not in result.output + result.stderr and "%|" not in result.output + result.stderr


def test_sweep_carries_out_what_train_does(fdfa, file, trained, tmp_path):
    assert fdfa("sweep", file, "--runs", "swept", "--jobs", 1).exit_code == 0
    for run in load_experiment(file).runs():
        assert tables(tmp_path / "swept" / run.id).keys() == tables(trained / run.id).keys()


def test_a_second_sweep_skips_all(fdfa, file, trained):
    assert "2 runs were there already; 0 finished" in fdfa("sweep", file, "--jobs", 1).output


def test_a_sweep_with_a_failed_run_exits_with_one(fdfa, file, monkeypatch):
    monkeypatch.setattr("fdfa_core.training.run.train", refuse)
    result = fdfa("sweep", file, "--jobs", 1)
    assert result.exit_code == 1 and "2 failed" in result.output and "failed: out of luck" in result.stderr


def refuse(*_, **__):
    raise FdfaError("out of luck")


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


def test_tuned_chooses_a_rate_for_each_network(fdfa, swept):
    lines = fdfa("tuned", swept).output.splitlines()[1:]
    assert [line.split("  ")[1] for line in lines] == ["bp, network.activation relu", "bp, network.activation tanh"]
    assert all("of 2 rates" in line for line in lines)


def test_analyse_refuses_two_experiments_of_one_name_in_one_place(fdfa, file, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / file.name).write_text(TOML)
    result = fdfa("analyse", file, f"other/{file.name}", "--out", "statistics")
    assert result.exit_code == 2 and "experiments of different names" in result.stderr and "other/" in result.stderr


def test_analyse_names_a_place_that_cannot_be_written_to(fdfa, file):
    result = fdfa("analyse", file, "--out", file)
    assert result.exit_code == 2 and "experiment.toml/experiment: cannot be made" in result.stderr


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


def test_data_says_what_a_data_set_holds(fdfa):
    assert "digits: 1437 training and 360 test images, 1 x 8 x 8, 10 classes, SHA-256" in fdfa("data", "digits").output


def test_data_lists_what_is_known(fdfa):
    assert {"digits", "mnist", "cifar-10"} <= set(fdfa("data", "--list").output.split())


def test_list_names_estimators_architectures_and_experiments(fdfa):
    result = fdfa("list").output
    assert all(name in result for name in ("fdfa", "feedback_lr=", "fully_connected", "mnist", "profile quick", "convergence"))


# (arguments, what the one line on standard error must say)
REFUSED = {
    "no such file": (["train", "nowhere.toml"], "got 'nowhere.toml'; accepted: a readable TOML file"),
    "unknown profile": (["sweep", "--profile", "quik"], "profile: got 'quik'; accepted: one of"),
    "unknown profile of figures": (["figures", "--profile", "quik"], "Did you mean 'quick'?"),
    "unknown data set": (["data", "mnits"], "got 'mnits'; accepted: one of"),
    "unknown run": (["train", "experiment.toml", "--run", "zzz"], "run: got 'zzz'; accepted: one of"),
    "missing logs": (["analyse", "experiment.toml"], "is missing or unfinished (2 of 2 runs of experiment 'experiment')"),
    "unknown device": (["train", "experiment.toml", "--device", "gpu"], "device: got 'gpu'; accepted: one of auto, cpu"),
    "data that are missing": (["data", "mnist", "--no-download"], "mnist"),
}


@pytest.mark.parametrize("arguments, said", REFUSED.values(), ids=REFUSED)
def test_an_error_is_one_line_and_exit_code_two(fdfa, file, arguments, said):
    result = fdfa(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and said in result.stderr


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_an_impossible_experiment_is_refused_before_anything_is_written(fdfa, file, tmp_path, command):
    file.write_text(TOML.replace('name = "bp"', 'name = "pb"'))
    result = fdfa(command, file)
    assert result.exit_code == 2 and "cases[0].estimator.name: got 'pb'" in result.stderr
    assert only_the_file(tmp_path)


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_directory_of_something_else_is_refused(fdfa, file, tmp_path, command):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thesis.tex").write_text("precious")
    result = fdfa(command, file)
    assert result.exit_code == 2 and "holds files that no run wrote" in result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["thesis.tex"]


def test_a_truncated_log_is_named(fdfa, file, trained):
    run = load_experiment(file).runs()[0]
    path = trained / run.id / "metrics.parquet"
    path.write_bytes(path.read_bytes()[:50])
    result = fdfa("analyse", file)
    assert result.exit_code == 2 and f"{run.id}/metrics.parquet: is truncated or not Parquet" in result.stderr


def test_debug_shows_where_an_error_comes_from(fdfa):
    assert isinstance(fdfa("--debug", "sweep", "--profile", "quik").exception, FdfaError)


def test_an_unknown_option_is_refused(fdfa):
    assert fdfa("sweep", "--jbos", "2").exit_code == 2


@pytest.mark.parametrize("jobs", ["0", "two"])
def test_an_impossible_number_of_jobs_is_refused(fdfa, jobs):
    assert fdfa("sweep", "--jobs", jobs).exit_code == 2


def test_recorded_results_are_drawn_without_training(fdfa, tmp_path, monkeypatch):
    (tmp_path / "results" / "quick").mkdir(parents=True)
    asked = []
    monkeypatch.setattr("figures.render.render", lambda profile, root, out, **_: asked.append(root) or [])
    assert fdfa("figures").exit_code == 0 and asked == [Path("results/quick")]


@pytest.mark.parametrize("place", ["results/quick", "results/other", "results/other/../quick", "linked"])
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_nothing_is_trained_among_recorded_results(fdfa, tmp_path, monkeypatch, place, absolute):
    (tmp_path / "results" / "other").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "results" / "other")
    monkeypatch.setattr(fdfa_cli, "_sweep", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("figures.render.render", lambda *_, **__: [])
    result = fdfa("figures", "--runs", tmp_path / place if absolute else place, "--train")
    assert result.exit_code == 0, result.output


def test_missing_runs_are_trained_elsewhere(fdfa, tmp_path, monkeypatch):
    (tmp_path / "results" / "quick").mkdir(parents=True)
    swept = []
    monkeypatch.setattr(fdfa_cli, "_sweep", lambda experiments, root, *_, **__: swept.append(root))
    monkeypatch.setattr("figures.render.render", lambda *_, **__: [])
    assert fdfa("figures", "--runs", tmp_path / "results-of-mine").exit_code == 0
    assert swept == [tmp_path / "results-of-mine"]


def test_figures_without_training_report_missing_runs(fdfa, tmp_path):
    result = fdfa("figures", "--profile", "smoke", "--no-train", "--only", "convergence")
    assert result.exit_code == 2 and "smoke/convergence.toml" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--only", "convergense"], "one of accuracy, "), (["--out", "experiment.toml"], "experiment.toml: is a file")],
)
def test_figures_refuses_what_it_could_not_draw_before_it_trains(fdfa, file, monkeypatch, arguments, said):
    monkeypatch.setattr("fdfa_core.sweeps.sweep.sweep", lambda *_, **__: pytest.fail("it trained"))
    result = fdfa("figures", "--profile", "smoke", *arguments)
    assert result.exit_code == 2 and said in result.stderr, result.output


def test_figures_trains_what_the_figures_asked_for_need(fdfa, monkeypatch):
    asked = []
    monkeypatch.setattr(fdfa_cli, "_sweep", lambda experiments, *_, **__: asked.extend(e.name for e in experiments))
    fdfa("figures", "--profile", "smoke", "--only", "variance_vs_width")
    assert asked == ["width"]
