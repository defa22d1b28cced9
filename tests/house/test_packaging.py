"""One set of pins in three files, make targets that all are documented, an installable console command."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from imports import MODULES, imported
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


def pins_in(file: str) -> list[str]:
    return re.findall(r"^\s*(?:- )?([\w-]+==\S+)$", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", ["requirements.txt", "environment.yml"])
def test_pins_agree_with_pyproject(file):
    assert pins_in(file) == PINS


@pytest.mark.parametrize("pin", PINS + PROJECT["optional-dependencies"]["cluster"])
def test_pin_is_exact(pin):
    assert re.fullmatch(r"[\w-]+==\d+(\.\d+)+", pin)


def test_environment_has_a_python_that_the_project_accepts():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "- python=3.11\n" in (ROOT / "environment.yml").read_text()


@pytest.mark.parametrize("package", ["fdfa_core", "analysis", "figures"])
def test_every_imported_distribution_is_pinned(package):
    sources = [(ROOT / m).read_text(encoding="utf-8") for m in MODULES if m.parts[0] == package]
    top = {name.split(".")[0] for source in sources for name in imported(source, Path(package, "x.py"))}
    third_party = top - set(sys.stdlib_module_names) - {"fdfa_core", "analysis", "figures"}
    by_module = importlib.metadata.packages_distributions()
    needed = {by_module.get(name, [name])[0].lower().replace("_", "-") for name in third_party}
    halves = {"requests", "pydantic-core"}  # parts of pooch and pydantic, which fix their versions
    pinned = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cluster"]
    assert needed - halves <= {pin.split("==")[0] for pin in pinned}


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MAKEFLAGS": "", "MAKELEVEL": "", **environment}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def phony_targets() -> list[str]:
    return re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


@pytest.mark.parametrize("target", phony_targets())
def test_help_lists_target(target):
    assert re.search(rf"^  {target} +\S", make("help").stdout, re.MULTILINE)


def test_every_documented_target_is_phony():
    documented = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert documented == phony_targets()


def test_make_alone_prints_the_help():
    assert make().stdout == make("help").stdout


def test_setup_refuses_an_old_python_before_it_creates_anything(tmp_path):
    old = tmp_path / "old python"
    pretence = "import sys; sys.version_info = (3, 10, 9); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretence}' \"$@\"\n")
    old.chmod(0o755)
    result = make("setup", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert result.returncode != 0
    assert "is version 3.10" in result.stderr and "make setup PYTHON=" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_setup_names_the_remedy_where_there_is_no_python(tmp_path):
    result = make("setup", f"PYTHON={tmp_path}/none", f"VENV={tmp_path}/venv")
    assert result.returncode != 0 and "Python 3.11 or newer is needed" in result.stderr


@pytest.mark.parametrize(("age", "up_to_date"), [(-10, True), (10, False)], ids=["newer than the pins", "older"])
def test_setup_runs_again_only_after_a_change_of_the_pins(tmp_path, age, up_to_date):
    stamp = tmp_path / ".installed"
    stamp.touch()
    pins_changed = max((ROOT / name).stat().st_mtime for name in ("pyproject.toml", "requirements.txt"))
    os.utime(stamp, (pins_changed - age, pins_changed - age))
    assert (make("--question", "setup", f"VENV={tmp_path}").returncode == 0) == up_to_date


def test_console_command_leads_to_a_function():
    module, _, function = PROJECT["scripts"]["fdfa"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_targets_call_commands_that_exist():
    called = set(re.findall(r"\$\(FDFA\) (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert called <= set(importlib.import_module("fdfa_cli").main.commands)


def test_ci_script_is_executable_bash():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
