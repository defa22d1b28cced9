"""Data sets: what is read equals what was written, what is missing, damaged or too large is named, and splits are as asked.

The files are small ones that the tests write themselves; `test_published_files_…` reads the real ones where the environment
variable FDFA_DATA names a directory that has them.
"""

import ast
import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from fdfa_core.data import Dataset, Split, available_datasets, files, load, published, sources
from fdfa_core.data.dataset import stratified
from fdfa_core.data.files import PublishedFile, data_directory, fetch
from fdfa_core.data.registry import DATASETS
from fdfa_core.data.registry import source as published_source
from fdfa_core.data.sources import Cifar, Idx, TinyImagenet, read_idx
from fdfa_core.data.transforms import RandomResizedCrop, Resize
from fdfa_core.errors import DataError, InvalidInput, UnknownName
from places import ROOT

RNG = np.random.default_rng(0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits_have_the_documented_sizes(digits):
    assert (digits.train_images.shape, digits.test_images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))


def test_digits_are_those_of_the_source(digits):
    from sklearn.datasets import load_digits

    pixels = torch.cat([digits.train_images, digits.test_images]).long()
    assert pixels.sum() == int(load_digits().images.sum()) and pixels.max() == digits.maximum


def test_digits_split_is_the_same_on_every_machine(digits):
    assert sha256(digits.test_images.numpy().tobytes())[:16] == "342538e35bc5249d"


def test_digits_split_keeps_class_proportions(digits):
    shares = [digits.test_labels.bincount() / 360, digits.train_labels.bincount() / 1437]
    assert torch.allclose(*shares, atol=1 / 360)


def test_digits_test_images_are_not_in_the_training_set(digits):
    train = {image.numpy().tobytes() for image in digits.train_images}
    assert not [image for image in digits.test_images if image.numpy().tobytes() in train]


def test_digits_need_no_files_and_no_network(tmp_path, digits):
    assert load("digits", tmp_path / "nowhere", download=False).sha256 == digits.sha256


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_arrays(train=30, test=10, classes=10) -> list[np.ndarray]:
    images = [RNG.integers(256, size=(n, 28, 28)) for n in (train, test)]
    labels = [RNG.permutation(np.arange(n) % classes) for n in (train, test)]
    return [images[0], labels[0], images[1], labels[1]]


IDX_NAMES = [file.name for file in published_source("mnist").files]


def write_idx(folder: Path, contents: list[bytes], published: list[bytes] | None = None, urls=()) -> Idx:
    """Write gzipped files, and describe them as published with `published` (default: the same) as their content."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = [gzip.compress(content, mtime=0) for content in contents]
    for name, data in zip(IDX_NAMES, packed, strict=True):
        (folder / name).write_bytes(data)
    hashes = [sha256(gzip.compress(content, mtime=0)) for content in published or contents]
    files = tuple(PublishedFile(n, h, tuple(f"{url}/{n}" for url in urls)) for n, h in zip(IDX_NAMES, hashes, strict=True))
    return Idx("mnist", files, tuple("0123456789"), folder="MNIST")


def test_idx_is_read_as_written(tmp_path):
    arrays = idx_arrays()
    dataset = write_idx(tmp_path, [idx(a) for a in arrays]).load(tmp_path, download=False)
    read = [dataset.train_images[:, 0], dataset.train_labels, dataset.test_images[:, 0], dataset.test_labels]
    assert all(np.array_equal(r, a) for r, a in zip(read, arrays, strict=True))


@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
def test_idx_is_found_in_layout(tmp_path, layout):
    source = write_idx(tmp_path / layout, [idx(a) for a in idx_arrays()])
    assert len(source.load(tmp_path, download=False).train) == 30


def test_idx_hash_is_that_of_the_sha256sum_listing(tmp_path):
    source = write_idx(tmp_path, [idx(a) for a in idx_arrays()])
    listing = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(source.files, key=lambda file: file.name))
    assert source.load(tmp_path, download=False).sha256 == sha256(listing.encode())


def damaged_idx(damage: str) -> list[bytes]:
    train_images, train_labels, test_images, test_labels = idx_arrays()
    contents = [idx(train_images), idx(train_labels), idx(test_images), idx(test_labels)]
    if damage == "truncated content":
        contents[0] = contents[0][:-5]
    elif damage == "truncated header":
        contents[1] = contents[1][:6]
    elif damage == "wrong magic":
        contents[2] = contents[3]
    elif damage == "label out of range":
        contents[3] = idx(np.where(np.arange(10) == 4, 11, test_labels))
    elif damage == "labels and images differ in number":
        contents[1] = idx(train_labels[:-1])
    return contents


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated content", r"train-images.*: 23515 bytes of data, but the header announces 23520: truncated"),
        ("truncated header", "train-labels.*: truncated, 6 bytes hold no IDX header of 8"),
        ("wrong magic", "t10k-images.*: magic number is 2049, expected 2051"),
        ("label out of range", "a test label is 11, expected 0 to 9"),
        ("labels and images differ in number", "30 training images, but 29 labels"),
    ],
)
def test_damaged_idx_is_reported(tmp_path, damage, message):
    with pytest.raises(DataError, match=message):
        write_idx(tmp_path, damaged_idx(damage)).load(tmp_path, download=False)


def test_truncated_gzip_is_reported(tmp_path):
    source = write_idx(tmp_path, [idx(a) for a in idx_arrays()])
    path = tmp_path / IDX_NAMES[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images.*: truncated, or no gzip file"):
        source.load(tmp_path, download=False)


def test_altered_idx_is_refused_with_both_hashes(tmp_path):
    contents = [idx(a) for a in idx_arrays()]
    source = write_idx(tmp_path, contents, published=[*contents[:3], contents[3] + b"x"])
    found = sha256((tmp_path / IDX_NAMES[3]).read_bytes())
    with pytest.raises(DataError, match=f"SHA-256 is {found}, published is {source.files[3].sha256}"):
        source.load(tmp_path, download=False)


# --- missing files and downloads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in available_datasets() if name != "digits"])
def test_missing_and_offline_says_what_to_get_where(tmp_path, name):
    with pytest.raises(DataError) as error:
        load(name, tmp_path, download=False)
    files = getattr(published_source(name), "files", None) or [published_source(name).archive]
    expected = [str(tmp_path), "FDFA_DATA", *(file.name for file in files), *(url for file in files for url in file.urls)]
    assert [text for text in expected if text not in str(error.value)] == []


def test_missing_names_only_the_files_that_are_missing(tmp_path):
    source = write_idx(tmp_path, [idx(a) for a in idx_arrays()])
    (tmp_path / IDX_NAMES[1]).unlink()
    with pytest.raises(DataError, match=f"mnist: {IDX_NAMES[1]} not found"):
        source.load(tmp_path, download=False)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the folder `server` below tmp_path, and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "server")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_download_falls_back_on_the_next_mirror(tmp_path, server):
    arrays = idx_arrays()
    source = write_idx(tmp_path / "server" / "good", [idx(a) for a in arrays], urls=[f"{server}/gone", f"{server}/good"])
    dataset = source.load(tmp_path / "data", download=True)
    assert np.array_equal(dataset.train_labels, arrays[1])


def test_downloaded_files_are_kept(tmp_path, server):
    source = write_idx(tmp_path / "server", [idx(a) for a in idx_arrays()], urls=[server])
    first = source.load(tmp_path / "data", download=True)
    assert source.load(tmp_path / "data", download=False).sha256 == first.sha256


def test_simultaneous_loads_download_each_file_once(tmp_path, server, monkeypatch):
    requested = []
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda self, *_: requested.append(self.path))
    source = write_idx(tmp_path / "server", [idx(a) for a in idx_arrays()], urls=[server])
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(lambda _: len(source.load(tmp_path / "data", download=True).train), range(4)))
    assert sizes == [30] * 4 and sorted(requested) == sorted(f"/{name}" for name in IDX_NAMES)


def test_download_with_a_wrong_hash_leaves_no_file(tmp_path, server):
    contents = [idx(a) for a in idx_arrays()]
    source = write_idx(tmp_path / "server", contents, published=[contents[0] + b"x", *contents[1:]], urls=[server])
    with pytest.raises(DataError, match=r"(?s)Downloading failed.*hash"):
        source.load(tmp_path / "data", download=True)
    assert not (tmp_path / "data" / "mnist" / IDX_NAMES[0]).exists()


def test_download_that_fails_gives_the_reason_of_each_mirror(tmp_path, server):
    source = write_idx(tmp_path / "elsewhere", [idx(a) for a in idx_arrays()], urls=[f"{server}/a", f"{server}/b"])
    with pytest.raises(DataError, match=rf"(?s)Downloading failed.*{server}/a/\S+: 404.*{server}/b/\S+: 404"):
        source.load(tmp_path / "data", download=True)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def tar(folder: str, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class CifarFiles:
    """A small CIFAR-10 (one label byte) or CIFAR-100 (two) with the published names."""

    def __init__(self, name: str, train=20, test=10):
        published = published_source(name)
        self.source: Cifar = replace(published, samples=(train, test))
        self.images = {"train": RNG.integers(256, size=(train, 3, 32, 32)), "test": RNG.integers(256, size=(test, 3, 32, 32))}
        self.labels = {part: RNG.integers(published.classes, size=len(images)) for part, images in self.images.items()}
        self.members = {published.names: "\n".join(f"class_{i}" for i in range(published.classes)).encode() + b"\n\n"}
        for part, names in (("train", published.train), ("test", published.test)):
            coarse = np.full((len(self.images[part]), published.label_bytes - 1), 255)
            pixels = self.images[part].reshape(len(coarse), -1)
            records = np.concatenate([coarse, self.labels[part][:, None], pixels], axis=1).astype(np.uint8)
            for name, share in zip(names, np.array_split(records, len(names)), strict=True):
                self.members[name] = share.tobytes()

    def write(self, directory: Path, name: str | None = None, published=True) -> str:
        """Write the archive and return its hash; as the published one, or as another one."""
        data = tar(self.source.folder, self.members)
        (directory / (name or self.source.archive.name)).write_bytes(data)
        if published:
            self.source = replace(self.source, archive=replace(self.source.archive, sha256=sha256(data)))
        return sha256(data)


@pytest.fixture(params=["cifar-10", "cifar-100"])
def cifar(request):
    return CifarFiles(request.param)


@pytest.mark.parametrize("part", ["train", "test"])
def test_cifar_images_are_read_as_written(tmp_path, cifar, part):
    cifar.write(tmp_path)
    dataset = cifar.source.load(tmp_path, download=False)
    assert np.array_equal(getattr(dataset, f"{part}_images"), cifar.images[part])


@pytest.mark.parametrize("part", ["train", "test"])
def test_cifar_labels_are_the_fine_ones(tmp_path, cifar, part):
    cifar.write(tmp_path)
    dataset = cifar.source.load(tmp_path, download=False)
    assert np.array_equal(getattr(dataset, f"{part}_labels"), cifar.labels[part])


def test_published_cifar_has_no_notes(tmp_path, cifar):
    found = cifar.write(tmp_path)
    dataset = cifar.source.load(tmp_path, download=False)
    assert (dataset.notes, dataset.sha256) == ((), found)


def test_other_cifar_archive_is_accepted_with_a_warning_that_names_its_hash(tmp_path, cifar, monkeypatch):
    found = cifar.write(tmp_path, published=False)
    monkeypatch.setitem(DATASETS, cifar.source.name, cifar.source)
    with pytest.warns(UserWarning, match=found):
        assert load(cifar.source.name, tmp_path, download=False).sha256 == found


def test_cifar_archive_with_a_longer_name_is_found(tmp_path, cifar):
    (tmp_path / cifar.source.name).mkdir()
    cifar.write(tmp_path / cifar.source.name, cifar.source.archive.name.replace(".tar", "-subset.tar"), published=False)
    assert len(cifar.source.load(tmp_path, download=False).train) == 20


def test_cifar_with_fewer_samples_is_noted(tmp_path, cifar):
    cifar.write(tmp_path)
    dataset = replace(cifar.source, samples=(50_000, 10_000)).load(tmp_path, download=False)
    assert dataset.notes == ("holds 20 training and 10 test images, not the published 50000 and 10000",)


def test_extracted_cifar_folder_is_read(tmp_path, cifar):
    folder = tmp_path / cifar.source.folder
    folder.mkdir()
    for name, content in cifar.members.items():
        (folder / name).write_bytes(content)
    dataset = cifar.source.load(tmp_path, download=False)
    assert np.array_equal(dataset.test_images, cifar.images["test"]) and dataset.sha256 in dataset.notes[0]


def test_cifar_truncated_record_is_reported(tmp_path, cifar):
    name = cifar.source.train[0]
    cifar.members[name] = cifar.members[name][:-1]
    cifar.write(tmp_path)
    with pytest.raises(DataError, match=f"{name} has {len(cifar.members[name])} bytes, no multiple of a record"):
        cifar.source.load(tmp_path, download=False)


def test_cifar_truncated_archive_is_reported(tmp_path, cifar):
    cifar.write(tmp_path)
    path = tmp_path / cifar.source.archive.name
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated, or no gzipped tar archive"):
        cifar.source.load(tmp_path, download=False)


def test_cifar_missing_member_is_named(tmp_path, cifar):
    del cifar.members[cifar.source.test[0]]
    cifar.write(tmp_path)
    with pytest.raises(DataError, match=f"holds no {cifar.source.test[0]}"):
        cifar.source.load(tmp_path, download=False)


def test_cifar_label_out_of_range_is_reported(tmp_path, cifar):
    cifar.members[cifar.source.names] = b"a b c"
    cifar.write(tmp_path)
    with pytest.raises(DataError, match=r"a training label is \d+, expected 0 to 2"):
        replace(cifar.source, classes=3).load(tmp_path, download=False)


def test_cifar_wrong_number_of_class_names_is_reported(tmp_path, cifar):
    cifar.members[cifar.source.names] = b"a b c"
    cifar.write(tmp_path)
    with pytest.raises(DataError, match=f"{cifar.source.names} names 3 classes, expected {cifar.source.classes}"):
        cifar.source.load(tmp_path, download=False)


def test_cifar_class_names_that_are_no_text_are_reported(tmp_path, cifar):
    cifar.members[cifar.source.names] = b"\xff\xfe"
    cifar.write(tmp_path)
    with pytest.raises(DataError, match=f"{cifar.source.archive.name}: {cifar.source.names} is no UTF-8 text"):
        cifar.source.load(tmp_path, download=False)


# --- Tiny ImageNet ----------------------------------------------------------------------------------------------------


def jpeg(value: int, size=(64, 64), mode="RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def tiny():
    """Members of a Tiny ImageNet with two classes: grey images whose value tells which they are."""
    members = {f"train/n2/images/n2_{i}.JPEG": jpeg(100 + i) for i in range(3)}
    members |= {f"train/n1/images/n1_{i}.JPEG": jpeg(200 + i) for i in range(2)}
    members |= {"val/images/val_0.JPEG": jpeg(50), "val/images/val_1.JPEG": jpeg(60, mode="L")}
    members["val/val_annotations.txt"] = b"val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n"
    members["words.txt"] = b"n1\tgoldfish, Carassius auratus\nn2\tbullfrog\nn3\tnot in here\n"
    members["test/images/test_0.JPEG"] = b"no labels, never read"
    return members


def write_tiny(directory: Path, members: dict[str, bytes], zipped: bool) -> TinyImagenet:
    path = directory / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    source = replace(published_source("tiny-imagenet"), classes=2, samples=(5, 2))
    source = replace(source, archive=replace(source.archive, sha256=sha256(path.read_bytes())))
    if not zipped:
        zipfile.ZipFile(path).extractall(directory)
        path.unlink()
    return source


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "folder"])
def test_tiny_imagenet_is_read_as_written(tmp_path, tiny, zipped):
    dataset = write_tiny(tmp_path, tiny, zipped).load(tmp_path, download=False)
    train = list(zip(dataset.train_labels.tolist(), dataset.train_images[:, 1, 5, 5].tolist(), strict=True))
    test = list(zip(dataset.test_labels.tolist(), dataset.test_images[:, 2, 5, 5].tolist(), strict=True))
    assert (train, test) == ([(0, 200), (0, 201), (1, 100), (1, 101), (1, 102)], [(1, 50), (0, 60)])


def test_tiny_imagenet_annotations_may_have_blank_lines(tmp_path, tiny):
    tiny["val/val_annotations.txt"] += b"\n \t\n\n"
    assert len(write_tiny(tmp_path, tiny, zipped=True).load(tmp_path, download=False).test) == 2


def test_tiny_imagenet_classes_have_their_words(tmp_path, tiny):
    dataset = write_tiny(tmp_path, tiny, zipped=True).load(tmp_path, download=False)
    assert dataset.classes == ("goldfish, Carassius auratus", "bullfrog")


def test_tiny_imagenet_folder_hash_follows_its_content(tmp_path, tiny):
    source = write_tiny(tmp_path, tiny, zipped=False)
    before = source.load(tmp_path, download=False).sha256
    (tmp_path / "tiny-imagenet-200/train/n1/images/n1_0.JPEG").write_bytes(jpeg(7))
    assert source.load(tmp_path, download=False).sha256 != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/n1/images/n1_1.JPEG", jpeg(0)[:-200], "n1_1.JPEG is truncated, or no image"),
        ("val/images/val_0.JPEG", b"no image", "val_0.JPEG is truncated, or no image"),
        ("val/images/val_0.JPEG", jpeg(0, (32, 48)), "val_0.JPEG has 32 × 48 pixels, expected 64 × 64"),
        ("val/images/val_1.JPEG", None, "1 validation images are missing, the first is val/images/val_1.JPEG"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn9\n", "validation images of classes without training images: n9"),
        ("val/val_annotations.txt", b"val_1.JPEG\tn1\nval_0.JPEG\n", "line 2 of val/val_annotations.txt is 'val_0.JPEG'"),
        ("val/val_annotations.txt", b"val_0.JPEG\t\xff\n", "val/val_annotations.txt is no UTF-8 text"),
        ("words.txt", b"n1\t\xff\n", "words.txt is no UTF-8 text"),
        ("words.txt", None, "holds no words.txt"),
        ("train/n3/images/n3_0.JPEG", jpeg(0), "train/ has images of 3 classes, expected 2"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "folder"])
def test_damaged_tiny_imagenet_is_reported(tmp_path, tiny, name, content, message, zipped):
    members = {k: v for k, v in (tiny | {name: content}).items() if v is not None}
    with pytest.raises(DataError, match=message):
        write_tiny(tmp_path, members, zipped).load(tmp_path, download=False)


def test_altered_tiny_imagenet_archive_is_refused(tmp_path, tiny):
    source = write_tiny(tmp_path, tiny, zipped=True)
    with pytest.raises(DataError, match="published is 0000"):
        replace(source, archive=replace(source.archive, sha256="0000")).load(tmp_path, download=False)


# --- load -------------------------------------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownName, match="data set: got 'minst'; accepted: one of digits, mnist, fashion-mnist"):
        load("minst")


def test_directory_argument_comes_before_the_environment_variable(monkeypatch):
    monkeypatch.setenv("FDFA_DATA", "/from/environment")
    assert data_directory("given") == Path("given")


def test_environment_variable_comes_before_the_working_directory(monkeypatch):
    monkeypatch.setenv("FDFA_DATA", "/from/environment")
    assert data_directory() == Path("/from/environment")


def test_data_directory_is_in_the_working_directory_by_default(monkeypatch):
    monkeypatch.delenv("FDFA_DATA", raising=False)
    assert data_directory() == Path("data")


def test_data_modules_call_nothing_that_unpickles():
    names = set()
    for path in (ROOT / "fdfa_core" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
            names |= {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
    assert not names & {"pickle", "joblib", "torch.load", "np.load", "pd.read_pickle", "joblib.load"}


PUBLISHED = {  # training images, test images, mean and standard deviation of the first channel over the training images
    "mnist": (60_000, 10_000, 0.1307, 0.3081),
    "fashion-mnist": (60_000, 10_000, 0.2860, 0.3530),
    "cifar-10": (50_000, 10_000, 0.4914, 0.2470),
}


@pytest.mark.skipif("FDFA_DATA" not in os.environ, reason="FDFA_DATA names no directory with the published files")
@pytest.mark.filterwarnings("ignore:.*is not the published archive")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_the_known_sizes_and_moments(name):
    dataset = load(name, download=False)
    moments = (round(dataset.mean[0], 4), round(dataset.std[0], 4))
    assert (len(dataset.train), len(dataset.test), *moments) == PUBLISHED[name]


@pytest.mark.skipif("FDFA_DATA" not in os.environ, reason="FDFA_DATA names no directory with the published files")
@pytest.mark.filterwarnings("ignore:.*is not the published archive", "ignore:.*not the published 50000")
def test_cifar_100_is_balanced_over_its_classes():
    dataset = load("cifar-100", download=False)
    assert dataset.train_labels.bincount().unique().numel() == 1 and len(dataset.classes) == 100


def test_a_gzip_bomb_is_no_idx_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    header = struct.pack(">IIII", 2051, 10**4, 1, 1)
    (tmp_path / "x.gz").write_bytes(gzip.compress(header + bytes(10**4)))
    with pytest.raises(DataError, match="x.gz: holds more than 1000 bytes"):
        read_idx(tmp_path / "x.gz", 3)


def test_the_checksum_comes_before_the_content(tmp_path, monkeypatch):
    wrong = tmp_path / published.MNIST.files[0].name
    for file in published.MNIST.files:
        (tmp_path / file.name).write_bytes(gzip.compress(struct.pack(">IIII", 2051, 1, 1, 1) + b"1"))
    read = []
    monkeypatch.setattr(sources, "read_idx", lambda path, dimensions: read.append(path.name))
    with pytest.raises(DataError, match="SHA-256 is .*, published is"):
        published.MNIST.load(tmp_path, False)
    assert read == [wrong.name]  # to say what is wrong with it; no other file was opened


@pytest.mark.parametrize("name", ["data_batch_1.bin", "unwanted"])
def test_a_tar_bomb_is_no_cifar_archive(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MOST_BYTES", 10**5)
    path = tmp_path / published.CIFAR_10.archive.name
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
        member.size = 10**6
        archive.addfile(member, io.BytesIO(bytes(10**6)))
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz: .*holds more than 100000 bytes"):
        published.CIFAR_10.load(tmp_path, False)


def image(kind, size):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {
    "another format under its name": (image("PNG", (64, 64)), "is truncated, or no image: a JPEG is expected"),
    "more pixels": (image("JPEG", (640, 65)), "has 640 × 65 pixels, expected 64 × 64"),
    "too many bytes": (image("JPEG", (64, 64)) + bytes(sources.MOST_IMAGE), "larger than 4194304 bytes"),
}


@pytest.mark.parametrize("content, said", PICTURES.values(), ids=PICTURES)
def test_a_picture_of_another_kind_is_named(tmp_path, content, said):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("train/n1/images/n1_1.JPEG", "val/images/val_0.JPEG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if "train" in name else image("JPEG", (64, 64)))
    (root / "words.txt").write_text("n1\tone\n")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\n")
    source = sources.TinyImagenet(published.TINY_IMAGENET.archive, classes=1, samples=(1, 1))
    with pytest.raises(DataError, match=f"n1_1.JPEG .*{said}"):
        source.load(tmp_path, False)


def test_every_published_address_is_encrypted():
    named = [getattr(published, name) for name in ("MNIST", "FASHION_MNIST", "CIFAR_10", "CIFAR_100", "TINY_IMAGENET")]
    of_all = [file for source in named for file in getattr(source, "files", None) or [source.archive]]
    assert len(of_all) == 11 and all(url.startswith("https://") for file in of_all for url in file.urls)


class Answer:
    """What `requests.get` returns, without a network."""

    def __init__(self, url, content, announced=None):
        self.url, self.content, self.headers = url, content, {} if announced is None else {"content-length": str(announced)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def raise_for_status(self):
        pass

    def iter_content(self, size):
        return iter([self.content])


ANSWERS = {
    "an address that is not https": ("http://example.org/x", Answer("http://example.org/x", b"1"), "is not https"),
    "one that leads to another": ("https://example.org/x", Answer("http://example.org/x", b"1"), "is not https"),
    "more than is announced": ("https://example.org/x", Answer("https://example.org/x", b"12345"), "sends more than 4 bytes"),
    "too much is announced": ("https://example.org/x", Answer("https://example.org/x", b"1", 5), "sends more than 4 bytes"),
    "the beginning alone": ("https://example.org/x", Answer("https://example.org/x", b"1", 3), "sent 1 of 3 bytes"),
}


@pytest.mark.parametrize("url, answer, said", ANSWERS.values(), ids=ANSWERS)
def test_a_download_is_encrypted_and_bounded(tmp_path, monkeypatch, url, answer, said):
    monkeypatch.setattr("requests.get", lambda *_, **__: answer)
    monkeypatch.setattr(files, "MOST_BYTES", 4)
    with pytest.raises(DataError, match=f"(?s)Downloading failed.*{said}"):
        fetch(PublishedFile("x", "0" * 64, (url,)), tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def dataset():
    images = torch.from_numpy(np.random.default_rng(1).integers(256, size=(100, 3, 6, 4), dtype=np.uint8))
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    labels = torch.arange(100) % 5
    return Dataset("random", images[:80], labels[:80], images[80:], labels[80:], tuple("abcde"), sha256="0")


@pytest.fixture
def split(dataset):
    return dataset.train


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_scales_pixels_to_minus_one_to_one(split, dtype):
    x, _ = split.batch(torch.tensor([0, 7]), dtype=dtype)
    expected = (split.images[[0, 7]].to(dtype) / 255 - 0.5) / 0.5
    assert x.dtype == dtype
    torch.testing.assert_close(x, expected)


def test_batch_uses_the_full_range_exactly(split):
    x, _ = split.batch(torch.tensor([0]))
    assert x[0, 0, 0, :2].tolist() == [-1, 1]


def test_batch_in_the_unit_interval_uses_the_full_range_exactly(dataset):
    for part in dataset.split(0.2, unit=True):
        x, _ = part.all(dtype=torch.float64)
        torch.testing.assert_close(x, part.images.double() / 255)
    train, _ = dataset.split(unit=True)
    assert train.subset(80, 0).unit and train.without_augmentation().unit
    x, _ = train.batch(torch.tensor([0]))
    assert x[0, 0, 0, :2].tolist() == [0, 1]


def test_batch_of_digits_uses_the_full_range():
    x, _ = load("digits").train.all()
    assert (x.min(), x.max()) == (-1, 1)


def test_batch_flattens_for_dense_networks(split):
    indices = torch.tensor([3, 3, 1])
    assert torch.equal(split.batch(indices, flatten=True)[0], split.batch(indices)[0].reshape(3, 72))


def test_batch_leaves_the_pixels_as_they_are(split):
    before = split.images.clone()
    split.batch(torch.arange(80))
    assert torch.equal(split.images, before)


def test_batch_returns_the_labels_of_its_indices(split):
    assert split.batch(torch.tensor([7, 0, 79]))[1].tolist() == [2, 0, 4]


@pytest.mark.parametrize("index", [80, -1])
def test_index_outside_the_split_is_refused(split, index):
    with pytest.raises(InvalidInput, match="accepted: 0 … 79, the samples of this split"):
        split.batch(torch.tensor([0, index]))


def test_epoch_visits_every_sample_once(split):
    batches = list(split.epoch(32, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [32, 32, 16]
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(80))


def test_epoch_can_drop_a_smaller_last_batch(split):
    assert [len(b) for b in split.epoch(32, drop_last=True)] == [32, 32]


def test_epoch_keeps_a_full_last_batch(split):
    assert [len(b) for b in split.epoch(40, drop_last=True)] == [40, 40]


def test_epoch_is_in_order_without_a_generator(split):
    assert torch.equal(torch.cat(list(split.epoch(32))), torch.arange(80))


@pytest.mark.parametrize("batch_size", [0, 81])
def test_batch_size_that_does_not_fit_the_data_is_refused(split, batch_size):
    with pytest.raises(InvalidInput, match=f"batch_size: got {batch_size}; accepted: 1 to 80"):
        split.epoch(batch_size)


def test_subset_is_the_same_for_the_same_seed(split):
    assert torch.equal(split.subset(10, seed=3).images, split.subset(10, seed=3).images)


def test_subset_differs_between_seeds(split):
    assert not torch.equal(split.subset(10, seed=3).images, split.subset(10, seed=4).images)


@pytest.mark.parametrize("n", [0, 81])
def test_subset_that_is_no_part_is_refused(split, n):
    with pytest.raises(InvalidInput, match=f"n: got {n}; accepted: 1 to 80"):
        split.subset(n, seed=0)


def test_moments_are_those_of_the_training_pixels(dataset):
    pixels = dataset.train_images.double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(dataset.std).double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


# --- validation split -------------------------------------------------------------------------------------------------


def identity(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_without_validation_the_test_images_are_evaluated_on(dataset):
    train, evaluation = dataset.split()
    assert (len(train), identity(evaluation)) == (80, identity(dataset.test))


def test_validation_and_training_images_partition_the_training_set(dataset):
    train, validation = dataset.split(0.25, seed=1)
    assert len(validation) == 20 and not identity(train) & identity(validation)
    assert identity(train) | identity(validation) == identity(dataset.train)


def test_validation_keeps_class_proportions(dataset):
    assert dataset.split(0.25, seed=1)[1].labels.bincount().tolist() == [4] * 5


def test_validation_depends_on_its_seed_alone(dataset):
    first, again, other = (identity(dataset.split(0.25, seed=seed)[1]) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.01, 0.99])
def test_validation_fraction_without_all_classes_in_both_parts_is_refused(dataset, fraction):
    with pytest.raises(InvalidInput, match=f"validation_fraction: got {fraction}"):
        dataset.split(fraction)


@pytest.mark.parametrize(("sizes", "held_out", "n"), [((1000, 2), 0.01, 11), ((1000, 2), 0.99, 992), ((900, 2, 3, 2), 4, 4)])
def test_a_rare_class_is_in_both_parts(sizes, held_out, n):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    parts = stratified(labels, held_out, seed=0)
    assert [set(labels[part]) for part in parts] == [set(range(len(sizes)))] * 2
    assert len(parts[1]) == n and np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


def test_a_rare_class_is_held_out_by_chance():
    labels = np.repeat([0, 1], (1000, 4))
    assert {i for seed in range(40) for i in stratified(labels, 0.01, seed)[1] if labels[i]} == {1000, 1001, 1002, 1003}


def test_a_class_of_one_sample_is_refused():
    with pytest.raises(InvalidInput, match="validation_fraction: got 0.5; accepted: a share that leaves every class"):
        stratified(np.array([0, 0, 0, 1]), 0.5, seed=0)


@pytest.mark.parametrize(("n", "seed"), [(20, 0), (150, 1), (1000, 2)])
def test_classes_that_are_in_both_parts_are_split_as_by_scikit_learn(n, seed):
    """Recorded runs with validation sets rest on these indices."""
    labels = np.random.default_rng(seed).permutation(np.arange(n) % 5)
    expected = train_test_split(np.arange(n), test_size=0.25, random_state=seed, stratify=labels)
    assert all(np.array_equal(part, np.sort(e)) for part, e in zip(stratified(labels, 0.25, seed), expected, strict=True))


# --- transforms -------------------------------------------------------------------------------------------------------


def test_image_size_scales_both_parts(dataset):
    assert [part.batch(torch.arange(2))[0].shape for part in dataset.split(image_size=16)] == [(2, 3, 16, 16)] * 2


def test_shape_is_that_of_a_transformed_image(dataset):
    assert [part.shape for part in dataset.split(image_size=16, augment=True)] == [(3, 16, 16)] * 2


def test_augmentation_keeps_the_size_by_default(dataset):
    train, _ = dataset.split(augment=True)
    assert train.batch(torch.arange(2), generator=torch.Generator())[0].shape == (2, 3, 6, 4)


def test_evaluation_images_are_never_augmented(dataset):
    _, evaluation = dataset.split(augment=True)
    assert torch.equal(evaluation.all()[0], dataset.test.all()[0])


def test_augmentation_is_the_same_for_the_same_generator_state(dataset):
    train, _ = dataset.split(image_size=8, augment=True)
    a, b = (train.batch(torch.arange(9), generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(a, b)


def test_augmentation_differs_between_draws(dataset):
    train, _ = dataset.split(image_size=8, augment=True)
    generator = torch.Generator().manual_seed(5)
    a, b = (train.batch(torch.arange(9), generator=generator)[0] for _ in range(2))
    assert not torch.equal(a, b)


def test_augmentation_leaves_the_global_stream_alone(dataset):
    before = torch.get_rng_state()
    dataset.split(augment=True)[0].batch(torch.arange(9), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_without_a_generator_is_refused(dataset):
    with pytest.raises(InvalidInput, match="generator: got None; accepted: a torch.Generator"):
        dataset.split(augment=True)[0].batch(torch.arange(2))


def test_without_augmentation_the_images_are_only_scaled(dataset):
    train, evaluation = dataset.split(image_size=8, augment=True)
    assert train.without_augmentation().transform == evaluation.transform == Resize((8, 8))


def test_whole_image_crop_is_the_image():
    x = torch.randn(4, 3, 8, 8)
    whole = RandomResizedCrop((8, 8), area=(1, 1), aspect=(1, 1), flip=False)
    torch.testing.assert_close(whole(x, torch.Generator()), x)


def test_flip_mirrors_about_half_of_the_images():
    x = torch.randn(400, 1, 4, 4)
    y = RandomResizedCrop((4, 4), area=(1, 1), aspect=(1, 1))(x, torch.Generator().manual_seed(0))
    kept = torch.isclose(y, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(y, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert (kept ^ mirrored).all() and 150 < mirrored.sum() < 250  # 150 … 250 of 400: all but 1 in 10⁶ seeds


def test_crop_stays_inside_the_image():
    """On a ramp along one axis a bilinear crop takes values of the ramp alone, and keeps its direction without a flip."""
    ramp = torch.linspace(-1, 1, 16).expand(200, 1, 16, 16)
    y = RandomResizedCrop((16, 16), flip=False)(ramp, torch.Generator().manual_seed(0))
    assert y.abs().max() <= 1 and (y.diff(dim=3) >= -1e-6).all()
