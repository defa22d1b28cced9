"""docs/protocol.md says for people what analysis/verdicts/protocol.py says for the code."""

import re

import pytest

from analysis.verdicts import protocol
from places import ROOT

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
        ("seeds 100, 101 and 102", protocol.TUNING.seeds == (100, 101, 102)),
        ("for five full", protocol.TUNING.epochs == 5),
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
    assert protocol.TUNING.second.keys() == {"fdfa", "dkp", "grape", "lg-fg-w", "lg-fg-a", "pepita"}
    assert "FDFA's, DKP's and GrAPE's feedback rate" in " ".join(PAGE.split())


def test_page_has_amendments_and_nine_corrections():
    assert "## Amendments" in PAGE and "## Corrections" in PAGE
    assert len(re.findall(r"^\d+\. ", PAGE.split("## Corrections")[1], re.MULTILINE)) >= 9
