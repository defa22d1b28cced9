"""An estimator from outside the package: made, measured, trained with and drawn, and no file of the project is touched.

A broken distribution of estimators is named and left out; what was loaded is part of a run's provenance.
"""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from fdfa_core import available_estimators, estimators, fully_connected, make_estimator, measure, register
from fdfa_core.data import load
from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.estimators import index, registry
from fdfa_core.estimators.base import Estimator
from fdfa_core.estimators.direct_feedback import DirectFeedbackAlignment
from fdfa_core.estimators.index import packaged
from fdfa_core.training import provenance
from fdfa_core.training.run import train
from places import ROOT
from tiny import tiny

# A distribution of somebody else: one module, and a line that says that it has estimators
MODULE = '''
from fdfa_core.estimators import register
from fdfa_core.estimators.direct_feedback import DirectFeedbackAlignment


@register("outsider")
class Outsider(DirectFeedbackAlignment):
    """DFA that sends the sign of the error alone."""

    def __init__(self, net, *, size=0.01, **common):
        super().__init__(net, **common)
        self.size = size

    def teaching_signal(self, error, targets):
        return self.size * error.sign()
'''
EXPERIMENT = """
description = "A method from elsewhere beside BP."
[data]
name = "digits"
train_size = 128
[network]
architecture = "fully_connected"
hidden = [8]
[training]
epochs = 2
batch_size = 32
[evaluation]
reference_size = 64
schedule = { kind = "epochs" }
[probe]
schedule = { kind = "first_and_last" }
replicates = 2
reference_size = 64
estimators = [{ name = "self" }, { name = "outsider", size = 0.1 }]
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "outsider" }
[grid]
seed = [0, 1]
"""


@pytest.fixture
def outsider(monkeypatch):
    """The class, registered by the decorator until the end of the test."""
    available_estimators()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    names = {}
    exec(MODULE, names)
    return names["Outsider"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process wrote and printed in which the distribution is installed, as far as Python can tell."""
    place = tmp_path_factory.mktemp("elsewhere")
    metadata = place / "site" / "outsiders-1.0.dist-info"
    experiments = place / "experiments" / "tiny"
    metadata.mkdir(parents=True), experiments.mkdir(parents=True)
    (place / "site" / "outsiders.py").write_text(MODULE, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outsiders\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fdfa_core.estimators]\nfamily = outsiders\n")
    (experiments / "convergence.toml").write_text(EXPERIMENT, encoding="utf-8")
    code = """
import torch
from fdfa_core import available_estimators, fully_connected, measure
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.training import provenance
from fdfa_core.training.run import train
from figures import render

for config in load_experiment("experiments/tiny/convergence.toml").runs():
    train(config, "runs")
render.render("tiny", "runs", "out", ["convergence"], experiments="experiments")
frame = measure(fully_connected([4, 5, 3]), torch.randn(6, 4), torch.randint(3, (6,)), ["outsider"], 2)
print(*available_estimators(), *set(frame["method"]), sep="\\n")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "site"), str(ROOT)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return place, done.stdout.split()


# By the decorator ----------------------------------------------------------------------------------------------------


def test_registered_estimator_is_available(outsider):
    assert "outsider" in available_estimators()


def test_registered_estimator_is_made_with_its_own_option(outsider):
    assert make_estimator("outsider", fully_connected([4, 5, 3]), size=2.0).size == 2.0


def test_unknown_option_of_a_registered_estimator_is_answered_with_its_options(outsider):
    with pytest.raises(UnknownName, match="option of outsider: got 'sise'; accepted: one of .*size"):
        make_estimator("outsider", fully_connected([4, 5, 3]), sise=2.0)


def test_registered_estimator_is_measured_among_all(outsider):
    frame = measure(fully_connected([4, 5, 3]), torch.randn(6, 4), torch.randint(3, (6,)), None, 2, burn_in=0)
    assert "outsider" in set(frame["estimator"])


def test_registered_estimator_trains_and_is_probed(outsider, tmp_path):
    config = tiny(estimator={"name": "outsider", "size": 0.1}, probe={
        "schedule": {"kind": "first_and_last"}, "replicates": 2, "reference_size": 64, "estimators": [{"name": "self"}],
    })  # fmt: skip
    probes = pd.read_parquet(train(config, tmp_path) / "probes.parquet")
    assert set(probes["method"]) == {"outsider"}


def test_name_that_is_taken_is_refused(outsider):
    with pytest.raises(InvalidInput, match="estimator name: got 'dfa'; accepted: a name that is not taken"):
        register("dfa")(outsider)


def test_class_may_be_defined_again_as_in_a_notebook(outsider):
    names = {}
    exec(MODULE, names)
    assert registry.estimator_class("outsider") is names["Outsider"]


def test_variant_leaves_its_base_class_its_name(outsider):
    assert DirectFeedbackAlignment.name == "dfa"


# By an entry point ---------------------------------------------------------------------------------------------------


def test_installed_estimator_is_available_and_measured_without_an_import(elsewhere):
    assert elsewhere[1].count("outsider") == 2


def test_installed_estimator_is_trained_and_drawn(elsewhere):
    curves = pd.read_csv(elsewhere[0] / "out" / "convergence.csv")
    assert set(curves["trained_with"]) == {"bp", "outsider"}


def test_installed_estimator_is_a_probe_of_other_training(elsewhere):
    probes = pd.concat(map(pd.read_parquet, elsewhere[0].glob("runs/*/probes.parquet")))
    assert "outsider(size=0.1)" in set(probes["estimator"])


# A distribution that is broken ----------------------------------------------------------------------------------------

SOUND = """
from fdfa_core import register
from fdfa_core.estimators.backpropagation import Backpropagation

@register("sound-plugin")
class Sound(Backpropagation):
    pass
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Install distributions of one module each into a directory on the path; none is loaded before or after."""

    def install(**modules):
        for name, source in modules.items():
            if source is not None:
                (tmp_path / f"{name}.py").write_text(source)
            about = tmp_path / f"{name}-1.5.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (about / "entry_points.txt").write_text(f"[fdfa_core.estimators]\n{name} = {name}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_PLUGINS", {})
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    registry._load_plugins.cache_clear()
    yield install
    registry._load_plugins.cache_clear()
    for name in ("broken_plugin", "sound_plugin"):
        sys.modules.pop(name, None)


BROKEN = {
    "syntax": ("def", "SyntaxError"),
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "takes a name": (SOUND.replace("sound-plugin", "bp"), "InvalidInput: estimator name: got 'bp'"),
    "is not there": (None, "ModuleNotFoundError"),
}


@pytest.mark.parametrize("source, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_and_the_others_are_loaded(plugins, source, said):
    plugins(broken_plugin=source, sound_plugin=SOUND)
    with pytest.warns(UserWarning, match=f"'broken_plugin' .broken_plugin. of the distribution broken_plugin 1.5 .*{said}"):
        names = registry.available_estimators()
    assert "sound-plugin" in names and "bp" in names
    assert registry.loaded_plugins() == {"sound_plugin = sound_plugin": "sound_plugin 1.5"}


def test_provenance_names_the_plugins_that_were_loaded(plugins):
    plugins(sound_plugin=SOUND)
    registry.available_estimators()
    about = provenance.describe(torch.device("cpu"), 0, load("digits"))
    assert about["plugins"] == {"sound_plugin = sound_plugin": "sound_plugin 1.5"}


# --- The index that is read from the source says what the imported classes say


def live_options(name):
    """Options as the imported class has them, in order, with types: 1 and True are equal, and differ."""
    registry.estimator_class(name)
    assert name in registry._CLASSES  # so that what follows comes from the class and not from the index
    return [(option, default, type(default)) for option, default in registry.estimator_options(name).items()]


@pytest.mark.parametrize("name", packaged())
def test_options_and_defaults_are_those_of_the_class(name):
    indexed = [(option, default, type(default)) for option, default in packaged()[name].options.items()]
    assert indexed == live_options(name)


@pytest.mark.parametrize("name", packaged())
def test_module_and_class_are_those_registered(name):
    cls = registry.estimator_class(name)
    assert (cls.name, cls.__module__, cls.__qualname__) == (name, packaged()[name].module, packaged()[name].class_name)


def test_no_estimator_of_the_package_is_missing():
    modules = [f"fdfa_core.estimators.{module.name}" for module in pkgutil.iter_modules(estimators.__path__)]
    classes = [each for m in modules for each in vars(importlib.import_module(m)).values() if isinstance(each, type)]
    live = {cls.name for cls in classes if issubclass(cls, Estimator) and "name" in vars(cls)}
    assert live == set(packaged())


def test_names_come_in_the_order_of_the_registry_bp_first():
    names = registry.available_estimators()
    assert names[0] == "bp" and names[1:] == sorted(names[1:]) and set(packaged()) <= set(names)


def test_name_of_the_package_cannot_be_taken_before_its_module_is_imported(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {})
    with pytest.raises(InvalidInput, match=r"estimator name: got 'fg-w'; .*\(it is WeightPerturbation\)"):
        register("fg-w")(type("Impostor", (Estimator,), {}))


def test_unknown_estimator_has_no_options():
    with pytest.raises(UnknownName, match="estimator: got 'pb'; accepted: one of bp, "):
        registry.estimator_options("pb")


@pytest.fixture
def source(monkeypatch):
    """Let the index read a source in place of a module of the package."""
    index._skeleton.cache_clear()
    yield lambda text: monkeypatch.setattr(index, "_tree", lambda _: ast.parse(text))
    index._skeleton.cache_clear()


def test_options_are_collected_along_the_base_classes_as_python_orders_them(source):
    source("""
class A:
    def __init__(self, net, *, a=1, shared="a", seed=0): ...
class B(A):
    def __init__(self, net, *, b, **common): ...
class C(A):
    def __init__(self, net, *, c=-1.5, shared="c", **common): ...
class D(B, C): ...
""")
    options = index._options("fdfa_core.estimators.x", "D")
    assert list(options.items()) == [("a", 1), ("shared", "c"), ("c", -1.5), ("b", index.Parameter.empty)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class D(base.Estimator): ...", "cannot tell where the base class base.Estimator comes from"),
        ("class D:\n    def __init__(self, net, *, lr=RATE): ...", "malformed node"),
    ],
)
def test_source_that_cannot_be_read_is_an_error_and_no_guess(source, text, said):
    source(text)
    with pytest.raises(ValueError, match=said):
        index._options("fdfa_core.estimators.x", "D")
