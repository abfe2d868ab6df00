"""Reductions, statistics and the softmax family agree with NumPy along any axes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nx_strategies import array, shapes

from kaun import nx

SEEDS = st.integers(0, 2**16)


@st.composite
def shape_and_axes(draw, **options):
    shape = draw(shapes(**options))
    axes = draw(st.none() | st.lists(st.integers(0, max(0, len(shape) - 1)), unique=True, max_size=len(shape)))
    if axes is None or not shape:
        return shape, None
    axes = [a - len(shape) if draw(st.booleans()) else a for a in axes]
    return shape, axes[0] if len(axes) == 1 else tuple(axes)


@settings(max_examples=25, deadline=None)
@given(shape_and_axes(), SEEDS, st.booleans(), st.sampled_from([np.float32, np.int8, np.uint16, np.bool_]))
def test_sums_products_and_truth_agree_with_numpy(case, seed, keep, dtype):
    shape, axis = case
    x = array(seed, shape, dtype, -2, 2)
    a = nx.asarray(x)
    options = {"axis": axis, "keepdims": keep}
    results = [nx.sum(a, **options), nx.prod(a, **options), nx.any(a, **options), nx.all(a, **options)]
    results += [nx.count_nonzero(a, **options)]
    nx.realize(*results)
    expected = [np.sum(x, **options), np.prod(x, **options), np.any(x, **options), np.all(x, **options)]
    expected += [np.count_nonzero(x, **options)]
    for result, one in zip(results, expected, strict=True):
        assert (result.shape, result.dtype.numpy) == (np.shape(one), np.asarray(one).dtype)
        np.testing.assert_allclose(result.numpy(), one, rtol=2e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shape_and_axes(extents=st.sampled_from([1, 2, 3, 5])), SEEDS, st.booleans())
def test_extrema_and_statistics_agree_with_numpy(case, seed, keep):
    shape, axis = case
    x = array(seed, shape)
    a = nx.asarray(x)
    options = {"axis": axis, "keepdims": keep}
    names = ["max", "min", "mean", "var", "std"]
    results = [getattr(nx, name)(a, **options) for name in names]
    results += [nx.logsumexp(a, **options), nx.vector_norm(a, **options)]
    nx.realize(*results)
    expected = [getattr(np, name)(x, **options) for name in names]
    expected += [np.log(np.sum(np.exp(x), **options)), np.sqrt(np.sum(x * x, **options))]
    for result, one in zip(results, expected, strict=True):
        assert (result.shape, result.dtype) == (np.shape(one), nx.float32)
        np.testing.assert_allclose(result.numpy(), one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("keep", [False, True])
def test_places_of_extrema_are_the_first_of_equals(axis, keep):
    x = np.array([[1, 3, 3, 0], [3, 0, 0, 1], [-1, -1, 2, 2]])
    greatest, least = nx.argmax(x, axis=axis, keepdims=keep), nx.argmin(x, axis=axis, keepdims=keep)
    assert greatest.dtype is nx.int64
    np.testing.assert_array_equal(greatest.numpy(), np.argmax(x, axis=axis, keepdims=keep))
    np.testing.assert_array_equal(least.numpy(), np.argmin(x, axis=axis, keepdims=keep))
    assert nx.argmax([1.0, math.nan, 3.0]).item() == 1


def test_reductions_over_nothing_give_the_identity_or_refuse():
    empty = nx.zeros((0, 3))
    assert nx.sum(empty, axis=0).tolist() == [0, 0, 0] and nx.prod(empty, axis=0).tolist() == [1, 1, 1]
    assert np.isnan(nx.mean(empty, axis=0).numpy()).all()
    for function, name in [(nx.max, "max"), (nx.argmin, "argmin")]:
        with pytest.raises(ValueError, match=rf"nx\.{name}: got float32\[0, 3\]: no elements"):
            function(empty, axis=0)


def test_axes_are_checked():
    with pytest.raises(ValueError, match=r"nx\.mean: axis -4 is out of range for 3 axes"):
        nx.mean(nx.zeros((1, 2, 3)), axis=-4)
    with pytest.raises(ValueError, match=r"nx\.sum: axes \(0, -3\) name an axis twice"):
        nx.sum(nx.zeros((1, 2, 3)), axis=(0, -3))


def test_dtypes_of_results_are_the_standards():
    assert nx.sum(nx.ones(3, dtype="float16")).dtype is nx.float16
    assert nx.sum(nx.ones(3, dtype="int8"), dtype="int16").dtype is nx.int16
    assert nx.mean(nx.arange(3)).dtype is nx.float32 and nx.mean(nx.ones(2, dtype=nx.bool)).item() == 1
    assert nx.max(nx.asarray([True, False])).dtype is nx.bool


def test_narrow_floats_do_not_overflow_inside_of_a_mean():
    x = nx.full((4096,), 32.0, dtype="float16")
    assert nx.mean(x).item() == 32 and nx.var(x).item() == 0
    assert nx.mean(x).dtype is nx.float16


def test_variance_takes_a_correction():
    x = array(3, (4, 7))
    np.testing.assert_allclose(nx.var(x, axis=1, correction=1).numpy(), x.var(axis=1, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(nx.std(x + 1000, axis=0).numpy(), x.std(axis=0), rtol=2e-3)


@pytest.mark.parametrize("extent", [0, 1, 5, 32, 33, 100, 1100])
def test_running_sums_agree_with_numpy(extent):
    x = array(extent, (2, extent), np.float64)
    whole = array(extent, (extent, 2), np.int32)
    results = [nx.cumulative_sum(x, axis=1), nx.cumulative_sum(whole, axis=0, include_initial=True)]
    nx.realize(*results)
    np.testing.assert_allclose(results[0].numpy(), np.cumsum(x, axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(results[1].numpy()[1:], np.cumsum(whole, axis=0))
    assert results[1].shape == (extent + 1, 2) and results[1].dtype is nx.int64
    assert not results[1].numpy()[0].any()


def test_running_sums_keep_infinities_to_themselves():
    x = np.ones(100, np.float32)
    x[40] = np.inf
    np.testing.assert_array_equal(nx.cumulative_sum(x).numpy(), np.cumsum(x))


def test_running_products_agree_with_numpy():
    x = array(1, (3, 13))
    np.testing.assert_allclose(nx.cumulative_prod(x, axis=1).numpy(), np.cumprod(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(nx.cumulative_prod(x, axis=0).numpy(), np.cumprod(x, axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"nx\.cumulative_prod: got float32\[3, 13\] without an axis"):
        nx.cumulative_prod(x)


def test_norms_of_every_order_agree_with_numpy():
    x = array(5, (3, 8))
    orders = [0, 1, 2, 3, 2.5, np.inf, -np.inf]
    results = [nx.vector_norm(x, axis=1, ord=order) for order in orders]
    nx.realize(*results)
    for order, result in zip(orders, results, strict=True):
        np.testing.assert_allclose(result.numpy(), np.linalg.norm(x, axis=1, ord=order), rtol=1e-5)


def test_differences_agree_with_numpy():
    x = array(5, (3, 8))
    np.testing.assert_allclose(nx.diff(x).numpy(), np.diff(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nx.diff(x, axis=0, n=2).numpy(), np.diff(x, axis=0, n=2), rtol=1e-5, atol=1e-6)
    assert nx.diff(x, axis=0, n=4).shape == (0, 8)


@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_the_softmax_family_is_stable_far_from_zero(axis):
    x = array(2, (4, 6)) * 30 + 1000
    results = [nx.softmax(x, axis=axis), nx.log_softmax(x, axis=axis), nx.logsumexp(x, axis=axis)]
    nx.realize(*results)
    wide = x.astype(np.float64)
    highest = wide.max(axis=axis, keepdims=True)
    total = np.log(np.exp(wide - highest).sum(axis=axis, keepdims=True)) + highest
    expected = [np.exp(wide - total), wide - total, total.squeeze(axis)]
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.numpy(), one, rtol=1e-5, atol=1e-5)


def test_logsumexp_of_infinities_is_the_limit():
    inf = math.inf
    x = np.array([[-inf, -inf], [inf, 0.0], [-inf, 2.0], [math.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(nx.logsumexp(x, axis=1).numpy(), [-inf, inf, 2.0, math.nan])
    assert nx.logsumexp(nx.zeros(0)).item() == -inf


def test_masked_softmax_gives_zero_weight():
    assert nx.softmax([0.0, -math.inf, 0.0]).tolist() == [0.5, 0, 0.5]
