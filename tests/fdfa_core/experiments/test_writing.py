"""Experiment files as text: what is written reads as it was meant, and what cannot be changed in place is refused."""

import tomllib

import pytest

from fdfa_core.errors import InvalidInput
from fdfa_core.experiments import writing

TEXT = """\
open = "a # that is text"
[training]
steps = 5
[[cases]]
estimator = { name = "a#b" }   # a remark
training = {}

[[cases]]  # the last
estimator = { name = "bp" }
[grid]
seed = [
    0,
]
"""


NUMBERS = [0.1, 1e-3, 3e-5, 1e-7, 10.0, 1e6, 2.5e7, 0.0, -4e-4, 1.25, 0.1 + 0.2, 1 / 3e4, 5]


@pytest.mark.parametrize("item", [*NUMBERS, True, 'say "#" – ü', [1, [2.5]], {"a.b": [], "c": {}}])
def test_a_value_is_read_as_what_it_was(item):
    found = tomllib.loads(f"x = {writing.value(item)}")["x"]
    assert found == item and type(found) is type(item)


def test_what_toml_cannot_hold_is_refused():
    with pytest.raises(InvalidInput, match="None"):
        writing.value({"a": None})


def test_a_document_is_read_as_its_tables():
    tables = {"role": "finals", "data": {"name": "mnist"}, "cases": [{"estimator": {"name": "bp"}}], "grid": {"a.b": [1e-3]}}
    text = writing.document(tables, "one line\nanother")
    assert tomllib.loads(text) == tables and "# one line\n# another\n" in text and "a.b" in text


def test_a_case_is_changed_where_it_stands_and_remarks_stay():
    text = writing.with_case(TEXT, 0, "estimator", {"name": "dfa"}, "file")
    assert text == TEXT.replace('{ name = "a#b" }', '{ name = "dfa" }')
    text = writing.with_case(TEXT, 1, "training", {"steps": 3}, "file")
    assert text == TEXT.replace('{ name = "bp" }\n', '{ name = "bp" }\ntraining = { steps = 3 }\n')


def test_a_case_that_is_not_there_or_has_several_lines_is_refused():
    with pytest.raises(InvalidInput, match="one of its 2 cases"):
        writing.with_case(TEXT, 2, "estimator", {}, "file")
    with pytest.raises(InvalidInput, match=r"file: cases\[0\].training.*on one line"):
        writing.with_case(TEXT.replace("training = {}", "training = { milestones = [\n 1] }"), 0, "training", {}, "file")


def test_only_a_top_level_line_is_taken_out():
    assert writing.without(TEXT, "open") == TEXT.partition("\n")[2]
    assert writing.without(TEXT, "steps") == TEXT


def test_a_text_that_reads_as_something_else_is_refused():
    assert writing.verified("a = 1", {"a": 1}, "file") == "a = 1"
    for text in ("a = 1.0", "a ="):
        with pytest.raises(InvalidInput, match="by hand"):
            writing.verified(text, {"a": 1}, "file")
