"""Where experiments, recorded results and caches are, in a source tree and in an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_TREE = _PACKAGE.parent

# A wheel carries the experiments inside the package; a source tree has them at the top.
EXPERIMENTS = _TREE / "experiments" if (_TREE / "experiments").is_dir() else _PACKAGE / "experiments" / "files"
