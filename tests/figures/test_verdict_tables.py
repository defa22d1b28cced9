"""What the matrix says in words, and the table of verdicts: one must tell what the other tells."""

import functools

import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis.tuning import ROLES
from analysis.verdicts import matrix, protocol
from fdfa_core.experiments.loading import load_profile
from figures import _verdicts, plan, render, verdict_matrix, verdicts

CELL = {
    "question": "Q2 epoch", "setting": "mnist_fc", "dataset": "mnist", "network": "fully_connected", "role": "convergence",
    "epochs": 30, "file_epochs": 30, "verdict": "supported", "component": "dkp", "estimate": 0.61, "low": 0.54, "high": 0.70,
    "ratio": True, "interval": "simultaneous", "seeds": 10, "seeds_planned": 10, "seeds_needed": float("nan"), "components": 5,
    "measured": 5, "supported": "dfa; dkp", "refuted": "", "equivalent": "", "inconclusive": "", "reason": "",
}  # fmt: skip
EARLIER = {"verdict": "0 of 10 seeds", "interval": "own", "seeds": 3, "supported": "", "reason": "its runs take 10 epochs"}
NOTHING = {"verdict": "0 of 10 seeds", "interval": "none", "component": "", "estimate": float("nan"), "low": float("nan"),
           "high": float("nan"), "seeds": 0, "supported": "", "reason": "no run is recorded"}  # fmt: skip


def cells(*changes):
    return pd.DataFrame([CELL | change for change in changes], columns=list(matrix.COLUMNS))


def said(*changes):
    return dict(verdict_matrix.explain(cells(*changes)))


def test_a_judged_cell_has_verdict_effect_and_seeds():
    shown = verdict_matrix.show(cells({}))
    assert shown["Q2: faster per epoch"].item() == "✓ supported\n0.610 [0.540, 0.700], DKP\n10 of 10 seeds"
    assert shown["data and network"].item() == "MNIST, fully connected\n`mnist_fc`, 30 epochs"


def test_a_cell_of_earlier_runs_has_no_verdict_and_says_their_length():
    shown = verdict_matrix.show(cells(EARLIER | {"file_epochs": 10}))
    assert shown["Q2: faster per epoch"].item() == "○ 0 of 10 seeds\nearlier: 0.610 [0.540, 0.700], DKP (3)"
    assert shown["data and network"].item().endswith("30 epochs (earlier runs: 10)")


def test_accuracies_are_points_with_their_sign():
    shown = verdict_matrix.show(cells({"question": "Q3 accuracy", "estimate": 0.0123, "low": -0.001, "high": 0.0256}))
    assert "+1.23 [−0.10, +2.56], DKP" in shown["Q3: more accurate"].item()


def test_a_paragraph_says_verdict_effect_competitor_and_seeds():
    text = said({})["Q2: faster per epoch"]
    effect = "FDFA's train loss is 0.610 [0.540, 0.700] times DKP's, 10 seeds"
    asks = "Does FDFA converge faster than other local methods, per epoch?"
    assert text == f"{asks} Supported on 1 of 1 settings: MNIST, fully connected ({effect})."


def test_a_variance_is_that_of_a_method_in_a_block_with_somebodys_weights():
    about = {"question": "Q1 variance", "component": "lg-fg-a, hidden block 1, weights of `bp`", "role": "trajectory"}
    text = said(about | {"estimate": 504.0, "low": 475.0, "high": 535.0})["Q1: lower variance"]
    assert "(the variance of LG-FG-A in hidden block 1 with the weights of BP is 504 [475, 535] times FDFA's, 10 seeds)" in text


def test_a_refuted_question_names_who_refutes_it():
    text = said({"verdict": "refuted", "refuted": "dkp; grape"})["Q2: faster per epoch"]
    assert "Refuted on 1 of 1 settings" in text and "refuted by DKP, GrAPE" in text


@pytest.mark.parametrize(("seeds", "words"), [(43.0, "43 seeds would decide"), (float("inf"), "> 1000 seeds would decide")])
def test_an_open_question_says_how_many_seeds_would_decide(seeds, words):
    assert words in said({"verdict": "inconclusive", "seeds_needed": seeds})["Q2: faster per epoch"]


def test_a_record_without_any_verdict_says_so_first():
    texts = said(EARLIER, EARLIER | {"setting": "cifar_fc", "dataset": "cifar-10", "estimate": 1.2, "low": 1.1, "high": 1.3})
    assert texts[""].startswith("No question is judged yet") and "carry no verdict" in texts[""]
    text = texts["Q2: faster per epoch"]
    assert "Not judged yet on any of 2 settings (0 of 10 seeds)." in text
    assert "least favourable on CIFAR-10, fully connected (FDFA's train loss is 1.20" in text  # more loss is worse
    assert "supported" not in text.lower()


def test_what_is_judged_and_what_is_not_are_told_apart():
    texts = said({}, NOTHING | {"setting": "cifar_fc", "dataset": "cifar-10"})
    assert "Supported on 1 of 2 settings" in texts["Q2: faster per epoch"]
    assert "Not judged yet: CIFAR-10, fully connected (0 of 10 seeds); no run is recorded." in texts["Q2: faster per epoch"]
    assert "A cell whose seeds are not all recorded is not judged." in texts[""] and "earlier" not in texts[""]


def test_reasons_name_every_setting_once():
    again = {"question": "Q3 accuracy", **EARLIER}
    assert verdict_matrix.reasons(cells(EARLIER, again, {"setting": "x"})) == [("mnist_fc", "its runs take 10 epochs")]


def test_a_csv_gives_the_same_words(tmp_path):
    frame = cells({}, EARLIER | {"setting": "a"}, NOTHING | {"setting": "b", "dataset": "", "network": ""})
    frame.to_csv(tmp_path / "cells.csv", index=False)
    again = pd.read_csv(tmp_path / "cells.csv")
    assert verdict_matrix.explain(again) == verdict_matrix.explain(frame)
    pd.testing.assert_frame_equal(verdict_matrix.show(again), verdict_matrix.show(frame), check_dtype=False)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (364.2, "364"), (1394.0, "1.39e3"), (0.0000866, "8.66e-5"), (7.0, "7.00")]
)
def test_ratios_have_three_digits(value, text):
    assert _verdicts.digits(value) == text


@pytest.mark.parametrize(("p", "text"), [(0.0123, "= 0.012"), (0.001, "= 0.001"), (0.00099, "< 0.001"), (1.0, "= 1.000")])
def test_a_p_value_is_said_with_its_relation(p, text):
    assert _verdicts.p_value(p) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [("✓ supported", "supported"), ("○ 3 of 10 seeds", "open"), ("supported", ""), ("✓ refuted", ""), ("BP", "")],
)
def test_a_marked_verdict_is_known_again(text, kind):
    assert _verdicts.kind(text) == kind


# --- the table of verdicts -------------------------------------------------------------------------------------------


COLUMNS = {
    "question", "setting", "component", "variant", "verdict", "estimate", "low", "high", "p", "p_holm", "p_permutation",
    "family", "seeds", "seeds_planned", "seeds_needed",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    wanted = {name: synthetic_logs.EXPERIMENTS[name] for name in ("trajectory", "convergence")}
    return synthetic_logs.write(tmp_path_factory.mktemp("verdicts"), wanted)


def table(place, out, **options):
    experiments, root = place
    render.render("tiny", root, out, only=["verdicts"], experiments=experiments, **options)
    return pd.read_csv(out / "verdicts.csv", keep_default_na=False, na_values=["", "nan"])


def test_every_hypothesis_is_one_row_of_the_csv(place, tmp_path):
    frame = table(place, tmp_path / "out")
    assert set(frame) >= COLUMNS and not frame.duplicated(protocol.KEYS).any()
    assert {"Q1 variance", "Q1 error", "Q2 epoch", "Q2 operation", "Q3 accuracy", "Q3 parity", "M1"} == set(frame["question"])
    assert (frame["seeds"] == 3).all() and set(frame["verdict"]) <= {"supported", "refuted", "equivalent", "inconclusive"}
    shown = verdicts.show(frame)["p (flips)"]  # of three seeds no flips are rarer than 2 in 8
    assert shown.map(float).between(0.25, 1).all()
    for ending in ("md", "tex", "html"):
        text = (tmp_path / "out" / f"verdicts.{ending}").read_text(encoding="utf-8")
        assert "FG-A" in text and "Q3 parity" in text


def test_a_planned_run_that_is_missing_is_counted_and_not_judged(place, tmp_path):
    experiments, _ = place
    more = tmp_path / "experiments" / "tiny"
    more.mkdir(parents=True)
    for file in (experiments / "tiny").glob("*.toml"):
        (more / file.name).write_text(file.read_text().replace("seed = [0, 1, 2]", "seed = [0, 1, 2, 3]"))
    frame = table((more.parent, place[1]), tmp_path / "out", skip=lambda *_: None)
    assert set(frame["verdict"]) == {"3 of 4 seeds"} and (frame["p_holm"] == 1).all()
    shown = verdicts.show(frame)  # 1.000 would read as the outcome of a test
    assert set(shown["p (corrected)"]) == {"–"} == set(shown["p (flips)"])


# --- The picture of the grids: from trials and finals with a known best rate to points, rings and files


HEAD = """
role = "{role}"
[data]
name = "digits"
evaluate_on = "validation"
[network]
hidden = [8, 8]
[training]
steps = 5
"""
TRIALS = """
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam" }
grid = { "estimator.feedback_lr" = [1e-4, 1e-3] }
[grid]
"training.learning_rate" = [1e-4, 1e-3, 1e-2]
seed = [100]
"""
FINALS = """
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam", feedback_lr = 1e-3 }
training = { learning_rate = 1e-3 }
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam", feedback_lr = 1e-3 }
training = { learning_rate = 1e-2 }
[grid]
seed = [100, 101]
"""


def accuracy(run):
    """Highest at a rate of 1e-3 and a feedback rate of 1e-3; the seed 101 is 0.02 better."""
    off = abs(np.log10(run.training.learning_rate / 1e-3)) + 2 * (run.estimator.options.get("feedback_lr") == 1e-4)
    return 0.9 - 0.05 * off + 0.02 * (run.seed == 101)


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    folder = root / "experiments" / "tuning"
    folder.mkdir(parents=True)
    for role, text in zip(ROLES, (TRIALS, FINALS), strict=True):
        (folder / f"digits_{role}.toml").write_text(HEAD.format(role=role) + text)
    planned = {run.id: run for experiment in load_profile("tuning", folder.parent).values() for run in experiment.runs()}
    for run in planned.values():  # the two rounds are equally long here, and so share runs
        synthetic_logs.write_run(root / "runs", run)
        change = functools.partial(pd.DataFrame.assign, test_accuracy=accuracy(run))
        synthetic_logs.rewrite(root / "runs" / run.id, "metrics", change)
    return root


@pytest.fixture(scope="module")
def frame(grids):
    files = render.render("tuning", grids / "runs", grids / "out", experiments=grids / "experiments")
    assert sorted(file.name for file in files) == [f"rate_robustness.{ending}" for ending in ("csv", "pdf", "png")]
    return pd.read_csv(grids / "out" / "rate_robustness.csv", keep_default_na=False, na_values=["nan"])


def test_a_line_has_the_best_second_setting_at_every_rate(frame):
    line = frame[(frame["round"] == 1) & (frame["method"] == "fdfa")]
    assert line["learning_rate"].tolist() == [1e-4, 1e-3, 1e-2] and set(line["value"]) == {1e-3}
    assert line["accuracy"].to_numpy() == pytest.approx([0.85, 0.9, 0.85])
    assert len(frame[(frame["round"] == 1) & (frame["method"] == "bp")]) == 3


def test_finals_have_their_standard_error_and_the_choice(frame):
    """Seeds at m and m + 0.02 have the standard error 0.01; the rate 1e-2 is 0.05 below, so that 1e-3 is chosen."""
    finals = frame[frame["round"] == 2].set_index("learning_rate")
    assert finals["accuracy"].to_dict() == pytest.approx({1e-3: 0.91, 1e-2: 0.86}) and (finals["seeds"] == 2).all()
    assert finals["se"].to_numpy() == pytest.approx([0.01, 0.01])
    assert finals["chosen"].to_dict() == {1e-3: True, 1e-2: False}
    assert np.isfinite(frame.select_dtypes("number").to_numpy()).all()


def test_the_picture_draws_each_method_by_its_own_look_and_one_ring_a_choice(frame):
    from figures import rate_robustness, style

    curves, finals = rate_robustness.draw(frame).axes
    rings = [line for line in finals.get_lines() if line.get_markeredgewidth() == rate_robustness.RING["markeredgewidth"]]
    assert [line.get_xdata().tolist() for line in rings] == [[pytest.approx(0.91)]]  # the row of the only method in the finals
    beside = [text.get_text() for text in finals.child_axes[0].get_yticklabels()]
    assert beside == ["0.001"] and len(finals.get_yticklabels()) == 1
    lines = [line for line in curves.get_lines() if line.get_linestyle() != "None"]
    looks = [style.look("", "bp"), style.look("", "fdfa", {"feedback_rule": "adam"})]
    assert [line.get_color() for line in lines] == [look.color for look in looks]


def test_grids_have_no_other_figure_and_other_profiles_not_this_one(grids):
    jobs, missing = plan.plan("tuning", grids / "runs", experiments=grids / "experiments")
    assert [job.name for job in jobs] == ["rate_robustness"] and not missing
    assert "rate_robustness" not in {job.name for job in plan.plan("smoke", grids / "runs")[0]}


def test_a_grid_of_several_networks_has_a_panel_for_each_in_the_order_of_its_file(tmp_path):
    folder = tmp_path / "experiments" / "tuning"
    folder.mkdir(parents=True)
    case = '[[cases]]\nnetwork = {{ hidden = {} }}\nestimator = {{ name = "bp" }}\n'
    cases = "".join(map(case.format, ([8], [8, 8], [8] * 4)))
    grid = '[grid]\n"training.learning_rate" = [1e-3, 1e-2]\nseed = [100]\n'
    (folder / "digits_trials.toml").write_text(HEAD.format(role="trials").replace("hidden = [8, 8]\n", "") + cases + grid)
    for run in load_profile("tuning", folder.parent)["digits_trials"].runs():
        synthetic_logs.write_run(tmp_path / "runs", run)
        better = functools.partial(pd.DataFrame.assign, test_accuracy=0.5 + 0.1 * len(run.network.options["hidden"]))
        synthetic_logs.rewrite(tmp_path / "runs" / run.id, "metrics", better)
    render.render("tuning", tmp_path / "runs", tmp_path / "out", experiments=tmp_path / "experiments")
    drawn = pd.read_csv(tmp_path / "out" / "rate_robustness.csv")
    assert drawn["layers"].drop_duplicates().tolist() == ["8", "2 × 8", "4 × 8"]
