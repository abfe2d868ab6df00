"""Indexing has NumPy's meaning for every kind of key that static shapes allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nx_strategies import array, basic_index, shapes

from kaun import execution, nx

SEEDS = st.integers(0, 2**16)


@settings(max_examples=40, deadline=None)
@given(shapes(0, 4), SEEDS, st.data())
def test_basic_indices_agree_with_numpy(shape, seed, data):
    x = array(seed, shape)
    key = data.draw(basic_index(shape))
    result = nx.asarray(x)[key]
    assert result.shape == x[key].shape
    np.testing.assert_array_equal(result.numpy(), x[key])


A = np.array([1, -1, 0])
B = np.array([[2], [-3]])
KEYS = [
    A, (A,), (slice(None), A), (A, A), (A, B), (A, slice(None), A), (slice(None), A, A), (A, Ellipsis, A),
    (Ellipsis, B), (0, slice(None), A), (slice(None), 1, A), (slice(None), A, 1), (0, A), (A, 0), (A, None, A),
    (None, A), (slice(None, None, -1), B, slice(1, 3)), ([0, 1], [1, 0]), ([],), (A, None), (B, B, B, B),
    (slice(None), A[:, None], B[0], slice(None)), (0, slice(None), 1, A), (Ellipsis, A, None, slice(None)),
]  # fmt: skip


@pytest.mark.parametrize("known", [True, False], ids=["arrays", "tensors"])
def test_integer_arrays_mixed_with_slices_agree_with_numpy(known):
    x = array(1, (3, 4, 3, 4))
    a = nx.asarray(x)

    def lazy(item):
        # Adding to the index keeps it from being known when the key is read.
        return nx.asarray(item) + 0 if isinstance(item, np.ndarray) else item

    keys = KEYS if known else [k for k in KEYS if isinstance(k, tuple) and any(isinstance(i, np.ndarray) for i in k)]
    results = [a[k if known else tuple(lazy(item) for item in k)] for k in keys]
    nx.realize(*results)
    for key, result in zip(keys, results, strict=True):
        expected = x[key]
        assert result.shape == expected.shape, key
        np.testing.assert_array_equal(result.numpy(), expected, err_msg=str(key))


def test_masks_with_known_values_select():
    x = array(2, (3, 4))
    a = nx.asarray(x)
    rows, cells = np.array([True, False, True]), x > 0
    cases = [rows, cells, (rows, slice(1, 3)), (slice(None), np.array([True, False, False, True])), (rows, 0)]
    for key in cases:
        np.testing.assert_array_equal(a[key].numpy(), x[key])
    np.testing.assert_array_equal(a[a > 0].numpy(), x[x > 0])
    assert a[[True, False, True]].shape == (2, 4)
    with pytest.raises(IndexError, match=r"a mask of shape \[2\] does not fit axes \[3\]"):
        a[np.array([True, False])]


def test_masks_that_are_traced_are_refused():
    traced = nx.Tensor(execution.placeholder((3,), nx.float32))
    with pytest.raises(ValueError, match=r"bool\[3\] is being traced: .*shapes are static"):
        traced[traced > 0]


def test_bad_keys_are_refused_when_they_are_read():
    x = nx.zeros((2, 3))
    for key, error, message in [
        (2, IndexError, "index 2 is out of range"),
        ((0, -4), IndexError, "index -4 is out of range"),
        ((0, 0, 0), IndexError, r"got 3 indices for float32\[2, 3\]"),
        ((..., ...), IndexError, "one ellipsis"),
        (np.array([0, 2]), IndexError, "out of range"),
        ("a", TypeError, "index of type str"),
        (1.0, TypeError, "index of type float"),
        (np.array([1.0]), TypeError, r"float64\[1\] as positions"),
        (slice(None, None, 0), TypeError, "slice"),
    ]:
        with pytest.raises(error, match=message):
            x[key]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_narrow_indices_reach_the_whole_axis(dtype):
    x = nx.arange(300)
    indices = nx.asarray([0, 100, 5], dtype=dtype)
    assert nx.take(x, indices + 0).tolist() == [0, 100, 5]
    if "u" not in dtype:
        assert nx.take(x, -(indices + 1)).tolist() == [299, 199, 294]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_agrees_with_numpy(axis):
    x = array(4, (3, 4, 5))
    for indices in (np.array([2, 0, -1]), np.array([[0, 1], [2, -3]]), 1):
        result = nx.take(x, indices, axis=axis)
        np.testing.assert_array_equal(result.numpy(), np.take(x, indices, axis=axis))
    along = np.argsort(x, axis=axis)
    np.testing.assert_array_equal(nx.take_along_axis(x, along, axis=axis).numpy(), np.take_along_axis(x, along, axis))


def test_take_along_axis_broadcasts_the_other_axes():
    x, labels = array(4, (3, 5)), nx.asarray([1, 4, -2]) + 0
    picked = nx.take_along_axis(nx.asarray(x), labels[:, None], axis=1)
    np.testing.assert_array_equal(picked.numpy()[:, 0], x[np.arange(3), [1, 4, -2]])
    np.testing.assert_array_equal(
        nx.take_along_axis(x, np.array([[0, 2]]), axis=1).numpy(), np.take_along_axis(x, np.array([[0, 2]]), 1)
    )


def test_scatter_add_sums_and_drops_what_is_outside():
    indices, updates = np.array([[0, 2], [2, 7]]), array(6, (2, 2, 3))
    expected = np.zeros((4, 3), np.float32)
    for i, update in zip(indices.reshape(-1), updates.reshape(-1, 3), strict=True):
        if i < 4:
            expected[i] += update
    np.testing.assert_allclose(nx.scatter_add(indices, updates, size=4).numpy(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"nx\.scatter_add: got int64\[2\] and float32\[3\]"):
        nx.scatter_add(nx.arange(2), nx.zeros(3), size=2)


def test_one_hot_marks_the_index():
    labels = np.array([[0, 2], [1, 3]])
    np.testing.assert_array_equal(nx.one_hot(labels, 3).numpy(), (labels[..., None] == np.arange(3)).astype(np.float32))
    assert nx.one_hot(labels, 3, axis=0).shape == (3, 2, 2)
    assert nx.one_hot(nx.asarray([200], dtype="uint8"), 300, dtype="int8").dtype is nx.int8
    assert nx.argmax(nx.one_hot(nx.asarray([200], dtype="uint8"), 300), axis=1).tolist() == [200]
    with pytest.raises(TypeError, match=r"nx\.one_hot: got float32\[1\]"):
        nx.one_hot([1.0], 3)


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_agrees_with_numpy_and_is_stable(descending):
    x = np.array([[3, 1, 2, 1], [0, -1, np.nan, 5]], np.float32)
    order = nx.argsort(x, descending=descending)
    expected = np.argsort(x, axis=-1, kind="stable")
    if descending:
        expected = np.array([[0, 2, 1, 3], [2, 3, 0, 1]])
    np.testing.assert_array_equal(order.numpy(), expected)
    whole = array(3, (3, 20), np.int32, -5, 5)
    ascending = np.sort(whole, axis=0)
    expected = ascending[::-1] if descending else ascending
    np.testing.assert_array_equal(nx.sort(whole, axis=0, descending=descending).numpy(), expected)
    with pytest.raises(ValueError, match=r"nx\.sort: .* longer than 8192"):
        nx.sort(nx.zeros(8193))
