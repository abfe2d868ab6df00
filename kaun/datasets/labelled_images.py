"""The form in which the downloaded image sets come: pixels and class indices as tensors, in the layout asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kaun.nx import Tensor

DataFormat: TypeAlias = Literal["NCHW", "NHWC"]
Pixels: TypeAlias = NDArray[np.uint8]


class LabelledImages(NamedTuple):
    """What `mnist` and `cifar10` return; unpacks as `x_train, y_train, x_test, y_test`.

    With N images of C channels, H rows and W columns:
    """

    x_train: Tensor
    """(N, C, H, W), or (N, H, W, C) for "NHWC"; float32 in [0, 1], or uint8 in 0..255 without `normalize`."""
    y_train: Tensor
    """(N,) int32, the class indices."""
    x_test: Tensor
    """As `x_train`, with the test set's N."""
    y_test: Tensor
    """As `y_train`."""


def check_data_format(function: str, data_format: str) -> None:
    """ValueError unless it is one of the two layouts; asked before anything is downloaded."""
    if data_format not in ("NCHW", "NHWC"):
        raise ValueError(f"{function}: got data_format {data_format!r}, expected 'NCHW' or 'NHWC'")


def check_labels(source: str, images: Pixels, labels: Pixels) -> None:
    """ValueError unless there is a label in 0..9 for each image; `source` starts the message."""
    if len(images) != len(labels):
        raise ValueError(f"{source}: got {len(images)} images and {len(labels)} labels, expected as many")
    if labels.size and labels.max() > 9:
        raise ValueError(f"{source}: got the label {labels.max()}, expected at most 9")


def as_tensors(
    train: tuple[Pixels, Pixels], test: tuple[Pixels, Pixels], *, normalize: bool, data_format: str
) -> LabelledImages:
    """The tensors of two pairs of images (N, C, H, W) and labels (N,), both uint8."""
    from kaun import nx

    def images(pixels: Pixels) -> Tensor:
        placed = pixels if data_format == "NCHW" else pixels.transpose(0, 2, 3, 1)
        array: NDArray[Any] = np.ascontiguousarray(placed)
        if normalize:
            array = np.divide(array, np.float32(255), dtype=np.float32)
        # Nobody else holds this memory, or nobody can write to it, so it need not be copied.
        return nx.asarray(array, copy=False)

    def classes(labels: Pixels) -> Tensor:
        return nx.asarray(labels.astype(np.int32), copy=False)

    return LabelledImages(images(train[0]), classes(train[1]), images(test[0]), classes(test[1]))
