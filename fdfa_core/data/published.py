"""The data sets as their authors published them: files, checksums, classes."""

from __future__ import annotations

from fdfa_core.data.files import PublishedFile
from fdfa_core.data.sources import Cifar, Digits, Idx, TinyImagenet


def _idx_files(mirrors: tuple[str, ...], *sha256: str) -> tuple[PublishedFile, ...]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(
        PublishedFile(name, digest, tuple(f"{mirror}/{name}" for mirror in mirrors))
        for name, digest in zip(names, sha256, strict=True)
    )


# Alpaydin and Kaynak 1998; the copy inside scikit-learn.
DIGITS = Digits()
# LeCun, Cortes and Burges.
MNIST = Idx(
    "mnist",
    _idx_files(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    classes=tuple("0123456789"),
    folder="MNIST",
)
# Xiao, Rasul and Vollgraf 2017.
FASHION_MNIST = Idx(
    "fashion-mnist",
    _idx_files(
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        ),
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    folder="FashionMNIST",
)
# Krizhevsky 2009.
CIFAR_10 = Cifar(
    "cifar-10",
    PublishedFile(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
        ),
    ),
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    label_bytes=1,
    classes=10,
)
CIFAR_100 = Cifar(
    "cifar-100",
    PublishedFile(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    ),
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    names="fine_label_names.txt",
    label_bytes=2,
    classes=100,
)
# Le and Yang 2015.
TINY_IMAGENET = TinyImagenet(
    PublishedFile(
        "tiny-imagenet-200.zip",
        "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        ("https://cs231n.stanford.edu/tiny-imagenet-200.zip", "https://image-net.org/data/tiny-imagenet-200.zip"),
    ),
)
