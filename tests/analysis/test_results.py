"""The recorded results in one line, the logs behind them, and whether they come out again."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import analysis
import synthetic_logs
from analysis import audit, logs, options, select, summary, tuning
from analysis.rebuilt import cache, closed_forms
from fdfa_core.errors import InvalidInput, RunError, UnknownName
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import schema
from fdfa_core.runs.store import open_store
from places import ROOT


def test_results_of_one_experiment_are_its_logs():
    found = analysis.results("paper", "momentum")
    expected = logs.load(ROOT / "results" / "paper", "momentum", profile="paper")
    for name in ("runs", "metrics", "probes", "timing"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))


def test_results_of_a_profile_are_all_its_recorded_experiments():
    found = analysis.results("tuning")
    assert "mnist_fc_trials" in found and "digits" not in found  # of which nothing is recorded
    assert all(isinstance(log, analysis.Logs) and len(log.metrics) for log in found.values())


def test_an_unknown_profile_or_experiment_is_named_with_the_known_ones():
    with pytest.raises(UnknownName, match="got 'papr'.*paper"):
        analysis.results("papr")
    with pytest.raises(UnknownName, match="got 'momentun'.*Did you mean 'momentum'"):
        analysis.results("paper", "momentun")


@pytest.mark.parametrize("experiment", [None, "momentum"])
def test_without_records_the_error_says_why_and_what_to_do(tmp_path, experiment):
    with pytest.raises(RunError, match="no recorded run.*not part of an installed package: use a checkout.*fdfa sweep"):
        analysis.results("paper", experiment, root=tmp_path)


def test_importing_the_package_is_light():
    code = "import sys, analysis; sys.exit(bool({'torch', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """Experiments and runs of every method, of which one run (FG-W, seed 2) diverged."""
    return synthetic_logs.write(tmp_path, {"convergence": synthetic_logs.METHODS}, diverged=[("fg-w", 2)])


def load(place):
    experiments, root = place
    return logs.load(root, "convergence", profile="tiny", experiments=experiments)


def victim(place):
    experiments, root = place
    return root / logs.find("convergence", "tiny", experiments).runs()[0].id


def test_every_frame_carries_the_columns_of_its_run(place):
    log = load(place)
    frames = (log.runs, log.metrics, log.probes, log.timing)
    assert all(set(logs.RUN_COLUMNS) <= set(frame) for frame in frames)


def test_width_and_depth_are_those_of_the_hidden_blocks(place):
    assert set(load(place).runs[["width", "depth"]].itertuples(index=False, name=None)) == {(8, 2)}


def test_the_estimator_that_trains_is_probed_under_its_own_label(place):
    probes = load(place).probes
    assert (probes["source"] == "self").all() and (probes["estimator"] == probes["trained_with"]).all()


def test_diverged_runs_are_kept_and_marked(place):
    runs = load(place).runs
    assert runs.loc[runs["status"] == "diverged", ["trained_with", "seed", "diverged_step"]].values.tolist() == [["fg-w", 2, 2]]


def test_a_run_that_diverged_before_its_first_probe_leaves_the_others_readable(place):
    path = victim(place) / "probes.parquet"
    whole = pd.read_parquet(path)
    whole.iloc[:0][list(schema.TABLES["probes"])].to_parquet(path)  # what such a run writes: keys alone, and no rows
    probes = load(place).probes
    assert len(whole) and victim(place).name not in set(probes["run"]) and pd.api.types.is_float_dtype(probes["variance_se"])


def test_a_missing_run_is_an_error_that_says_how_to_make_it(place):
    victim(place).rename(victim(place).with_suffix(".partial"))
    with pytest.raises(RunError, match=r"1 of 12 runs of experiment 'convergence'.*fdfa sweep .*tiny/convergence.toml"):
        load(place)


def test_an_unknown_experiment_is_named_with_the_known_ones(place):
    with pytest.raises(UnknownName, match="converge.*convergence"):
        logs.load(place[1], "converge", profile="tiny", experiments=place[0])


def test_a_truncated_table_is_an_error_that_names_the_file(place):
    path = victim(place) / "probes.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="probes.parquet.*truncated"):
        load(place)


def test_a_foreign_table_is_an_error_that_names_the_missing_column(place):
    path = victim(place) / "probes.parquet"
    pd.read_parquet(path).drop(columns="bias2_se").to_parquet(path)
    with pytest.raises(RunError, match="probes.parquet.*bias2_se"):
        load(place)


def test_raw_gradients_are_read_by_name(tmp_path):
    draws = np.arange(6.0).reshape(3, 2)
    (tmp_path / "run" / "gradients").mkdir(parents=True)
    save_file({"fg-w/0.affine.weight": draws}, tmp_path / "run" / "gradients" / "step=4.safetensors")
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(synthetic_logs.provenance()))
    np.testing.assert_array_equal(logs.gradients(tmp_path, "run", 4)["fg-w/0.affine.weight"], draws)


def test_truncated_raw_gradients_are_an_error(tmp_path):
    path = tmp_path / "run" / "gradients" / "step=4.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x08\0")
    with pytest.raises(RunError, match="step=4.safetensors"):
        logs.gradients(tmp_path, "run", 4)


def test_absent_raw_gradients_are_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(RunError, match="raw_gradients = true"):
        logs.gradients(tmp_path, "run", 4)


def test_an_option_is_a_number_where_it_was_given():
    frame = pd.DataFrame({"method": "mine", "options": ['{"feedback_lr": 0.1}', "{}", '{"feedback_lr": "fast"}']})
    np.testing.assert_equal(options.numbers(frame, "feedback_lr").to_numpy(), [0.1, np.nan, np.nan])


def test_rows_that_are_not_finite_are_left_out():
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [1.0, 2.0, np.inf]})
    assert select.measured(frame, "a", "b").index.tolist() == [0]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(InvalidInput, match="variance"):
        select.measured(pd.DataFrame({"a": [1.0]}), "variance")


def test_the_last_probe_is_that_of_each_run():
    frame = pd.DataFrame({"run": ["a", "a", "b"], "step": [1, 5, 3]})
    assert select.last_step(frame)["step"].tolist() == [5, 3]


# --- All statistics of an experiment as tables, and the best rates of a grid, from logs with a known truth


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


def test_newer_logs_have_tables_of_activations_and_of_what_batches_agree_on(grid):
    tables = summary.tables(dataclasses.replace(grid, probes=grid.probes.assign(activation_rms=2.0, sampling="fresh_batches")))
    assert list(tables)[-2:] == ["activations", "agreement"]
    assert (tables["activations"].query("quantity == 'growth'")["estimate"] == 1).all()
    assert set(tables["agreement"]["network.activation"]) == {"relu", "tanh"} and (tables["agreement"]["seeds"] == 2).all()


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


# --- What a result depends on: the code that makes it, however it is imported, and nothing else --------------------


FILES = {
    "fdfa_core/__init__.py": "import lazy_loader\n",
    "fdfa_core/__init__.pyi": "from .networks import net\nfrom .other import other\n",
    "fdfa_core/networks.py": "def net():\n    pass\n",
    "fdfa_core/other.py": "other = 1\n",
    "analysis/__init__.py": "",
    "analysis/makes.py": "import analysis.direct\n\n\ndef f():\n    from fdfa_core import net\n    from . import lazy\n",
    "analysis/direct.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import figures.shown\n",
    "analysis/lazy.py": '"""What it is."""\n\nX = 1  # why\n',
    "analysis/unrelated.py": "",
    "figures/shown.py": "",
    "fdfa_core/found/__init__.py": "",
    "fdfa_core/found/registry.py": "import pkgutil\n",
    "fdfa_core/found/one.py": "",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def changes(tree, name, text, **how):
    """Whether the hash of `analysis.makes` changes with the text of a file."""
    before = cache.code("analysis.makes", tree=tree, **how)
    (tree / name).write_text(text)
    return cache.code("analysis.makes", tree=tree, **how) != before


@pytest.mark.parametrize(
    "name",
    ["analysis/makes.py", "analysis/direct.py", "analysis/lazy.py", "analysis/__init__.py", "fdfa_core/networks.py"],
    ids=["its own module", "an import", "an import inside a function", "a package", "a name that a lazy package passes on"],
)
def test_a_result_depends_on(tree, name):
    assert changes(tree, name, (tree / name).read_text() + "Y = 2\n")


@pytest.mark.parametrize(
    "name",
    ["analysis/unrelated.py", "fdfa_core/other.py", "figures/shown.py"],
    ids=["no import", "another lazy name", "a type"],
)
def test_a_result_does_not_depend_on(tree, name):
    assert not changes(tree, name, "Y = 2\n")


def test_a_package_that_discovers_its_modules_depends_on_all(tree):
    assert set(cache.sources("fdfa_core.found.registry", tree=tree)) >= {"fdfa_core.found.registry", "fdfa_core.found.one"}


def test_what_is_left_out_does_not_count(tree):
    assert "analysis.lazy" not in cache.sources("analysis.makes", without={"analysis.lazy"}, tree=tree)


@pytest.mark.parametrize(
    "text, changed",
    [
        ('"""What else it is.\n\nAt length."""\n\nX = 1\n', False),
        ('"""What it is."""\n\n\n\nX = 1  # because\n', False),
        ('"""What it is."""\n\nX = 2  # why\n', True),
        ('"""What it is."""\n\nX = "1  # why"\n', True),
    ],
    ids=["docstring", "comment", "number", "text that looks like a comment"],
)
def test_prose_counts_only_if_asked(tree, text, changed):
    assert changes(tree, "analysis/lazy.py", text, prose=False) == changed
    (tree / "analysis/lazy.py").write_text(FILES["analysis/lazy.py"])
    assert changes(tree, "analysis/lazy.py", text)


def test_closed_forms_depend_on_theory_and_networks_and_on_no_figure_command_or_log():
    modules = set(cache.sources(closed_forms.ANSWERS))
    assert {"analysis.theory.feedback_form", "fdfa_core.networks.dense", "fdfa_core.training.build"} <= modules
    above = ("figures", "fdfa_cli", "fdfa_core.sweeps", "fdfa_core.runs", "fdfa_core.measuring", "analysis.logs")
    assert not [name for name in modules if name.startswith(above)]


def test_figures_that_count_operations_depend_on_the_estimators():
    assert "fdfa_core.estimators.forward_feedback" in cache.sources("figures.convergence_cost", without={"figures.plan"})


def test_a_figure_depends_on_no_other_figure():
    modules = cache.sources("figures.convergence", "figures.render", without={"figures.plan"})
    assert "figures.variance_vs_width" not in modules and "analysis.convergence" in modules


def test_the_hash_is_that_of_the_contents_wherever_the_tree_is(tmp_path):
    for package in ("analysis", "fdfa_core"):
        shutil.copytree(ROOT / package, tmp_path / package)
    assert cache.code(closed_forms.ANSWERS, tree=tmp_path) == cache.code(closed_forms.ANSWERS)


def test_a_frame_is_computed_once_and_again_if_what_is_kept_is_broken(tmp_path):
    made = []

    def compute():
        made.append(1)
        return pd.DataFrame({"a": [1.0]})

    for _ in range(2):
        pd.testing.assert_frame_equal(cache.kept(tmp_path, "key", compute), pd.DataFrame({"a": [1.0]}))
    assert len(made) == 1
    (tmp_path / "key.frame").write_bytes(b"half")
    cache.kept(tmp_path, "key", compute)
    cache.kept(tmp_path, "another key", compute)
    assert len(made) == 3


def test_a_kept_frame_of_another_question_is_not_the_answer(tmp_path):
    cache.kept(tmp_path, "one", lambda: pd.DataFrame({"a": [1.0]}))
    (tmp_path / "one.frame").rename(tmp_path / "two.frame")
    assert cache.kept(tmp_path, "two", lambda: pd.DataFrame({"b": [2.0]})).columns.tolist() == ["b"]


# --- a run made anew ---------------------------------------------------------------------------------------------------


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
