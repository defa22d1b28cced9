"""Readers of the published formats: one class a format, all with `load(directory, download) -> Dataset`.

The structure of IDX and CIFAR files is checked first and the checksum afterwards, so that a damaged file is reported as what
it is; Tiny ImageNet's archive, whose images take long to decode, is compared with its checksum first. No reader ever unpickles
anything.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fdfa_core.data.dataset import Dataset, stratified
from fdfa_core.data.files import PublishedFile, file_sha256, find, listing_sha256, obtain
from fdfa_core.errors import DataError
from fdfa_core.files import open_file, read_file

MOST_BYTES = 2**29  # of an archive's content: three times that of the largest
MOST_IMAGE = 2**22  # of one compressed image, or of a list of names
Arrays = tuple[np.ndarray, np.ndarray]  # images (n, C, H, W) uint8, labels (n,) of any integer type


class Source(Protocol):
    """Reads one data set from a directory."""

    def load(self, directory: Path, download: bool) -> Dataset:
        """The data set, downloaded into `directory` first where it is missing there and may be.

        Raises:
            DataError: missing, truncated, altered or malformed files.
        """


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits inside scikit-learn: 8 × 8 pixels with values 0 … 16, no files needed.

    They come without a split: 360 are set aside as test images, in equal proportions from all classes, by a fixed seed.
    """

    test_samples: int = 360
    seed: int = 0

    def load(self, directory: Path, download: bool) -> Dataset:
        """The digits; both arguments are without effect."""
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        images, labels = digits.images.astype(np.uint8)[:, None], digits.target
        train, test = stratified(labels, self.test_samples, self.seed)
        return _dataset(
            "digits",
            (images[train], labels[train]),
            (images[test], labels[test]),
            classes=tuple("0123456789"),
            sha256=hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest(),
            maximum=16,
        )


@dataclass(frozen=True)
class Idx:
    """MNIST's format: gzipped IDX files, big-endian header, then one unsigned byte a value.

    Attributes:
        name: of the data set.
        files: training images, training labels, test images, test labels.
        classes: name of each label.
        folder: where torchvision keeps these files below its root; looked into besides.
    """

    name: str
    files: tuple[PublishedFile, PublishedFile, PublishedFile, PublishedFile]
    classes: tuple[str, ...]
    folder: str

    def load(self, directory: Path, download: bool) -> Dataset:
        """See `Source.load`."""
        places = [directory, directory / self.folder / "raw", directory / self.name]
        paths = obtain(self.files, self.name, places, download)
        hashes: dict[str, str] = {}
        for path, file, dimensions in zip(paths, self.files, (3, 1, 3, 1), strict=True):
            try:
                hashes[file.name] = _checked_sha256(path, file)
            except DataError:
                read_idx(path, dimensions)  # which says more of a damaged file than its checksum does
                raise
        arrays = [read_idx(path, dimensions) for path, dimensions in zip(paths, (3, 1, 3, 1), strict=True)]
        train_images, train_labels, test_images, test_labels = arrays
        return _dataset(
            self.name,
            (train_images[:, None], train_labels),
            (test_images[:, None], test_labels),
            classes=self.classes,
            sha256=listing_sha256(hashes),
        )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes with the given number of dimensions, gzipped.

    Raises:
        DataError: no gzip file, another magic number, or less or more data than the header announces.
    """
    try:
        with open_file(path) as file, gzip.open(file) as content:
            data = content.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise DataError(f"{path}: holds more than {MOST_BYTES} bytes, which no file of this format does.")
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated, or no gzip file ({error}).") from error
    header, magic = 4 + 4 * dimensions, 2048 + dimensions  # 2048 stands for unsigned bytes
    if len(data) < header:
        raise DataError(f"{path}: truncated, {len(data)} bytes hold no IDX header of {header} bytes.")
    number, *shape = np.frombuffer(data, ">u4", 1 + dimensions).tolist()
    if number != magic:
        raise DataError(f"{path}: magic number is {number}, expected {magic} (IDX, {dimensions} dimensions, bytes).")
    if (size := len(data) - header) != math.prod(shape):
        raise DataError(f"{path}: {size} bytes of data, but the header announces {math.prod(shape)}: truncated?")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


@dataclass(frozen=True)
class Cifar:
    """CIFAR's binary format: records of one or two label bytes, then a red, a green and a blue plane of 32 × 32 bytes.

    An archive that exists already under the published or a similar name, or its extracted folder, may differ from the
    published one: if its structure is right it is used, and the data set's notes say so.

    Attributes:
        name: of the data set.
        archive: the published archive.
        folder: its folder.
        train, test: names of the binary files.
        names: name of the text file with the class names, one per line.
        label_bytes: label bytes a record; the last one counts (CIFAR-100: coarse, then fine).
        classes: number of classes.
        samples: training and test images as published.
    """

    name: str
    archive: PublishedFile
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int
    classes: int
    samples: tuple[int, int] = (50_000, 10_000)

    def load(self, directory: Path, download: bool) -> Dataset:
        """See `Source.load`."""
        places = [directory, directory / self.name]
        stem = self.archive.name.removesuffix(".tar.gz")
        local = find(self.archive.name, places) or find(f"{stem}*.tar.gz", places) or find(self.folder, places)
        path = local or obtain([self.archive], self.name, places, download)[0]

        wanted = {*self.train, *self.test, self.names}
        content = _folder(path, wanted) if path.is_dir() else _archive(path, wanted)
        if absent := sorted(wanted - set(content)):
            raise DataError(f"{path}: holds no {', '.join(absent)}.")
        train = self._read(content, self.train, path)
        test = self._read(content, self.test, path)
        classes = tuple(_text(content[self.names], path, self.names).split())
        if len(classes) != self.classes:
            raise DataError(f"{path}: {self.names} names {len(classes)} classes, expected {self.classes}.")

        if path.is_dir():
            sha256 = listing_sha256({name: hashlib.sha256(data).hexdigest() for name, data in content.items()})
            notes = [f"read from the extracted folder {path.name}, SHA-256 {sha256}, which no published checksum covers"]
        else:
            sha256 = file_sha256(path)
            differs = sha256 != self.archive.sha256
            notes = [f"{path.name} is not the published archive: its SHA-256 is {sha256}"] if differs else []
        notes += _fewer(self.samples, train, test)
        return _dataset(self.name, train, test, classes=classes, sha256=sha256, notes=tuple(notes))

    def _read(self, content: dict[str, bytes], names: Iterable[str], path: Path) -> Arrays:
        size = self.label_bytes + 3 * 32 * 32
        for name in names:
            if not (count := len(content[name])) or count % size:
                raise DataError(f"{path}: {name} has {count} bytes, no multiple of a record's {size}: truncated?")
        records = np.concatenate([np.frombuffer(content[name], np.uint8).reshape(-1, size) for name in names])
        return records[:, self.label_bytes :].reshape(-1, 3, 32, 32), records[:, self.label_bytes - 1]


class _Limited:
    """A stream of bytes that ends with an error where it is longer than any archive: a small file may unpack to terabytes."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.left = stream, MOST_BYTES

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        part = self.stream.read(size)
        self.left -= len(part)
        if self.left < 0:
            raise tarfile.ReadError(f"holds more than {MOST_BYTES} bytes")
        return part


def _archive(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """Base name → content of the wanted files in a gzipped tar archive; nothing is extracted to disk."""
    try:
        with open_file(path) as file, gzip.open(file) as content, tarfile.open(fileobj=_Limited(content), mode="r|") as archive:
            members = (m for m in archive if m.isfile() and Path(m.name).name in wanted)
            return {Path(m.name).name: archive.extractfile(m).read() for m in members}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: truncated, or no gzipped tar archive ({error}).") from error


def _text(content: bytes, path: Path, name: str) -> str:
    """The text of the file `name` of a data set at `path`."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {name} is no UTF-8 text ({error}).") from error


def _folder(path: Path, wanted: set[str]) -> dict[str, bytes]:
    try:
        return {name: read_file(path / name, MOST_BYTES) for name in wanted if (path / name).is_file()}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error


@dataclass(frozen=True)
class TinyImagenet:
    """Tiny ImageNet: 200 classes of 64 × 64 JPEGs, read from the published archive or from its extracted folder.

    Its test images have no published labels, so its validation images serve as test images, as usual. Classes are
    numbered in the order of their WordNet identifiers. Pixels may differ by a unit between versions of a decoder.
    """

    archive: PublishedFile
    name: str = "tiny-imagenet"
    classes: int = 200
    samples: tuple[int, int] = (100_000, 10_000)

    def load(self, directory: Path, download: bool) -> Dataset:
        """See `Source.load`."""
        places = [directory, directory / self.name]
        stem = self.archive.name.removesuffix(".zip")
        if annotated := find(f"{stem}/val/val_annotations.txt", places):
            root = annotated.parents[1]
            names = [path.relative_to(root).as_posix() for path in root.glob("**/*") if path.is_file()]
            return self._read(root, names, lambda name: read_file(root / name, MOST_IMAGE))

        (path,) = obtain([self.archive], self.name, places, download)
        sha256 = _checked_sha256(path, self.archive)
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removeprefix(f"{stem}/") for name in archive.namelist()]
                return self._read(path, names, lambda name: _unpacked(archive, f"{stem}/{name}"), sha256)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: truncated, or no zip archive ({error}).") from error

    def _read(self, root: Path, names: list[str], read: Callable[[str], bytes], sha256: str | None = None) -> Dataset:
        train = sorted(name for name in names if fnmatch(name, "train/*/images/*.JPEG"))
        wnids = sorted({name.split("/")[1] for name in train})
        if len(wnids) != self.classes:
            raise DataError(f"{root}: train/ has images of {len(wnids)} classes, expected {self.classes}.")
        number = {wnid: i for i, wnid in enumerate(wnids)}
        annotations = "val/val_annotations.txt"
        if absent := sorted({"words.txt", annotations} - set(names)):
            raise DataError(f"{root}: holds no {', '.join(absent)}.")
        words = dict(line.split("\t", 1) for line in _text(read("words.txt"), root, "words.txt").splitlines() if "\t" in line)
        test: dict[str, str] = {}
        for i, line in enumerate(_text(read(annotations), root, annotations).splitlines(), 1):
            if not line.strip():
                continue
            image, wnid = [*line.split("\t"), ""][:2]
            if not (image and wnid):
                raise DataError(f"{root}: line {i} of {annotations} is {line!r}, expected an image, a tab and its class.")
            test[f"val/images/{image}"] = wnid
        if strange := sorted(set(test.values()) - set(wnids)):
            raise DataError(f"{root}: validation images of classes without training images: {', '.join(strange[:5])}.")
        if absent := sorted(set(test) - set(names)):
            raise DataError(f"{root}: {len(absent)} validation images are missing, the first is {absent[0]}.")

        def decode(name: str) -> tuple[np.ndarray, str]:
            try:
                data = read(name)
                with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                    if image.size != (64, 64):  # before it is decoded: a small file may hold billions of pixels
                        width, height = image.size
                        raise DataError(f"{root}: {name} has {width} × {height} pixels, expected 64 × 64.")
                    return np.asarray(image.convert("RGB")), hashlib.sha256(data).hexdigest()
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{root}: {name} is truncated, or no image: a JPEG is expected ({error}).") from error

        order = [*train, *test]
        images = np.empty((len(order), 3, 64, 64), np.uint8)
        hashes = {}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            progress = tqdm(pool.map(decode, order), f"Decoding {self.name}", len(order), disable=None, unit=" images")
            for image, name, (pixels, digest) in zip(images, order, progress, strict=True):
                image[:] = pixels.transpose(2, 0, 1)
                hashes[name] = digest
        labels = np.array([number[name.split("/")[1]] for name in train] + [number[wnid] for wnid in test.values()])
        parts = [(images[: len(train)], labels[: len(train)]), (images[len(train) :], labels[len(train) :])]
        return _dataset(
            self.name,
            *parts,
            classes=tuple(words.get(wnid, wnid) for wnid in wnids),
            sha256=sha256 or listing_sha256(hashes),
            notes=_fewer(self.samples, *parts),
        )


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of a zip archive; raises `DataError` where it is larger than any of its kind."""
    with archive.open(name) as file:
        content = file.read(MOST_IMAGE + 1)
    if len(content) > MOST_IMAGE:
        raise DataError(f"{archive.filename}: {name} unpacks to more than {MOST_IMAGE} bytes.")
    return content


def _checked_sha256(path: Path, file: PublishedFile) -> str:
    """The hash of the file at `path`, which must be the published one."""
    if (sha256 := file_sha256(path)) != file.sha256:
        raise DataError(f"{path}: SHA-256 is {sha256}, published is {file.sha256}. Remove it to download it anew.")
    return sha256


def _fewer(published: tuple[int, int], train: Arrays, test: Arrays) -> tuple[str, ...]:
    """A note where images are missing, which makes results incomparable with published ones."""
    here = len(train[1]), len(test[1])
    note = f"holds {here[0]} training and {here[1]} test images, not the published {published[0]} and {published[1]}"
    return () if here == published else (note,)


def _dataset(name: str, train: Arrays, test: Arrays, *, classes: tuple[str, ...], **rest: object) -> Dataset:
    """A data set from arrays whose images and labels are proved to fit one another."""
    tensors: list[Tensor] = []
    for part, (images, labels) in {"training": train, "test": test}.items():
        if len(images) != len(labels):
            raise DataError(f"{name}: {len(images)} {part} images, but {len(labels)} labels.")
        if not len(labels):
            raise DataError(f"{name}: no {part} images.")
        if not 0 <= labels.min() <= labels.max() < len(classes):
            wrong = labels[(labels < 0) | (labels >= len(classes))][0]
            raise DataError(f"{name}: a {part} label is {wrong}, expected 0 to {len(classes) - 1}.")
        tensors += [torch.tensor(images), torch.tensor(labels, dtype=torch.int64)]
    return Dataset(name, *tensors, classes=classes, **rest)
