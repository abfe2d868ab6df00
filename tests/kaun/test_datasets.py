"""The shipped digits: the published images, a fair fixed split, tensors of the documented form."""

from importlib import resources

import numpy as np
import pytest

from kaun.datasets.uci_digits import load_arrays

# Images per class in the UCI test file, from the data set's own documentation (optdigits.names).
PUBLISHED_CLASS_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_all_published_images_are_there_once() -> None:
    images, labels = load_arrays()
    assert np.bincount(labels).tolist() == PUBLISHED_CLASS_COUNTS
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_images_are_those_of_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = load_arrays()
    pairs = zip(reference.images, reference.target, strict=True)
    published = {image.astype(np.uint8).tobytes(): int(label) for image, label in pairs}
    assert {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)} == published


def test_each_class_is_in_both_sets_by_its_share() -> None:
    _, labels = load_arrays()
    shares = np.bincount(labels[1437:]) / np.array(PUBLISHED_CLASS_COUNTS)
    assert len(labels[1437:]) == 360 and np.all(np.abs(shares - 360 / 1797) < 1 / 174)
    # Not sorted by class: any window of a batch's size sees most classes.
    assert min(len(set(labels[start : start + 64])) for start in range(0, 1437 - 64, 64)) >= 8


def test_source_and_licence_ship_with_the_images() -> None:
    text = resources.files("kaun.datasets").joinpath("digits.txt").read_text()
    assert "10.24432/C50P49" in text and "CC BY 4.0" in text


@pytest.mark.parametrize(("flatten", "extents"), [(False, (1, 8, 8)), (True, (64,))])
def test_tensors_have_the_documented_form(flatten: bool, extents: tuple[int, ...]) -> None:
    pytest.importorskip("kaun.nx")
    from kaun import datasets

    data = datasets.digits(flatten=flatten)
    x_train, y_train, x_test, y_test = data
    images, labels = load_arrays()
    assert (x_train.shape, x_test.shape) == ((1437, *extents), (360, *extents))
    x = np.concatenate([x_train.numpy(), x_test.numpy()])
    y = np.concatenate([y_train.numpy(), y_test.numpy()])
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal((x * 16).astype(np.uint8).ravel(), images.ravel())
    np.testing.assert_array_equal(y, labels)
