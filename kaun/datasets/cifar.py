"""CIFAR-10, read from its binary archive without unpacking it to disk."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import tarfile

_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
_LARGEST_MEMBER = 10_000 * _RECORD_BYTES
_TRAIN_MEMBERS = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
_TEST_MEMBER = "cifar-10-batches-bin/test_batch.bin"

# The size and checksum as TensorFlow Datasets publishes them (url_checksums/cifar10.txt); the MD5 on the data set's own
# page, c32a1d4ab5d03f1284b67883e8d87530, is of the same file. The first two mirrors are the author's.
CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
    ),
)


def cifar10(*, normalize: bool = True, data_format: DataFormat = "NCHW") -> LabelledImages:
    """CIFAR-10: 60,000 colour photographs, 32x32 pixels, of 10 classes from airplane (0) to truck (9).

    50,000 images to train on and 10,000 to test with, in the order of the published files: `x` of shape
    (N, 3, 32, 32), channels red, green, blue, or (N, 32, 32, 3) for data_format "NHWC", float32 in [0, 1] (the pixel /
    255), or the uint8 pixels themselves with `normalize=False`; `y` (N,) int32 in 0..9.

    Downloaded once (170 MB) into the folder KAUN_DATA_DIR, by default `kaun/datasets` in the user's cache folder, and
    checked against the published SHA-256 at every use.

    Raises `datasets.DownloadError` (an OSError) if the file is not there and no mirror gives it, ValueError for
    another data_format.

    Reference: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, University of
    Toronto, 2009; https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    check_data_format("datasets.cifar10", data_format)
    train, test = read_archive(fetch("datasets.cifar10", CIFAR10, cache_folder() / "cifar10"))
    return as_tensors(train, test, normalize=normalize, data_format=data_format)


def read_archive(path: Path) -> tuple[tuple[Pixels, Pixels], tuple[Pixels, Pixels]]:
    """Images (N, 3, 32, 32) and labels (N,), of the training and of the test set, from the binary archive.

    Each of its six files is a sequence of records of one byte of label and 3072 of pixels: all red ones, row by row,
    then green, then blue. ValueError for an archive that is damaged or does not hold exactly that.
    """
    import tarfile

    wanted = {*_TRAIN_MEMBERS, _TEST_MEMBER}
    found: dict[str, bytes] = {}
    try:
        # As a stream: members are read where they come, and only into memory.
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz", bufsize=1 << 20) as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                if member.name in found:
                    raise ValueError(f"datasets.cifar10: {path} holds {member.name} twice")
                found[member.name] = _content(archive, member, path)
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"datasets.cifar10: {path} is not a whole archive: {error}") from error
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(f"datasets.cifar10: {path} has no {missing[0]}; it is cut short or another archive")
    return (
        _records(b"".join(found[name] for name in _TRAIN_MEMBERS), path),
        _records(found[_TEST_MEMBER], path),
    )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if not member.isreg() or member.issparse():
        raise ValueError(f"datasets.cifar10: {member.name} in {path} is not a regular file")
    if member.size > _LARGEST_MEMBER or member.size % _RECORD_BYTES:
        raise ValueError(
            f"datasets.cifar10: {member.name} in {path} has {member.size:,} bytes, expected a multiple of "
            f"{_RECORD_BYTES:,}, at most {_LARGEST_MEMBER:,}"
        )
    opened = archive.extractfile(member)
    data = opened.read(member.size) if opened is not None else b""
    if len(data) != member.size:
        raise ValueError(
            f"datasets.cifar10: {member.name} in {path} is cut short: got {len(data):,} of {member.size:,} bytes"
        )
    return data


def _records(data: bytes, path: Path) -> tuple[Pixels, Pixels]:
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    # A copy, so that the pixels are contiguous and the archive's own bytes are let go.
    images, labels = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE), records[:, 0].copy()
    check_labels(f"datasets.cifar10: {path}", images, labels)
    return images, labels
