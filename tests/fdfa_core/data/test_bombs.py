"""Small files that unpack to more than any data set holds, pictures of another format, and addresses that are not encrypted."""

import gzip
import io
import struct
import tarfile

import pytest
from PIL import Image

from fdfa_core.data import files, published, sources
from fdfa_core.data.files import PublishedFile, fetch
from fdfa_core.data.sources import read_idx
from fdfa_core.errors import DataError


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
