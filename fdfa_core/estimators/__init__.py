"""The estimators, one class in one file (a family may share a file), and their registry.

To add one, write a subclass of `Estimator` and decorate it with `@register("name")`: in a module of this package, in a
user's own code, or in another package that names it in the entry-point group ``fdfa_core.estimators``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
