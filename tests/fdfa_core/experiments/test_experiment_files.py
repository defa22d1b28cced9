"""Experiment files that name the user's own architectures and data sets, and files that no run can come from."""

import sys
import time

import pytest
import torch

from analysis.rebuilt import flops
from fdfa_core import register_architecture, register_dataset
from fdfa_core.data import load
from fdfa_core.data import registry as datasets
from fdfa_core.errors import DataError, InvalidInput, RunError, UnknownName
from fdfa_core.experiments import loading
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.networks import registry as networks
from fdfa_core.networks.registry import build
from fdfa_core.runs.directory import read_provenance, read_table
from fdfa_core.sweeps.sweep import sweep
from fdfa_core.training.check import check_experiment
from fdfa_core.training.process import loaded_dataset
from fdfa_core.training.run import train
from tiny import TOML, tiny

MODULE = '''
import torch
from torch import nn
from fdfa_core import Block, BlockNetwork

def build(input_shape, outputs, *, width: int = 4, activation):
    return BlockNetwork(Block(nn.Linear(*input_shape, width), getattr(nn, activation)()), nn.Linear(width, outputs))

def module(input_shape, outputs):
    return nn.Linear(1, 1)

def load():
    x = torch.linspace(-9, 9, 400).view(80, 5)
    return (x[:60], torch.arange(60) % 3), (x[60:], torch.arange(20) % 3)

CONSTANT = 1
'''
OWN = """
[data]
name = "mine.code:load"
[network]
architecture = "mine.code:build"
activation = "Tanh"
width = 6
[estimator]
name = "fdfa"
[training]
steps = 3
batch_size = 20
[evaluation]
reference_size = 20
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a package of the user's and an experiment; nothing of it stays imported."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "code.py").write_text(MODULE)
    (tmp_path / "e.toml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    loaded_dataset.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_an_experiment_trains_own_network_on_own_data(place):
    check_experiment(experiment := load_experiment("e.toml"))
    (run,) = experiment.runs()
    directory = train(run, "runs")
    assert len(read_table(directory, "metrics")) == 2
    own_code = read_provenance(directory)["own_code"]
    assert [each["name"] for each in own_code] == ["mine.code:build", "mine.code:load"]
    assert all(each["module"] == "mine.code" and len(each["sha256"]) == 64 for each in own_code)
    assert flops.per_step(run) > 2 * 20 * (5 * 6 + 6 * 3)  # more than the products of the forward pass
    x, y = load("mine.code:load").train.batch(torch.tensor([0]))
    assert x[0, 0] == -9 and x.shape == (1, 5) and y.dtype == torch.int64  # numbers as they are, not scaled as pixels


def test_a_finished_run_of_other_code_is_not_taken_for_this_one(place):
    (run,) = load_experiment("e.toml").runs()
    train(run, "runs")
    train(run, "runs")
    (place / "mine" / "code.py").write_text(MODULE + "# another version\n")
    for again in (lambda: train(run, "runs"), lambda: sweep([run], "runs", processes=1)):
        with pytest.raises(RunError, match=r"was made with another version of mine\.code; move it away"):
            again()


def test_an_unfinished_run_is_not_taken_up_by_other_code(place):
    (run,) = load_experiment("e.toml").runs()

    def interrupt(done, total):
        (place / "mine" / "code.py").write_text(MODULE + "# another version\n")
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, "runs", progress=interrupt, checkpoint_seconds=0)
    with pytest.raises(RunError, match="another version of mine.code; remove the directory"):
        train(run, "runs")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mine.code:build", "mine.codes:build", r"e.toml: network.architecture: .*got 'mine.codes:build'.*No module"),
        ("mine.code:build", "mine.code:built", "e.toml: network.architecture: .*has no attribute 'built'"),
        ("mine.code:build", "mine.code:CONSTANT", "It is a int, which cannot be called"),
        ("mine.code:build", "mine.code:", "e.toml: network.architecture: .*accepted: .module:function"),
        ("mine.code:build", "mine", r"e.toml: network.architecture: got 'mine'; accepted: one of fully_connected"),
        ("width = 6", "wide = 6", r"e.toml: network.wide \(unknown option\): got 6; accepted: the options width, activation"),
        ("width = 6", "width = 0.5", "e.toml: network.width: got 0.5; accepted: an integer"),
        ('activation = "Tanh"', "", "e.toml: network.activation: got 'nothing'; accepted: a value for activation"),
        ("mine.code:load", "mine.code:lod", "e.toml: data.name: .*has no attribute 'lod'"),
        ('name = "mine.code:load"', 'name = "mine.code:load"\nimage_size = 8', "e.toml: data.image_size: .*no images"),
    ],
)  # fmt: skip
def test_an_error_names_file_key_and_what_is_accepted(place, old, new, message):
    (place / "e.toml").write_text(OWN.replace(old, new))
    with pytest.raises(InvalidInput, match=message):
        check_experiment(load_experiment("e.toml"))


def test_a_function_that_builds_no_network_is_named(place):
    text = OWN.replace("mine.code:build", "mine.code:module").replace('activation = "Tanh"\nwidth = 6\n', "")
    (place / "e.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"e.toml: network: mine.code:module: got 'a Linear'; .*fdfa_core.cut"):
        check_experiment(load_experiment("e.toml"))


def test_a_module_that_fails_says_how(place):
    (place / "mine" / "code.py").write_text("1 / 0")
    with pytest.raises(InvalidInput, match="e.toml: .*ZeroDivisionError: division by zero"):
        check_experiment(load_experiment("e.toml"))


X, Y = torch.randn(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (X, r"returned a Tensor; accepted: a fdfa_core.data.Dataset, or two pairs"),
        (((X, Y), (X.numpy(), Y)), "test samples: x is a ndarray"),
        (((X.long(), Y), (X, Y)), "training samples: x has the type torch.int64"),
        (((X, Y.float()), (X, Y)), "y has the type torch.float32"),
        (((X, Y[:5]), (X, Y)), "6 inputs and 5 labels"),
        (((X, Y - 1), (X, Y)), "a label is -1"),
        (((X / 0, Y), (X, Y)), "not finite"),
        (((X, Y), (X[:, :3], Y)), r"training samples are \(4,\) torch.float32, test samples \(3,\)"),
    ],
)
def test_data_that_cannot_be_are_refused(made, message, monkeypatch):
    monkeypatch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
    register_dataset("mine")(lambda: made)
    with pytest.raises(DataError, match=f"data mine: .*{message}"):
        load("mine")


def test_registered_names_are_used_as_any_other(monkeypatch):
    monkeypatch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
    monkeypatch.setattr(networks, "ARCHITECTURES", dict(networks.ARCHITECTURES))
    images = torch.randint(256, (6, 1, 2, 2), dtype=torch.uint8)
    register_dataset("mine")(lambda: ((images, Y), (images, Y)))
    assert load("mine").train.batch(torch.arange(6))[0].min() >= -1 and load("mine").classes == ("0", "1", "2")

    @register_architecture("small")
    def small(input_shape, outputs, *, width: int = 4):
        return networks.build("fully_connected", input_shape, outputs, hidden=[width])

    one, other = (build("small", (5,), 3, seed=seed, width=7) for seed in (0, 0))
    assert torch.equal(one[0].affine.weight, other[0].affine.weight) and one[0].affine.weight.shape == (7, 5)
    before = torch.get_rng_state()
    assert not torch.equal(build("small", (5,), 3, seed=1)[1].weight[0, :4], one[1].weight[0, :4])
    assert torch.equal(before, torch.get_rng_state())
    for name, decorate in (("alexnet", register_architecture), ("a:b", register_architecture), ("mnist", register_dataset)):
        with pytest.raises(InvalidInput, match="a name that is not taken"):
            decorate(name)(lambda: None)
    with pytest.raises(UnknownName, match="fully_connected.*module:function"):
        build("nosuch", (5,), 3)


# --- Files that no run can come from are one line that names file, key and value -----------------------------------


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
