"""Losses agree with PyTorch's in value and gradient, stay finite at the extremes, and broadcast nothing."""

from __future__ import annotations

import numpy as np
import pytest
from reference_values import check

from kaun import loss, nx
from kaun.gradients import grad


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_sparse", "binary_cross_entropy", "mse", "mae"])
def test_losses_agree_with_pytorch(name):
    check(f"loss/{name}", getattr(loss, name), ("a", "b"))


def test_huber_agrees_with_pytorch():
    check("loss/huber", lambda a, b: loss.huber(a, b, delta=0.7), ("a", "b"))


def test_both_cross_entropies_agree_and_take_any_number_of_batch_axes():
    random = np.random.default_rng(0)
    logits, classes = random.normal(size=(2, 3, 4)).astype(np.float32), random.integers(0, 4, (2, 3))
    sparse = float(loss.cross_entropy_sparse(nx.asarray(logits), nx.asarray(classes.astype(np.uint8))))
    dense = float(loss.cross_entropy(nx.asarray(logits), nx.one_hot(nx.asarray(classes), 4)))
    assert sparse == pytest.approx(dense, rel=1e-6)


def test_cross_entropy_is_stable_for_large_logits():
    logits = nx.asarray(np.asarray([[1e4, -1e4, 0.0]], np.float32))
    for right, expected in ((0, 0.0), (1, 2e4)):
        value = loss.cross_entropy_sparse(logits, nx.asarray([right]))
        assert float(value) == pytest.approx(expected)
        slopes = grad(lambda z, right=right: loss.cross_entropy_sparse(z, nx.asarray([right])))(logits)
        assert np.isfinite(slopes.numpy()).all()


def test_a_class_that_does_not_exist_makes_the_loss_nan():
    logits = nx.zeros((2, 300))
    for bad in (-1, 300, 2**40, -(2**40)):
        assert np.isnan(float(loss.cross_entropy_sparse(logits, nx.asarray([0, bad]))))
    assert float(loss.cross_entropy_sparse(logits, nx.asarray(np.asarray([0, 255], np.uint8)))) == pytest.approx(
        np.log(300), rel=1e-6
    )


def test_gradients_at_ties_are_the_symmetric_ones():
    zero = nx.zeros((1,))
    assert float(grad(lambda z: loss.binary_cross_entropy(z, nx.asarray([0.25])))(zero)[0]) == 0.25
    assert float(grad(lambda z: loss.mae(z, zero))(zero)[0]) == 0.0


def test_narrow_floats_are_averaged_in_float32():
    predictions = nx.astype(nx.asarray(np.linspace(0, 1, 4096, dtype=np.float32)), nx.bfloat16)
    value = loss.mse(predictions, nx.zeros((4096,)))
    assert value.dtype is nx.float32 and float(value) == pytest.approx(1 / 3, rel=2e-3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: loss.mse(nx.zeros((4, 1)), nx.zeros((4,))), ValueError, r"mse: .*float32\[4, 1\] and float32\[4\]"),
        (lambda: loss.cross_entropy(nx.zeros((4, 3)), nx.zeros((4,))), ValueError, "expected equal shapes"),
        (lambda: loss.cross_entropy_sparse(nx.zeros((4, 3)), nx.asarray([1, 2])), ValueError, r"shape \[4\]"),
        (lambda: loss.cross_entropy_sparse(nx.zeros((2, 3)), nx.zeros((2,))), TypeError, "expected integers"),
        (lambda: loss.cross_entropy_sparse(nx.zeros((2, 0)), nx.asarray([1, 2])), ValueError, "C > 0"),
        (lambda: loss.mse(nx.asarray([1, 2]), nx.asarray([1, 2])), TypeError, "expected floats"),
        (lambda: loss.huber(nx.zeros((2,)), nx.zeros((2,)), delta=0.0), ValueError, "delta=0.0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
