"""Where experiments, recorded results, benchmarks and caches are, in a source tree and in an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
TREE = _PACKAGE.parent  # what holds the packages of the project: the source tree, or the directory of installed packages

IN_SOURCE_TREE = (TREE / "experiments").is_dir() and (TREE / "pyproject.toml").is_file()
"""Whether the package stands in its source tree. An installed package stands among those of others."""

EXPERIMENTS = TREE / "experiments" if IN_SOURCE_TREE else _PACKAGE / "experiments" / "files"
"""Experiment files, one folder per profile. A wheel carries a copy of the source tree's."""

_HOME = TREE if IN_SOURCE_TREE else Path()  # an installed package writes, like `runs/`, into the working directory

RESULTS = _HOME / "results"
"""Recorded results, one folder per profile. A wheel carries none."""

BENCHMARKS = _HOME / "benchmarks" / "results"
"""Tables that `make bench` records, one CSV file per table. A wheel carries none."""

REFERENCE = _HOME / "reference"
"""Exact moments that other implementations can test against. A wheel carries none."""

CACHE = _HOME / ".cache"
"""What can be computed again at any time."""
