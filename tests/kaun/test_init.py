"""Initialisers draw from the distributions they name: mean, variance and bounds over a million draws."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from kaun import init, nx

SHAPE = (500, 2000)
FAN_IN, FAN_OUT = 500, 2000
AVERAGE = (FAN_IN + FAN_OUT) / 2


def draw(initializer, shape=SHAPE, dtype=nx.float32, seed=5):
    with nx.rng.run(seed=seed):
        return initializer(shape, dtype).numpy()


@pytest.mark.parametrize(
    "initializer, mean, variance, bound",
    [
        (init.uniform, 0.005, 0.01**2 / 12, 0.01),
        (init.uniform(scale=3.0), 1.5, 9 / 12, 3.0),
        (init.normal, 0, 1e-4, math.inf),
        (init.normal(stddev=0.5), 0, 0.25, math.inf),
        (init.truncated_normal(stddev=0.5), 0, 0.25, 0.5 * 2 / 0.8796),
        (init.glorot_uniform, 0, 1 / AVERAGE, math.sqrt(3 / AVERAGE)),
        (init.glorot_normal, 0, 1 / AVERAGE, math.sqrt(1 / AVERAGE) * 2 / 0.8796),
        (init.he_uniform, 0, 2 / FAN_IN, math.sqrt(6 / FAN_IN)),
        (init.he_normal, 0, 2 / FAN_IN, math.sqrt(2 / FAN_IN) * 2 / 0.8796),
        (init.lecun_uniform, 0, 1 / FAN_IN, math.sqrt(3 / FAN_IN)),
        (init.lecun_normal, 0, 1 / FAN_IN, math.sqrt(1 / FAN_IN) * 2 / 0.8796),
        (
            functools.partial(init.variance_scaling, scale=3.0, mode="fan_out", distribution="normal"),
            0, 3 / FAN_OUT, math.inf,
        ),
    ],
)  # fmt: skip
def test_mean_variance_and_bounds(initializer, mean, variance, bound):
    x = draw(initializer).astype(np.float64)
    deviation = math.sqrt(variance)
    # Six standard errors; that of a variance is at most sqrt(2 / n) of it for these distributions.
    assert abs(x.mean() - mean) < 6 * deviation / math.sqrt(x.size)
    assert abs(x.var() / variance - 1) < 6 * math.sqrt(2 / x.size)
    low = 0.0 if mean else -bound
    assert x.min() >= low - 1e-6 * min(bound, 1) and x.max() <= bound * (1 + 1e-6)
    if bound < math.inf:  # and the range is filled
        assert x.max() > 0.99 * bound and x.min() < low + 0.01 * (bound - low)


def test_constants():
    np.testing.assert_array_equal(init.zeros((2, 3), nx.float32).numpy(), np.zeros((2, 3)))
    np.testing.assert_array_equal(init.ones((2,), nx.float64).numpy(), np.ones(2))
    np.testing.assert_array_equal(init.constant(2.5)((3,), nx.float32).numpy(), [2.5] * 3)


def test_fans_follow_the_layout_of_the_weight():
    assert init.fans((5, 7)) == (5, 7)  # linear: (in, out)
    assert init.fans((8, 3, 5, 2)) == (30, 80)  # conv2d: (out, in, kh, kw)
    assert init.fans((8, 3, 5, 2), in_axis=0, out_axis=-1) == (8 * 15, 2 * 15)
    with pytest.raises(ValueError, match=r"init.fans: got shape"):
        init.glorot_uniform((5,), nx.float32)


def test_dtype_and_scope():
    with nx.rng.run(seed=0):
        assert init.he_normal((3, 4), nx.bfloat16).dtype is nx.bfloat16
        assert init.normal((3, 4), nx.float64).dtype is nx.float64
    with pytest.raises(ValueError, match=r"scope"):
        init.normal((3, 4), nx.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: init.variance_scaling((2, 2), mode="fan"), ValueError, "got mode 'fan'"),
        (lambda: init.variance_scaling((2, 2), distribution="cauchy"), ValueError, "got distribution 'cauchy'"),
        (lambda: init.variance_scaling((2, 2), scale=0.0), ValueError, "got scale 0.0"),
        (lambda: init.normal((2, -2)), ValueError, r"got shape \[2, -2\]"),
        (lambda: init.normal((2, 2), nx.int32), TypeError, "got dtype int32"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with nx.rng.run(seed=0), pytest.raises(error, match=message):
        call()
