"""Backpropagation-free gradient estimators, and training that is measured against the true gradient.

The public names are listed in ``__init__.pyi`` and load on first use, so that importing a module which needs no torch, such as
`fdfa_core.experiments.loading`, loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
