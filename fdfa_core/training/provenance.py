"""Where the numbers of a run come from: code, versions, hardware, data."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fdfa_core
from fdfa_core import references
from fdfa_core.estimators.registry import loaded_plugins

PACKAGES = ("fdfa", "torch", "numpy", "scipy", "pyarrow", "safetensors", "scikit-learn")


def describe(device: torch.device, seed: int, dataset, functions: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a run's `provenance.json` says of its start.

    Args:
        device: where the run computes.
        seed: of the run.
        dataset: `fdfa_core.data.Dataset` that it learns.
        functions: names of architectures and data sets; those that are functions of the user's are described.
    """
    own = [references.origin(name) for name in functions if references.is_reference(name)]
    return {
        "code": dict(_code()),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware() | {"device": _device_name(device), "threads": torch.get_num_threads()},
        "plugins": loaded_plugins(),
        "seed": seed,
        "data": {"name": dataset.name, "sha256": dataset.sha256, "notes": list(dataset.notes)},
        "started": now(),
    } | ({"own_code": own} if own else {})


def taken_up(origin: dict[str, Any], step: int, present: dict[str, Any]) -> dict[str, Any]:
    """Return what `describe` said at the start of a run that is taken up again at a step, where it now says `present`."""
    resumed = {"step": step, "time": present["started"], "code": present["code"]}
    return origin | {"resumed": [*origin.get("resumed", []), resumed]}


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def _code() -> dict[str, Any]:
    """Commit of this source tree, and whether the code differs from it; None where git does not know it.

    Code differs where tracked files do, and where there are modules that were never committed: estimators are found by file.
    """
    source = Path(fdfa_core.__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", source, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # a copy, perhaps inside of another repository
        return {"commit": None, "dirty": None}
    new = git("ls-files", "--others", "--exclude-standard", "--", "*.py")
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None or new is None else bool(changes or new)}


@functools.cache
def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions | {"torch": str(torch.__version__)}  # names the build (CPU, which CUDA), as the package's version need not


@functools.cache
def _hardware() -> dict[str, Any]:
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    return {"processor": processor, "machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()}


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
