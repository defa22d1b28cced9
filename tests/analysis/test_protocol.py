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


def test_page_has_amendments_and_nine_corrections():
    assert "## Amendments" in PAGE and "## Corrections" in PAGE
    assert len(re.findall(r"^\d+\. ", PAGE.split("## Corrections")[1], re.MULTILINE)) >= 9
