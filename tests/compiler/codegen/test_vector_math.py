"""The vector math is within 2 ulp of the exact result everywhere, and right in every special case of C99."""

from __future__ import annotations

import functools
import itertools
import math
import platform
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from kaun.compiler.codegen import vector_math
from kaun.tools.benchmark_vector_math import CompiledFunction, compile_function
from llvmlite import ir

Array = np.ndarray[Any, Any]

UNARY = sorted(vector_math.FUNCTIONS - {"pow"})
# (width, has_fma): without a fused multiply-add one width stands for all.
VARIANTS = [(1, True), (4, True), (8, True), (16, True), (8, False)]
LONG_DOUBLE_IS_WIDER = np.finfo(np.longdouble).nmant >= 63
INF, NAN = math.inf, math.nan


@functools.cache
def host_has_fma() -> bool:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool(llvm.get_host_cpu_features().get("fma", False))


@functools.cache
def compiled(function: str, dtype: Any, width: int, has_fma: bool = True) -> CompiledFunction:
    if has_fma and not host_has_fma():
        pytest.skip("the host has no fused multiply-add, and calls the library for llvm.fma")
    return compile_function(function, dtype, width, has_fma=has_fma)


# -- oracles ------------------------------------------------------------------------------------------------------


def exact_in_mpmath(function: str, *arguments: Array) -> Array:
    """Through mpmath, as the sum of two floats where long double holds that."""
    mp = pytest.importorskip("mpmath")
    call = {"pow": mp.power}.get(function) or getattr(mp, function)

    def one(*numbers: float) -> np.longdouble:
        with mp.workprec(160):
            exact = call(*(mp.mpf(float(number)) for number in numbers))
            high = float(exact)
            low = float(exact - high) if math.isfinite(high) else 0.0
        return np.longdouble(high) + np.longdouble(low)

    return np.array([one(*numbers) for numbers in zip(*arguments, strict=True)], np.longdouble)


def reference(function: str, *arguments: Array) -> Array:
    """The function in a wider format: NumPy's float64 for float32, its long double or mpmath for float64."""
    name = {"atan": "arctan", "pow": "power"}.get(function, function)
    with np.errstate(all="ignore"):
        if arguments[0].dtype == np.float32:
            wide = [argument.astype(np.float64) for argument in arguments]
            if function == "erf":
                return np.frompyfunc(math.erf, 1, 1)(wide[0]).astype(np.float64)
            return np.asarray(getattr(np, name)(*wide))
        if function == "erf" or not LONG_DOUBLE_IS_WIDER:
            return exact_in_mpmath(function, *arguments)
        return np.asarray(getattr(np, name)(*(argument.astype(np.longdouble) for argument in arguments)))


def ulp_error(got: Array, exact: Array) -> Array:
    """|got - exact| in units of the distance of the floats around exact; infinite for a wrong infinity or NaN."""
    information = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        nearest = exact.astype(got.dtype)
        _, exponent = np.frexp(np.abs(exact))
        least = information.minexp + 1
        unit = np.ldexp(exact.dtype.type(1), np.maximum(exponent, least) - information.nmant - 1)
        error = np.abs(got.astype(exact.dtype) - exact) / unit
    special = ~np.isfinite(nearest) | ~np.isfinite(got)
    agree = (got == nearest) | (np.isnan(got) & np.isnan(nearest))
    # Just below the overflow threshold infinity is the rounding of a finite neighbour: still one unit away.
    edge = np.isinf(got) & np.isfinite(exact) & (np.abs(exact) >= information.max) & (np.sign(got) == np.sign(exact))
    return np.where(special, np.where(agree | edge, 0.0, np.inf), error).astype(np.float64)


def assert_within_two_ulp(got: Array, exact: Array, *arguments: Array) -> None:
    error = ulp_error(got, exact)
    worst = int(np.argmax(error))
    inputs = ", ".join(repr(argument[worst]) for argument in arguments)
    assert error[worst] <= 2.0, f"{error[worst]} ulp at {inputs}: got {got[worst]!r}, expected {exact[worst]!r}"


# -- inputs -------------------------------------------------------------------------------------------------------


def float_of_bits(bits: Array, dtype: Any) -> Array:
    return bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)


def random_bits(random: np.random.Generator, count: int, dtype: Any) -> Array:
    return float_of_bits(random.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), count, dtype=np.uint64), dtype)


@functools.cache
def unary_inputs(function: str, dtype: Any) -> Array:
    """Any bits, both signs of every scale, and the ranges where the functions are used and hard."""
    slow_oracle = dtype == np.float64 and (function == "erf" or not LONG_DOUBLE_IS_WIDER)
    count = 500 if slow_oracle else 30_000
    random = np.random.default_rng(7)
    scales = np.ldexp(random.uniform(-1, 1, count), random.integers(-70, 1, count))
    uniform = [random.uniform(-bound, bound, count) for bound in (1, 6, 20, 110, 750, 1e6)]
    near_one = 1 + random.uniform(-0.6, 1.5, count)
    multiples = np.arange(1, count + 1) * (math.pi / 4)
    edges = [0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, np.finfo(dtype).max, np.finfo(dtype).tiny]
    edges += [np.finfo(dtype).smallest_subnormal, -np.finfo(dtype).smallest_subnormal, 2.0**17, 2.0**20]
    parts = [scales, *uniform, near_one, multiples, np.array(edges)]
    return np.concatenate([random_bits(random, 3 * count, dtype), *(part.astype(dtype) for part in parts)])


@functools.cache
def unary_reference(function: str, dtype: Any) -> Array:
    return reference(function, unary_inputs(function, dtype))


@functools.cache
def pow_case(dtype: Any) -> tuple[Array, Array, Array]:
    """Bases and exponents whose powers span all of the format, and the powers."""
    count = 20_000 if LONG_DOUBLE_IS_WIDER else 1_000
    random = np.random.default_rng(8)
    largest = 104 if dtype == np.float32 else 745
    any_base = np.abs(random_bits(random, count, dtype))
    scale = random.uniform(-1.1 * np.finfo(dtype).nmant, -1, count)
    near_one = np.abs(1 + random.standard_normal(count) * np.exp2(scale)).astype(dtype)
    positive = np.concatenate([any_base, near_one])
    with np.errstate(all="ignore"):
        exponents = random.uniform(-largest, largest, 2 * count) / np.log(positive.astype(np.longdouble))
        steered = exponents.astype(dtype)
    bases = [positive, random_bits(random, count, dtype), random.uniform(0, 10, count), -random.integers(1, 50, count)]
    powers = [steered, random_bits(random, count, dtype), random.uniform(-9, 9, count), random.integers(-30, 30, count)]
    x, y = (np.concatenate([part.astype(dtype) for part in parts]) for parts in (bases, powers))
    return x, y, reference("pow", x, y)


# -- accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", UNARY)
def test_unary_functions_are_within_two_ulp_at_every_width(function: str, dtype: Any) -> None:
    x, exact = unary_inputs(function, dtype), unary_reference(function, dtype)
    for width, has_fma in VARIANTS:
        if has_fma <= host_has_fma():
            assert_within_two_ulp(compiled(function, dtype, width, has_fma)(x), exact, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pow_is_within_two_ulp_at_every_width(dtype: Any) -> None:
    x, y, exact = pow_case(dtype)
    for width, has_fma in VARIANTS:
        if has_fma <= host_has_fma():
            assert_within_two_ulp(compiled("pow", dtype, width, has_fma)(x, y), exact, x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", ["tanh", "erf", "sin", "cos"])
def test_bounded_functions_never_leave_their_bounds(function: str, dtype: Any) -> None:
    x = unary_inputs(function, dtype)
    got = compiled(function, dtype, 8, host_has_fma())(x)
    assert np.nanmax(np.abs(got)) <= 1.0


@pytest.mark.parametrize("function", sorted(vector_math.FUNCTIONS))
def test_every_width_gives_the_same_bits(function: str) -> None:
    if function == "pow":
        arguments = list(pow_case(np.float32)[:2])
    else:
        arguments = [unary_inputs(function, np.float32)]
    scalar = compiled(function, np.float32, 1, host_has_fma())(*arguments)
    for width in (3, 4, 16):
        vector = compiled(function, np.float32, width, host_has_fma())(*arguments)
        np.testing.assert_array_equal(vector, scalar)


# -- special cases ------------------------------------------------------------------------------------------------

SPECIAL_CASES = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (NAN, NAN), (1e3, INF), (-1e3, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (NAN, NAN), (-1e3, -1.0), (1e-42, 1e-42)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-INF, NAN), (-1.0, NAN), (NAN, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-INF, NAN), (-2.0, NAN), (1e-42, 1e-42)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (NAN, NAN), (1e-42, 1e-42)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN), (NAN, NAN), (1e-42, 1.0)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN), (1e-42, 1e-42)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2), (NAN, NAN), (1e-42, 1e-42)],
}

# C99 F.10.4.4, in its order.
POW_SPECIAL_CASES = [
    *[(zero, -3.0, math.copysign(INF, zero)) for zero in (0.0, -0.0)],
    *[(zero, y, INF) for zero, y in itertools.product((0.0, -0.0), (-2.0, -0.5, -INF))],
    *[(zero, 3.0, zero) for zero in (0.0, -0.0)],
    *[(zero, y, 0.0) for zero, y in itertools.product((0.0, -0.0), (2.0, 0.5, INF))],
    *[(-1.0, y, 1.0) for y in (INF, -INF)],
    *[(1.0, y, 1.0) for y in (NAN, INF, -INF, 0.3)],
    *[(x, zero, 1.0) for x, zero in itertools.product((NAN, INF, -INF, 0.0, -0.0, -2.5), (0.0, -0.0))],
    *[(x, y, NAN) for x, y in itertools.product((-2.0, -1e-42, -1.0), (0.5, -1.5))],
    *[(x, -INF, INF) for x in (0.5, -0.5, 1e-42)],
    *[(x, -INF, 0.0) for x in (1.5, -1.5)],
    *[(x, INF, 0.0) for x in (0.5, -0.5, 1e-42)],
    *[(x, INF, INF) for x in (1.5, -1.5)],
    (-INF, -3.0, -0.0),
    *[(-INF, y, 0.0) for y in (-2.0, -0.5, -INF)],
    (-INF, 3.0, -INF),
    *[(-INF, y, INF) for y in (2.0, 0.5, INF)],
    *[(INF, y, 0.0) for y in (-3.0, -0.5, -INF)],
    *[(INF, y, INF) for y in (3.0, 0.5, INF)],
    *[(x, y, NAN) for x, y in ((NAN, 2.0), (2.0, NAN), (-1.0, NAN), (0.0, NAN), (NAN, INF))],
    *[(-2.0, y, math.pow(-2.0, y)) for y in (3.0, 4.0, -3.0, -4.0, 1.0)],
    (-1.0, 2.0**23 + 1, -1.0),
    (-1.0, 2.0**24, 1.0),
]


def assert_same_floats(got: Array, expected: Array) -> None:
    np.testing.assert_array_equal(got, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])


@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", UNARY)
def test_special_cases_follow_c99(function: str, dtype: Any, width: int) -> None:
    x, expected = np.array(SPECIAL_CASES[function]).T.astype(dtype)
    assert_same_floats(compiled(function, dtype, width, host_has_fma())(x), expected)


@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pow_special_cases_follow_c99(dtype: Any, width: int) -> None:
    x, y, expected = np.array(POW_SPECIAL_CASES).T.astype(dtype)
    assert_same_floats(compiled("pow", dtype, width, host_has_fma())(x, y), expected)


# -- code ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="names x86 features")
@pytest.mark.parametrize("features", ["", "+avx2", "+avx2,+fma", "+avx512f,+avx512dq,+avx512vl,+avx512bw,+fma"])
@pytest.mark.parametrize("function", sorted(vector_math.FUNCTIONS))
def test_no_target_calls_a_library(function: str, features: str) -> None:
    for dtype, width in itertools.product((np.float32, np.float64), (1, 8)):
        code = compile_function(function, dtype, width, has_fma="+fma" in features, features=features)
        assert "call" not in code.assembly


def emit_with(function: str, *types: ir.Type) -> None:
    module = ir.Module()
    callee = ir.Function(module, ir.FunctionType(ir.VoidType(), types), "callee")
    vector_math.emit(ir.IRBuilder(callee.append_basic_block()), function, callee.args)


def test_errors_say_what_was_given_and_what_was_expected() -> None:
    single, double = ir.FloatType(), ir.DoubleType()
    with pytest.raises(ValueError, match=r"vector_math\.emit: got function 'gamma', expected one of"):
        emit_with("gamma", single)
    with pytest.raises(ValueError, match="got 1 arguments for 'pow', expected 2"):
        emit_with("pow", single)
    with pytest.raises(TypeError, match="got i32 for 'exp', expected float"):
        emit_with("exp", ir.IntType(32))
    with pytest.raises(TypeError, match="got float, double for 'pow'"):
        emit_with("pow", single, double)


# -- exhaustive ---------------------------------------------------------------------------------------------------


def all_float32(chunk: int = 2**22) -> Iterator[Array]:
    for start in range(0, 2**32, chunk):
        yield np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)


def erf_reference(x: Array) -> Array:
    """The oracle of erf, called only where neither its series nor its limit is exact to float64."""
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        magnitude = np.abs(wide)
        square = wide * wide
        series = 2 / math.sqrt(math.pi) * wide * (1 - square * (1 / 3 - square / 10))
        exact = np.where(magnitude > 6, np.sign(wide), series)
    exact = np.where(np.isnan(wide), wide, exact)
    between = (magnitude > 2.0**-7) & (magnitude <= 6)
    exact[between] = reference("erf", x[between])
    return exact


@pytest.mark.slow
@pytest.mark.parametrize("has_fma", [True, False])
@pytest.mark.parametrize("function", UNARY)
def test_every_float32_is_within_two_ulp(function: str, has_fma: bool) -> None:
    code = compiled(function, np.float32, 16, has_fma)
    for x in all_float32():
        got = code(x)
        exact = erf_reference(x) if function == "erf" else reference(function, x)
        with np.errstate(all="ignore"):
            # Most results are correctly rounded; only the others are worth measuring.
            differs = got != exact.astype(np.float32)
        if differs.any():
            assert_within_two_ulp(got[differs], exact[differs], x[differs])


@pytest.mark.slow
def test_coefficients_are_what_the_script_derives() -> None:
    pytest.importorskip("mpmath")
    from kaun.tools import fit_polynomials

    derived = fit_polynomials.coefficients_text(fit_polynomials.all_fits())
    assert derived == fit_polynomials.COEFFICIENTS_FILE.read_text(encoding="utf-8")
