"""The product's modules and what each imports, read from the source without importing any."""

import ast
import functools
from pathlib import Path

from places import ROOT

PACKAGES = ("fdfa_core", "analysis", "verification", "figures", "fdfa_cli", "benchmarks")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def dotted(module: Path) -> str:
    """Return the name under which a module is imported."""
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


def imported(source: str, module: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names of all that a module imports, wherever in its source: `a.b.c` for `from a.b import c`.

    Args:
        source: of the module.
        module: its path from the root.
        at_run_time: leave out what only type checkers import.
    """
    names = set()
    skipped = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.parts[:-1][: len(module.parts) - node.level] if node.level else ()
            base = ".".join([*package, *(node.module or "").split(".")]).strip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def reexported() -> dict[str, str]:
    """Where the names come from that packages pass on from their stubs: `fdfa_core.cut` → `fdfa_core.networks.cutting.cut`."""
    found = {}
    for stub in (stub for package in PACKAGES for stub in (ROOT / package).rglob("__init__.pyi")):
        module = stub.relative_to(ROOT)
        for name in imported(stub.read_text(encoding="utf-8"), module):
            found[f"{'.'.join(module.parts[:-1])}.{name.rpartition('.')[2]}"] = name
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return for every module of the product the modules of the product that it imports, those inside functions included."""
    known, through = {dotted(module): module for module in MODULES}, reexported()
    found: dict[str, set[str]] = {}
    for name, module in known.items():
        targets = set()
        for target in imported((ROOT / module).read_text(encoding="utf-8"), module, at_run_time=True):
            target = through.get(target, target)
            while target and target not in known:
                target = target.rpartition(".")[0]
            targets.add(target)
        found[name] = targets - {"", name}
    return found
