"""Where experiments, recorded results and caches are, in a source tree and in an installed package."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
TREE = _PACKAGE.parent  # what holds the packages of the project: the source tree, or the directory of installed packages
_IS_SOURCE = (TREE / "experiments").is_dir()

# A wheel carries the experiments inside the package; a source tree has them at the top.
EXPERIMENTS = TREE / "experiments" if _IS_SOURCE else _PACKAGE / "experiments" / "files"
# Only a source tree has recorded results. Beside an installed package, those of the working directory are meant.
RESULTS = TREE / "results" if _IS_SOURCE else Path("results")
BENCHES = TREE / "benchmarks" / "results" if _IS_SOURCE else Path("benchmarks") / "results"
CACHE = TREE / ".cache" if _IS_SOURCE else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdfa"
