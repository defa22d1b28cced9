"""Imports go one way: figures → analysis → fdfa_core. Proved on the source of every module, without importing any."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT) for package in ("fdfa_core", "analysis", "figures")
                 for path in (ROOT / package).rglob("*.py"))  # fmt: skip

# What each package may not import; of these, what it may after all.
FORBIDDEN = {
    "fdfa_core": {"analysis", "figures", "fdfa_cli"},
    "analysis": {"figures", "fdfa_cli", "fdfa_core.training", "fdfa_core.sweep"},
    "figures": {"fdfa_cli", "torch", "fdfa_core"},
}
ALLOWED = {"fdfa_core": set(), "analysis": set(), "figures": {"fdfa_core.errors", "fdfa_core.writing"}}


def imported(source: str, module: Path) -> set[str]:
    """Dotted names of all that a module imports, wherever in its source: `a.b.c` for `from a.b import c`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.parts[:-1][: len(module.parts) - node.level] if node.level else ()
            base = ".".join([*package, *(node.module or "").split(".")]).strip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source: str, module: Path) -> list[str]:
    package = module.parts[0]
    names = {reexported().get(name, name) for name in imported(source, module)}
    return sorted(n for n in names if within(n, FORBIDDEN[package]) and not within(n, ALLOWED[package]))


def reexported() -> dict[str, str]:
    """Where the names that `fdfa_core/__init__.py` passes on come from."""
    init = Path("fdfa_core/__init__.py")
    return {f"fdfa_core.{name.rpartition('.')[2]}": name for name in imported((ROOT / init).read_text(), init)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports_only_what_its_layer_may(module):
    assert violations((ROOT / module).read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fdfa_core/x.py", "import analysis"),
        ("fdfa_core/data/x.py", "def f():\n    from figures.style import palette"),
        ("analysis/x.py", "from fdfa_core import training"),
        ("analysis/x.py", "import fdfa_core.sweep as s"),
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
        ("fdfa_core/data/x.py", "from . import analysis"),  # fdfa_core.data.analysis
        ("analysis/x.py", "from fdfa_core.data import load"),
        ("figures/x.py", "from fdfa_core.errors import RunError\nfrom analysis import variance"),
    ],
)
def test_allowed_import_is_not_found(module, source):
    assert violations(source, Path(module)) == []


@pytest.mark.parametrize("name", sorted(set().union(*FORBIDDEN.values(), *ALLOWED.values()) - {"torch"}))
def test_rules_name_what_exists(name):
    path = ROOT.joinpath(*name.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file()
