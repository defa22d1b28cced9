"""The data sets by name.

Their readers are named here and imported when they are used, since they load torch, which a list of names does not need.
"""

from __future__ import annotations

import os
import pkgutil
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from fdfa_core.data.files import data_directory
from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.references import ACCEPTED, is_reference, resolve

if TYPE_CHECKING:
    from fdfa_core.data.dataset import Dataset
    from fdfa_core.data.sources import Source

# A reader, or where it is: "module:constant".
DATASETS: dict[str, str | Source] = {
    "digits": "fdfa_core.data.published:DIGITS",
    "mnist": "fdfa_core.data.published:MNIST",
    "fashion-mnist": "fdfa_core.data.published:FASHION_MNIST",
    "cifar-10": "fdfa_core.data.published:CIFAR_10",
    "cifar-100": "fdfa_core.data.published:CIFAR_100",
    "tiny-imagenet": "fdfa_core.data.published:TINY_IMAGENET",
}


_OWN: dict[str, Callable[[], object]] = {}  # functions that were registered


def available_datasets() -> list[str]:
    """Return the names that `load` knows.

    Examples:
        >>> from fdfa_core.data import available_datasets
        >>> available_datasets()
        ['digits', 'mnist', 'fashion-mnist', 'cifar-10', 'cifar-100', 'tiny-imagenet']
    """
    return list(DATASETS)


def register_dataset(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Register a function that makes a data set under a name, as a decorator; what it returns says `fdfa_core.data.own`.

    It is known in this process. An experiment file that others carry out names the function itself, "my_package.data:load".

    Raises:
        InvalidInput: another data set has this name.

    Examples:
        >>> from fdfa_core import register_dataset
        >>> register_dataset("digits")(lambda: None)
        Traceback (most recent call last):
            ...
        fdfa_core.errors.InvalidInput: data set name: got 'digits'; accepted: a name that is not taken, without a colon.
    """

    def decorate(function: Callable[[], object]) -> Callable[[], object]:
        known = _OWN.get(name)
        mine = known is not None and known.__qualname__ == function.__qualname__  # made again, as in a notebook
        if is_reference(name) or name in DATASETS and not mine:
            raise InvalidInput("data set name", name, "a name that is not taken, without a colon")
        from fdfa_core.data.own import OwnSource

        DATASETS[name], _OWN[name] = OwnSource(name, function), function
        return function

    return decorate


def source(name: str) -> Source:
    """Return what reads a data set: one of the registered names, or "module:function" of the user's.

    Raises:
        UnknownName: no such data set.
        InvalidInput: no such function.
    """
    if is_reference(name) and name not in DATASETS:
        function = resolve("data set", name)
        from fdfa_core.data.own import OwnSource

        return OwnSource(name, function)
    if name not in DATASETS:
        raise UnknownName("data set", name, [*DATASETS, ACCEPTED])
    registered = DATASETS[name]
    return pkgutil.resolve_name(registered) if isinstance(registered, str) else registered


def load(name: str, directory: str | os.PathLike | None = None, download: bool = True) -> Dataset:
    """A data set by name.

    Files that are in the directory already, at its top or in a folder with the data set's name, are used without any
    network access. Every file is checked against its published checksum. A CIFAR archive that differs from it
    is accepted if its structure is right: a warning names its hash, which the data set records (`sha256`, `notes`).

    Args:
        name: one of `available_datasets()`, or "module:function" of your own (`fdfa_core.data.own`).
        directory: where the files are, or go; default: what the environment variable FDFA_DATA names, else `data` in
            the working directory.
        download: fetch missing files, with a progress bar on a terminal.

    Raises:
        UnknownName: no such data set.
        DataError: files are missing and cannot be downloaded (the message says how to get them), truncated, altered or
            malformed.

    Examples:
        >>> from fdfa_core.data import load
        >>> digits = load("digits")
        >>> digits.shape, len(digits.train), len(digits.test)
        ((1, 8, 8), 1437, 360)
    """
    dataset = source(name).load(data_directory(directory), download)
    for note in dataset.notes:
        warnings.warn(f"{name}: {note}", stacklevel=2)
    return dataset
