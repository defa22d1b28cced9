"""Settings are chosen as the protocol says: from whole grids, by the one-standard-error rule, and written where they belong."""

import json
import tomllib
from functools import cache

import numpy as np
import pandas as pd
import pytest

from analysis import logs, tuned_files, tuning
from analysis.verdicts import plan, protocol
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import label
from fdfa_core.experiments.loading import load_experiment, load_profile
from places import ROOT

HEAD = """
description = "Round 1 of tuning: every method's trials."
role = "{role}"
# a remark that stays
[data]
name = "mnist"
evaluate_on = "validation"
[network]
hidden = [8]
[training]
epochs = 1
"""
TRIALS = (
    HEAD.format(role="trials")
    + """
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa" }  # the rule of the paper
grid = { "training.learning_rate" = [1e-4, 3e-4, 1e-3], "estimator.feedback_lr" = [1e-3, 0.01, 0.1] }
[grid]
"training.learning_rate" = [4e-4, 6.3e-4, 1e-3, 1.6e-3]
seed = [100]
"""
)
FINALS = (
    HEAD.format(role="finals")
    + """
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.01 }
training = { learning_rate = 1e-3 }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.1 }
training = { learning_rate = 3e-4 }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.01 }
training = { learning_rate = 3e-4 }
[grid]
seed = [100, 101, 102]
"""
)


def experiment(place, text, name="mnist_fc_trials"):
    path = place / f"{name}.toml"
    path.write_text(text)
    return load_experiment(path)


def log(planned, accuracy, lost=lambda run: False, there=lambda run: True):
    """Logs in which a run's last validation accuracy is ``accuracy(run)``; earlier ones are higher and do not count."""
    runs = [run for run in planned.runs() if there(run)]
    rows = [
        {"run": run.id, "step": step, "test_accuracy": accuracy(run) if step else 0.999, "train_loss": 0.5,
         "status": "diverged" if lost(run) else "finished"}
        for run in runs for step in (0, 9)
    ]  # fmt: skip
    return logs.Logs(pd.DataFrame({"run": [run.id for run in runs]}), pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame())


def peak(rate, alpha=0.01):
    """Return an accuracy that is highest at a rate, and at a second setting."""

    def accuracy(run):
        off = abs(np.log10(run.training.learning_rate / rate))
        if run.estimator.name == "fdfa":
            off += 0.1 * abs(np.log10(run.estimator.options["feedback_lr"] / alpha))
        return 0.9 - 0.1 * off

    return accuracy


@pytest.fixture
def grid(tmp_path):
    return experiment(tmp_path, TRIALS)


@pytest.fixture
def finals(tmp_path):
    return experiment(tmp_path, FINALS, "mnist_fc_finals")


# --- round 1 ---------------------------------------------------------------------------------------------------------


def test_trials_are_pairs_of_a_rate_and_the_second_setting_of_a_method(grid):
    rows = tuning.trials(grid, log(grid, peak(1e-3)))
    assert rows.groupby("trained_with").size().to_dict() == {"bp": 4, "fdfa": 9}
    fdfa = rows[rows["method"] == "fdfa"]
    assert set(fdfa["second"]) == {"feedback_lr"} and sorted(fdfa["value"].unique()) == [1e-3, 0.01, 0.1]
    assert set(fdfa["given"]) == {"{}"} and rows.loc[rows["method"] == "bp", "value"].isna().all()
    best = fdfa.loc[fdfa["accuracy"].idxmax()]
    assert (best["learning_rate"], best["value"], best["accuracy"]) == (1e-3, 0.01, pytest.approx(0.9))


def test_a_second_setting_that_is_not_written_has_its_default():
    assert tuning.split("pepita", {}) == ({}, "scale", 0.05)
    rest, second, value = tuning.split("fdfa", {"feedback_rule": "adam"})
    assert (rest, second, value) == ({"feedback_rule": "adam"}, "feedback_lr", 1e-4)


def test_the_three_best_are_ranked_by_accuracy_then_by_the_smaller_rate(grid):
    rows = tuning.trials(grid, log(grid, lambda run: {1e-3: 0.9, 6.3e-4: 0.8, 4e-4: 0.7}.get(run.training.learning_rate, 0.8)))
    mine = tuning.finalists(rows)
    assert mine.loc[mine["method"] == "bp", "learning_rate"].tolist() == [1e-3, 6.3e-4, 1.6e-3]
    assert mine.loc[mine["method"] == "bp", "rank"].tolist() == [1, 2, 3]


def test_of_a_grid_with_missing_trials_nothing_is_chosen(grid):
    some = tuning.trials(grid, log(grid, peak(1e-3), there=lambda run: run.training.learning_rate != 6.3e-4))
    shares = tuning.progress(some).set_index("trained_with")
    assert shares.loc["bp", ["done", "planned", "complete"]].tolist() == [3, 4, False]
    assert set(tuning.finalists(some)["method"]) == {"fdfa"}
    assert tuning.finalists(tuning.trials(grid)).empty


def test_a_trial_that_diverged_is_out_and_counted(grid):
    rows = tuning.trials(grid, log(grid, peak(1e-3), lost=lambda run: run.training.learning_rate == 1e-3))
    assert 1e-3 not in set(tuning.finalists(rows)["learning_rate"])
    assert tuning.progress(rows).set_index("trained_with")["lost"].to_dict() == {"bp": 1, "fdfa": 3}


@pytest.mark.parametrize(
    ("rate", "alpha", "expected"),
    [
        (1e-3, 0.01, [("fdfa", "learning_rate", "above", 3e-3)]),  # 3e-4 is the grid's middle, 1e-3 its end
        (3e-4, 0.01, [("bp", "learning_rate", "below", 2.5e-4)]),
        (3e-4, 0.1, [("bp", "learning_rate", "below", 2.5e-4), ("fdfa", "feedback_lr", "above", 1.0)]),
    ],
)
def test_edges_are_named_with_the_next_value(grid, rate, alpha, expected):
    found = tuning.edges(tuning.trials(grid, log(grid, peak(rate, alpha))))
    assert [tuple(row) for row in found[["trained_with", "setting", "side", "next"]].to_numpy()] == expected


def test_a_value_that_no_setting_may_pass_has_no_next(tmp_path):
    grid = experiment(tmp_path, TRIALS.replace("[1e-3, 0.01, 0.1]", "[0.01, 0.1, 1.0]"))
    found = tuning.edges(tuning.trials(grid, log(grid, peak(3e-4, 1.0))))
    assert found.loc[found["setting"] == "feedback_lr", "next"].isna().tolist() == [True]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [('evaluate_on = "validation"', 'evaluate_on = "test"', "never chosen on the test set"),
     ("seed = [100]", '"network.activation" = ["relu", "tanh"]\nseed = [100]', "varies something else")],
)  # fmt: skip
def test_a_grid_that_cannot_be_judged_is_refused(tmp_path, old, new, said):
    with pytest.raises(InvalidInput, match=said):
        tuning.trials(experiment(tmp_path, TRIALS.replace(old, new)))


# --- round 2 ---------------------------------------------------------------------------------------------------------


def judged(finals, accuracies, **how):
    """Finals with accuracies by (rate, second setting), a list of one for each seed."""
    values = {key: dict(zip((100, 101, 102), of, strict=True)) for key, of in accuracies.items()}
    found = log(finals, lambda run: values[run.training.learning_rate, run.estimator.options["feedback_lr"]][run.seed], **how)
    rows = tuning.choices(tuning.trials(finals, found))
    return rows.set_index(["learning_rate", "value"])


CLOSE = {(1e-3, 0.01): [0.90, 0.92, 0.94], (3e-4, 0.1): [0.912, 0.912, 0.912], (3e-4, 0.01): [0.91, 0.91, 0.91]}


def test_the_smallest_rate_within_one_standard_error_is_chosen(finals):
    """The best has mean 0.92 and standard error 0.02/√3 = 0.01155, so that 0.91 is within; of equal rates, the better."""
    rows = judged(finals, CLOSE)
    assert rows.loc[(1e-3, 0.01), "se"] == pytest.approx(0.02 / np.sqrt(3)) and rows.loc[(1e-3, 0.01), "best"]
    assert rows["within"].all() and rows.index[rows["chosen"]].tolist() == [(3e-4, 0.1)]


def test_a_smaller_rate_that_is_not_within_is_not_chosen(finals):
    rows = judged(finals, CLOSE | {(3e-4, 0.1): [0.908] * 3, (3e-4, 0.01): [0.9] * 3})
    assert rows.index[rows["chosen"]].tolist() == [(1e-3, 0.01)]


def test_a_pair_that_diverged_with_one_seed_is_out(finals):
    rows = judged(finals, CLOSE, lost=lambda run: run.seed == 101 and run.estimator.options["feedback_lr"] == 0.1)
    assert rows.loc[(3e-4, 0.1), "diverged"] == 1 and rows.index[rows["chosen"]].tolist() == [(3e-4, 0.01)]


def test_of_finals_with_a_missing_seed_nothing_is_chosen(finals):
    assert not judged(finals, CLOSE, there=lambda run: run.seed != 102 or run.training.learning_rate < 1e-3)["chosen"].any()


def test_one_seed_has_no_standard_error(grid):
    with pytest.raises(InvalidInput, match="trials of round 1"):
        tuning.choices(tuning.trials(grid, log(grid, peak(1e-3))))


def test_the_best_second_setting_is_taken_at_every_rate(grid):
    rows = tuning.by_rate(tuning.trials(grid, log(grid, peak(3e-4, 0.1))))
    fdfa = rows[rows["method"] == "fdfa"]
    assert fdfa["learning_rate"].tolist() == [1e-4, 3e-4, 1e-3] and set(fdfa["value"]) == {0.1}


# --- files -----------------------------------------------------------------------------------------------------------


def inside(run):
    """Best trials inside both grids."""
    return peak(6.3e-4 if run.estimator.name == "bp" else 3e-4)(run)


def test_finals_are_the_best_pairs_with_the_seeds_and_length_of_round_2(grid, tmp_path):
    rows = tuning.trials(grid, log(grid, inside))
    text = tuned_files.finals(grid, rows, "fdfa tuned A --finalists B")
    assert text == tuned_files.finals(grid, rows, "fdfa tuned A --finalists B")
    assert "# Written by: fdfa tuned A --finalists B\n" in text
    runs = experiment(tmp_path, text, "mnist_fc_finals").runs()
    assert {run.seed for run in runs} == {100, 101, 102} and {run.training.epochs for run in runs} == {5}
    pairs = {(r.estimator.name, r.estimator.options.get("feedback_lr"), r.training.learning_rate) for r in runs}
    best = tuning.finalists(rows)
    assert pairs == {(r.method, r.value if r.second else None, r.learning_rate) for r in best.itertuples()} and len(pairs) == 6
    assert all(run.data == grid.runs()[0].data and run.network == grid.runs()[0].network for run in runs)


def test_finals_are_no_longer_than_the_runs_to_come(grid, tmp_path):
    short = experiment(tmp_path, TRIALS, "mnist_cnn_trials")
    text = tuned_files.finals(short, tuning.trials(short, log(short, inside)), "")
    assert {run.training.epochs for run in experiment(tmp_path, text, "mnist_cnn_finals").runs()} == {3}


def test_finals_are_refused_before_the_grid_is_whole_or_while_a_best_trial_is_at_an_edge(grid):
    some = tuning.trials(grid, log(grid, inside, there=lambda run: run.estimator.name == "bp"))
    with pytest.raises(InvalidInput, match="fdfa 0 of 9.*fdfa sweep"):
        tuned_files.finals(grid, some, "")
    with pytest.raises(InvalidInput, match="fdfa learning_rate 0.001.*--extend"):
        tuned_files.finals(grid, tuning.trials(grid, log(grid, peak(1e-3))), "")


def test_an_extension_adds_one_value_and_keeps_runs_and_remarks(grid):
    text = tuned_files.extended(grid, tuning.trials(grid, log(grid, peak(1e-3, 0.1))))
    before = {run.id for run in grid.runs()}
    grid.path.write_text(text)
    after = load_experiment(grid.path).runs()
    new = [run for run in after if run.id not in before]
    assert before < {run.id for run in after} and {run.estimator.name for run in new} == {"fdfa"}
    assert {run.training.learning_rate for run in after if run.estimator.name == "fdfa"} == {1e-4, 3e-4, 1e-3, 3e-3}
    assert {run.estimator.options["feedback_lr"] for run in after if run.estimator.name == "fdfa"} == {1e-3, 0.01, 0.1, 1.0}
    assert "# a remark that stays" in text and "# the rule of the paper" in text


def test_an_extension_of_a_method_that_has_the_common_grid_gives_it_one_of_its_own(tmp_path):
    grid = experiment(tmp_path, TRIALS.replace("[4e-4, 6.3e-4, 1e-3, 1.6e-3]", "[0.01, 0.016, 0.025]"))
    rows = tuning.trials(grid, log(grid, lambda run: inside(run) if run.estimator.name == "fdfa" else peak(0.1)(run)))
    grid.path.write_text(tuned_files.extended(grid, rows))
    rates = {run.training.learning_rate for run in load_experiment(grid.path).runs() if run.estimator.name == "bp"}
    assert rates == {0.01, 0.016, 0.025, 0.04}


def test_a_grid_without_a_best_trial_at_an_edge_is_not_extended(grid):
    with pytest.raises(InvalidInput, match="no best trial at an edge"):
        tuned_files.extended(grid, tuning.trials(grid, log(grid, inside)))


TARGET = """
description = "Runs to come."
open = "fdfa tuned FINALS --apply THIS"
[network]
hidden = [8]
[training]
epochs = 2
decay = 0.95
[probe]
schedule = { kind = "first_and_last" }
estimators = [
    { name = "fg-a" },
    { name = "fdfa", feedback_lr = 0.5 },
    { name = "fdfa", feedback_rule = "adam", feedback_lr = 1e-4 },  # tuned
]
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.5 }  # on trial
training = { learning_rate = 1e-3, weight_decay = 0.1 }
[grid]
seed = [0, 1]
"""
CHOSEN = pd.DataFrame(
    [["bp", "bp", "{}", "", np.nan, 3e-4], ["fdfa", "fdfa", "{}", "feedback_lr", 0.01, 2e-3],
     ["fdfa(adam)", "fdfa", json.dumps({"feedback_rule": "adam"}), "feedback_lr", 1e-5, 0.1]],
    columns=["trained_with", "method", "given", "second", "value", "learning_rate"],
).assign(optimizer="adam", architecture="fully_connected", hidden="[8]")  # fmt: skip


def test_choices_are_written_into_the_cases_and_the_marked_estimators(tmp_path):
    text = tuned_files.applied(TARGET, CHOSEN, "target")
    runs = experiment(tmp_path, text, "target").runs()
    found = {(r.estimator.name, r.estimator.options.get("feedback_lr"), r.training.learning_rate) for r in runs}
    assert found == {("bp", None, 3e-4), ("fdfa", 0.01, 2e-3)}
    assert [e.options.get("feedback_lr") for e in runs[0].probe.estimators] == [None, 0.5, 1e-5]
    assert {r.training.weight_decay for r in runs} == {0.0, 0.1}
    assert "open" not in text and "# on trial" in text and "# tuned" in text
    assert tuned_files.applied(text, CHOSEN, "target") == text


def test_a_method_that_nothing_was_chosen_for_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"cases\[1\].estimator: got 'fdfa'"):
        tuned_files.applied(TARGET, CHOSEN[CHOSEN["method"] == "bp"], "target")


@pytest.mark.parametrize(
    ("old", "new"),
    [("hidden = [8]", 'architecture = "convolutional"'), ("decay = 0.95", 'decay = 0.95\noptimizer = "sgd"')],
)
def test_settings_of_another_network_or_optimiser_are_refused(old, new):
    with pytest.raises(InvalidInput, match="which the finals were trained with"):
        tuned_files.applied(TARGET.replace(old, new), CHOSEN, "target")


def test_a_layout_that_cannot_be_changed_in_place_is_refused():
    text = TARGET.replace("{ learning_rate = 1e-3, weight_decay = 0.1 }", "{ learning_rate = 1e-3, weight_decay = 0.1 }\n#")
    assert tuned_files.applied(text, CHOSEN, "target")
    text = TARGET.replace('estimator = { name = "bp" }', '  estimator = { name = "bp" }\ntraining.learning_rate = 1e-3')
    with pytest.raises(InvalidInput, match="by hand"):
        tuned_files.applied(text, CHOSEN, "target")


DEEP = TRIALS.replace('estimator = { name = "fdfa" }', 'network = { hidden = [8, 8] }\nestimator = { name = "fdfa" }') + (
    """
[[cases]]
estimator = { name = "fdfa" }
grid = { "training.learning_rate" = [1e-4, 3e-4, 1e-3], "estimator.feedback_lr" = [1e-3, 0.01, 0.1] }
"""
)


def by_depth(run):
    """Best trials inside both grids, but for FDFA in the deep network."""
    return peak(1e-3)(run) if len(run.network.options["hidden"]) == 2 else inside(run)


@pytest.fixture
def deep(tmp_path):
    """A grid in which FDFA has trials in two networks: the deep one is best at its edge, the other inside."""
    grid = experiment(tmp_path, DEEP)
    return grid, tuning.trials(grid, log(grid, by_depth))


def test_a_grid_of_several_depths_has_choices_for_each(deep, tmp_path):
    grid, rows = deep
    best = tuning.finalists(rows, 1)
    assert dict(zip(best["hidden"] + best["method"], best["learning_rate"], strict=True)) == {
        "[8]bp": 6.3e-4,
        "[8, 8]fdfa": 1e-3,
        "[8]fdfa": 3e-4,
    }
    at_edge = tuning.edges(rows)
    assert at_edge[["method", "hidden", "next"]].to_numpy().tolist() == [["fdfa", "[8, 8]", 3e-3]]
    with pytest.raises(InvalidInput, match="fdfa, 2 × 8 learning_rate 0.001"):
        tuned_files.finals(grid, rows, "")

    grid.path.write_text(tuned_files.extended(grid, rows))
    tried = {"[8]": {1e-4, 3e-4, 1e-3}, "[8, 8]": {1e-4, 3e-4, 1e-3, 3e-3}}
    larger = load_experiment(grid.path)
    fdfa = [run for run in larger.runs() if run.estimator.name == "fdfa"]
    assert {h: {r.training.learning_rate for r in fdfa if tuning.hidden(r.network.options) == h} for h in tried} == tried

    rows = tuning.trials(larger, log(larger, by_depth))
    finals = experiment(tmp_path, tuned_files.finals(larger, rows, ""), "mnist_fc_finals")
    found = {(r.method, r.hidden) for r in tuning.trials(finals).itertuples()}
    assert found == {("bp", "[8]"), ("fdfa", "[8]"), ("fdfa", "[8, 8]")} and len(finals.runs()) == 3 * 3 * 3


def test_choices_of_several_depths_are_written_where_that_depth_is(tmp_path):
    both = pd.concat([CHOSEN, CHOSEN.assign(hidden="[8, 8]", learning_rate=[1e-5, 2e-5, 3e-5], value=[np.nan, 0.1, 1e-3])])
    target = TARGET.replace("  # tuned", "").replace(
        "[grid]", '[[cases]]\nnetwork = { hidden = [8, 8] }\nestimator = { name = "fdfa", feedback_lr = 0.5 }\n[grid]'
    )
    runs = experiment(tmp_path, tuned_files.applied(target, both, "target"), "target").runs()
    found = {(r.estimator.name, tuning.hidden(r.network.options), r.training.learning_rate) for r in runs}
    assert found == {("bp", "[8]", 3e-4), ("fdfa", "[8]", 2e-3), ("fdfa", "[8, 8]", 2e-5)}
    with pytest.raises(InvalidInput, match=r"with hidden layers \[9\]"):
        tuned_files.applied(target.replace("[8, 8]", "[9]"), both, "target")


# --- the grids of this repository ------------------------------------------------------------------------------------

GRIDS = {name: e for name, e in load_profile("tuning").items() if e.role == "trials"}


def test_every_grid_of_the_protocol_has_its_file():
    assert {name.removesuffix("_trials") for name in GRIDS} == set(protocol.TUNING.grids)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_that_of_the_protocol_but_for_extensions(name):
    runs, tuned = GRIDS[name].runs(), protocol.TUNING
    assert {run.seed for run in runs} == set(tuned.first.seeds) and {run.training.epochs for run in runs} == {
        tuned.first.epochs
    }
    assert {(run.data.train_size, run.data.validation_fraction) for run in runs} == {(None, tuned.validation)}
    rows = tuning.trials(GRIDS[name])
    for _, mine in rows.groupby(tuning.METHOD):
        one = mine.iloc[0]
        second = tuned.second(one["method"], json.loads(one["given"]))
        axis = (tuned.coarse if second else tuned.fine)[one["optimizer"]]
        for found, of in ((mine["learning_rate"], axis), (mine["value"], second and second.axis)):
            if of is not None:
                line, values = [*reversed(of.below), *of.start, *of.above], sorted(found.unique())
                assert set(of.start) <= set(values) and values == line[line.index(values[0]) : line.index(values[-1]) + 1]
        assert len(mine) == mine["learning_rate"].nunique() * max(1, mine["value"].nunique())


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_has_every_method_that_is_compared_with_its_choices(name):
    tuned = protocol.TUNING
    users = [e for e, grid in tuned.uses.items() if f"{grid}_trials" == name]
    asked = {method for s in protocol.SETTINGS if s.experiment in users for method in s.seeds}
    rows = tuning.trials(GRIDS[name])
    assert asked <= set(rows["method"])
    variants = set(rows.loc[rows["method"] == "fdfa", "given"])
    assert variants == {"{}", json.dumps({"feedback_rule": protocol.BESIDE})}
    assert set(rows.loc[rows["method"] == "fg-a", "given"]) <= {"{}"}  # `asked` says where there has to be one


# --- the experiments that take their settings from them ------------------------------------------------------------------

OF_PROTOCOL = {"width", *protocol.TUNING.uses}
RECORDED = {name: e for name, e in load_profile("paper").items() if name in OF_PROTOCOL}  # or an older one of the same name
TO_COME = RECORDED | load_profile("protocol")


@cache  # five experiments ask for the choices of mnist_fc
def chosen_by(grid):
    """The choices of a grid's finals, or None unless all of their runs are in results/tuning."""
    finals, root = load_profile("tuning").get(f"{grid}_finals"), ROOT / "results" / "tuning"
    if finals is None or (logs.coverage(root, finals)["runs"] < logs.coverage(root, finals)["planned"]).any():
        return None
    rows = tuning.choices(tuning.trials(finals, logs.read(root, finals)))
    return rows[rows["chosen"]]


def alphas(name):
    """The rates α at which an experiment probes FDFA with the momentum rule."""
    probed = [e for run in TO_COME[name].runs() for e in run.probe.estimators]
    return {e.options["feedback_lr"] for e in probed if e.name == "fdfa" and "feedback_rule" not in e.options}


def test_the_experiments_to_come_are_those_of_the_protocol():
    assert plan.departures(TO_COME.values(), protocol.SETTINGS) == dict.fromkeys(
        ("sgd", "residual_mlp"), "the protocol does not ask for it"
    )
    assert TO_COME.keys() == OF_PROTOCOL
    for name, seeds in protocol.VARIANCE_EXPERIMENTS.items():
        assert {run.seed for run in TO_COME[name].runs()} == set(seeds)


@pytest.mark.parametrize("name", protocol.TUNING.uses)
def test_an_experiment_has_the_settings_that_recorded_finals_chose_or_is_open(name):
    grid, target = protocol.TUNING.uses[name], TO_COME[name]
    chosen = chosen_by(grid)
    if chosen is None:
        assert target.open == f"fdfa tuned experiments/tuning/{grid}_finals.toml --apply experiments/protocol/{name}.toml"
        return
    text = target.path.read_text(encoding="utf-8")
    assert tuned_files.applied(text, chosen, name) == text


@pytest.mark.parametrize("name", protocol.VARIANCE_EXPERIMENTS)
def test_the_rate_on_trial_is_probed_whichever_is_chosen(name):
    assert alphas(name) >= set(protocol.TUNING.second("fdfa", {}).axis.start)
    chosen = chosen_by("mnist_fc")
    if chosen is not None:
        assert set(chosen.loc[(chosen["method"] == "fdfa") & (chosen["given"] == "{}"), "value"]) <= alphas(name)


@pytest.mark.parametrize("name", protocol.TUNING.uses)
def test_choices_of_a_whole_grid_fit_into_every_experiment(name):
    """Every method has a choice, and what is written is what was chosen, in every case and marked shadow."""
    rows = tuning.trials(GRIDS[f"{protocol.TUNING.uses[name]}_trials"])
    chosen = rows.groupby(tuning.METHOD, sort=False).tail(1)
    target = TO_COME[name]
    text = tuned_files.applied(target.path.read_text(encoding="utf-8"), chosen, name)
    assert "open =" not in text and tuned_files.applied(text, chosen, name) == text
    several = chosen["hidden"].nunique() > 1
    wanted = {
        (row.method, row.given, row.hidden if several else ""): (row.learning_rate, row.value) for row in chosen.itertuples()
    }

    for case in tomllib.loads(text)["cases"]:
        method, options = case["estimator"]["name"], {k: v for k, v in case["estimator"].items() if k != "name"}
        rest, _, value = tuning.split(method, options)
        network = tuning.hidden(case["network"]) if several else ""
        rate, second = wanted[method, json.dumps(rest, sort_keys=True), network]
        assert case["training"]["learning_rate"] == rate and (value == second or np.isnan(second))
    assert text.count("# tuned") == {"trajectory": 3, "momentum": 1}.get(name, 0)


def test_a_method_that_each_network_tuned_by_itself_is_one():
    """A method with one value, or with several in one network, keeps its label; so does a probe that only stands beside."""
    about = [("fdfa", 2, 0.01), ("fdfa", 3, 0.001), ("dkp", 2, 1.0), ("dkp", 3, 1.0), ("grape", 2, 1.0), ("grape", 2, 10.0)]
    rows = [
        {"run": f"{i}", "trained_with": f"{name}(feedback_lr={rate})", "method": name, "options": f'{{"feedback_lr": {rate}}}'}
        | {"experiment": "depth", "dataset": "mnist", "architecture": "fully_connected", "width": 8, "depth": depth}
        for i, (name, depth, rate) in enumerate(about)
    ]
    runs = pd.DataFrame(rows)
    probes = runs.assign(estimator=runs["trained_with"], source="self")
    beside = probes.assign(estimator="fdfa(feedback_lr=0.01)", source="shadow", options='{"feedback_lr": 0.01}')
    given = logs.Logs(runs, runs[["run", "trained_with"]], pd.concat([probes, beside], ignore_index=True), runs[["run"]])
    log = tuning.as_tuned(given)
    labels = ["fdfa", "fdfa", *runs["trained_with"][2:]]
    assert log.runs["trained_with"].tolist() == log.metrics["trained_with"].tolist() == labels
    assert log.runs["options"].tolist() == ["{}", "{}", *runs["options"][2:]]
    mine = log.probes[log.probes["source"] == "self"]
    assert mine["estimator"].tolist() == labels and mine["options"].tolist() == log.runs["options"].tolist()
    aside = log.probes[log.probes["source"] == "shadow"]
    assert set(aside["estimator"]) == {"fdfa(feedback_lr=0.01)"} and set(aside["options"]) == {'{"feedback_lr": 0.01}'}
    assert given.runs["trained_with"][0] == "fdfa(feedback_lr=0.01)"  # what was given is as it was


def test_a_table_over_experiments_has_a_row_for_a_method_that_each_tuned_by_itself():
    """A rate that is the same everywhere stays in the name, and so do rates of which one experiment has several."""
    told = [("mnist_fc", "dkp", "{}"), ("cifar_fc", "dkp", '{"feedback_lr": 0.1}'), ("cifar_cnn", "dkp", "{}")]
    told += [(name, "fdfa", '{"feedback_lr": 0.001}') for name in ("mnist_fc", "cifar_fc")]
    told += [("momentum", "grape", f'{{"feedback_lr": {rate}}}') for rate in (1.0, 10.0)]
    told += [("mnist_fc", "lg-fg-a", '{"readout_lr": 0.01, "site": "post"}'), ("cifar_fc", "lg-fg-a", '{"readout_lr": 0.1}')]
    frame = pd.DataFrame(told, columns=["experiment", "trained_with.method", "trained_with.options"])
    given = [label(row[1], json.loads(row[2])) for row in told]
    after = tuning.labels_as_tuned(frame.assign(trained_with=given), ["experiment"])
    assert after["trained_with"].tolist() == ["dkp"] * 3 + given[3:]
    assert after["trained_with.options"].tolist() == ["{}"] * 3 + [row[2] for row in told[3:]]
    alone = frame.assign(trained_with=given).iloc[3:]
    pd.testing.assert_frame_equal(tuning.labels_as_tuned(alone, ["experiment"]), alone)
