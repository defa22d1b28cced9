"""The table of verdicts: one row per hypothesis that a profile plans, from the logs to its files."""

import pandas as pd
import pytest

import synthetic_logs
from analysis.verdicts import protocol
from figures import render

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
