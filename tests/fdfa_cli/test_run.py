import pytest
import torch

from analysis import logs, own
from fdfa_core import Monitor, fully_connected
from fdfa_core.errors import FdfaError
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.runs.directory import RunDirectory, is_complete
from fdfa_core.training.run import train as train_in_earnest
from tiny import TOML, tables


def only_the_file(tmp_path):
    return [path.name for path in tmp_path.iterdir()] == ["experiment.toml"]


def refuse(*_, **__):
    raise FdfaError("out of luck")


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


def test_a_sweep_leaves_out_what_a_record_holds(fdfa, file, tmp_path):
    first, second = (run.id for run in load_experiment(file).runs())
    fdfa("train", file, "--run", first, "--runs", "elsewhere")
    assert "1 run" in fdfa("record", file, "--runs", "elsewhere", "--out", "recorded", "--allow-dirty").output
    assert fdfa("sweep", file, "--without", "recorded", "--jobs", 1).exit_code == 0
    assert is_complete(tmp_path / "runs", second) and not is_complete(tmp_path / "runs", first)
    assert fdfa("sweep", file, "--without", "recroded", "--jobs", 1).exit_code == 2


def test_a_sweep_with_a_failed_run_exits_with_one(fdfa, file, monkeypatch):
    monkeypatch.setattr("fdfa_core.training.run.train", refuse)
    result = fdfa("sweep", file, "--jobs", 1)
    assert result.exit_code == 1 and "2 failed" in result.output and "failed: out of luck" in result.stderr


def test_data_says_what_a_data_set_holds(fdfa):
    assert "digits: 1437 training and 360 test images, 1 x 8 x 8, 10 classes, SHA-256" in fdfa("data", "digits").output


def test_data_lists_what_is_known(fdfa):
    assert {"digits", "mnist", "cifar-10"} <= set(fdfa("data", "--list").output.split())


def test_list_names_estimators_architectures_and_experiments(fdfa):
    result = fdfa("list").output
    assert all(name in result for name in ("fdfa", "feedback_lr=", "fully_connected", "mnist", "profile quick", "convergence"))


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


def test_an_unknown_option_is_refused(fdfa):
    assert fdfa("sweep", "--jbos", "2").exit_code == 2


@pytest.mark.parametrize("jobs", ["0", "two"])
def test_an_impossible_number_of_jobs_is_refused(fdfa, jobs):
    assert fdfa("sweep", "--jobs", jobs).exit_code == 2


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("place", ["results", "results/quick", "results/other/../quick"])
def test_nothing_is_trained_among_recorded_results(fdfa, file, tmp_path, monkeypatch, command, place):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the record is that of the code, wherever the command is called
    result = fdfa(command, file, "--runs", tmp_path / place)
    assert result.exit_code == 2 and "--runs: got" in result.stderr and "only `fdfa record` writes" in result.stderr
    assert not (tmp_path / "results").exists()


def test_results_of_the_working_directory_that_are_no_record_may_be_trained(fdfa, file, tmp_path, monkeypatch):
    monkeypatch.setattr("fdfa_core.paths.RESULTS", tmp_path / "elsewhere" / "results")
    assert fdfa("train", file, "--runs", "results").exit_code == 0


def test_training_goes_on_after_a_failed_run_and_exits_with_one(fdfa, file, monkeypatch):
    first, second = (run.id for run in load_experiment(file).runs())
    monkeypatch.setattr("fdfa_core.training.run.train", fail_once(first))
    result = fdfa("train", file)
    assert result.exit_code == 1 and f"run {first} failed: out of luck" in result.stderr
    assert result.output.count("finished after 6 steps") == 1 and f"-> runs/{second}" in result.output


def fail_once(run):
    def train(config, *arguments, **options):
        return refuse() if config.id == run else train_in_earnest(config, *arguments, **options)

    return train


def test_training_shows_runs_that_were_complete_before(fdfa, file, trained):
    result = fdfa("train", file)
    assert result.exit_code == 0 and result.output.count("finished after 6 steps, test accuracy 0.") == 2


@pytest.mark.parametrize("command", [["train"], ["sweep", "--jobs", 1]], ids=["train", "sweep"])
def test_a_run_with_the_configuration_of_another_is_named_set_aside_and_made_again(fdfa, file, trained, command):
    first, second = (trained / run.id / "config.json" for run in load_experiment(file).runs())
    first.write_bytes(second.read_bytes())
    result = fdfa(*command, file)
    run = first.parent
    assert result.exit_code == 0 and f"run {run.name} is damaged: its config.json is that of another run" in result.stderr
    assert (run.with_name(f"{run.name}.damaged-1") / "config.json").read_bytes() == second.read_bytes()
    assert RunDirectory(trained).config(run.name).id == run.name


def test_training_on_a_terminal_shows_the_steps_of_each_run(fdfa, file, monkeypatch):
    monkeypatch.setattr("fdfa_cli.run.on_terminal", lambda: True)
    said = fdfa("train", file).stderr
    assert all(f"run {i} of 2: bp, seed {i - 1}" in said for i in (1, 2)) and "/6 [" in said


def test_training_and_sweeping_give_the_same_bits(fdfa, file, trained, tmp_path):
    fdfa("sweep", file, "--runs", "swept", "--jobs", 1)
    for run in load_experiment(file).runs():
        assert tables(tmp_path / "swept" / run.id) == tables(trained / run.id)


def test_every_run_that_is_asked_for_has_to_be_there(fdfa, file, tmp_path):
    first = load_experiment(file).runs()[0].id
    result = fdfa("train", file, "--run", first[:6], "--run", "zzz")
    assert result.exit_code == 2 and "--run: got 'zzz'" in result.stderr and only_the_file(tmp_path)


def test_seconds_that_no_clock_passes_are_refused(fdfa, file):
    result = fdfa("sweep", file, "--checkpoint-seconds", "nan")
    assert result.exit_code == 2 and "nan is no number of seconds" in result.stderr


# --- Runs of a user's own loops are drawn as far as their logs allow, and never mixed up with those of experiment files


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
