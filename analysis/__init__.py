"""Pure functions from logged frames to frames: estimates, intervals, theory and verdicts.

`analysis.results("paper")` returns the recorded logs. The public names are listed in ``__init__.pyi`` and load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
