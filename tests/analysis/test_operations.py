"""Counted operations are kept: another process reads them, and other code counts again."""

import json
import subprocess
import sys

import pytest

from analysis.rebuilt import flops
from fdfa_core.experiments.tables import RunConfig
from places import ROOT

CONFIG = json.dumps(
    {
        "data": {"name": "digits"},
        "network": {"architecture": "fully_connected", "hidden": [8]},
        "estimator": {"name": "frozen"},
        "training": {"steps": 1, "batch_size": 4},
    }
)
COUNT = 2 * 4 * (64 * 8 + 2 * 8 * 10)  # a forward pass, and the readout's gradient
ELSEWHERE = """
import pathlib, sys
from analysis.rebuilt import flops
from fdfa_core.experiments.tables import RunConfig
flops.CACHE = pathlib.Path(sys.argv[1])
print(flops.per_step(RunConfig.from_json(sys.argv[2])), "torch" in sys.modules)
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return the folder in which one count is kept."""
    monkeypatch.setattr(flops, "CACHE", tmp_path)
    flops._count.cache_clear()
    assert flops.per_step(RunConfig.from_json(CONFIG)) == COUNT
    flops._count.cache_clear()
    yield tmp_path
    flops._count.cache_clear()


def test_another_process_reads_the_count_and_loads_no_torch(kept):
    call = [sys.executable, "-c", ELSEWHERE, str(kept), CONFIG]
    said = subprocess.run(call, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert said.split() == [str(COUNT), "False"]


@pytest.mark.parametrize("name, value", [("_code_and_libraries", lambda: "other code"), ("_ours", lambda config: False)])
def test_a_count_of_other_code_is_made_again(kept, monkeypatch, name, value):
    """Of this package after a change, or of an estimator from elsewhere, of whose code the hash knows nothing."""
    monkeypatch.setattr(flops, name, value)
    monkeypatch.setattr(flops, "counted", lambda config: (7, 8))
    assert flops.per_step(RunConfig.from_json(CONFIG)) == 7


def test_an_estimator_or_a_network_from_elsewhere_is_not_ours(monkeypatch):
    config = RunConfig.from_json(CONFIG)
    assert flops._ours(config)
    monkeypatch.setitem(flops.ARCHITECTURES, "fully_connected", lambda: None)
    assert not flops._ours(config)
    monkeypatch.undo()
    monkeypatch.setattr(flops, "packaged", lambda: {})
    assert not flops._ours(config)
