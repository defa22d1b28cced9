"""Data of the user's: what a function returns, checked, as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdfa_core.data.dataset import Dataset
from fdfa_core.errors import DataError

ACCEPTED = "a fdfa_core.data.Dataset, or two pairs of tensors: ((x_train, y_train), (x_test, y_test))"


@dataclass(frozen=True)
class OwnSource:
    """Reads a data set by a function of the user's, which takes no arguments.

    It returns a `Dataset`, or ((x_train, y_train), (x_test, y_test)): inputs (n, …) that are uint8 images (n, C, H, W) or
    floating-point numbers, which stay as they are, and labels (n,) from 0 on.
    """

    name: str
    function: Callable[[], Any]

    def load(self, directory: Path, download: bool) -> Dataset:
        """The data set; both arguments are without effect.

        Raises:
            DataError: the function returns something else, or samples and labels that cannot be.
        """
        made = self.function()
        if isinstance(made, Dataset):
            parts = (made.train_images, made.train_labels), (made.test_images, made.test_labels)
            self._check(*parts)
            return replace(made, name=self.name)
        try:
            (x, y), (x_test, y_test) = made
        except (TypeError, ValueError):
            raise DataError(f"data {self.name}: returned a {type(made).__name__}; accepted: {ACCEPTED}") from None
        self._check((x, y), (x_test, y_test))
        x, x_test = (v if v.dtype == torch.uint8 else v.float() for v in (x, x_test))
        classes = tuple(map(str, range(int(max(y.max(), y_test.max())) + 1)))
        sha256 = tensors_sha256(x, y, x_test, y_test)
        maximum = 255 if x.dtype == torch.uint8 else None
        return Dataset(self.name, x, y.long(), x_test, y_test.long(), classes, sha256, maximum)

    def _check(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
        for part, (x, y) in {"training": train, "test": test}.items():
            fault = _fault(x, y)
            if fault:
                raise DataError(f"data {self.name}: {part} samples: {fault}")
        if train[0].shape[1:] != test[0].shape[1:] or train[0].dtype != test[0].dtype:
            shown = [f"{tuple(x.shape[1:])} {x.dtype}" for x, _ in (train, test)]
            raise DataError(f"data {self.name}: training samples are {shown[0]}, test samples {shown[1]}; accepted: one form")


def _fault(x: Any, y: Any) -> str:
    """Say what is wrong with samples and labels, or return an empty text."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return f"x is a {type(x).__name__}, y a {type(y).__name__}; accepted: tensors"
    image = x.dtype == torch.uint8 and x.dim() == 4
    if not image and not (x.is_floating_point() and x.dim() > 1):
        accepted = "uint8 images (n, C, H, W), or floating-point numbers (n, …)"
        return f"x has the type {x.dtype} and the shape {tuple(x.shape)}; accepted: {accepted}"
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        return f"y has the type {y.dtype} and the shape {tuple(y.shape)}; accepted: integer labels (n,)"
    if len(x) != len(y) or not len(x):
        return f"{len(x)} inputs and {len(y)} labels; accepted: as many of both, and at least one"
    if int(y.min()) < 0:
        return f"a label is {int(y.min())}; accepted: labels from 0 on"
    if not x.isfinite().all():
        return "x has a value that is not finite; accepted: finite numbers"
    return ""


def tensors_sha256(*tensors: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of tensors' types, shapes and numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{content.dtype} {tuple(content.shape)}\0".encode())
        digest.update((content.view(torch.uint8) if content.numel() else content).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
