"""Imports go one way, floor by floor, and never in a circle; nobody reads an estimator's options out of a label.

Proved on the source of every module, without importing any. Logs have options as columns (`analysis.options`).
"""

import ast
import graphlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imports import MODULES, dotted, graph, imported, reexported
from places import ROOT

# From the ground up: a module may import from its own room, and from rooms on lower floors.
FLOORS = (
    ("fdfa_core.errors",),
    (
        "fdfa_core.signatures",
        "fdfa_core.files",
        "fdfa_core.paths",
        "fdfa_core.seeds",
        "fdfa_core.random_state",
        "fdfa_core.references",
        "fdfa_core.workers",
    ),
    ("fdfa_core.locks",),
    ("fdfa_core.perturbations", "fdfa_core.losses", "fdfa_core.experiments", "fdfa_core.networks", "fdfa_core.data"),
    ("fdfa_core.runs", "fdfa_core.linearisation"),
    ("fdfa_core.gradients",),
    ("fdfa_core.estimators",),
    ("fdfa_core.measuring",),
    ("fdfa_core.training", "fdfa_core.testing"),
    ("fdfa_core.sweeps", "fdfa_core.functional", "fdfa_core.memory"),
    ("analysis",),
    ("verification", "figures"),
    ("benchmarks",),
    ("fdfa_cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LENGTH = 400  # lines of a module that still holds one idea

# What a package may not import although it is below; of these, what it may after all.
FORBIDDEN = {
    "analysis": {"fdfa_core.training", "fdfa_core.sweeps"},  # analysis never trains
    "figures": {"torch", "fdfa_core"},  # figures never compute
}
ALLOWED = {
    "analysis": {"fdfa_core.training.build"},  # the samples and the network of a run, from its configuration
    "figures": {"fdfa_core.errors", "fdfa_core.files", "fdfa_core.paths", "fdfa_core.workers"},
}

# Modules that load no torch, so that help, lists and the start of a finished sweep come at once.
TORCH_FREE = (
    "fdfa_core",
    "fdfa_core.data",
    "fdfa_core.data.registry",
    "fdfa_core.estimators",
    "fdfa_core.estimators.averages",
    "fdfa_core.estimators.index",
    "fdfa_core.estimators.registry",
    "fdfa_core.experiments.loading",
    "fdfa_core.experiments.schedules",
    "fdfa_core.experiments.writing",
    "fdfa_core.files",
    "fdfa_core.locks",
    "fdfa_core.networks.registry",
    "fdfa_core.paths",
    "fdfa_core.references",
    "fdfa_core.signatures",
    "fdfa_core.runs.directory",
    "fdfa_core.runs.doctor",
    "fdfa_core.runs.record",
    "fdfa_core.runs.recording",
    "fdfa_core.runs.seal",
    "fdfa_core.runs.store",
    "fdfa_core.runs.validation",
    "fdfa_core.sweeps.sweep",
    "fdfa_core.workers",
    "analysis",
    "analysis.logs",
    "analysis.options",
    "analysis.select",
    "analysis.inventory",
    "fdfa_cli",
)


def room(module: str) -> str:
    """Return the room of `FLOORS` that a module belongs to."""
    return next(known for known in FLOOR if module == known or module.startswith(f"{known}."))


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source: str, module: Path) -> list[str]:
    package = module.parts[0]
    names = {reexported().get(name, name) for name in imported(source, module)}
    return sorted(n for n in names if within(n, FORBIDDEN.get(package, set())) and not within(n, ALLOWED.get(package, set())))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports_only_what_its_layer_may(module):
    assert violations((ROOT / module).read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_lead_to_the_same_room_or_down(module):
    name = dotted(module)
    if name == "fdfa_core":
        return  # the door: its names load on first use
    own = room(name)
    up = {t for t in graph()[name] - {"fdfa_core"} if room(t) != own and FLOOR[room(t)] >= FLOOR[own]}
    assert not up, f"{name}, on floor {FLOOR[own]}, imports from its own floor or from above: {sorted(up)}"


def test_no_module_takes_part_in_a_circle_of_imports():
    graphlib.TopologicalSorter(graph()).prepare()  # raises CycleError, which names the circle


def test_a_circle_would_be_found():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_is_short_enough_to_hold_one_idea(module):
    assert len((ROOT / module).read_text(encoding="utf-8").splitlines()) <= LENGTH


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("analysis/x.py", "from fdfa_core.training import run"),
        ("analysis/x.py", "import fdfa_core.sweeps.sweep as s"),
        ("analysis/x.py", "def f():\n    from fdfa_core.training.run import train"),
        ("figures/x.py", "import torch.nn"),
        ("figures/x.py", "from fdfa_core import make_estimator"),
        ("figures/x.py", "from fdfa_core.data import load"),
    ],
)
def test_forbidden_import_is_found(module, source):
    assert violations(source, Path(module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("analysis/x.py", "from fdfa_core.data import load"),
        ("analysis/x.py", "from fdfa_core.training.build import network"),
        ("figures/x.py", "from fdfa_core.errors import RunError\nfrom analysis import variance"),
    ],
)
def test_allowed_import_is_not_found(module, source):
    assert violations(source, Path(module)) == []


@pytest.mark.parametrize("name", sorted(set().union(FLOOR, TORCH_FREE, *FORBIDDEN.values(), *ALLOWED.values()) - {"torch"}))
def test_rules_name_what_exists(name):
    path = ROOT.joinpath(*name.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file()


def test_the_page_on_architecture_shows_the_floors():
    aliases = {"fdfa_core.functional", "fdfa_core.memory"}  # paths that stay for those who use them
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if "| `" in line]
    shown = [set(re.findall(r"`([\w.]+)`", row)) for row in rows]
    shown = [rooms for rooms in shown if rooms and rooms <= FLOOR.keys()]
    at = [{FLOOR[room] for room in rooms} for rooms in shown]
    assert set().union(*shown) == FLOOR.keys() - aliases
    assert all(max(lower) <= min(upper) for upper, lower in itertools.pairwise(at))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_loads_no_torch(module):
    assert _loads_no_torch(f"import {module}")


def test_finding_out_which_figures_there_are_loads_no_torch():
    assert _loads_no_torch("from figures import plan, render; plan.discover()")


def _loads_no_torch(code: str) -> bool:
    code = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


READERS = {"contains", "startswith", "endswith", "match", "fullmatch", "search", "extract", "findall", "split", "partition"}
MEANT = ("options", "label", "labels", "estimator", "trained_with")  # names of what holds labels, or options as text
OWNER = Path("analysis/options.py")  # reads the JSON, for all


def holds(node: ast.AST) -> bool:
    """Whether an expression mentions labels or options: by a variable, an attribute, or the name of a column."""
    modules = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr.isupper()}
    for part in ast.walk(node):
        if id(part) in modules:  # `options.PREFIX`
            continue
        name = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}.get(type(part))
        if name and getattr(part, name) in MEANT:
            return True
    return False


def parsed_labels(source: str) -> list[str]:
    """Return the expressions that look for text in a label or in options, or that parse options."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_text = node.func.attr in READERS and (holds(node.func.value) or any(map(holds, node.args)))
            of_json = node.func.attr == "loads" and any(map(holds, node.args))
            found += [ast.unparse(node)] if of_text or of_json else []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            (right,) = node.comparators[:1]
            looked_for = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
            found += [ast.unparse(node)] if looked_for and isinstance(right, ast.Name | ast.Attribute) and holds(right) else []
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ("analysis", "figures") and m != OWNER], ids=str)
def test_options_are_asked_for_by_column(module):
    assert parsed_labels((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'rows["options"].str.contains("warmup")',
        '~frame["estimator"].str.contains("tangents|site")',
        'json.loads(row["options"]).get("joint")',
        'rows["options"].map(lambda options: json.loads(options))',
        're.fullmatch("(.*)", label)',
        '"warmup" in label',
        '"site" not in row.estimator',
        'label.partition("(")[2]',
    ],
)
def test_each_way_of_reading_text_is_found(source):
    assert parsed_labels(source)


@pytest.mark.parametrize("source", ['"estimator" in frame', "label in labels", 'json.loads(run.config)["training"]'])
def test_what_reads_no_label_is_let_pass(source):
    assert parsed_labels(source) == []


FIGURES = [m for m in MODULES if m.parts[0] == "figures" and "\ndef compute(" in (ROOT / m).read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", FIGURES, ids=str)
def test_every_figure_says_what_its_labels_stand_for(module):
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    decorators = {f.name: {ast.unparse(d) for d in f.decorator_list} for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert decorators["compute"] == {"_labels.labelled"}
    assert decorators.get("draw", {"style.styled"}) == {"style.styled"}
    assert decorators.get("show", {"_labels.understood"}) == {"_labels.understood"}
