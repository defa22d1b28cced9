import hashlib
import json
import tomllib
from pathlib import Path

import pytest

from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.experiments import schedules, writing
from fdfa_core.experiments.loading import load_experiment, load_profile, merge, profiles
from fdfa_core.experiments.tables import At, Epochs, Every, FirstAndLast, Geometric, RunConfig
from fdfa_core.training.check import check_experiment

TOML = """
description = "An experiment."
[data]
name = "digits"
[network]
architecture = "fully_connected"
hidden = [16, 16]
[training]
epochs = 2
batch_size = 64
optimizer = "adam"
learning_rate = 1e-3
[probe]
schedule = { kind = "geometric", first = 1, ratio = 2.0 }
estimators = [{ name = "self" }, { name = "fdfa", feedback_lr = 0.1 }]
replicates = 8
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.1 }
training = { learning_rate = 3e-4 }
[grid]
seed = [0, 1, 2]
"""


@pytest.fixture
def write(tmp_path):
    def write(*changes: tuple[str, str], text: str = TOML) -> Path:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write


def test_runs_are_cases_times_grid(write):
    runs = load_experiment(write()).runs()
    assert [(r.estimator.name, r.training.learning_rate, r.seed) for r in runs] == [
        (name, rate, seed) for name, rate in (("bp", 1e-3), ("fdfa", 3e-4)) for seed in (0, 1, 2)
    ]


def test_a_case_may_have_a_grid_of_its_own(write):
    path = write(("training = { learning_rate = 3e-4 }", 'grid = { "estimator.feedback_lr" = [0.1, 0.2] }'))
    rates = [r.estimator.options["feedback_lr"] for r in load_experiment(path).runs() if r.estimator.name == "fdfa"]
    assert rates == [0.1, 0.2] * 3


@pytest.mark.parametrize("key", ['"training.batch_size"', "training.batch_size"], ids=["quoted", "bare"])
def test_dotted_grid_keys_reach_into_tables(write, key):
    runs = load_experiment(write(("seed = [0, 1, 2]", f"{key} = [16, 32]"))).runs()
    assert [r.training.batch_size for r in runs] == [16, 32, 16, 32]


def test_a_table_that_names_something_replaces_the_base_with_its_options(write):
    text = TOML.replace("[data]", 'estimator = { name = "fdfa", tangents = 3 }\n[data]')
    assert load_experiment(write(text=text)).runs()[0].estimator.options == {}


def test_other_tables_are_merged(write):
    assert load_experiment(write()).runs()[-1].training.batch_size == 64


def test_the_order_of_swept_keys_does_not_matter(write):
    rate, name = '"estimator.feedback_lr" = [0.5]', '"estimator.name" = ["fdfa", "grape"]'
    found = []
    for keys in ((rate, name), (name, rate)):
        text = TOML.split("[[cases]]")[0] + "\n".join(['[estimator]\nname = "bp"\n[grid]', *keys])
        found.append({r.id: r.estimator.options for r in load_experiment(write(text=text)).runs()})
    assert found[0] == found[1] and list(found[0].values()) == [{"feedback_lr": 0.5}] * 2


def test_the_id_is_the_hash_of_the_canonical_json():
    run = RunConfig.model_validate({"network": {"hidden": [4]}, "estimator": {"name": "bp"}, "training": {"steps": 1}})
    text = json.dumps(json.loads(run.canonical()), sort_keys=True, separators=(",", ":"))
    assert run.id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_keys_that_are_not_given_leave_the_id_alone():
    """Runs that were recorded before these keys existed keep their ids."""
    run = RunConfig.model_validate({"network": {"hidden": [4]}, "estimator": {"name": "bp"}, "training": {"steps": 1}})
    assert not any(f'"{key}"' in run.canonical() for key in ("scale", "milestones", "gamma"))
    given = run.model_copy(update={"training": run.training.model_copy(update={"milestones": [1], "gamma": 0.1})})
    assert '"gamma":0.1,"learning_rate"' in given.canonical() and run.id != RunConfig.from_json(given.canonical()).id


def test_the_id_does_not_depend_on_the_order_of_keys():
    training = {"steps": 1, "batch_size": 4}
    backwards = dict(reversed(training.items()))
    common = {"network": {"hidden": [4]}, "estimator": {"name": "bp"}}
    assert (
        RunConfig.model_validate(common | {"training": training}).id
        == RunConfig.model_validate({"training": backwards} | common).id
    )


@pytest.mark.parametrize(
    "key, value", [("seed", 1), ("training.learning_rate", 0.5), ("network.hidden", [5]), ("estimator.site", "pre")]
)
def test_every_key_counts_in_the_id(key, value):
    table = {"network": {"hidden": [4]}, "estimator": {"name": "dfa"}, "training": {"steps": 1}}
    for part in reversed(key.split(".")):
        value = {part: value}
    assert RunConfig.model_validate(table).id != RunConfig.model_validate(merge(table, value)).id


def test_a_configuration_survives_json(write):
    for run in load_experiment(write()).runs():
        assert RunConfig.model_validate(json.loads(run.canonical())) == run


# (what is changed, what the message must say: place, value, what is accepted)
ERRORS = {
    "unknown table": (("[probe]", "[prob]"), ["prob (unknown key)", "seed, data, network", "Did you mean 'probe'?"]),
    "unknown key": (
        ("batch_size = 64", "batchsize = 64"),
        ["training.batchsize (unknown key): got 64", "steps, batch_size", "Did you mean 'batch_size'?"],
    ),
    "unknown key in a list": (('{ name = "self" }', '{ nam = "self" }'), ["probe.estimators[0].name", "got 'nothing'"]),
    "unknown key in a schedule": (("ratio = 2.0", "rato = 2.0"), ["probe.schedule.rato", "Did you mean 'ratio'?"]),
    "unknown kind": (('"geometric"', '"geometrc"'), ["probe.schedule.kind: got 'geometrc'", "Did you mean 'geometric'?"]),
    "no kind": (('kind = "geometric",', ""), ["probe.schedule: got", "a table with kind = every or geometric"]),
    "text for a number": (("epochs = 2", 'epochs = "2"'), ["training.epochs: got '2'", "integer"]),
    "fraction for an integer": (("epochs = 2", "epochs = 2.5"), ["training.epochs: got 2.5", "integer"]),
    "true for an integer": (("epochs = 2", "epochs = true"), ["training.epochs: got True", "integer"]),
    "a value for a table": (('{ name = "self" }', '"self"'), ["probe.estimators[0]: got 'self'", "a table"]),
    "zero epochs": (("epochs = 2", "epochs = 0"), ["training.epochs: got 0", "greater than 0"]),
    "epochs and steps": (("epochs = 2", "epochs = 2\nsteps = 5"), ["training: got", "either epochs or steps"]),
    "neither epochs nor steps": (("epochs = 2", ""), ["training: got", "either epochs or steps"]),
    "unknown optimizer": (('"adam"', '"adm"'), ["training.optimizer: got 'adm'", "'sgd'", "Did you mean 'adam'?"]),
    "momentum of Adam": (("epochs = 2", "epochs = 2\nmomentum = 0.9"), ["training.momentum: got 0.9", 'optimizer = "sgd"']),
    "milestones without gamma": (
        ("epochs = 2", "epochs = 2\nmilestones = [1]"),
        ["training.milestones: got [1]", "milestones and gamma together"],
    ),
    "gamma without milestones": (("epochs = 2", "epochs = 2\ngamma = 0.1"), ["training.gamma: got 0.1", "together"]),
    "milestones out of order": (
        ("epochs = 2", "epochs = 9\nmilestones = [3, 3]\ngamma = 0.1"),
        ["training.milestones: got [3, 3]", "ascending order"],
    ),
    "a milestone that is never reached": (
        ("epochs = 2", "epochs = 2\nmilestones = [2]\ngamma = 0.1"),
        ["training.milestones: got [2]", "epochs below 2"],
    ),
    "a milestone before the start": (
        ("epochs = 2", "epochs = 2\nmilestones = [0]\ngamma = 0.1"),
        ["training.milestones", "greater than 0"],
    ),
    "no milestones": (("epochs = 2", "epochs = 2\nmilestones = []\ngamma = 0.1"), ["training.milestones: got []"]),
    "a gamma that raises the rate": (
        ("epochs = 2", "epochs = 2\nmilestones = [1]\ngamma = 10.0"),
        ["training.gamma: got 10.0", "less than or equal to 1"],
    ),
    "an unknown scale of pixels": (('"digits"', '"digits"\nscale = "zero"'), ["data.scale: got 'zero'", "'unit'"]),
    "one replicate": (("replicates = 8", "replicates = 1"), ["probe.replicates: got 1", "greater than or equal to 2"]),
    "not a number": (("1e-3", "nan"), ["training.learning_rate: got nan", "a finite number"]),
    "infinity": (("1e-3", "inf"), ["training.learning_rate: got inf", "a finite number"]),
    "an option that is infinite": (
        ('estimator = { name = "fdfa", feedback_lr = 0.1 }', 'estimator = { name = "fdfa", feedback_lr = inf }'),
        ["cases[1].estimator.feedback_lr: got inf", "a finite number"],
    ),
    "an option that holds no number": (("[16, 16]", "[16, nan]"), ["network.hidden: got [16, nan]", "a finite number"]),
    "a bad value in a case": (("3e-4", "-3e-4"), ["cases[1].training.learning_rate: got -0.0003", "greater than 0"]),
    "a bad value in the grid": (("[0, 1, 2]", "[0, -1]"), ["grid.seed: got -1", "greater than or equal to 0"]),
    "a grid without lists": (("[0, 1, 2]", "5"), ["grid.seed: got 5", "a list of one or more values"]),
    "an empty grid": (("[0, 1, 2]", "[]"), ["grid.seed: got []", "a list of one or more values"]),
    "the same run twice": (("[0, 1, 2]", "[0, 0]"), ["cases[0]: got {'seed': 0}", "runs that differ"]),
    "the same estimator twice": (
        ('{ name = "fdfa", feedback_lr = 0.1 }', '{ name = "self" }'),
        ["probe: got", "number 2 repeats an earlier one"],
    ),
    "options of self": (('{ name = "self" }', '{ name = "self", site = "pre" }'), ["probe: got", '"self" without options']),
    "no estimator": (('estimator = { name = "bp" }', "seed = 7"), ["estimator: got 'nothing'", "a table estimator"]),
    "not TOML": (("epochs = 2", "epochs ="), ["experiment.toml", "a file in TOML syntax", "line 9"]),
    "cases that are no list": (("[[cases]]\nestimator", "[cases]\nestimator"), ["experiment.toml"]),
}


@pytest.mark.parametrize("change, said", ERRORS.values(), ids=ERRORS)
def test_an_impossible_file_is_refused_with_place_value_and_what_is_accepted(write, change, said):
    path = write(change)
    with pytest.raises(InvalidInput) as error:
        load_experiment(path)
    message = str(error.value)
    assert path.name in message
    for words in said:
        assert words in message
    assert "\n" not in message


# What only the registries know: refused by `check`, before anything runs.
CHECKED = {
    "unknown data set": (('"digits"', '"digit"'), ["data.name: got 'digit'", "mnist", "Did you mean 'digits'?"]),
    "unknown architecture": (
        ('"fully_connected"', '"fully_conected"'),
        ["network.architecture", "Did you mean 'fully_connected'?"],
    ),
    "unknown architecture option": (
        ("hidden = [16, 16]", "hidden = [16, 16]\nbatchnorm = true"),
        ["network.batchnorm (unknown option)", "hidden, activation, batch_norm", "Did you mean 'batch_norm'?"],
    ),
    "missing architecture option": (("hidden = [16, 16]", ""), ["network.hidden: got 'nothing'"]),
    "wrong type of an architecture option": (
        ("hidden = [16, 16]", 'hidden = [16, 16]\nbatch_norm = "yes"'),
        ["network.batch_norm: got 'yes'", "a bool"],
    ),
    "unknown activation": (
        ("hidden = [16, 16]", 'hidden = [16, 16]\nactivation = "rellu"'),
        ["network.activation: got 'rellu'", "relu, tanh"],
    ),
    "width of zero": (("[16, 16]", "[16, 0]"), ["network.hidden: got [16, 0]", "positive integers"]),
    "one block": (("[16, 16]", "[]"), ["network.hidden: got []", "at least one"]),
    "a number for a list of widths": (("[16, 16]", "16"), ["network.hidden: got 16", "a list of positive integers"]),
    "text for a list of widths": (("[16, 16]", '"16"'), ["network.hidden: got '16'", "a list of positive integers"]),
    "a number for a list of channels": (
        ('"fully_connected"\nhidden = [16, 16]', '"convolutional"\nchannels = 8'),
        ["network.channels: got 8", "a list of positive integers"],
    ),
    "unknown loss": (("epochs = 2", 'epochs = 2\nloss = "hinge"'), ["training.loss: got 'hinge'", "cross_entropy, mse"]),
    "unknown estimator": (
        ('estimator = { name = "bp" }', 'estimator = { name = "fg_w" }'),
        ["cases[0].estimator.name: got 'fg_w'", "bp", "Did you mean 'fg-w'?"],
    ),
    "unknown estimator option": (
        ('estimator = { name = "fdfa", feedback_lr', 'estimator = { name = "fdfa", feedback_lrr'),
        ["cases[1].estimator.feedback_lrr (unknown option)", "Did you mean 'feedback_lr'?"],
    ),
    "unknown shadow": (('{ name = "self" }', '{ name = "fdffa" }'), ["probe.estimators[0].name", "Did you mean 'fdfa'?"]),
    "alpha of zero": (
        ('estimator = { name = "fdfa", feedback_lr = 0.1 }', 'estimator = { name = "fdfa", feedback_lr = 0.0 }'),
        ["cases[1].estimator.feedback_lr: got 0.0", "positive"],
    ),
    "alpha above one": (
        ('{ name = "self" }, { name = "fdfa", feedback_lr = 0.1 }', '{ name = "fdfa", feedback_lr = 1.5 }'),
        ["probe.estimators[0].feedback_lr: got 1.5", "(0, 1]"],
    ),
    "batch larger than the data": (("batch_size = 64", "batch_size = 1438"), ["training.batch_size: got 1438", "1437"]),
    "last batch of one sample": (
        ('"digits"\n[network]', '"digits"\ntrain_size = 65\n[network]\nbatch_norm = true'),
        ["training.batch_size: got 64", "drop_last = true"],
    ),
    "batches of one sample": (
        ("hidden = [16, 16]", "hidden = [16, 16]\nbatch_norm = true"),
        ("batch_size = 64", "batch_size = 1"),
        ["training.batch_size: got 1", "batch normalisation needs two"],
    ),
    "more samples than there are": (
        ('name = "digits"', 'name = "digits"\ntrain_size = 1438'),
        ["data.train_size: got 1438", "1437"],
    ),
    "a probe after the end": (
        ('kind = "geometric", first = 1, ratio = 2.0', 'kind = "at", steps = [1000]'),
        ["probe.schedule: got", "a step below 46"],
    ),
    "a reference of one batch": (
        ("replicates = 8", "replicates = 8\nreference_size = 64"),
        ["probe.reference_size: got 64", "at least 128"],
    ),
}


@pytest.mark.parametrize("changes, said", [(changes, said) for *changes, said in CHECKED.values()], ids=CHECKED)
def test_check_refuses_what_cannot_run(write, changes, said):
    experiment = load_experiment(write(*changes))
    with pytest.raises((InvalidInput, UnknownName)) as error:
        check_experiment(experiment)
    for words in ["experiment.toml: ", *said]:
        assert words in str(error.value)


@pytest.mark.parametrize(
    "change", [(), ("feedback_lr = 0.1 }", 'joint = "cyclic" }'), ("feedback_lr = 0.1 }", "joint = false }")], ids=str
)
def test_check_accepts_what_can_run(write, change):
    check_experiment(load_experiment(write(*[change] if change else [])))


# (changes, the place that is blamed): the key that is wrong where it is written, or else its table, never another key
PLACES = {
    "a table beside a swept key": (
        (("epochs = 2", ""), ("seed = [0, 1, 2]", "training.learning_rate = [1e-3]")),
        "training: got",
    ),
    "an unwritten key beside a swept one": (
        (("batch_size = 64\n", ""), ('"digits"', '"digits"\ntrain_size = 60'), ("seed = [0, 1, 2]", "training.decay = [0.5]")),
        "training: batch_size: got 64",
    ),
    "a written key beside a swept one": (
        (("batch_size = 64", "batch_size = 1438"), ("seed = [0, 1, 2]", "training.decay = [0.5]")),
        "training.batch_size: got 1438",
    ),
    "the second swept key": (
        (("hidden = [16, 16]", ""), ("seed = [0, 1, 2]", 'network = { activation = ["relu"], hidden = [[0]] }')),
        "grid.network.hidden: got [0]",
    ),
    "a swept key that its owner calls otherwise": (
        (("seed = [0, 1, 2]", "data.train_size = [1438]"),),
        "grid.data.train_size: got 1438",
    ),
    "an option beside a swept name": (
        (("seed = [0, 1, 2]", 'estimator = { name = ["fdfa"], feedback_lr = [0.0] }'),),
        "grid.estimator.feedback_lr: got 0.0",
    ),
    "an image that a swept architecture cannot take": (
        (("hidden = [16, 16]", ""), ("seed = [0, 1, 2]", 'network.architecture = ["alexnet"]')),
        "grid.network.architecture: input_size: got 8",
    ),
    "a table of the grid alone": (
        (("seed = [0, 1, 2]", "training.epochs.every = [1]"),),
        "grid.training.epochs: got {'every': 1}",
    ),
    "a case's own grid": (
        (("training = { learning_rate = 3e-4 }", 'grid = { "estimator.feedback_lr" = [0.0] }'),),
        "cases[1].grid.estimator.feedback_lr: got 0.0",
    ),
    "a key of the base whose table a case refines": (
        (('{ name = "bp" }', '{ name = "bp" }\ntraining = { decay = 0.5 }'), ("batch_size = 64", "batch_size = 1438")),
        "training.batch_size: got 1438",
    ),
}


@pytest.mark.parametrize("changes, place", PLACES.values(), ids=PLACES)
def test_an_error_blames_the_key_that_is_wrong_or_else_its_table(write, changes, place):
    with pytest.raises(InvalidInput) as error:
        check_experiment(load_experiment(write(*changes)))
    assert f"experiment.toml: {place}" in str(error.value)


def test_check_leaves_out_finished_runs(write):
    experiment = load_experiment(write(('estimator = { name = "bp" }', 'estimator = { name = "no-more" }')))
    check_experiment(experiment, skip=[run.id for run in experiment.runs() if run.estimator.name == "no-more"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="nowhere.toml.*No such file"):
        load_experiment(tmp_path / "nowhere.toml")


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match="profile: got 'quik'; accepted: one of .*smoke.*Did you mean 'quick'"):
        load_profile("quik")


@pytest.mark.parametrize("profile", profiles())
def test_the_projects_own_experiments_are_valid(profile):
    for experiment in load_profile(profile).values():
        assert experiment.runs()


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_the_projects_own_experiments_can_run(profile):
    for experiment in load_profile(profile).values():
        check_experiment(experiment)


def test_errors_name_a_file_below_the_working_directory_by_its_relative_path(write, tmp_path, monkeypatch):
    path = write(("epochs = 2", "epochs = 0"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="^experiment.toml: training.epochs"):
        load_experiment(path)


# --- Schedules


def steps(due, below=40):
    return [step for step in range(below) if due(step)]


def test_every():
    assert steps(schedules.every(10)) == [0, 10, 20, 30]


@pytest.mark.parametrize("first, ratio, expected", [(1, 2, [1, 2, 4, 8, 16, 32]), (3, 1.5, [3, 4, 7, 10, 15, 23, 34])])
def test_geometric(first, ratio, expected):
    assert steps(schedules.geometric(first, ratio)) == expected


def test_geometric_steps_that_round_to_the_same_number_are_one_step():
    assert steps(schedules.geometric(1, 1.2), 8) == [1, 2, 3, 4, 5, 6, 7]


CONFIGURED = {
    "every": (Every(kind="every", k=7), [0, 7, 14]),
    "geometric": (Geometric(kind="geometric"), [1, 2, 4, 8, 16]),
    "at": (At(kind="at", steps=[3, 5]), [3, 5]),
    "epochs": (Epochs(kind="epochs", every=2), [0, 10]),
    "first and last": (FirstAndLast(kind="first_and_last"), [0, 19]),
    "last besides": (At(kind="at", steps=[3], last=True), [3, 19]),
}


@pytest.mark.parametrize("config, expected", CONFIGURED.values(), ids=CONFIGURED)
def test_built_from_configuration(config, expected):
    assert steps(schedules.build(config, steps_per_epoch=5, last=19), 20) == expected


# --- Experiment files as text: what is written reads as it was meant, and what cannot be changed in place is refused


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
