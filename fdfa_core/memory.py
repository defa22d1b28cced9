"""The published path of `fdfa_core.training.process.keep_freed_memory` and `fdfa_core.measuring.cost.peak_memory`."""

from fdfa_core.measuring.cost import peak_memory
from fdfa_core.training.process import keep_freed_memory

__all__ = ["keep_freed_memory", "peak_memory"]
