"""A data set in memory: uint8 pixels, normalised to [-1, 1] (or [0, 1]) one batch at a time.

Pixels stay uint8: a float copy of the set would be four times as large, while normalising a batch costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from fdfa_core.data.transforms import RandomResizedCrop, Resize, Transform
from fdfa_core.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels, from which normalised batches are drawn.

    Attributes:
        images: (n, C, H, W) uint8, as they are before any transform.
        labels: (n,) int64.
        maximum: the largest value that a pixel can have (255, or 16 for the digits); None for numbers (n, …) that are no
            pixels, and are returned as they are.
        transform: applied to every normalised batch of images; None for none.
        unit: scale pixels to [0, 1] instead of [-1, 1].
    """

    images: Tensor
    labels: Tensor
    maximum: int | None = 255
    transform: Transform | None = None
    unit: bool = False

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image as `batch` returns it."""
        channels, *size = self.images.shape[1:]
        return channels, *(self.transform.size if self.transform else size)

    def batch(
        self,
        indices: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        flatten: bool = False,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, pixels p scaled to x = 2p/maximum - 1, or to p/maximum if `unit`.

        Args:
            indices: (b,) integers; a sample may occur more than once.
            dtype: floating type of x.
            flatten: return x as (b, C·H·W), for fully connected networks.
            generator: random stream of a random transform; needed only by such a transform.

        Returns:
            x of shape (b, C, H, W) or (b, C·H·W) with values in [-1, 1] (or [0, 1]), and labels (b,) int64.

        Raises:
            InvalidInput: an index outside the split, or a random transform without a generator.
        """
        try:
            pixels, labels = self.images.index_select(0, indices), self.labels.index_select(0, indices)
        except IndexError:
            given = f"{indices.min()} … {indices.max()}"
            raise InvalidInput("indices", given, f"0 … {len(self) - 1}, the samples of this split") from None
        x = pixels.to(dtype)
        if self.maximum is not None:
            x = x.div_(self.maximum) if self.unit else x.mul_(2 / self.maximum).sub_(1)
        if self.transform is not None:
            x = self.transform(x, generator)
        return (x.flatten(1) if flatten else x), labels

    def all(self, *, dtype: torch.dtype = torch.float32, flatten: bool = False) -> tuple[Tensor, Tensor]:
        """All samples as one batch, in order."""
        return self.batch(torch.arange(len(self)), dtype=dtype, flatten=flatten)

    def epoch(self, batch_size: int, generator: Generator | None = None, drop_last: bool = False) -> Iterator[Tensor]:
        """Indices of the batches of one pass: shuffled by `generator`, or in order without one.

        Args:
            batch_size: samples per batch.
            generator: random stream of the shuffle.
            drop_last: leave out a last batch that is smaller than the others.

        Raises:
            InvalidInput: a batch size below one or larger than the split.
        """
        if not 1 <= batch_size <= len(self):
            raise InvalidInput("batch_size", batch_size, f"1 to {len(self)}, the number of samples")
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        batches = order.split(batch_size)
        return iter(batches[:-1] if drop_last and len(batches[-1]) < batch_size else batches)

    def subset(self, n: int, seed: int) -> Split:
        """`n` samples drawn without replacement; the same for the same seed.

        Raises:
            InvalidInput: fewer than one sample asked for, or more than there are.
        """
        if not 1 <= n <= len(self):
            raise InvalidInput("n", n, f"1 to {len(self)}, the number of samples")
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n])

    def take(self, indices: Tensor) -> Split:
        """The samples at `indices`, in that order, as a split of its own."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def without_augmentation(self) -> Split:
        """The same samples with nothing random: a random crop becomes a plain resize to the same size."""
        return replace(self, transform=Resize(self.transform.size)) if self.transform else self


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with labels.

    Attributes:
        name: the name under which `load` knows it.
        train_images, test_images: (n, C, H, W) uint8.
        train_labels, test_labels: (n,) int64, each in 0 … len(classes) - 1.
        classes: name of each label.
        sha256: hash of the source: of the file where there is one, else of the listing that `sha256sum` would print
            for all files in alphabetical order.
        maximum: the largest value that a pixel can have; None for numbers that are no pixels.
        notes: in what the source differs from the published one; empty where its checksums are the published ones.
    """

    name: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    sha256: str
    maximum: int | None = 255
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train_images.shape[1:])

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, the mean of pixel / maximum over the training images."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, the standard deviation of pixel / maximum over the training images."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # A histogram of the 256 possible values is exact and never makes a float copy of the images.
        values = torch.arange(256, dtype=torch.float64) / self.maximum
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in self.train_images.unbind(1)])
        weights = counts.double() / counts.sum(1, keepdim=True)
        mean = weights @ values
        variance = weights @ values**2 - mean**2
        return tuple(mean.tolist()), tuple(variance.clamp_min(0).sqrt().tolist())

    @property
    def train(self) -> Split:
        """The training images, all of them."""
        return Split(self.train_images, self.train_labels, self.maximum)

    @property
    def test(self) -> Split:
        """The test images."""
        return Split(self.test_images, self.test_labels, self.maximum)

    def split(
        self,
        validation_fraction: float = 0.0,
        seed: int = 0,
        *,
        image_size: int | None = None,
        augment: bool = False,
        unit: bool = False,
    ) -> tuple[Split, Split]:
        """What to train on, and what to evaluate on.

        Args:
            validation_fraction: 0 evaluates on the test images. Above 0, this share of the training images, in equal
                proportions from all classes, is held out and evaluated on, and the test images stay unseen.
            seed: of the draw of the held-out images.
            image_size: scale images to this height and width (default: leave them as they are).
            augment: flip and crop training images at random (`RandomResizedCrop`); evaluation images never.
            unit: scale pixels to [0, 1] instead of [-1, 1].

        Returns:
            (training split, evaluation split).

        Raises:
            InvalidInput: a fraction outside [0, 1), one that leaves a part without a sample of each class, or a transform of
                images of samples that are none.

        Examples:
            >>> import torch
            >>> from fdfa_core.data import load
            >>> train, held_out = load("digits").split(validation_fraction=0.1, seed=0)
            >>> x, y = train.batch(torch.arange(4), flatten=True)
            >>> x.shape, x.min().item(), y.dtype
            (torch.Size([4, 64]), -1.0, torch.int64)
        """
        train, evaluation = self.train, self.test
        if not 0 <= validation_fraction < 1:
            raise InvalidInput("validation_fraction", validation_fraction, "a number in [0, 1)")
        if validation_fraction:
            kept, held_out = stratified(self.train_labels.numpy(), validation_fraction, seed)
            train, evaluation = train.take(torch.from_numpy(kept)), train.take(torch.from_numpy(held_out))
        for name, given in (("image_size", image_size), ("augment", augment), ("scale", unit)):
            if given and (self.maximum is None or len(self.shape) != 3):
                raise InvalidInput(name, given, f"nothing: the samples of {self.name!r} are no images of pixels")
        size = self.shape[1:] if image_size is None else (image_size, image_size)
        resize = None if size == self.shape[1:] else Resize(size)
        crop = RandomResizedCrop(size) if augment else resize
        return replace(train, transform=crop, unit=unit), replace(evaluation, transform=resize, unit=unit)


def stratified(labels: np.ndarray, held_out: float | int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), ascending, with all classes in equal proportions, and in both parts however rare they are.

    Args:
        labels: (n,) integers.
        held_out: share (float) or number (int) of samples to hold out.
        seed: of the draw.

    Raises:
        InvalidInput: a class has a single sample, or a part fewer samples than there are classes.
    """
    from sklearn.model_selection import train_test_split  # slow to import, and most runs need no split

    try:
        kept, out = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        accepted = "a share that leaves every class in both parts"
        raise InvalidInput("validation_fraction", held_out, accepted, str(error)) from None
    generator = np.random.default_rng(seed)
    for part, other in ((kept, out), (out, kept)):
        for absent in np.setdiff1d(labels, labels[part]):  # its share is below half a sample, which was rounded to none
            _exchange(labels, part, other, absent, generator)
    return np.sort(kept), np.sort(out)


def _exchange(labels: np.ndarray, part: np.ndarray, other: np.ndarray, absent: int, generator: np.random.Generator) -> None:
    """Bring one sample of a class into the `part` that has none, for one of the part's largest class; sizes stay."""
    classes, counts = np.unique(labels[part], return_counts=True)
    i = generator.choice(np.flatnonzero(labels[part] == classes[counts.argmax()]))
    j = generator.choice(np.flatnonzero(labels[other] == absent))
    part[i], other[j] = other[j], part[i]
