"""Elementwise functions of the array API: arithmetic, comparison, logic, bits, selection and conversion.

Every function of two tensors broadcasts its arguments and promotes their dtypes (`nx.result_type`); TypeError for a
dtype it does not take and ValueError for shapes that do not broadcast, at the call.
"""

from __future__ import annotations

from typing import Any

from kaun.compiler.ir import Node, dtypes, full, ops
from kaun.compiler.ir.graph import Op

from .errors import describe, invalid_type, invalid_value, restated
from .operands import NUMBERS, broadcast_shape, cast, floating, node_of, pair, promoted, spread
from .promotion import dtype_of
from .tensor import Tensor, TensorLike


def binary(function: str, op: Op, x1: TensorLike, x2: TensorLike) -> Tensor:
    """`op` on two arguments, promoted and broadcast."""
    if type(x1) is Tensor and type(x2) is Tensor and x1._node.dtype is x2._node.dtype:
        a, b = x1._node, x2._node
        if a.shape != b.shape:
            shape = broadcast_shape(function, a, b)
            a, b = spread(a, shape), spread(b, shape)
    else:
        a, b = pair(function, x1, x2)
    try:
        return Tensor(op(a, b))
    except (TypeError, ValueError) as error:
        raise restated(function, error) from None


def unary(function: str, op: Op, x: TensorLike) -> Tensor:
    """`op` on one argument."""
    try:
        return Tensor(op(node_of(function, x)))
    except (TypeError, ValueError) as error:
        raise error if str(error).startswith(function) else restated(function, error) from None


def float_unary(function: str, op: Op, x: TensorLike) -> Tensor:
    """`op` on one argument, integers and bools converted to float32."""
    return Tensor(op(floating(node_of(function, x))))


# Arithmetic.


def add(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 + x2. Numbers; integers wrap."""
    return binary("nx.add", ops.add, x1, x2)


def subtract(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 - x2. Numbers; integers wrap."""
    return binary("nx.subtract", ops.sub, x1, x2)


def multiply(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 * x2. Numbers; integers wrap."""
    return binary("nx.multiply", ops.mul, x1, x2)


def divide(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 / x2, the true quotient. Integers and bools are converted to float32 first."""
    a, b = pair("nx.divide", x1, x2)
    return Tensor(ops.div(floating(a), floating(b)))


def floor_divide(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """floor(x1 / x2), as Python's `//`. Numbers; an integer divided by zero gives 0."""
    a, b = _numbers("nx.floor_divide", x1, x2)
    if a.dtype.kind == "unsigned":
        return Tensor(ops.div(a, b))
    if a.dtype.kind == "signed":
        rest = ops.rem(a, b)
        return Tensor(ops.div(a, b) - ops.cast(_other_side(rest, b), dtype=a.dtype))
    # (a - a mod b) / b is whole but for rounding; plain floor(a / b) is one off when a / b rounds up to a whole number.
    zero = full(0, a.dtype, a.shape)
    rest = ops.rem(a, b)
    quotient = (a - rest) / b
    quotient = ops.where(_other_side(rest, b), quotient - 1.0, quotient)
    whole = ops.floor(quotient)
    whole = ops.where(ops.lt(full(0.5, a.dtype, a.shape), quotient - whole), whole + 1.0, whole)
    return Tensor(ops.where(ops.eq(b, zero), a / b, whole))


def remainder(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 - floor(x1 / x2) * x2, as Python's `%`: the sign is x2's. Numbers; an integer modulo zero gives 0."""
    a, b = _numbers("nx.remainder", x1, x2)
    rest = ops.rem(a, b)
    if a.dtype.kind == "unsigned":
        return Tensor(rest)
    return Tensor(ops.where(_other_side(rest, b), rest + b, rest))


def _numbers(function: str, x1: TensorLike, x2: TensorLike) -> tuple[Node, Node]:
    a, b = pair(function, x1, x2)
    if a.dtype.kind == "bool":
        raise invalid_type(function, f"got {describe(a, b)}, expected integers or floats")
    return a, b


def _other_side(rest: Node, divisor: Node) -> Node:
    """Where a truncated division's remainder is not zero and its sign is not the divisor's."""
    zero = full(0, rest.dtype, rest.shape)
    return ops.and_(ops.ne(rest, zero), ops.ne(ops.lt(rest, zero), ops.lt(divisor, zero)))


def pow(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 ** x2. Numbers.

    A whole Python number as exponent (up to 64) is computed by multiplications, 0.5 by a square root. Integers to a
    negative Python number: ValueError; to negative elements of a tensor: the true power rounded towards zero.
    Integer powers beyond the dtype wrap while the exponent is less than its number of bits, and are unspecified above.
    """
    if isinstance(x2, NUMBERS) and not isinstance(x2, bool) and not isinstance(x1, NUMBERS):
        base = node_of("nx.pow", x1)
        integers = base.dtype.is_integer and isinstance(x2, int)
        if integers and x2 < 0:
            raise invalid_value("nx.pow", f"integers ({describe(base)}) to the negative integer power {x2}")
        if (base.dtype.is_float and abs_number(x2) <= 64 and x2 == int(x2)) or (integers and x2 <= 64):
            power = _repeated(base, int(abs_number(x2)))
            return Tensor(full(1, power.dtype, power.shape) / power if x2 < 0 else power)
        if base.dtype.is_float and x2 == 0.5:
            return Tensor(ops.sqrt(base))
    a, b = _numbers("nx.pow", x1, x2)
    return Tensor(ops.pow_(a, b) if a.dtype.is_float else _integer_power(a, b))


def abs_number(value: float) -> float:
    """|value| of a Python number (this module's `abs` is the tensor function)."""
    return -value if value < 0 else value


def _repeated(base: Node, exponent: int) -> Node:
    """base ** exponent by repeated squaring."""
    result: Node | None = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return full(1, base.dtype, base.shape) if result is None else result


def _integer_power(base: Node, exponent: Node) -> Node:
    """Repeated squaring over the bits of an exponent in [0, bits of the dtype); products wrap."""
    dtype, shape = base.dtype, base.shape
    zero, one = full(0, dtype, shape), full(1, dtype, shape)
    result, square = one, base
    for bit in range(dtype.bits.bit_length() - 1):
        is_set = ops.ne(ops.and_(exponent, full(1 << bit, dtype, shape)), zero)
        result = ops.where(is_set, result * square, result)
        square = square * square
    # Outside, only 1 and -1 have a power that is not 0 or too large; they are their own inverses.
    unit, outside = ops.eq(base, one), ops.le(full(dtype.bits, dtype, shape), exponent)
    if dtype.kind == "signed":
        unit = ops.or_(unit, ops.eq(base, full(-1, dtype, shape)))
        outside = ops.or_(outside, ops.lt(exponent, zero))
    odd = ops.ne(ops.and_(exponent, one), zero)
    return ops.where(outside, ops.where(unit, ops.where(odd, base, one), zero), result)


def negative(x: TensorLike, /) -> Tensor:
    """-x. Numbers; unsigned integers wrap."""
    return unary("nx.negative", ops.neg, x)


def positive(x: TensorLike, /) -> Tensor:
    """x. Numbers."""
    return Tensor(node_of("nx.positive", x))


def abs(x: TensorLike, /) -> Tensor:
    """|x|. Numbers; the derivative at 0 is 0."""
    return unary("nx.abs", ops.abs_, x)


def sign(x: TensorLike, /) -> Tensor:
    """-1, 0 or 1 as x is below, at or above 0; NaN stays. Numbers; the derivative is 0."""
    node = node_of("nx.sign", x)
    if node.dtype.kind == "bool":
        raise invalid_type("nx.sign", f"got {describe(node)}, expected integers or floats")
    zero = full(0, node.dtype, node.shape)
    below, above = ops.cast(ops.lt(node, zero), dtype=node.dtype), ops.cast(ops.lt(zero, node), dtype=node.dtype)
    result = above - below
    return Tensor(ops.where(ops.ne(node, node), node, result) if node.dtype.is_float else result)


def square(x: TensorLike, /) -> Tensor:
    """x * x. Numbers."""
    return multiply(x, x)


def reciprocal(x: TensorLike, /) -> Tensor:
    """1 / x, in floats."""
    return divide(1.0, x)


def sqrt(x: TensorLike, /) -> Tensor:
    """The square root, in floats; NaN below 0."""
    return float_unary("nx.sqrt", ops.sqrt, x)


def rsqrt(x: TensorLike, /) -> Tensor:
    """1 / sqrt(x), in floats."""
    return divide(1.0, sqrt(x))


def floor(x: TensorLike, /) -> Tensor:
    """The greatest whole number <= x. Integers and bools are returned unchanged."""
    return _rounded("nx.floor", ops.floor, x)


def ceil(x: TensorLike, /) -> Tensor:
    """The least whole number >= x. Integers and bools are returned unchanged."""
    return _rounded("nx.ceil", ops.ceil, x)


def trunc(x: TensorLike, /) -> Tensor:
    """The whole number next to x towards 0. Integers and bools are returned unchanged."""
    return _rounded("nx.trunc", ops.trunc, x)


def round(x: TensorLike, /) -> Tensor:
    """The whole number nearest to x, the even one of two. Integers and bools are returned unchanged."""
    return _rounded("nx.round", ops.round_, x)


def _rounded(function: str, op: Op, x: TensorLike) -> Tensor:
    node = node_of(function, x)
    return Tensor(op(node) if node.dtype.is_float else node)


def maximum(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The greater of x1 and x2; NaN if either is."""
    return binary("nx.maximum", ops.maximum, x1, x2)


def minimum(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The lesser of x1 and x2; NaN if either is."""
    return binary("nx.minimum", ops.minimum, x1, x2)


def clip(x: TensorLike, /, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    """min(max(x, min), max), with None for no bound; x keeps its dtype unless a bound is a wider tensor."""
    result = Tensor(node_of("nx.clip", x))
    if min is not None:
        result = binary("nx.clip", ops.maximum, result, min)
    if max is not None:
        result = binary("nx.clip", ops.minimum, result, max)
    return result


def copysign(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """|x1| with the sign of x2, zeros and NaNs included, in floats."""
    a, b = pair("nx.copysign", x1, x2)
    a, b = floating(a), floating(b)
    return Tensor(ops.where(ops.ne(_sign_bit(a), _sign_bit(b)), -a, a))


def signbit(x: TensorLike, /) -> Tensor:
    """Whether the sign bit is set: also for -0.0. Floats (integers are converted); bool."""
    return Tensor(_sign_bit(floating(node_of("nx.signbit", x))))


def _sign_bit(node: Node) -> Node:
    bits = ops.bitcast(node, dtype=dtypes.BY_NAME[f"int{node.dtype.bits}"])
    return ops.lt(bits, full(0, bits.dtype, bits.shape))


# Exponentials and trigonometry that are primitive ops; the composed ones are in `special`.


def exp(x: TensorLike, /) -> Tensor:
    """e ** x, in floats."""
    return float_unary("nx.exp", ops.exp, x)


def expm1(x: TensorLike, /) -> Tensor:
    """e ** x - 1, accurate near 0, in floats."""
    return float_unary("nx.expm1", ops.expm1, x)


def log(x: TensorLike, /) -> Tensor:
    """The natural logarithm, in floats; -inf at 0 and NaN below."""
    return float_unary("nx.log", ops.log, x)


def log1p(x: TensorLike, /) -> Tensor:
    """log(1 + x), accurate near 0, in floats."""
    return float_unary("nx.log1p", ops.log1p, x)


def sin(x: TensorLike, /) -> Tensor:
    """The sine of x in radians, in floats."""
    return float_unary("nx.sin", ops.sin, x)


def cos(x: TensorLike, /) -> Tensor:
    """The cosine of x in radians, in floats."""
    return float_unary("nx.cos", ops.cos, x)


def atan(x: TensorLike, /) -> Tensor:
    """The arc tangent in (-pi/2, pi/2), in floats."""
    return float_unary("nx.atan", ops.atan, x)


def tanh(x: TensorLike, /) -> Tensor:
    """The hyperbolic tangent, in floats."""
    return float_unary("nx.tanh", ops.tanh, x)


def erf(x: TensorLike, /) -> Tensor:
    """The error function 2 / sqrt(pi) * integral of exp(-t**2) from 0 to x, in floats."""
    return float_unary("nx.erf", ops.erf, x)


# Comparison: bool results.


def equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 == x2; NaN equals nothing."""
    return binary("nx.equal", ops.eq, x1, x2)


def not_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 != x2."""
    return binary("nx.not_equal", ops.ne, x1, x2)


def less(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 < x2."""
    return binary("nx.less", ops.lt, x1, x2)


def less_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 <= x2."""
    return binary("nx.less_equal", ops.le, x1, x2)


def greater(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 > x2."""
    return binary("nx.greater", ops.lt, x2, x1)


def greater_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 >= x2."""
    return binary("nx.greater_equal", ops.le, x2, x1)


def isnan(x: TensorLike, /) -> Tensor:
    """Whether an element is NaN; bool."""
    node = node_of("nx.isnan", x)
    return Tensor(ops.ne(node, node))


def isinf(x: TensorLike, /) -> Tensor:
    """Whether an element is infinite; bool."""
    node = node_of("nx.isinf", x)
    if not node.dtype.is_float:
        return Tensor(full(False, dtypes.bool_, node.shape))
    return Tensor(ops.eq(ops.abs_(node), full(float("inf"), node.dtype, node.shape)))


def isfinite(x: TensorLike, /) -> Tensor:
    """Whether an element is neither infinite nor NaN; bool."""
    node = node_of("nx.isfinite", x)
    if not node.dtype.is_float:
        return Tensor(full(True, dtypes.bool_, node.shape))
    return Tensor(ops.lt(ops.abs_(node), full(float("inf"), node.dtype, node.shape)))


def isclose(x1: TensorLike, x2: TensorLike, /, *, rtol: float = 1e-5, atol: float = 1e-8) -> Tensor:
    """|x1 - x2| <= atol + rtol * |x2|, and equal infinities; bool."""
    a, b = pair("nx.isclose", x1, x2)
    first, second = Tensor(floating(a)), Tensor(floating(b))
    near = less_equal(abs(first - second), atol + rtol * abs(second))
    return logical_or(equal(first, second), logical_and(near, isfinite(second)))


# Logic, on truth values: an element is true if it is not zero.


def truth(function: str, x: TensorLike) -> Node:
    """The argument as a bool node."""
    return cast(node_of(function, x), dtypes.bool_)


def _logical(function: str, op: Op, x1: TensorLike, x2: TensorLike) -> Tensor:
    a, b = truth(function, x1), truth(function, x2)
    shape = broadcast_shape(function, a, b)
    return Tensor(op(spread(a, shape), spread(b, shape)))


def logical_and(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether both are true; bool."""
    return _logical("nx.logical_and", ops.and_, x1, x2)


def logical_or(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether either is true; bool."""
    return _logical("nx.logical_or", ops.or_, x1, x2)


def logical_xor(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether exactly one is true; bool."""
    return _logical("nx.logical_xor", ops.xor, x1, x2)


def logical_not(x: TensorLike, /) -> Tensor:
    """Whether an element is not true; bool."""
    return Tensor(ops.not_(truth("nx.logical_not", x)))


# Bits, of integers and bools.


def bitwise_and(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 & x2, bit by bit."""
    return binary("nx.bitwise_and", ops.and_, x1, x2)


def bitwise_or(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 | x2, bit by bit."""
    return binary("nx.bitwise_or", ops.or_, x1, x2)


def bitwise_xor(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 ^ x2, bit by bit."""
    return binary("nx.bitwise_xor", ops.xor, x1, x2)


def bitwise_invert(x: TensorLike, /) -> Tensor:
    """~x, bit by bit; for bools, not."""
    return unary("nx.bitwise_invert", ops.not_, x)


def bitwise_left_shift(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 * 2 ** x2; amounts outside of [0, bits) shift everything out."""
    return binary("nx.bitwise_left_shift", ops.shift_left, x1, x2)


def bitwise_right_shift(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """floor(x1 / 2 ** x2); amounts outside of [0, bits) shift everything out."""
    return binary("nx.bitwise_right_shift", ops.shift_right, x1, x2)


# Selection and conversion.


def where(condition: TensorLike, x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 where `condition` holds, x2 elsewhere. All three broadcast; x1 and x2 promote."""
    c = truth("nx.where", condition)
    a, b = promoted("nx.where", x1, x2)
    if not (c.shape == a.shape == b.shape):
        shape = broadcast_shape("nx.where", c, a, b)
        c, a, b = spread(c, shape), spread(a, shape), spread(b, shape)
    return Tensor(ops.where(c, a, b))


def astype(x: TensorLike, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """The elements converted to `dtype` by value.

    To bool: x != 0. Floats to integers: truncated towards 0, saturated, NaN to 0. Integers to integers: wrapped.
    `copy` is accepted for the standard; tensors are immutable, so it makes no difference.
    """
    return Tensor(cast(node_of("nx.astype", x), dtype_of("nx.astype", dtype)))


def bitcast(x: TensorLike, dtype: Any, /) -> Tensor:
    """The same bits read as another number type of the same size; TypeError for other types. No derivative."""
    target = dtype_of("nx.bitcast", dtype)
    try:
        return Tensor(ops.bitcast(node_of("nx.bitcast", x), dtype=target))
    except TypeError as error:
        raise restated("nx.bitcast", error) from None


def stop_gradient(x: TensorLike, /) -> Tensor:
    """x, as a constant for differentiation: its derivative is 0."""
    return unary("nx.stop_gradient", ops.stop_gradient, x)
