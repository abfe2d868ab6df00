"""Elementwise functions agree with NumPy on values, broadcasting and special cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nx_strategies import array, broadcastable

from kaun import grad, nx

SEEDS = st.integers(0, 2**16)
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, -1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)


def close(tensor, expected, rtol=2e-6, atol=1e-6):
    expected = np.asarray(expected)
    assert tensor.shape == expected.shape
    np.testing.assert_allclose(tensor.numpy().astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol)


def pairs_of_special_values():
    a, b = np.meshgrid(SPECIAL, SPECIAL)
    return a.reshape(-1), b.reshape(-1)


@settings(max_examples=20, deadline=None)
@given(broadcastable(), SEEDS, st.sampled_from([np.float32, np.float64, np.int32, np.uint8]))
def test_arithmetic_broadcasts_as_numpy(shapes, seed, dtype):
    x, y = array(seed, shapes[0], dtype), array(seed + 1, shapes[1], dtype)
    a, b = nx.asarray(x), nx.asarray(y)
    results = [a + b, a - b, a * b, a < b, a <= b, a > b, a >= b, a == b, a != b, nx.maximum(a, b), nx.minimum(a, b)]
    nx.realize(*results)
    expected = [x + y, x - y, x * y, x < y, x <= y, x > y, x >= y, x == y, x != y, np.maximum(x, y), np.minimum(x, y)]
    for result, one in zip(results, expected, strict=True):
        assert result.dtype.numpy == one.dtype
        np.testing.assert_array_equal(result.numpy(), one)


@settings(max_examples=15, deadline=None)
@given(broadcastable(3), SEEDS)
def test_where_and_logic_broadcast_as_numpy(shapes, seed):
    c, x, y = array(seed, shapes[0], np.bool_), array(seed + 1, shapes[1]), array(seed + 2, shapes[2], np.int32, 0, 1)
    t, a, b = nx.asarray(c), nx.asarray(x), nx.asarray(y)
    results = [nx.where(t, a, b), nx.logical_and(t, b), nx.logical_or(t, b), nx.logical_xor(b, t), nx.logical_not(b)]
    nx.realize(*results)
    expected = [
        np.where(c, x, y.astype(np.float32)), np.logical_and(c, y), np.logical_or(c, y), np.logical_xor(y, c),
        np.logical_not(y),
    ]  # fmt: skip
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), one)
        assert result.shape == one.shape


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, np.float64])
def test_division_rounds_down_as_python(dtype):
    low = 0 if np.dtype(dtype).kind == "u" else -7
    x, y = (v.reshape(-1) for v in np.meshgrid(np.arange(low, 8), np.arange(low, 8)))
    keep = y != 0
    x, y = x[keep].astype(dtype), y[keep].astype(dtype)
    if np.dtype(dtype).kind == "f":
        x = x * dtype(0.3)
    a, b = nx.asarray(x), nx.asarray(y)
    floor, rest, true = a // b, a % b, a / b
    nx.realize(floor, rest, true)
    np.testing.assert_array_equal(floor.numpy(), x // y)
    np.testing.assert_allclose(rest.numpy(), x % y, rtol=1e-6)
    assert true.dtype is (nx.float64 if dtype is np.float64 else nx.float32)
    np.testing.assert_allclose(true.numpy(), x / y, rtol=1e-6)


def test_float_division_by_zero_and_infinity_is_numpys():
    x, y = pairs_of_special_values()
    with np.errstate(all="ignore"):
        expected = [x // y, x % y, x / y]
    a, b = nx.asarray(x), nx.asarray(y)
    results = [a // b, a % b, a / b]
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), one)


def test_integer_division_by_zero_gives_zero():
    a = nx.asarray([5, -5, 0])
    assert (a // 0).tolist() == (a % 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 7, -1, -3, 0.5, 2.0, 2.5, -0.5])
def test_powers_with_python_exponents_agree(exponent):
    x = np.array([0.25, 1.0, 1.5, 3.0], np.float32)
    close(nx.asarray(x) ** exponent, x**exponent)
    if isinstance(exponent, int):
        close((-nx.asarray(x)) ** exponent, (-x) ** exponent)


def test_integer_powers_wrap_and_refuse_negative_exponents():
    base, exponent = np.array([3, -2, 0, 1, -1, 7]), np.array([5, 3, 0, 900, 77, 30])
    np.testing.assert_array_equal((nx.asarray(base) ** nx.asarray(exponent)).numpy(), base**exponent)
    np.testing.assert_array_equal((nx.asarray(base) ** 3).numpy(), base**3)
    np.testing.assert_array_equal((2 ** nx.arange(6)).numpy(), 2 ** np.arange(6))
    assert (nx.asarray([2, 1, -1, -1]) ** nx.asarray([-1, -5, -3, -2])).tolist() == [0, 1, -1, 1]
    with pytest.raises(ValueError, match=r"nx\.pow: integers .* negative integer power -1"):
        nx.asarray([2]) ** -1


UNARY = [
    (name, getattr(np, numpy_name), domain)
    for name, numpy_name, domain in [
        ("exp", "exp", (-5, 5)), ("expm1", "expm1", (-2, 2)), ("exp2", "exp2", (-8, 8)), ("log", "log", (0, 9)),
        ("log1p", "log1p", (-1, 5)), ("log2", "log2", (0, 9)), ("log10", "log10", (0, 9)), ("sqrt", "sqrt", (0, 9)),
        ("sin", "sin", (-9, 9)), ("cos", "cos", (-9, 9)), ("tan", "tan", (-1.5, 1.5)), ("asin", "arcsin", (-1, 1)),
        ("acos", "arccos", (-1, 1)), ("atan", "arctan", (-9, 9)), ("sinh", "sinh", (-12, 12)),
        ("cosh", "cosh", (-12, 12)), ("tanh", "tanh", (-5, 5)), ("asinh", "arcsinh", (-1e5, 1e5)),
        ("acosh", "arccosh", (1, 9)), ("atanh", "arctanh", (-1, 1)), ("square", "square", (-3, 3)),
        ("reciprocal", "reciprocal", (0.5, 3)), ("floor", "floor", (-5, 5)), ("ceil", "ceil", (-5, 5)),
        ("trunc", "trunc", (-5, 5)), ("round", "round", (-5, 5)), ("sign", "sign", (-5, 5)), ("abs", "abs", (-5, 5)),
    ]
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_one_argument_agree_with_numpy(dtype):
    results, expected = [], []
    for name, reference, (low, high) in UNARY:
        x = np.concatenate([np.linspace(low, high, 101), [0.5 * (low + high) + 1e-4, 0.5]]).astype(dtype)
        results.append(getattr(nx, name)(nx.asarray(x)))
        with np.errstate(all="ignore"):
            expected.append(reference(x.astype(np.float64)))
    nx.realize(*results)
    tolerance = 3e-6 if dtype is np.float32 else 1e-14
    for (name, _, _), result, one in zip(UNARY, results, expected, strict=True):
        np.testing.assert_allclose(result.numpy(), one, rtol=tolerance, atol=tolerance / 10, err_msg=name)


def test_functions_of_one_argument_treat_special_values_as_numpy():
    names = [u for u in UNARY if u[0] not in ("sin", "cos", "tan", "sinh", "cosh", "square", "exp2")]
    results = [getattr(nx, name)(nx.asarray(SPECIAL)) for name, _, _ in names]
    nx.realize(*results)
    for (name, reference, _), result in zip(names, results, strict=True):
        with np.errstate(all="ignore"):
            expected = reference(SPECIAL)
        np.testing.assert_allclose(result.numpy(), expected, rtol=2e-6, err_msg=name)


def test_sinh_and_cosh_overflow_only_where_the_result_does():
    x = np.array([-89.0, 88.9, 89.2, 90.0, np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    with np.errstate(all="ignore"):
        close(nx.sinh(x), np.sinh(x), rtol=2e-5)
        close(nx.cosh(x), np.cosh(x), rtol=2e-5)
    assert np.signbit(nx.sinh(x).numpy()[8])


def test_functions_of_two_arguments_treat_special_values_as_numpy():
    x, y = pairs_of_special_values()
    a, b = nx.asarray(x), nx.asarray(y)
    results = [nx.atan2(a, b), nx.hypot(a, b), nx.logaddexp(a, b), nx.copysign(a, b), nx.maximum(a, b)]
    nx.realize(*results)
    functions = [np.arctan2, np.hypot, np.logaddexp, np.copysign, np.maximum]
    for function, result in zip(functions, results, strict=True):
        with np.errstate(all="ignore"):
            expected = function(x, y)
        if function is np.hypot:  # NumPy: infinite even beside NaN; here too.
            assert np.isinf(result.numpy()[np.isinf(expected)]).all()
        np.testing.assert_allclose(result.numpy(), expected, rtol=2e-6, err_msg=function.__name__)
        if function is not np.maximum:  # Which of 0.0 and -0.0 is greater is left open.
            known = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(result.numpy())[known], np.signbit(expected)[known])


def test_classification_agrees_with_numpy_for_every_dtype():
    for dtype in (np.float16, np.float32, np.float64):
        x = [*SPECIAL[:8].astype(dtype).tolist(), math.inf, -math.inf, math.nan]
        x = np.array(x, dtype)
        for name in ("isnan", "isinf", "isfinite", "signbit"):
            np.testing.assert_array_equal(getattr(nx, name)(x).numpy(), getattr(np, name)(x))
    assert nx.isfinite([1, 2]).tolist() == [True, True] and nx.isinf([1]).tolist() == [False]
    assert nx.isclose([1.0, math.inf, 1.0], [1.0 + 1e-7, math.inf, 2.0]).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.uint32])
def test_bit_operations_agree_with_numpy(dtype):
    x, y = array(1, (20,), dtype, -100, 100), array(2, (20,), dtype, -100, 100)
    a, b = nx.asarray(x), nx.asarray(y)
    results = [a & b, a | b, a ^ b, ~a]
    expected = [x & y, x | y, x ^ y, ~x]
    if dtype is not np.bool_:
        amount = (np.abs(y.astype(np.int64)) % (x.itemsize * 8)).astype(dtype)
        results += [a << nx.asarray(amount), a >> nx.asarray(amount), 1 << nx.asarray(amount % 4)]
        expected += [x << amount, x >> amount, 1 << (amount % 4)]
    nx.realize(*results)
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), one)


def test_clip_takes_either_bound():
    x = np.array([-2.0, 0.5, 3.0, np.nan], np.float32)
    close(nx.clip(x, -1, 1), np.clip(x, -1, 1))
    close(nx.clip(x, min=0.0), np.clip(x, 0.0, None))
    close(nx.clip(x, max=[0.0, 0.0, 1.0, 1.0]), np.minimum(x, [0, 0, 1, 1]))
    assert nx.clip(nx.arange(5), 1, 3).tolist() == [1, 1, 2, 3, 3]


def test_casts_truncate_saturate_and_wrap():
    x = nx.asarray([1.9, -1.9, 300.0, -300.0, math.nan])
    assert x.astype(nx.int8).tolist() == [1, -1, 127, -128, 0]
    assert nx.asarray([300]).astype("uint8").tolist() == [44]
    assert x.astype(nx.bool).tolist() == [True] * 5
    assert nx.bitcast(nx.asarray([1.0]), nx.uint32).tolist() == [0x3F800000]
    with pytest.raises(TypeError, match=r"nx\.bitcast: got float32 to int8"):
        nx.bitcast(nx.asarray([1.0]), nx.int8)


def test_functions_refuse_dtypes_they_are_not_for():
    for call, name in [
        (lambda: nx.asarray([True]) + nx.asarray([True]), "nx.add"),
        (lambda: -nx.asarray([True]), "nx.negative"),
        (lambda: nx.asarray([1.0]) & 1, "nx.bitwise_and"),
        (lambda: ~nx.asarray([1.0]), "nx.bitwise_invert"),
        (lambda: nx.asarray([True]) // nx.asarray([True]), "nx.floor_divide"),
    ]:
        with pytest.raises(TypeError, match=f"^{name}: got "):
            call()


def test_activations_agree_with_their_formulas_and_stay_finite():
    x = np.array([-1e4, -90.0, -20.0, -1.0, -0.0, 0.0, 1e-3, 1.0, 20.0, 90.0, 1e4], np.float32)
    wide = x.astype(np.float64)
    a = nx.asarray(x)
    results = [nx.sigmoid(a), nx.softplus(a), nx.log_sigmoid(a), nx.relu(a), nx.erf(a)]
    nx.realize(*results)
    expected = [
        np.exp(-np.logaddexp(0, -wide)), np.logaddexp(wide, 0), -np.logaddexp(0, -wide), np.maximum(wide, 0),
        [math.erf(v) for v in wide],
    ]  # fmt: skip
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.numpy(), one, rtol=3e-6, atol=1e-37)
    assert np.isnan(nx.relu(math.nan).item())


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 5e-7), (np.float64, 1e-13)])
def test_erfinv_inverts_erf_up_to_the_ends(dtype, tolerance):
    eps = np.finfo(dtype).eps
    near_one = 1 - eps * 2.0 ** np.arange(-1, 20)
    x = np.concatenate([np.linspace(-0.999, 0.999, 500), near_one, -near_one, [1e-20, -1e-3]]).astype(dtype)
    for value, inverse in zip(x.tolist(), nx.erfinv(x).tolist(), strict=True):
        # What erf of the result misses, over the slope of erf, is the error; erfc is accurate near 1.
        size, result = abs(value), abs(inverse)
        missed = math.erf(result) - size if size < 0.5 else (1 - size) - math.erfc(result)
        slope = 2 / math.sqrt(math.pi) * math.exp(-result * result)
        assert abs(missed / slope) <= tolerance * result and (value > 0) == (inverse > 0), value
    assert nx.erfinv(np.zeros(1, dtype)).item() == 0
    ends = nx.erfinv(np.array([1, -1, 1.5], dtype)).numpy()
    assert ends[0] == np.inf and ends[1] == -np.inf and np.isnan(ends[2])


def test_derivatives_are_right_where_formulas_change():
    cases = [
        (nx.relu, 0.0, 0.0), (nx.sigmoid, 0.0, 0.25), (nx.softplus, 0.0, 0.5), (nx.log_sigmoid, 0.0, 0.5),
        (nx.sinh, 0.0, 1.0), (nx.cosh, 0.0, 0.0), (nx.asinh, 0.0, 1.0), (nx.atanh, 0.0, 1.0), (nx.sign, 0.0, 0.0),
        (nx.sigmoid, -200.0, 0.0), (nx.softplus, 200.0, 1.0), (nx.erfinv, 0.0, math.sqrt(math.pi) / 2),
        (lambda x: nx.atan2(x, 2.0), 0.0, 0.5), (lambda x: nx.atan2(2.0, x), 0.0, -0.5),
        (lambda x: nx.hypot(x, 4.0), 3.0, 0.6), (lambda x: nx.hypot(x, 3.0), 3.0, math.sqrt(0.5)),
        (lambda x: nx.logaddexp(x, 1.0), 1.0, 0.5), (lambda x: nx.logaddexp(-math.inf, x), 1.0, 1.0),
        (lambda x: x**2, 0.0, 0.0), (lambda x: x**3, -2.0, 12.0), (lambda x: x**-1, -2.0, -0.25),
        (lambda x: nx.prod(nx.stack([x, x + 3.0, x + 4.0])), 0.0, 12.0), (lambda x: x % 3.0, 4.0, 1.0),
        (lambda x: nx.logsumexp(nx.stack([x, x, x])), 5.0, 1.0), (lambda x: nx.copysign(x, -1.0), 2.0, -1.0),
        (lambda x: nx.softmax(nx.stack([x, nx.asarray(0.0)]))[0], 0.0, 0.25),
    ]  # fmt: skip
    gradients = [grad(function)(nx.asarray(point)) for function, point, _ in cases]
    nx.realize(*gradients)
    for number, (gradient, (_, _, expected)) in enumerate(zip(gradients, cases, strict=True)):
        np.testing.assert_allclose(gradient.item(), expected, rtol=1e-5, atol=1e-7, err_msg=f"case {number}")
