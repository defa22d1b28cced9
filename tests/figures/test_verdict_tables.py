"""What the matrix says in words, and the table of verdicts: one must tell what the other tells."""

import pandas as pd
import pytest

import synthetic_logs
from analysis.verdicts import matrix, protocol
from figures import _verdicts, render, verdict_matrix

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
    assert _verdicts._digits(value) == text


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
