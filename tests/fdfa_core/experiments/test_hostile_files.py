"""Files that no run can come from are one line that names file, key, value and what is accepted, and never a traceback."""

import time

import pytest

from fdfa_core.errors import InvalidInput
from fdfa_core.experiments import loading
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.experiments.tables import RunConfig
from tiny import TOML, tiny

FILES = {
    "lists within lists": ("a = " + "[" * 5000 + "]" * 5000, "tables and lists at most 16 deep"),
    "tables within tables": ("a = " + "{a=" * 5000 + "1" + "}" * 5000, "tables and lists at most 16 deep"),
    "a key of many parts": (".".join("a" * 5000) + " = 1", "tables and lists at most 16 deep"),
    "a swept key of many parts": ("[grid]\n'" + ".".join("a" * 5000) + "' = [1]", "a key of at most 16 parts"),
    "an integer of 5000 digits": ("seed = " + "9" * 5000, "a file in TOML syntax"),
    "an integer beyond 64 bits": (f"seed = {2**63}\n{TOML}", f"seed: got {2**63}; accepted: an integer of 64 bits"),
    "a nested integer beyond 64 bits": (TOML.replace("[8, 8]", f"[8, {2**63}]"), r"hidden\[1\]: got 9223372036854775808"),
    "no text": (b"\xff\xfe\x00", "a file in TOML syntax"),
    "more than a megabyte": ("#" * 2**20 + "\n", "larger than 1048576 bytes"),
    "a grid of 10⁸ runs": (
        TOML.replace("seed = [0, 1]", "\n".join(f"{key} = {list(range(1, 10001))}" for key in ("seed", "training.steps"))),
        "grid: got '100,000,000 runs'; accepted: at most 100,000 runs",
    ),
    "a swept table beside its key": (
        TOML.replace("seed = [0, 1]", 'training = [{ steps = 3 }, { steps = 4 }]\n"training.batch_size" = [16]'),
        "grid.training.batch_size: got .16.; accepted: a grid without training",
    ),
    "a key of the file in a case": (
        TOML + 'description = "of a case"',
        "description .unknown key.: got 'of a case'.*description belongs at the top of the file",
    ),
}


@pytest.mark.parametrize("content, said", FILES.values(), ids=FILES)
def test_what_no_experiment_holds_is_refused(tmp_path, content, said):
    path = tmp_path / "experiment.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=said) as error:
        load_experiment(path)
    assert "experiment.toml" in str(error.value) and "Did you mean 'description'" not in str(error.value)
    assert time.monotonic() - began < 20


NO_OPTIONS = {
    "a date": ("1979-05-27", "a date or a time is none"),
    "a time": ("07:32:00", "a date or a time is none"),
    "a moment": ("1979-05-27T07:32:00Z", "a date or a time is none"),
    "a nested date": ("[[{ a = 1979-05-27 }]]", "a date or a time is none"),
    "no number": ("nan", "a finite number"),
    "a nested infinity": ("[{ a = [inf] }]", "a finite number"),
}
PLACES = {  # key → what stands in the file, and what takes its place
    "network.hidden": ("hidden = [8, 8]", "hidden = VALUE"),
    "cases[0].estimator.feedback_lr": ('name = "bp"', 'name = "fdfa", feedback_lr = VALUE'),
    "probe.estimators[0].site": ('name = "self"', 'name = "fg-a", site = VALUE'),
    "grid.network.bias": ("seed = [0, 1]", '"network.bias" = [true, VALUE]'),
}


@pytest.mark.parametrize("value, said", NO_OPTIONS.values(), ids=NO_OPTIONS)
@pytest.mark.parametrize("key", PLACES)
def test_an_option_that_no_json_holds_is_refused_by_file_and_key(tmp_path, key, value, said):
    old, new = PLACES[key]
    path = tmp_path / "experiment.toml"
    path.write_text(TOML.replace(old, new.replace("VALUE", value), 1))
    with pytest.raises(InvalidInput) as error:
        load_experiment(path)
    assert f"experiment.toml: {key}" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_tuple_is_the_list_that_json_makes_of_it():
    assert tiny(network={"hidden": (8, 8)}) == RunConfig.from_json(tiny(network={"hidden": (8, 8)}).canonical())


def test_a_circle_of_links_is_no_traceback(tmp_path):
    (tmp_path / "a.toml").symlink_to("b.toml")
    (tmp_path / "b.toml").symlink_to("a.toml")
    with pytest.raises(InvalidInput, match="a.toml.*Too many levels of symbolic links"):
        load_experiment(tmp_path / "a.toml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert load_experiment(path).description == "Two short runs."


def test_the_greatest_integer_is_accepted(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(TOML.replace("seed = [0, 1]", f"seed = [{2**63 - 1}]"))
    assert [run.seed for run in load_experiment(path).runs()] == [2**63 - 1]


def test_the_greatest_grid_is_one_of_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "experiment.toml"
    path.write_text(TOML)
    monkeypatch.setattr(loading, "MOST_RUNS", 2)
    assert len(load_experiment(path).runs()) == 2
    monkeypatch.setattr(loading, "MOST_RUNS", 1)
    with pytest.raises(InvalidInput, match="grid: got '2 runs'; accepted: at most 1 runs"):
        load_experiment(path)


WORDS = {
    "an integer": ("steps = 6", "steps = 6.5", "training.steps: got 6.5; accepted: an integer"),
    "a number": ("steps = 6", 'steps = 6\nlearning_rate = "x"', "training.learning_rate: got 'x'; accepted: a number"),
    "text": ('name = "digits"', "name = 3", "data.name: got 3; accepted: text"),
    "a list": ("steps = [3]", "steps = 3", "steps: got 3; accepted: a list"),
    "an empty list": ("steps = [3]", "steps = []", r"steps: got \[\]; accepted: a list of 1 or more values"),
    "a table": ('estimator = { name = "bp" }', "estimator = 3", "estimator: got 3; accepted: a table"),
    "a boolean": ('name = "digits"', 'name = "digits"\naugment = 1', "data.augment: got 1; accepted: true or false"),
}


@pytest.mark.parametrize("old, new, said", WORDS.values(), ids=WORDS)
def test_what_is_accepted_is_said_in_plain_words(tmp_path, old, new, said):
    path = tmp_path / "experiment.toml"
    path.write_text(TOML.replace(old, new, 1))
    with pytest.raises(InvalidInput, match=said) as error:
        load_experiment(path)
    assert not any(word in str(error.value) for word in ("Input should", "valid ", "pydantic", "after validation"))


@pytest.mark.parametrize("name", ["..toml", "...toml", ".hidden.toml"])
def test_a_name_that_would_lead_out_of_a_folder_of_results_is_refused(tmp_path, name):
    (tmp_path / name).write_text(TOML)
    with pytest.raises(InvalidInput, match="accepted: a file whose name does not begin with a dot"):
        load_experiment(tmp_path / name)
