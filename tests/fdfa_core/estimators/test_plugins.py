"""A broken distribution of estimators is named and left out; what was loaded is part of a run's provenance."""

import sys

import pytest
import torch

from fdfa_core.data import load
from fdfa_core.estimators import registry
from fdfa_core.training import provenance

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
