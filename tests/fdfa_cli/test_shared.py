from pathlib import Path

import pytest

import fdfa_cli
from fdfa_core.errors import FdfaError


def test_help_lists_the_commands(fdfa):
    lines = fdfa("--help").output
    assert all(name in lines for name in ("analyse", "data", "figures", "list", "sweep", "train"))


@pytest.mark.parametrize("command", ["analyse", "data", "figures", "list", "sweep", "train"])
def test_every_command_has_help(fdfa, command):
    assert "Usage: " in fdfa(command, "--help").output


def test_help_imports_nothing_heavy():
    lines = [line for path in Path(fdfa_cli.__file__).parent.glob("*.py") for line in path.read_text().splitlines()]
    top_level = [line for line in lines if line.startswith(("import ", "from "))]
    assert not [line for line in top_level if any(name in line for name in ("torch", "fdfa_core", "analysis", "pandas"))]


# (arguments, what the one line on standard error must say)
REFUSED = {
    "no such file": (["train", "nowhere.toml"], "got 'nowhere.toml'; accepted: a readable TOML file"),
    "unknown profile": (["sweep", "--profile", "quik"], "profile: got 'quik'; accepted: one of"),
    "unknown profile of figures": (["figures", "--profile", "quik"], "Did you mean 'quick'?"),
    "unknown data set": (["data", "mnits"], "got 'mnits'; accepted: one of"),
    "unknown run": (["train", "experiment.toml", "--run", "zzz"], "run: got 'zzz'; accepted: one of"),
    "missing logs": (["analyse", "experiment.toml"], "is missing or unfinished (2 of 2 runs of experiment 'experiment')"),
    "unknown device": (["train", "experiment.toml", "--device", "gpu"], "device: got 'gpu'; accepted: one of auto, cpu"),
    "data that are missing": (["data", "mnist", "--no-download"], "mnist"),
}


@pytest.mark.parametrize("arguments, said", REFUSED.values(), ids=REFUSED)
def test_an_error_is_one_line_and_exit_code_two(fdfa, file, arguments, said):
    result = fdfa(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and said in result.stderr


def test_debug_shows_where_an_error_comes_from(fdfa):
    assert isinstance(fdfa("--debug", "sweep", "--profile", "quik").exception, FdfaError)
