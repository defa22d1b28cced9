"""The wheel works alone: installed without the source tree and used elsewhere, it draws every figure of the smoke profile."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from imports import MODULES
from places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEFT_OUT = {"build", "data", "dist", "results", "runs", "site"}


def run(*command: object, cwd: Path) -> str:
    """Run a command that has neither the source tree nor its Python path; return what it prints, or fail with it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FDFA_DATA")}
    environment |= {"PYTHONSAFEPATH": "1", "MPLCONFIGDIR": str(cwd / ".matplotlib")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def generated(folder: str, names: list[str]) -> set[str]:
    """Name what a fresh checkout would not hold, so that what old builds left behind does not come in, and the large record."""
    top = Path(folder) == ROOT
    at_the_top = {name for name in names if top and (name in LEFT_OUT or name.startswith(".") or name.endswith(".egg-info"))}
    return at_the_top | ({"__pycache__"} & set(names))


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The source distribution, and the wheel that is built from it and from nothing else."""
    place = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, place / "tree", ignore=generated)
    run(sys.executable, "-m", "build", "--outdir", place / "dist", place / "tree", cwd=place)
    return place / "dist"


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel, which borrows the dependencies of the environment that runs the tests."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--no-deps", wheel, cwd=place.parent)
    (site,) = place.glob("lib/python*/site-packages")
    # A path file adds the folder alone: the finder of an editable installation that stands there does not start.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    return place / "bin"


def test_wheel_holds_every_module_stub_and_experiment_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {module.as_posix() for module in MODULES if module.parts[0] != "benchmarks"}
    stubs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fdfa_core").rglob("*.pyi")}
    stubs |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "analysis").rglob("*.pyi")}
    experiments = {
        f"fdfa_core/experiments/files/{path.relative_to(ROOT / 'experiments').as_posix()}"
        for path in (ROOT / "experiments").rglob("*.toml")
    }
    assert held == modules | stubs | experiments | {f"figures/report/{name}" for name in ("page.html", "style.css", "tabs.js")}


def test_source_distribution_holds_tests_documents_and_what_make_needs(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["Makefile", "requirements.txt", "requirements-oldest.txt", "requirements-docs.txt", "mkdocs.yml", "setup.py"]
    wanted += ["docs/theory.md", "docs/images/convergence.png", "tests/conftest.py", "tests/helpers/places.py"]
    wanted += ["examples/own_network.py", "experiments/smoke/width.toml", "benchmarks/__main__.py", "CHANGELOG.md"]
    assert set(wanted) <= held
    assert not [name for name in held if name.endswith(".pyc") or name.startswith("results/")]


def test_package_stands_in_its_environment_and_reads_its_own_experiments(installed, tmp_path):
    code = "import fdfa_core, fdfa_core.paths as p; print(fdfa_core.measure.__module__, fdfa_core.__file__, p.EXPERIMENTS)"
    module, *places = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert module == "fdfa_core.measuring.measure"
    assert all(Path(place).is_relative_to(installed.parent) for place in places)


def test_command_says_its_version_and_what_there_is(installed, tmp_path):
    assert "0.1.0" in run(installed / "fdfa", "--version", cwd=tmp_path)
    assert "figures" in run(installed / "fdfa", "--help", cwd=tmp_path)
    listed = run(installed / "fdfa", "list", cwd=tmp_path)
    for path in (ROOT / "experiments").glob("*/*.toml"):
        assert f"experiments of profile {path.parent.name}" in listed and f"  {path.stem} " in listed


def test_every_figure_of_the_smoke_profile_is_drawn_into_the_working_directory(installed, tmp_path):
    said = run(installed / "fdfa", "figures", "--profile", "smoke", cwd=tmp_path)
    assert "Not drawn: cost_scaling, cost_vs_alignment: needs" not in said  # one line for each file that is missing
    for name in ("cost_scaling", "cost_vs_alignment"):
        assert f"Not drawn: {name}: needs benchmarks/results/{name}.csv, which `make bench` writes" in said
    pictures = {path.stem for path in (tmp_path / "figures" / "out" / "smoke").glob("*.png")}
    assert {"variance_vs_width", "alignment_angles", "convergence", "theory_vs_measured"} <= pictures
    assert {path.name for path in tmp_path.iterdir()} == {".cache", ".matplotlib", "figures", "runs"}
    assert "drawn now: nothing" in run(installed / "fdfa", "figures", "--profile", "smoke", cwd=tmp_path)
