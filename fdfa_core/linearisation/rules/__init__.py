"""Rules: hand-derived tangents and local gradients of layers, on the values that the forward pass saved.

To add one, write a `Map` in a module of this package and decorate it with the layer types that it serves; every module here is
imported, and so registered, with the package.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
