"""How long one waits for the commands of every day, each in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.timing import Row, bench
from fdfa_core.paths import TREE

LENET = """
import torch
from torch import nn
from fdfa_core import measure
torch.manual_seed(0)
x, y = torch.randn(32, 1, 28, 28), torch.randint(10, (32,))
first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
measure(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10)), x, y)
"""
FDFA = ("-m", "fdfa_cli")
COMMANDS = {  # what is waited for: command, limit in seconds, how often it is measured
    "import fdfa_core": (("-c", "import fdfa_core"), 0.2, 5),
    "fdfa list": ((*FDFA, "list"), 0.7, 5),
    "measure(net, x, y), a LeNet of 105,866 parameters, 32 images": (("-c", LENET), 20, 1),
    "make figures, from nothing": ((*FDFA, "figures", "--profile", "quick"), 90, 1),
    "make paper": ((*FDFA, "figures", "--profile", "paper", "--runs", "results/paper"), 30, 1),
}
_MADE = {TREE / name for name in ("runs", "data", "figures/out", "site", "build", "dist")}  # what a fresh clone lacks


def made_here(directory: str, names: list[str]) -> list[str]:
    """Return what a fresh clone lacks of the contents of a directory (`ignore` of `shutil.copytree`)."""
    anywhere = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")(directory, names)
    return [name for name in names if name in anywhere or Path(directory) / name in _MADE]


@bench("waiting")
def _() -> Iterator[Row]:
    """Take the time of commands in a copy of the project that holds nothing but what goes with the code."""
    if torch.get_num_threads() > 1:  # the commands choose their own
        return
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "project"
        shutil.copytree(TREE, place, ignore=made_here)
        for what, (command, limit, rounds) in COMMANDS.items():
            if rounds > 1:
                waited(command, place)  # compiles the modules
            yield Row(f"Time of {what}", [waited(command, place) for _ in range(rounds)], limit, unit="s")


def waited(command: tuple[str, ...], place: Path) -> float:
    """Return the seconds that an own process of Python takes for a command in a copy of the project.

    Raises:
        SystemExit: the command failed; its words are shown.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(place), "MPLCONFIGDIR": str(place / ".cache" / "matplotlib")}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: exit code {done.returncode}\n{done.stderr}")
    return seconds
