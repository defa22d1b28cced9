"""Ranges that the pins satisfy, one set of pins in two files, make targets that are all documented, a console command."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from imports import MODULES, PACKAGES, imported
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [*PROJECT["dependencies"], *EXTRAS["test"]]
PINNED = {"requirements.txt": RANGES, "environment.yml": RANGES, "requirements-docs.txt": EXTRAS["docs"]}


def pins_in(file: str) -> list[str]:
    """Return the requirements that a file lists, as they stand there: the lines that are neither comments nor keys."""
    lines = re.findall(r"^\s*(?:- )?([a-zA-Z][\w.\[\]-]*\s*[=<>~!].*)$", (ROOT / file).read_text(), re.MULTILINE)
    return [line for line in lines if not line.startswith("python=")]


def unsatisfied(pins: list[str], ranges: list[str]) -> list[str]:
    """Return the ranges of which no pin, or one of another version, is listed, and the pins that no range asks for."""
    versions = dict(pin.split("==") for pin in pins)
    accepted = {r.name: r.specifier for r in map(Requirement, ranges)}
    wrong = [name for name, versions_of in accepted.items() if versions.get(name) not in versions_of] if versions else ranges
    return sorted({*wrong, *(versions.keys() - accepted.keys())})


@pytest.mark.parametrize("file", PINNED)
def test_pins_satisfy_the_ranges_of_pyproject(file):
    assert unsatisfied(pins_in(file), PINNED[file]) == []


@pytest.mark.parametrize(
    ("pins", "wrong"),
    [
        (["click==8.2.0", "numpy==2.4.6"], []),
        (["click==8.1.9", "numpy==2.4.6"], ["click"]),  # below the range
        (["click==8.2.0"], ["numpy"]),  # no pin
        (["click==8.2.0", "numpy==2.4.6", "seaborn==0.13.2"], ["seaborn"]),  # no range
    ],
)
def test_a_pin_that_does_not_fit_its_range_is_noticed(pins, wrong):
    assert unsatisfied(pins, ["click>=8.2", "numpy>=2"]) == wrong


def test_the_environment_of_conda_holds_the_same_pins():
    assert pins_in("environment.yml") == pins_in("requirements.txt")


@pytest.mark.parametrize("pin", sorted({pin for file in [*PINNED, "requirements-oldest.txt"] for pin in pins_in(file)}))
def test_pin_is_exact(pin):
    assert re.fullmatch(r"[\w-]+==\d+(\.\d+)+", pin)


def test_the_oldest_pins_are_the_lower_bounds():
    assert pins_in("requirements-oldest.txt") == [each.replace(">=", "==") for each in RANGES]


@pytest.mark.parametrize("each", sorted({*RANGES, *EXTRAS["cluster"], *EXTRAS["docs"], *EXTRAS["gallery"]}))
def test_a_range_has_a_lower_bound_and_no_upper_one(each):
    """An upper bound needs a version that is known to break: write the reason beside it, and its name here."""
    assert [specifier.operator for specifier in Requirement(each).specifier] == [">="]


def test_what_a_cluster_needs_is_what_is_tested():
    assert set(EXTRAS["cluster"]) <= set(EXTRAS["test"])


def test_the_citation_names_the_version_of_the_package():
    (version,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == PROJECT["version"]


def test_environment_has_a_python_that_the_project_accepts():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "- python=3.11\n" in (ROOT / "environment.yml").read_text()


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "benchmarks"])
def test_every_imported_distribution_is_declared(package):
    sources = [(ROOT / m).read_text(encoding="utf-8") for m in MODULES if m.parts[0] == package]
    top = {name.split(".")[0] for source in sources for name in imported(source, Path(package, "x.py"))}
    third_party = top - set(sys.stdlib_module_names) - set(PACKAGES)
    by_module = importlib.metadata.packages_distributions()
    needed = {by_module.get(name, [name])[0].lower().replace("_", "-") for name in third_party}
    halves = {"requests", "pydantic-core"}  # parts of pooch and pydantic, which fix their versions
    assert needed - halves <= {Requirement(each).name for each in PROJECT["dependencies"] + EXTRAS["cluster"]}


def test_every_declared_distribution_is_used():
    """Nothing is declared that no module imports; tools of the tests and the command line are named here."""
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in MODULES}
    sources |= {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    top = {name.split(".")[0] for module, source in sources.items() for name in imported(source, module)}
    by_module = importlib.metadata.packages_distributions()
    used = {owner.lower().replace("_", "-") for name in top for owner in by_module.get(name, [])}
    tools = {"build", "pytest-timeout", "pytest-xdist", "ruff"}  # called, not imported
    indirect = {"dask", "tabulate"}  # imported by distributed, and by pandas where it writes Markdown
    assert {Requirement(each).name for each in RANGES} - used - tools <= indirect


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MAKEFLAGS": "", "MAKELEVEL": "", **environment}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def phony_targets() -> list[str]:
    return re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


@pytest.mark.parametrize("target", phony_targets())
def test_help_lists_target(target):
    assert re.search(rf"^  {target} +\S", make("help").stdout, re.MULTILINE)


def test_every_documented_target_is_phony():
    documented = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
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
