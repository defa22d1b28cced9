"""Running a module's own code as it is written: not compiled, and without checkpoints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
import torch.utils.checkpoint as checkpoints


class _Direct:
    """Stands for torch's function behind reentrant checkpoints: the checkpointed part is simply called."""

    @staticmethod
    def apply(function: Callable, preserve: bool, *args: object) -> object:
        """Call the function."""
        return function(*args)


def _direct(*args: object, **kwargs: object) -> Iterator[None]:
    """Stand for the context in which torch calls a checkpointed part: nothing is dropped, and nothing recomputed."""
    yield


@contextlib.contextmanager
def as_written(compiled: bool = False, recomputed: bool = False) -> Iterator[None]:
    """Call modules inside a `with` as they are written.

    Compiled code hides from forward-mode differentiation without a word. A reentrant checkpoint gives no gradient where no
    input asks for one, and any other calls its part once more in the backward pass, when the layers that stand in for its own
    are gone.

    Args:
        compiled: leave compiled code compiled.
        recomputed: leave checkpoints that are not reentrant as they are.
    """
    reentrant, other = checkpoints.CheckpointFunction, checkpoints._checkpoint_without_reentrant_generator
    # who has compiled something has loaded the compiler; loading it here would take seconds
    eager = not compiled and "torch._dynamo" in sys.modules
    checkpoints.CheckpointFunction = _Direct
    if not recomputed:
        checkpoints._checkpoint_without_reentrant_generator = _direct
    try:
        with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
            yield
    finally:
        checkpoints.CheckpointFunction, checkpoints._checkpoint_without_reentrant_generator = reentrant, other
