"""Verdicts on planted numbers of known truth: wrong no more often than they say, and decided as often as the power says."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.verdicts import judgement, power, protocol, summary
from fdfa_core.errors import InvalidInput
from places import ROOT

METHODS = ("fa", "dfa", "dkp", "grape", "pepita")
SETTINGS = {"mnist_fc": "mnist", "fashion_fc": "fashion-mnist", "cifar_fc": "cifar-10"}
MARGIN = protocol.MARGINS


def planted(effects, seeds=10, spread=0.001, question="Q3 accuracy", variant=protocol.ON_TRIAL, rng=0):
    """Return numbers of hypotheses (setting, method) → true mean."""
    rng = np.random.default_rng(rng)
    rows = [
        (question, setting, method, variant, seed, mean + spread * rng.standard_normal())
        for (setting, method), mean in effects.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=[*protocol.KEYS, "seed", "value"])


def planned(values, seeds=10):
    keys = values[protocol.KEYS].drop_duplicates()
    return keys.assign(planned=[tuple(range(seeds))] * len(keys))


def judge(values, seeds=10):
    return judgement.verdicts(values, planned(values, seeds), SETTINGS)


ONE = ("mnist_fc", "dkp")


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [(0.01, "supported"), (-0.01, "refuted"), (0.0, "equivalent")],
)
def test_a_clear_number_gets_its_verdict(effect, verdict):
    assert judge(planted({ONE: effect}, spread=0.0005))["verdict"].tolist() == [verdict]


def test_scatter_is_inconclusive_and_says_how_many_seeds_would_decide():
    row = judge(planted({ONE: 0.003}, spread=0.01)).iloc[0]
    assert row["verdict"] == "inconclusive" and 10 < row["seeds_needed"] < 1000


def test_a_claim_of_less_is_read_the_other_way():
    rows = judge(planted({ONE: -0.5}, spread=0.1, question="Q2 epoch"))
    assert rows["verdict"].tolist() == ["supported"]
    assert rows["estimate"].item() == pytest.approx(np.exp(-0.5), rel=0.1)  # a ratio


def test_parity_is_shown_by_two_one_sided_tests_and_not_by_a_missing_difference():
    near = planted({("mnist_fc", "bp"): 0.0}, spread=0.0005, question="Q3 parity")
    wide = planted({("mnist_fc", "bp"): 0.0}, spread=0.02, question="Q3 parity")
    far = planted({("mnist_fc", "bp"): -0.02}, spread=0.001, question="Q3 parity")
    assert [judge(v)["verdict"].item() for v in (near, wide, far)] == ["equivalent", "inconclusive", "refuted"]


def test_a_partial_record_is_not_judged():
    values = planted({ONE: 0.5}, seeds=4)
    row = judge(values).iloc[0]
    assert row["verdict"] == "4 of 10 seeds" and row["p_holm"] == 1 and row["low"] < row["estimate"] < row["high"]


@pytest.mark.parametrize("untestable", [[-0.1, -0.1, -0.1], [0.3, 0.1 + 0.2, 0.3]])
def test_seeds_that_are_equal_or_differ_by_rounding_alone_say_nothing_and_still_count_in_the_family(untestable):
    equal = planted({("mnist_fc", "dfa"): 0.0}, seeds=3).assign(value=untestable)
    clear = planted({ONE: 0.01}, seeds=3)
    rows = judge(pd.concat([equal, clear]), 3).set_index("component")
    assert (rows.loc["dfa", "verdict"], rows.loc["dfa", "p"]) == ("inconclusive", 1)
    assert rows.loc["dkp", "p_holm"] == pytest.approx(2 * rows.loc["dkp", "p"])


def test_a_hypothesis_without_any_run_keeps_its_row():
    values = planted({ONE: 0.5})
    plan = pd.concat([planned(values), planned(planted({("cifar_fc", "dfa"): 0.0}))], ignore_index=True)
    rows = judgement.verdicts(values, plan, SETTINGS)
    assert rows["verdict"].tolist() == ["supported", "0 of 10 seeds"]


@pytest.mark.parametrize("beyond", ["seed", "hypothesis"])
def test_data_beyond_the_plan_are_refused_by_name(beyond):
    values = planted({ONE: 0.0}, seeds=12 if beyond == "seed" else 10)
    plan = planned(values) if beyond == "seed" else planned(planted({("cifar_fc", "dfa"): 0.0}))
    with pytest.raises(InvalidInput, match=r"\[10, 11\]" if beyond == "seed" else "dkp"):
        judgement.verdicts(values, plan, SETTINGS)


def test_every_hypothesis_is_one_row_and_corrected_once():
    values = planted(dict.fromkeys(itertools.product(SETTINGS, METHODS), 0.001))
    rows = judge(values)
    assert not rows.duplicated(protocol.KEYS).any() and len(rows) == len(SETTINGS) * len(METHODS)
    expected = np.minimum(np.maximum.accumulate(np.sort(rows["p"]) * np.arange(len(rows), 0, -1)), 1)
    assert np.sort(rows["p_holm"]) == pytest.approx(expected)


def test_order_of_rows_and_of_the_plan_changes_nothing():
    values = planted(dict.fromkeys(itertools.product(SETTINGS, METHODS), 0.001))
    mixed, plan = values.sample(frac=1, random_state=1), planned(values).sample(frac=1, random_state=2)
    shuffled = judgement.verdicts(mixed, plan, SETTINGS)
    one, two = (frame.set_index(protocol.KEYS).sort_index() for frame in (judge(values), shuffled))
    pd.testing.assert_frame_equal(one, two)


def test_the_fdfa_beside_the_one_on_trial_is_corrected_among_the_mechanisms():
    both = pd.concat([planted({ONE: 0.01}), planted({ONE: 0.01}, variant=protocol.BESIDE)])
    assert judge(both)["family"].tolist() == [protocol.PRIMARY, protocol.MECHANISMS]


def test_the_sign_flip_test_counts_flips():
    values = [1.0, 2.0, 3.0, 4.0]
    means = [np.mean(np.array(signs) * values) for signs in itertools.product((1, -1), repeat=4)]
    assert judgement.sign_flip(values) == pytest.approx(np.mean(np.abs(means) >= np.mean(values) - 1e-12))


def families(effect, count, seeds, spread, settings=tuple(SETTINGS), methods=METHODS, rng=0):
    """Return whether each family holds a verdict other than inconclusive (count, hypotheses), as `verdicts` would judge it."""
    keys = [("Q3 accuracy", s, m, protocol.ON_TRIAL) for s in settings for m in methods]
    margins = np.array([MARGIN[SETTINGS[key[1]]] for key in keys])
    drawn = effect + spread * np.random.default_rng(rng).standard_normal((count, seeds, len(keys)))
    return drawn, keys, margins


def test_the_simulated_decisions_are_those_of_the_verdicts():
    drawn, keys, margins = families(0.001, 20, 6, 0.002)
    decided = power._decided(drawn, keys, margins)
    for numbers, expected in zip(drawn, decided, strict=True):
        rows = [(*key, seed, numbers[seed, i]) for i, key in enumerate(keys) for seed in range(6)]
        values = pd.DataFrame(rows, columns=[*protocol.KEYS, "seed", "value"])
        judged = judge(values, 6)["verdict"]
        assert (judged != "inconclusive").tolist() == expected.tolist()


def test_a_family_of_true_nulls_raises_a_false_alarm_in_at_most_one_of_twenty():
    """2,000 families of 15 true nulls, whose margins are too narrow to show equivalence; n and seed fixed beforehand."""
    drawn, keys, margins = families(0.0, 2000, 5, 0.05)
    alarms = int(power._decided(drawn, keys, margins).any(1).sum())
    assert stats.binomtest(alarms, 2000, protocol.LEVEL, alternative="greater").pvalue > 0.001
    assert alarms > 0.02 * 2000  # and the level is used: the tests are not so strict that they could never err


def test_methods_at_the_margin_are_called_equivalent_in_at_most_one_of_twenty_families():
    keys = [("Q3 parity", "mnist_fc", f"bp{i}", protocol.ON_TRIAL) for i in range(15)]
    margins = np.full(15, MARGIN["mnist"])
    drawn = MARGIN["mnist"] + 0.001 * np.random.default_rng(1).standard_normal((2000, 5, 15))
    alarms = int(power._decided(drawn, keys, margins).any(1).sum())
    assert stats.binomtest(alarms, 2000, protocol.LEVEL, alternative="greater").pvalue > 0.001


def test_power_is_what_the_verdicts_reach():
    """The table's share of decided families equals that of families drawn anew, within three Monte-Carlo standard errors."""
    values = planted({("mnist_fc", m): 0.004 for m in METHODS}, seeds=5, spread=0.003, rng=3)
    table = power.power(values, SETTINGS, seeds=(6,), families=1000)
    wide = values.pivot(index="seed", columns="component", values="value")[list(METHODS)]
    root = np.linalg.cholesky(np.corrcoef(wide.to_numpy(), rowvar=False) + 1e-9 * np.eye(5))
    noise = np.random.default_rng(9).standard_normal((1000, 6, 5)) @ root.T
    drawn = wide.mean().to_numpy() + wide.std().to_numpy() * noise
    keys = [("Q3 accuracy", "mnist_fc", m, protocol.ON_TRIAL) for m in METHODS]
    decided = power._decided(drawn, keys, np.full(5, MARGIN["mnist"])).mean(0)
    found = table.set_index("component")["decided"].reindex(list(METHODS)).to_numpy()
    assert np.abs(found - decided) == pytest.approx(0, abs=3 * np.sqrt(2 * 0.25 / 1000))


def test_the_table_of_power_says_how_many_seeds_reach_it():
    values = planted({("mnist_fc", "dfa"): 0.02, ("mnist_fc", "dkp"): 0.0001}, seeds=5, spread=0.004, rng=3)
    table = power.both(values, SETTINGS, seeds=(3, 6, 12), families=200)
    rows = power.shown(table).set_index("component")
    assert list(rows.columns[-5:]) == ["seeds", "80%", "80%, upper bound", "95%", "95%, upper bound"]
    reached = table[(table["component"] == "dfa") & ~table["bound"] & (table["decided"] >= 0.8)]["seeds"].min()
    assert rows.loc["dfa", "80%"] == str(reached) and rows.loc["dfa", "seeds"] == 5
    assert rows.loc["dkp", "95%, upper bound"] == "–"  # not with any number of seeds that was simulated


def test_seeds_needed_reach_the_power_that_they_promise():
    values = planted({ONE: 0.003}, seeds=10, spread=0.003, rng=2)["value"].to_numpy()
    question, size = protocol.BY_KEY["Q3 accuracy"], 15
    n = int(judgement.seeds_needed(values, question, MARGIN["mnist"], size))
    spread = values.std(ddof=1) * judgement.spread_bound(10)
    drawn = values.mean() + spread * np.random.default_rng(0).standard_normal((4000, n))
    p = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue
    assert (p < protocol.LEVEL / size).mean() == pytest.approx(0.8, abs=0.05)


def test_the_upper_bound_of_a_spread_covers_it_four_times_of_five():
    rng = np.random.default_rng(0)
    bounds = rng.standard_normal((20000, 4)).std(1, ddof=1) * judgement.spread_bound(4)
    assert (bounds > 1).mean() == pytest.approx(0.8, abs=0.01)


def test_the_summary_over_settings_covers_the_mean_effect():
    """Random effects: 400 records of six settings; the 95 % interval holds the true mean about as often as it says."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        truth = 0.01 + 0.005 * rng.standard_normal(6)
        rows = [
            ("Q3 accuracy", f"s{i}", "dfa", protocol.ON_TRIAL, seed, mean + 0.004 * rng.standard_normal())
            for i, mean in enumerate(truth)
            for seed in range(5)
        ]
        found = summary.over_settings(pd.DataFrame(rows, columns=[*protocol.KEYS, "seed", "value"])).iloc[0]
        held += found["low"] <= 0.01 <= found["high"]
    assert 0.91 <= held / 400 <= 0.98


def test_the_summary_of_one_setting_is_its_own_interval():
    values = planted({ONE: 0.01})
    found = summary.over_settings(values).iloc[0]
    expected = stats.t.interval(0.95, 9, values["value"].mean(), stats.sem(values["value"]))
    assert (found["low"], found["high"]) == pytest.approx(expected) and np.isnan(found["heterogeneity"])


# --- docs/protocol.md says for people what analysis/verdicts/protocol.py says for the code


PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
CLAIM = {"greater": "> 0", "less": "< 0"}


def region(name):
    """Rows of the table between two marks, as lists of cells."""
    text = re.search(rf"<!-- {name}:.*?-->\n(.*?)<!-- end of {name} -->", PAGE, re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_questions_agree():
    expected = [
        [q.key, q.asks, q.statistic, "within the margin" if q.key == "Q3 parity" else CLAIM[q.direction]]
        for q in protocol.QUESTIONS
    ]
    assert region("questions") == expected


def test_settings_agree():
    found = {}
    for experiment, epochs, methods, seeds in region("settings"):
        first, last = map(int, seeds.split(" to "))
        found.setdefault((experiment, int(epochs)), {}).update(
            dict.fromkeys(methods.split(", "), tuple(range(first, last + 1)))
        )
    assert found == {(s.experiment, s.epochs): dict(s.seeds) for s in protocol.SETTINGS}


def test_competitors_are_local_methods_or_bp():
    assert all(set(s.seeds) <= {"bp", *protocol.LOCAL} for s in protocol.SETTINGS)


@pytest.mark.parametrize(
    ("said", "held"),
    [
        (f"Dated {protocol.DATE}.", True),
        (f"corrected p is below {protocol.LEVEL:g}", True),
        (f"{protocol.TUNING.trials} pairs of a learning rate", True),
        ("seeds 100, 101 and 102", protocol.TUNING.final.seeds == (100, 101, 102)),
        ("all 18 trials, with seed 100, for one full epoch", protocol.TUNING.first == protocol.Round((100,), 1)),
        ("the three best pairs of round 1", protocol.TUNING.finalists == 3),
        ("for five full epochs", protocol.TUNING.final.epochs == 5),
        ("after two steps on a side", protocol.TUNING.extensions == 2),
        ("held-out 10 %", protocol.TUNING.validation == 0.1),
        (protocol.TUNING.rule, True),
        ("the seeds 0 to 9 of `width` and `trajectory`", set(protocol.VARIANCE_EXPERIMENTS.values()) == {tuple(range(10))}),
        ("momentum rule, the equation of the paper", protocol.ON_TRIAL == "momentum"),
        ("Adam rule of the", protocol.BESIDE == "adam"),
    ],
)
def test_page_says_what_the_code_holds(said, held):
    assert held and said.replace("\n", " ") in " ".join(PAGE.split())


def test_margins_agree():
    text = re.search(r"in points of test accuracy, are (.*?)\.\n", PAGE, re.DOTALL)[1]
    parts = [part.rsplit(" ", 1) for part in " ".join(text.split()).split(", ")]
    found = {name.lower(): float(points) / 100 for name, points in parts}
    assert found == pytest.approx(dict(protocol.MARGINS))


def test_every_second_setting_is_named_on_the_page():
    methods = {second.method for second in protocol.TUNING.seconds}
    assert methods == {"fdfa", "dkp", "grape", "cosine-dfa", "lg-fg-w", "lg-fg-a", "pepita"}
    assert "FDFA's, DKP's, GrAPE's and Cosine-DFA's feedback rate" in " ".join(PAGE.split())


def test_grids_agree():
    users = {}
    for experiment, grid in protocol.TUNING.uses.items():
        users.setdefault(grid, []).append(experiment)
    expected = [
        [grid, str(epochs), ", ".join(e for e in users[grid] if e != grid) or "–"]
        for grid, epochs in protocol.TUNING.grids.items()
    ]
    assert region("grids") == expected


def test_a_grid_is_as_long_as_its_setting_and_every_setting_has_one():
    lengths = {s.experiment: s.epochs for s in protocol.SETTINGS}
    assert all(lengths.get(grid, epochs) == epochs for grid, epochs in protocol.TUNING.grids.items())
    assert lengths.keys() <= protocol.TUNING.uses.keys()


def test_every_method_has_the_same_number_of_trials_and_room_for_two_extensions():
    tuning = protocol.TUNING
    assert {len(axis.start) for axis in tuning.fine.values()} == {tuning.trials}
    assert {len(rates.start) * len(s.axis.start) for rates in tuning.coarse.values() for s in tuning.seconds} == {tuning.trials}
    for axis in [*tuning.fine.values(), *tuning.coarse.values(), *(s.axis for s in tuning.seconds)]:
        line = [*reversed(axis.below), *axis.start, *axis.above]
        assert line == sorted(set(line)) and max(len(axis.below), len(axis.above)) <= tuning.extensions


def test_a_variant_of_a_method_has_a_second_setting_of_its_own():
    assert protocol.TUNING.second("fdfa", {"feedback_rule": "adam"}).axis.start == (1e-5, 1e-4, 1e-3)
    assert protocol.TUNING.second("fdfa", {}).axis.above == (1.0,)  # α is a weight
    assert protocol.TUNING.second("fa", {}) is None


def test_page_has_amendments_and_ten_corrections():
    assert "## Amendments" in PAGE and "## Corrections" in PAGE
    assert len(re.findall(r"^\d+\. ", PAGE.split("## Corrections")[1], re.MULTILINE)) >= 10
