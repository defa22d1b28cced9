"""Architectures and data sets of the user's, named "module:function" in an experiment file or registered in a program."""

import sys

import pytest
import torch

from analysis.rebuilt import flops
from fdfa_core import register_architecture, register_dataset
from fdfa_core.data import load
from fdfa_core.data import registry as datasets
from fdfa_core.errors import DataError, InvalidInput, RunError, UnknownName
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.networks import registry as networks
from fdfa_core.networks.registry import build
from fdfa_core.runs.directory import read_provenance, read_table
from fdfa_core.sweeps.sweep import sweep
from fdfa_core.training.check import check_experiment
from fdfa_core.training.process import loaded_dataset
from fdfa_core.training.run import train

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
TOML = """
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
    (tmp_path / "e.toml").write_text(TOML)
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
    (place / "e.toml").write_text(TOML.replace(old, new))
    with pytest.raises(InvalidInput, match=message):
        check_experiment(load_experiment("e.toml"))


def test_a_function_that_builds_no_network_is_named(place):
    text = TOML.replace("mine.code:build", "mine.code:module").replace('activation = "Tanh"\nwidth = 6\n', "")
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
