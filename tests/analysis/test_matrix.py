"""The matrix of verdicts: what a cell says of several hypotheses, and of runs that carry no verdict."""

import numpy as np
import pandas as pd
import pytest

from analysis.verdicts import evidence, judgement, matrix, protocol, record, summary

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
