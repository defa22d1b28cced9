"""What a result depends on, and a place to keep results: closed forms and figures are made again if and only if that changed.

A result depends on its inputs, on the libraries, and on code: the module that makes it and all modules of the project that this
imports, directly or not, anywhere in their source. A module that imports `pkgutil` discovers the modules of its own package:
it depends on all of them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import tokenize
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from fdfa_core import paths
from fdfa_core.errors import RunError
from fdfa_core.files import read_file, write_atomically

MOST_BYTES = 2**32  # of a frame that is kept
_CHECK = 64  # characters of a hash, which stands in front of a frame
PACKAGES = ("fdfa_core", "analysis", "verification", "figures", "fdfa_cli", "benchmarks")


def code(*modules: str, prose: bool = True, without: Collection[str] = (), tree: Path | None = None) -> str:
    """Return a hash of the source of modules and of all modules of the project that they import.

    Args:
        modules: dotted names.
        prose: whether comments and docstrings count; without them, a hash that is recorded survives their editing.
        without: modules that do not count, nor what they alone import.
        tree: directory that holds the packages; None for the project's own.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources(*modules, without=without, tree=tree).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0".encode() + hashlib.sha256(content if prose else _without_prose(content)).digest())
    return digest.hexdigest()


def sources(*modules: str, without: Collection[str] = (), tree: Path | None = None) -> dict[str, Path]:
    """Return the modules that `code` hashes, dotted name → file."""
    tree = paths.TREE if tree is None else tree
    read: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(tree, name)
        if name in read or name in without or path is None:
            continue
        read[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for target in _imported(path.read_bytes(), package):
            waiting += _modules_of(tree, target)
    return read


@functools.cache
def versions(*packages: str) -> str:
    """Return the versions of libraries as one text."""
    return json.dumps([(package, version(package)) for package in packages])


def digest(*parts: str | bytes) -> str:
    """Return one hash of several parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()


def kept(folder: Path, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the frame that is kept under a key, or compute and keep it.

    Args:
        folder: where frames are kept; one that cannot be written to costs the time of computing again.
        key: a hash of all that the frame depends on.
        compute: makes the frame.
    """
    path = folder / f"{key[:32]}.frame"
    try:
        content = read_file(path, MOST_BYTES)
        check, frame = content[:_CHECK], content[_CHECK:]
        if check == digest(key, frame).encode():  # whole, and the answer to this very question
            return pd.read_parquet(io.BytesIO(frame))
    except (OSError, ValueError):  # missing, or written by another version of the libraries
        pass
    frame = compute()
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, digest(key, buffer.getvalue()).encode() + buffer.getvalue(), lasting=False)
    except (OSError, RunError):
        pass
    return frame


@functools.cache
def _file(tree: Path, name: str) -> Path | None:
    """Return the file of a module of the project, or None for any other."""
    if name.split(".")[0] not in PACKAGES:
        return None
    place = tree.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@functools.cache
def _modules_of(tree: Path, target: str) -> tuple[str, ...]:
    """Return the modules that importing a dotted name runs: its packages, and where a lazy package takes the name from.

    Which modules there are is looked up once in a process, what they hold every time.
    """
    return tuple(_resolved(tree, target))


def _resolved(tree: Path, target: str) -> Iterator[str]:
    if target.endswith(".*"):
        package = target.removesuffix(".*")
        place = tree.joinpath(*package.split("."))
        for path in sorted(place.glob("*")):
            if path.suffix == ".py" and path.name != "__init__.py" or (path / "__init__.py").is_file():
                yield f"{package}.{path.stem}"
        return
    parts = target.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        if _file(tree, name) is not None:
            yield name
        elif (stub := tree.joinpath(*parts[: end - 1], "__init__.pyi")).is_file():
            package = ".".join(parts[: end - 1])
            for passed_on in _imported(stub.read_bytes(), package):
                if passed_on.rpartition(".")[2] == parts[end - 1]:
                    yield from _resolved(tree, passed_on.rpartition(".")[0])


@functools.cache
def _imported(source: bytes, package: str) -> tuple[str, ...]:
    """Return the dotted names that a module of a package imports anywhere; among them `package.*` if it discovers modules."""
    names, skipped = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    if "pkgutil" in names:
        names.add(f"{package}.*")
    return tuple(sorted(name for name in names if name.split(".")[0] in PACKAGES))


@functools.cache
def _without_prose(source: bytes) -> bytes:
    """Return a module's source without comments, docstrings and empty lines."""
    lines: list[str] = source.decode().splitlines()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            lines[docstring.lineno - 1 : docstring.end_lineno] = [""] * (docstring.end_lineno - docstring.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip()).encode()
