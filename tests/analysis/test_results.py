"""The recorded results in one line."""

import subprocess
import sys

import pandas as pd
import pytest

import analysis
from analysis import logs
from fdfa_core.errors import RunError, UnknownName
from places import ROOT


def test_results_of_one_experiment_are_its_logs():
    found = analysis.results("paper", "momentum")
    expected = logs.load(ROOT / "results" / "paper", "momentum", profile="paper")
    for name in ("runs", "metrics", "probes", "timing"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))


def test_results_of_a_profile_are_all_its_recorded_experiments():
    found = analysis.results("tuning")
    assert "mnist_fc" in found and "digits" not in found  # of which nothing is recorded
    assert all(isinstance(log, analysis.Logs) and len(log.metrics) for log in found.values())


def test_an_unknown_profile_or_experiment_is_named_with_the_known_ones():
    with pytest.raises(UnknownName, match="got 'papr'.*paper"):
        analysis.results("papr")
    with pytest.raises(UnknownName, match="got 'momentun'.*Did you mean 'momentum'"):
        analysis.results("paper", "momentun")


@pytest.mark.parametrize("experiment", [None, "momentum"])
def test_without_records_the_error_says_why_and_what_to_do(tmp_path, experiment):
    with pytest.raises(RunError, match="no recorded run.*not part of an installed package: use a checkout.*fdfa sweep"):
        analysis.results("paper", experiment, root=tmp_path)


def test_importing_the_package_is_light():
    code = "import sys, analysis; sys.exit(bool({'torch', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
