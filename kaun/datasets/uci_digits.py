"""The handwritten digits that ship with the package, so that the first training run needs no network."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from kaun.nx import Tensor

_IMAGE_COUNT = 1_797
_TRAIN_COUNT = 1_437
_LARGEST_PIXEL = 16


class Digits(NamedTuple):
    """What `digits` returns; unpacks as `x_train, y_train, x_test, y_test`."""

    x_train: Tensor
    """(1437, 1, 8, 8) float32 in [0, 1], or (1437, 64)."""
    y_train: Tensor
    """(1437,) int32 in 0..9."""
    x_test: Tensor
    """(360, 1, 8, 8) float32 in [0, 1], or (360, 64)."""
    y_test: Tensor
    """(360,) int32 in 0..9."""


def load_arrays() -> tuple[np.ndarray, np.ndarray]:
    """The file's own arrays, training images first: images (1797, 8, 8) uint8 in 0..16 and labels (1797,) uint8.

    ValueError if the file does not hold exactly that; it is never unpickled.
    """
    source = resources.files("kaun.datasets").joinpath("digits.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        names = set(archive.files)
        if names != {"images", "labels"}:
            raise ValueError(f"datasets.digits: {source} holds {sorted(names)}, expected ['images', 'labels']")
        images, labels = archive["images"], archive["labels"]
    for name, array, shape in (("images", images, (_IMAGE_COUNT, 8, 8)), ("labels", labels, (_IMAGE_COUNT,))):
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"datasets.digits: {name} are {array.dtype} {array.shape}, expected uint8 {shape}")
    if images.max() > _LARGEST_PIXEL or labels.max() > 9:
        raise ValueError(f"datasets.digits: got pixel {images.max()} and label {labels.max()}, expected <= 16 and <= 9")
    return images, labels


def digits(*, flatten: bool = False) -> Digits:
    """1,797 real handwritten digits, 8x8 pixels, with a fixed split: 1,437 to train on and 360 to test with.

    Images are float32 in [0, 1] (ink / 16) of shape (N, 1, 8, 8), or (N, 64) with `flatten`; labels are int32 class
    indices. Each class is in both sets by its share; the split and the order are those of the shipped file.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, licensed CC BY 4.0 (see `digits.txt` beside this file).
    """
    from kaun import nx

    images, labels = load_arrays()
    shape = (_IMAGE_COUNT, 64) if flatten else (_IMAGE_COUNT, 1, 8, 8)
    x = (images.astype(np.float32) / _LARGEST_PIXEL).reshape(shape)
    y = labels.astype(np.int32)
    parts = (x[:_TRAIN_COUNT], y[:_TRAIN_COUNT], x[_TRAIN_COUNT:], y[_TRAIN_COUNT:])
    # Copies, so that a test set that is kept does not keep the training set in memory.
    return Digits(*(nx.asarray(part, copy=True) for part in parts))
