"""MNIST and Fashion-MNIST, and the IDX format their files have."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from kaun.datasets.download import RemoteFile, cache_folder, fetch
from kaun.datasets.labelled_images import (
    DataFormat,
    LabelledImages,
    Pixels,
    as_tensors,
    check_data_format,
    check_labels,
)

_UNSIGNED_BYTE = 0x08
_EXTENT = 28
# Far more than the largest of these files; what a header claims beyond it is not believed.
_LARGEST_BYTES = 1 << 30

_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _remote_files(mirrors: tuple[str, ...], published: tuple[tuple[int, str], ...]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(name, size, sha256, tuple(mirror + name for mirror in mirrors))
        for name, (size, sha256) in zip(_NAMES, published, strict=True)
    )


# Sizes and checksums as TensorFlow Datasets publishes them (url_checksums/mnist.txt and fashion_mnist.txt). The first
# mirror is the one of torchvision, the second the one of TensorFlow Datasets; the original site refuses downloads.
MNIST = _remote_files(
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    (
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)
# Its authors' storage, and their repository.
FASHION_MNIST = _remote_files(
    (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    (
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)


def mnist(*, fashion: bool = False, normalize: bool = True, data_format: DataFormat = "NCHW") -> LabelledImages:
    """MNIST, 70,000 handwritten digits, or Fashion-MNIST, 70,000 articles of clothing: 28x28 grey pixels, 10 classes.

    60,000 images to train on and 10,000 to test with, in the order of the published files: `x` of shape
    (N, 1, 28, 28), or (N, 28, 28, 1) for data_format "NHWC", float32 in [0, 1] (the pixel / 255), or the uint8 pixels
    themselves with `normalize=False`; `y` (N,) int32 in 0..9.

    Downloaded once (11.6 MB, fashion 30.9 MB) into the folder KAUN_DATA_DIR, by default `kaun/datasets` in the user's
    cache folder, and checked against the published SHA-256 at every use.

    Raises `datasets.DownloadError` (an OSError) if the files are not there and no mirror gives them, ValueError for
    another data_format.

    References: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE 86(11), 1998. H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747.
    """
    check_data_format("datasets.mnist", data_format)
    folder = cache_folder() / ("fashion-mnist" if fashion else "mnist")
    paths = [fetch("datasets.mnist", file, folder) for file in (FASHION_MNIST if fashion else MNIST)]
    train, test = (read_pair(*paths[:2]), read_pair(*paths[2:]))
    return as_tensors(train, test, normalize=normalize, data_format=data_format)


def read_pair(images_path: Path, labels_path: Path) -> tuple[Pixels, Pixels]:
    """The images (N, 1, 28, 28) and the labels (N,) of two IDX files; ValueError if they do not hold that."""
    images, labels = read_idx(images_path, rank=3), read_idx(labels_path, rank=1)
    if images.shape[1:] != (_EXTENT, _EXTENT):
        raise ValueError(
            f"datasets.mnist: {images_path} holds images of {list(images.shape[1:])} pixels, expected [28, 28]"
        )
    check_labels(f"datasets.mnist: {labels_path}", images, labels)
    return images[:, np.newaxis], labels


def read_idx(path: Path, *, rank: int) -> Pixels:
    """The array in a gzip-compressed IDX file of unsigned bytes with `rank` axes; read-only.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, the extent of each axis as a big-endian
    32-bit integer, then the elements, last axis fastest. ValueError for anything else, too short or too long.
    """
    try:
        with gzip.open(path, "rb") as file:
            magic = _exactly(file, 4, path)
            if magic != bytes((0, 0, _UNSIGNED_BYTE, rank)):
                raise ValueError(
                    f"datasets.mnist: {path} starts with {magic.hex(' ')}, expected 00 00 08 {rank:02x}, "
                    f"an IDX file of unsigned bytes with {rank} axes"
                )
            header = _exactly(file, 4 * rank, path)
            shape = tuple(int.from_bytes(header[start : start + 4], "big") for start in range(0, 4 * rank, 4))
            count = math.prod(shape)
            if count > _LARGEST_BYTES:
                raise ValueError(f"datasets.mnist: {path} says it has the shape {list(shape)}, {count:,} bytes")
            content = _exactly(file, count, path)
            # Reading to the end is also what checks the length and the checksum of the compressed data.
            if file.read(1):
                raise ValueError(f"datasets.mnist: {path} goes on after the {count:,} elements of {list(shape)}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"datasets.mnist: {path} is not a whole gzip file: {error}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _exactly(file: gzip.GzipFile, count: int, path: Path) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"datasets.mnist: {path} is cut short: got {len(data):,} bytes where {count:,} were expected")
    return data
