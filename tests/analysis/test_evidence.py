"""From logs to one number per seed, the plan of those that there must be, and what a cell of the matrix says of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis import logs
from analysis.verdicts import evidence, judgement, matrix, plan, protocol, record, summary
from fdfa_core.errors import InvalidInput
from fdfa_core.experiments.loading import load_profile

ROLES = ("width", "trajectory", "convergence")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Synthetic logs in which FG-W and FG-A are equally noisy and FDFA (α = 0.1) much less so."""
    wanted = {name: synthetic_logs.EXPERIMENTS[name] for name in ROLES}
    return synthetic_logs.write(tmp_path_factory.mktemp("evidence"), wanted)


@pytest.fixture(scope="module")
def planned(place):
    return list(logs.profile("tiny", place[0]).values())


@pytest.fixture(scope="module")
def logs_of(place):
    experiments, root = place
    return {name: logs.load(root, name, profile="tiny", experiments=experiments) for name in ROLES}


@pytest.fixture(scope="module")
def values(logs_of):
    return evidence.values(logs_of)


def mean(values, question, component, setting="trajectory"):
    rows = values[(values["question"] == question) & (values["component"] == component) & (values["setting"] == setting)]
    assert sorted(rows["seed"]) == [0, 1, 2]
    return rows["value"].mean()


def test_known_ratios_of_variances_are_found(values):
    """FG-W and FG-A are the same estimator here; FDFA's variance is α/(2 − α) = 1/19 of ‖τ‖² per component, and its mean in the
    first block is 1 + 0.5² times as large as the gradient (they stand at right angles on average)."""
    block = "hidden block 1, weights of `bp`"
    assert np.exp(mean(values, "M1", f"fg-w, fg-a, {block}")) == pytest.approx(1, rel=0.3)
    signal = 1 + synthetic_logs.BIAS**2
    assert np.exp(mean(values, "Q1 variance", f"fg-a, {block}")) == pytest.approx(25 * 19 / 24 * signal, rel=0.3)


def test_known_ratios_of_squared_errors_are_found(values):
    """FG-A's is (n + 1)‖τ‖² at n components; FDFA's n/19 ‖τ‖², and its squared bias in the first block."""
    n = synthetic_logs.SIZE
    for block, bias2 in ((1, synthetic_logs.BIAS**2), (2, 0.0)):
        expected = (n + 1) / (n / 19 + bias2)
        ratio = np.exp(mean(values, "Q1 error", f"fg-a, hidden block {block}, weights of `bp`"))
        assert ratio == pytest.approx(expected, rel=0.3)


def test_an_estimator_of_its_own_objective_is_held_against_that_objectives_gradient(logs_of):
    """FG-A's draws under the name of LG-FG-A, whose own objective has a gradient of another length."""
    log = logs_of["trajectory"]
    local = log.probes[log.probes["method"] == "fg-a"].assign(method="lg-fg-a")
    local["own_norm"], local["own_error"] = local["target_norm"], local["error_mean"]
    local["target_norm"] *= 100
    probed = replace(log, probes=pd.concat([log.probes, local], ignore_index=True))
    found = evidence.values({"trajectory": probed, "convergence": logs_of["convergence"]})
    local = found[found["component"].str.startswith("lg-fg-a, hidden")]
    assert set(local["question"]) == {"Q1 variance", "Q1 error"}
    n = synthetic_logs.SIZE
    first = local[local["component"] == "lg-fg-a, hidden block 2, weights of `bp`"]["value"].mean()
    assert np.exp(first) == pytest.approx((n + 1) / (n / 19), rel=0.5)  # not 100² times as much


def test_final_accuracies_and_losses_are_paired_by_seed(values, logs_of):
    log = logs_of["convergence"]
    last = log.metrics.sort_values("step").groupby("run").tail(1).set_index(["trained_with", "seed"])["test_accuracy"]
    rows = values[(values["question"] == "Q3 accuracy") & (values["component"] == "dfa")].set_index("seed")["value"]
    assert rows.to_dict() == pytest.approx((last["fdfa(feedback_lr=0.1)"] - last["dfa"]).to_dict())


def test_equal_operations_are_compared_and_not_equal_steps(values, logs_of, monkeypatch):
    """Where FDFA's step costs twice DFA's, its curve is cut nowhere and DFA's is compared up to the same operations."""
    log = logs_of["convergence"]
    monkeypatch.setattr(evidence.effort.flops, "per_step", lambda text: 2 if '"fdfa"' in text else 1)
    numbers = evidence.values({"convergence": log})
    found = numbers[(numbers["question"] == "Q2 operation") & (numbers["component"] == "dfa")].set_index("seed")["value"]
    for seed in (0, 1, 2):
        curves = log.metrics[log.metrics["seed"] == seed].sort_values("step").groupby("trained_with")
        heights = {}
        for name, cost in (("fdfa(feedback_lr=0.1)", 2), ("dfa", 1)):
            curve = curves.get_group(name)
            x, y = cost * curve["step"].to_numpy(float), np.log(curve["train_loss"].to_numpy())
            grid = np.linspace(0, 5, 5001)  # five operations: all that DFA spent
            heights[name] = np.interp(grid, x, y).mean()
        assert found[seed] == pytest.approx(heights["fdfa(feedback_lr=0.1)"] - heights["dfa"], abs=2e-3)


@pytest.mark.parametrize("frame", ["runs", "probes"])
def test_runs_that_differ_in_more_than_estimator_network_and_seed_are_refused(logs_of, frame):
    """A swept learning rate: which of the runs would the verdict be of?"""

    def doubled(rows):
        return pd.concat([rows, rows.assign(run=rows["run"] + ", at another rate")], ignore_index=True)

    swept = {name: replace(one, **{frame: doubled(getattr(one, frame))}) for name, one in logs_of.items()}
    with pytest.raises(InvalidInput, match="several runs of .*seed 0"):
        evidence.values(swept)


def test_two_rates_of_the_momentum_rule_are_refused_by_name(logs_of):
    log = logs_of["convergence"]
    other = log.runs[log.runs["method"] == "fdfa"].assign(run="other", **{"option.feedback_lr": 0.01})
    with pytest.raises(InvalidInput, match=r"feedback_lr of fdfa in convergence.*0\.01.*0\.1"):
        evidence.rates_on_trial(pd.concat([log.runs, other]))


def test_the_rate_on_trial_is_that_of_the_same_data_and_network(logs_of):
    """Convolutions have a rate of their own, by which dense probes are not judged."""
    runs = logs_of["convergence"].runs
    first = runs.assign(experiment="mnist_cnn", architecture="convolutional", **{"option.feedback_lr": 0.5})
    found = evidence.rates_on_trial(pd.concat([first, runs.assign(experiment="mnist_fc")]))
    assert found == {("digits", "convolutional"): 0.5, ("digits", "fully_connected"): 0.1}


def test_the_family_of_the_protocol_has_no_hypothesis_that_it_does_not_name(planned):
    """Training experiments beside its settings are not judged, and its seeds count where a file has others."""
    wanted = protocol.Setting("convergence", 5, protocol.MappingProxyType({"dfa": (0, 1, 2, 3)}))
    assert set(plan.hypotheses(planned, [wanted]).query("question == 'Q3 accuracy'")["planned"]) == {(0, 1, 2, 3)}
    other = protocol.Setting("elsewhere", 5, wanted.seeds)
    rows = plan.hypotheses(planned, [other]).set_index("setting")
    assert "convergence" not in rows.index and set(rows.loc["trajectory", "planned"]) == {protocol.SEEDS}
    assert set(rows.loc["elsewhere", "planned"]) == {(0, 1, 2, 3)}


def test_what_the_protocol_still_waits_for_answers_none_of_its_questions():
    """Older files have other lengths and fewer seeds, or names that it does not know; what is recorded by it has neither."""
    files, to_come = load_profile("paper"), load_profile("protocol")
    asked = {setting.experiment for setting in protocol.SETTINGS}
    training = {name for name, experiment in files.items() if experiment.role == "convergence"}
    assert set(plan.departures(files.values(), protocol.SETTINGS)) == (training - asked) | (asked & to_come.keys())
    planned = plan.hypotheses(files.values(), protocol.SETTINGS).set_index("setting").loc[["width", "trajectory"], "planned"]
    assert set(planned) == {protocol.SEEDS}


def test_every_number_is_planned_and_every_plan_has_its_row(values, planned):
    hypotheses = plan.hypotheses(planned)
    table = judgement.verdicts(values, hypotheses, plan.datasets(planned))
    assert len(table) == len(hypotheses) and not table.duplicated(protocol.KEYS).any()
    assert (table["seeds"] == table["seeds_planned"]).all() and set(table["seeds"]) == {3}
    finite = table.drop(columns=["seeds_needed", "margin"]).select_dtypes("number").to_numpy(float)
    assert np.isfinite(finite).all()


def test_order_of_cases_and_of_files_changes_nothing(values, planned, logs_of):
    reversed_logs = {
        name: logs.Logs(**{k: f.iloc[::-1].reset_index(drop=True) if len(f) else f for k, f in vars(log).items()})
        for name, log in reversed(logs_of.items())
    }
    one, two = (
        judgement.verdicts(numbers, plan.hypotheses(files), plan.datasets(files)).set_index(protocol.KEYS).sort_index()
        for numbers, files in ((values, planned), (evidence.values(reversed_logs), planned[::-1]))
    )
    pd.testing.assert_frame_equal(one, two)


def test_one_seed_of_three_is_not_judged(logs_of, planned):
    def first(log):
        return logs.Logs(**{name: frame[frame["seed"] == 0] if len(frame) else frame for name, frame in vars(log).items()})

    one = {name: first(log) for name, log in logs_of.items()}
    table = judgement.verdicts(evidence.values(one), plan.hypotheses(planned), plan.datasets(planned))
    assert set(table["verdict"]) == {"1 of 3 seeds"}


def test_a_diverged_run_has_no_number_and_is_named(tmp_path, planned):
    """A mean over the seeds that are left would favour the method that diverges."""
    wanted = {"convergence": synthetic_logs.EXPERIMENTS["convergence"]}
    experiments, root = synthetic_logs.write(tmp_path, wanted, diverged=[("fg-w", 1), ("bp", 0)])
    files = list(logs.profile("tiny", experiments).values())
    table = record.record({"convergence": logs.read(root, files[0])}, files).table
    counts = table[table["variant"] == protocol.ON_TRIAL].groupby(["question", "component"])[["seeds", "diverged"]].sum()
    assert {tuple(counts.loc[(question, "fg-w")]) for question in protocol.TRAINING} == {(2, 1)}
    assert tuple(counts.loc[("Q3 parity", "bp")]) == (2, 1) and tuple(counts.loc[("Q3 accuracy", "dfa")]) == (3, 0)
    assert table.loc[table["diverged"] > 0, "verdict"].unique().tolist() == ["2 of 3 seeds, 1 diverged"]
    assert (table.loc[table["diverged"] > 0, "p"] == 1).all() and table.loc[table["component"] == "dfa", "p"].lt(1).all()
    assert matrix.together(["supported", "2 of 3 seeds, 1 diverged"]) == "2 of 3 seeds, 1 diverged"


def test_the_protocol_names_what_a_profile_lacks(planned):
    wanted = protocol.Setting("convergence", 1, {"bp": (0, 1, 2, 3), "dkp": (0, 1, 2)})
    absent = protocol.Setting("mars_fc", 1, {"dfa": (0,)})
    said = plan.departures(planned, [wanted, absent])
    length = "its runs take 5 steps, the protocol asks for 1 epochs"
    assert said == {"convergence": length, "mars_fc": "the profile has no such experiment"}
    rows = plan.hypotheses(planned, [wanted, absent])
    assert {"dkp", "dfa"} <= set(rows["component"]) and ("mars_fc" in set(rows["setting"]))


def test_runs_of_another_length_than_the_protocols_are_left_out(planned, logs_of):
    wanted = protocol.Setting("convergence", 1, {"bp": (0, 1, 2)})
    log = logs_of["convergence"]
    assert plan.without(log, plan.departures(planned, [wanted])).runs.empty
    assert len(plan.without(log, plan.departures(planned, [])).runs) == len(log.runs)


# --- what counts, and what is only shown -----------------------------------------------------------------------------


def test_the_protocols_seeds_count_for_variance_and_not_the_files(planned):
    rows = plan.hypotheses(planned, [protocol.Setting("convergence", 1, {"bp": (0,)})])
    assert set(rows.loc[rows["setting"].isin(["width", "trajectory"]), "planned"]) == {protocol.SEEDS}


def test_an_experiment_that_the_protocol_does_not_name_plans_nothing(planned):
    elsewhere = [protocol.Setting("mars_fc", 1, {"dfa": (0,)})]
    assert "convergence" not in set(plan.hypotheses(planned, elsewhere)["setting"])
    assert plan.departures(planned, elsewhere)["convergence"] == "the protocol does not ask for it"
    assert plan.departures(planned, []) == {}


def test_two_networks_of_one_data_set_have_their_own_rates_on_trial(logs_of):
    runs = logs_of["convergence"].runs
    other = runs[runs["method"] == "fdfa"].assign(run="other", architecture="convolutional", **{"option.feedback_lr": 0.01})
    assert evidence.rates_on_trial(pd.concat([runs, other])) == {
        ("digits", "fully_connected"): 0.1,
        ("digits", "convolutional"): 0.01,
    }


def test_two_experiments_with_two_rates_on_one_network_are_refused(logs_of):
    runs = logs_of["convergence"].runs
    other = runs[runs["method"] == "fdfa"].assign(experiment="again", run="other", **{"option.feedback_lr": 0.01})
    with pytest.raises(InvalidInput, match=r"feedback_lr of fdfa in again, convergence"):
        evidence.rates_on_trial(pd.concat([runs, other]))


def test_two_rates_do_no_harm_where_no_variance_is_asked_for(logs_of):
    log = logs_of["convergence"]
    again = {name: frame.assign(experiment="again", run=frame["run"] + "'") for name, frame in vars(log).items() if len(frame)}
    again["runs"] = again["runs"].assign(**{"option.feedback_lr": again["runs"]["option.feedback_lr"] / 10})
    both = logs.pooled([log, logs.Logs(**again)])
    assert set(evidence.values({"convergence": both})["setting"]) == {"convergence", "again"}
    with pytest.raises(InvalidInput, match="feedback_lr of fdfa in again, convergence"):
        evidence.values({"convergence": both, "width": logs_of["width"]})


def test_runs_of_another_length_are_kept_apart_with_the_reason(planned, logs_of, monkeypatch):
    monkeypatch.setattr(plan, "settings_of", lambda planned: (protocol.Setting("convergence", 1, {"dfa": (0, 1, 2)}),))
    found = record.record(logs_of, planned)
    assert set(found.earlier["setting"]) == {"convergence"} and "convergence" not in set(found.values["setting"])
    rows = found.table[found.table["setting"] == "convergence"]
    assert set(rows["verdict"]) == {"0 of 3 seeds"} and rows["estimate"].isna().all()
    reasons = found.settings.set_index("setting")["reason"]
    assert reasons["convergence"] == "its runs take 5 steps, the protocol asks for 1 epochs"
    assert reasons["width"] == reasons["trajectory"] == record.NO_RATE  # the rate on trial is that of the runs that count


def test_runs_that_count_are_judged_and_have_no_reason(planned, logs_of):
    found = record.record(logs_of, planned)
    assert found.earlier.empty and set(found.settings["reason"]) == {""}
    assert set(found.settings["setting"]) == set(ROLES) and (found.table["seeds"] == 3).all()


def test_a_setting_without_runs_says_so(planned, logs_of):
    found = record.record({"convergence": logs_of["convergence"]}, planned)
    reasons = found.settings.set_index("setting")["reason"]
    assert reasons["width"] == record.NO_RUN and reasons["convergence"] == ""


SETTINGS = pd.DataFrame(
    [
        ("cifar_fc", "cifar-10", "fully_connected", "convergence", 15, 10, "its runs take 10 epochs"),
        ("mnist_fc", "mnist", "fully_connected", "convergence", 30, 30, ""),
        ("width", "mnist", "fully_connected", "width", 0, 0, ""),
    ],
    columns=["setting", "dataset", "network", "role", "epochs", "file_epochs", "reason"],
)
DATASETS = dict(zip(SETTINGS["setting"], SETTINGS["dataset"], strict=True))


def numbers(question, setting, means, seeds=10, spread=0.0004, variant=protocol.ON_TRIAL):
    """Return numbers of seeds around the mean of each component."""
    rng = np.random.default_rng(0)
    rows = [
        (question, setting, component, variant, seed, mean + spread * rng.standard_normal())
        for component, mean in means.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=list(evidence.COLUMNS))


def recorded(*values, earlier=(), also=(), seeds_of=()):
    """Return a record of these numbers, with `also` hypotheses (question, setting, component) of which nothing is recorded."""
    empty = pd.DataFrame(columns=list(evidence.COLUMNS))
    values = pd.concat(values, ignore_index=True) if values else empty
    keys = [*values[protocol.KEYS].drop_duplicates().itertuples(index=False, name=None)]
    keys += [(*key, protocol.ON_TRIAL) for key in also]
    planned = [(*key, tuple(range(dict(seeds_of).get(key[2], 10)))) for key in keys]
    planned = pd.DataFrame(planned, columns=[*protocol.KEYS, "planned"])
    table = judgement.verdicts(values, planned, DATASETS)
    return record.Record(table, values, pd.concat(earlier) if earlier else empty, SETTINGS)


def cell(*values, question="Q3 accuracy", setting="mnist_fc", **more):
    cells = matrix.cells(recorded(*values, **more)).set_index(["question", "setting"])
    return cells.loc[(question, setting)]


@pytest.mark.parametrize(
    ("means", "verdict", "weakest"),
    [
        ({"dfa": 0.01, "dkp": 0.02}, "supported", "dfa"),
        ({"dfa": 0.01, "dkp": 0.0}, "equivalent", "dkp"),
        ({"dfa": 0.01, "dkp": -0.02}, "refuted", "dkp"),
    ],
)
def test_a_cell_is_as_strong_as_its_components(means, verdict, weakest):
    found = cell(numbers("Q3 accuracy", "mnist_fc", means))
    assert (found["verdict"], found["component"], found["components"]) == (verdict, weakest, 2)
    assert found["estimate"] == pytest.approx(means[weakest], abs=0.001) and found["interval"] == "simultaneous"
    assert weakest in found[verdict].split("; ")


def test_scatter_in_one_component_leaves_a_cell_undecided():
    clear = numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.1})
    scattered = numbers("Q3 accuracy", "mnist_fc", {"dkp": 0.003}, spread=0.01)
    found = cell(clear, scattered)
    assert (found["verdict"], found["inconclusive"]) == ("inconclusive", "dkp") and found["seeds_needed"] > 10


def test_the_weakest_of_a_claim_of_less_is_the_largest_ratio():
    found = cell(numbers("Q2 epoch", "mnist_fc", {"dfa": -0.5, "dkp": -0.1}), question="Q2 epoch")
    assert found["component"] == "dkp" and found["estimate"] == pytest.approx(np.exp(-0.1), rel=0.01)


def test_a_component_without_runs_keeps_its_cell_from_a_verdict():
    found = cell(numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01}), also=[("Q3 accuracy", "mnist_fc", "grape")])
    assert (found["verdict"], found["seeds"], found["components"], found["measured"]) == ("0 of 10 seeds", 0, 2, 1)
    assert found["component"] == "dfa"


def test_a_judged_cell_states_the_seeds_of_the_effect_that_it_shows():
    values = numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.05}), numbers("Q3 accuracy", "mnist_fc", {"fg-w": 0.01}, seeds=5)
    found = cell(*values, seeds_of={"fg-w": 5})
    assert (found["verdict"], found["component"], found["seeds"], found["seeds_planned"]) == ("supported", "fg-w", 5, 5)


def test_the_adam_rule_never_answers_for_the_fdfa_on_trial():
    values = numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01})
    beside = numbers("Q3 accuracy", "mnist_fc", {"dfa": -0.5}, variant=protocol.BESIDE)
    assert cell(values, beside)["verdict"] == "supported"


def test_runs_that_do_not_count_are_shown_with_their_own_interval_and_without_a_verdict():
    """Of the components that the protocol asks for, and of no others."""
    before = numbers("Q3 accuracy", "cifar_fc", {"dfa": 0.02, "dkp": 0.05, "lg-fg-a": -0.4}, seeds=3)
    planned = [("Q3 accuracy", "cifar_fc", method) for method in ("dfa", "dkp", "grape")]
    found = cell(numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01}), earlier=[before], also=planned, setting="cifar_fc")
    assert (found["verdict"], found["interval"], found["component"]) == ("0 of 10 seeds", "own", "dfa")
    assert (found["seeds"], found["measured"], found["reason"]) == (3, 2, "its runs take 10 epochs")
    mine = before[before["component"] == "dfa"]["value"]
    half = 4.302653 * mine.std(ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((mine.mean() - half, mine.mean() + half))


def test_runs_that_count_go_before_those_that_do_not():
    values = numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01}, seeds=4)
    before = numbers("Q3 accuracy", "mnist_fc", {"dfa": -0.3}, seeds=3)
    found = cell(values, earlier=[before])
    assert (found["verdict"], found["interval"], found["seeds"]) == ("4 of 10 seeds", "simultaneous", 4)
    assert found["estimate"] == pytest.approx(0.01, abs=0.001)


def test_a_setting_that_the_protocol_does_not_ask_for_has_no_verdict():
    before = numbers("Q3 accuracy", "cifar_fc", {"dfa": 0.02}, seeds=3)
    found = cell(numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01}), earlier=[before], setting="cifar_fc")
    assert (found["verdict"], found["components"], found["interval"]) == (matrix.NOT_PLANNED, 0, "own")


def test_cells_stand_by_data_set_with_variance_first():
    asked = [("Q3 accuracy", name, "dfa") for name in ("cifar_fc", "mnist_fc")]
    cells = matrix.cells(recorded(numbers("Q1 variance", "width", {"fg-a, hidden block 1": 3.0}), also=asked))
    assert cells["setting"].tolist() == ["width", "mnist_fc", "cifar_fc"]


# --- over settings ---------------------------------------------------------------------------------------------------


def test_blocks_of_one_competitor_are_averaged_within_a_seed_before_settings_are_counted():
    values = numbers("Q1 variance", "width", {"fg-a, hidden block 1": 1.0, "fg-a, hidden block 2": 3.0}, spread=0.01)
    found = summary.of_record(recorded(values))
    assert found["component"].tolist() == ["fg-a"] and found["settings"].tolist() == [1]
    assert found["estimate"].item() == pytest.approx(np.exp(2.0), rel=0.01) and found["runs"].item() == "protocol"


def test_earlier_runs_are_summarised_only_where_none_counts_and_never_mixed():
    values = numbers("Q3 accuracy", "mnist_fc", {"dfa": 0.01})
    before = numbers("Q3 accuracy", "cifar_fc", {"dfa": -0.5, "dkp": 0.03}, seeds=3)
    found = summary.of_record(recorded(values, earlier=[before])).set_index("component")
    assert found["runs"].to_dict() == {"dfa": "protocol", "dkp": "earlier"}
    assert found.loc["dfa", "estimate"] == pytest.approx(0.01, abs=0.001) and found.loc["dfa", "settings"] == 1


def test_mechanisms_have_no_line_in_the_summary():
    values = numbers("M1", "width", {"fg-w, fg-a, hidden block 1": 1.0})
    assert summary.of_record(recorded(values)).empty
