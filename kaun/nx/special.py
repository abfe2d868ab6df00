"""Functions composed of primitive ones, each in a form that stays accurate and differentiable at the extremes.

Integers and bools are converted to float32. The softmax family computes float16 and bfloat16 in float32 and rounds
once at the end.
"""

from __future__ import annotations

import math

from kaun.compiler.ir import Node, ops

from .elementwise import copysign
from .errors import describe, invalid_value
from .operands import cast, floating, node_of, normalize_axes, pair, spread
from .reductions import reduced
from .tensor import Axis, Tensor, TensorLike

_LN2 = math.log(2.0)


def _float_pair(function: str, x1: TensorLike, x2: TensorLike) -> tuple[Node, Node]:
    a, b = pair(function, x1, x2)
    return floating(a), floating(b)


def _float(function: str, x: TensorLike) -> Node:
    return floating(node_of(function, x))


def _minus_abs(node: Node) -> Node:
    """-|x|, with derivative -1 at 0: the one-sided slope that makes the forms below right at 0."""
    return ops.where(ops.lt(node, node.like(0.0)), node, -node)


def _size(node: Node) -> Node:
    """|x|, with derivative 1 at 0, so that an odd function of it with the sign put back has its slope there."""
    return ops.where(ops.lt(node, node.like(0.0)), -node, node)


# Exponentials and logarithms.


def exp2(x: TensorLike, /) -> Tensor:
    """2 ** x."""
    node = _float("nx.exp2", x)
    return Tensor(ops.pow_(node.like(2.0), node))


def log2(x: TensorLike, /) -> Tensor:
    """The logarithm to base 2."""
    return Tensor(ops.log(_float("nx.log2", x)) * (1.0 / _LN2))


def log10(x: TensorLike, /) -> Tensor:
    """The logarithm to base 10."""
    return Tensor(ops.log(_float("nx.log10", x)) * (1.0 / math.log(10.0)))


def logaddexp(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """log(exp(x1) + exp(x2)) = max + log1p(exp(-|x1 - x2|)), without overflow."""
    a, b = _float_pair("nx.logaddexp", x1, x2)
    swap = ops.lt(a, b)
    high, low = ops.where(swap, b, a), ops.where(swap, a, b)
    # Where the greater one is infinite it is the result, and the difference could be inf - inf.
    gap = ops.where(ops.eq(ops.abs_(high), high.like(math.inf)), high.like(0.0), low - high)
    bounded = ops.where(ops.eq(ops.abs_(high), high.like(math.inf)), high.like(0.0), ops.log1p(ops.exp(gap)))
    return Tensor(ops.where(ops.ne(b, b), b, high + bounded))


# Trigonometry and hyperbolic functions.


def tan(x: TensorLike, /) -> Tensor:
    """sin(x) / cos(x)."""
    node = _float("nx.tan", x)
    return Tensor(ops.sin(node) / ops.cos(node))


def asin(x: TensorLike, /) -> Tensor:
    """The arc sine in [-pi/2, pi/2], as 2 atan(x / (1 + sqrt((1 - x)(1 + x)))); NaN outside of [-1, 1]."""
    node = _float("nx.asin", x)
    return Tensor(ops.atan(node / (ops.sqrt((1.0 - node) * (1.0 + node)) + 1.0)) * 2.0)


def acos(x: TensorLike, /) -> Tensor:
    """The arc cosine in [0, pi], as 2 atan(sqrt(1 - x) / sqrt(1 + x)); NaN outside of [-1, 1]."""
    node = _float("nx.acos", x)
    return Tensor(ops.atan(ops.sqrt(1.0 - node) / ops.sqrt(1.0 + node)) * 2.0)


def atan2(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The angle in [-pi, pi] of the point (x2, x1), in the right quadrant, signed zeros and infinities included."""
    y, x = _float_pair("nx.atan2", x1, x2)
    height, width = _size(y), _size(x)
    steep = ops.lt(width, height)
    high, low = ops.where(steep, height, width), ops.where(steep, width, height)
    # Both infinite: 45 degrees; both zero: none.
    infinite = ops.and_(ops.eq(high, low), ops.eq(high, high.like(math.inf)))
    one = high.like(1.0)
    divisor = ops.where(ops.or_(infinite, ops.eq(high, high.like(0.0))), one, high)
    angle = ops.atan(ops.where(infinite, one, low) / divisor)
    angle = ops.where(steep, math.pi / 2 - angle, angle)
    left = ops.lt(copysign(1.0, Tensor(x))._node, x.like(0.0))
    return copysign(Tensor(ops.where(left, math.pi - angle, angle)), Tensor(y))


def sinh(x: TensorLike, /) -> Tensor:
    """(exp(x) - exp(-x)) / 2, from expm1 near 0 and from exp(x / 2) squared where exp(x) overflows."""
    node = _float("nx.sinh", x)
    size = _size(node)
    limit = size.like(10.0 if node.dtype.compute.bits == 32 else 20.0)  # From here on exp(-x) does not count.
    e = ops.expm1(ops.minimum(size, limit))
    half = ops.exp(size * 0.5)
    result = ops.where(ops.lt(limit, size), (half * 0.5) * half, (e + e / (e + 1.0)) * 0.5)
    return copysign(Tensor(result), Tensor(node))


def cosh(x: TensorLike, /) -> Tensor:
    """(exp(x) + exp(-x)) / 2, from exp(x / 2) squared, which overflows only where the result does."""
    node = _float("nx.cosh", x)
    half = ops.exp(_size(node) * 0.5)
    return Tensor((half * 0.5) * half + 0.5 / half / half)


def asinh(x: TensorLike, /) -> Tensor:
    """log(x + sqrt(x * x + 1)), as log1p(|x| + x * x / (1 + sqrt(x * x + 1))) with the sign of x."""
    node = _float("nx.asinh", x)
    size = _size(node)
    large = ops.lt(size.like(2.0**13 if node.dtype.compute.bits == 32 else 2.0**28), size)
    safe = ops.where(large, size.like(1.0), size)
    squared = safe * safe
    near = ops.log1p(safe + squared / (ops.sqrt(squared + 1.0) + 1.0))
    far = ops.log(ops.where(large, size, size.like(1.0))) + _LN2
    return copysign(Tensor(ops.where(large, far, near)), Tensor(node))


def acosh(x: TensorLike, /) -> Tensor:
    """log(x + sqrt(x * x - 1)), as log1p(t + sqrt(t) * sqrt(t + 2)) with t = x - 1; NaN below 1."""
    node = _float("nx.acosh", x)
    large = ops.lt(node.like(2.0**13 if node.dtype.compute.bits == 32 else 2.0**28), node)
    t = ops.where(large, node.like(2.0), node) - 1.0
    near = ops.log1p(t + ops.sqrt(t) * ops.sqrt(t + 2.0))
    far = ops.log(ops.where(large, node, node.like(1.0))) + _LN2
    return Tensor(ops.where(large, far, near))


def atanh(x: TensorLike, /) -> Tensor:
    """(log1p(x) - log1p(-x)) / 2; infinite at -1 and 1, NaN outside."""
    node = _float("nx.atanh", x)
    return Tensor((ops.log1p(node) - ops.log1p(-node)) * 0.5)


def hypot(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """sqrt(x1 * x1 + x2 * x2) without overflow; infinite if either is."""
    a, b = (ops.abs_(node) for node in _float_pair("nx.hypot", x1, x2))
    high, low = ops.maximum(a, b), ops.minimum(a, b)
    infinite = ops.or_(ops.eq(a, a.like(math.inf)), ops.eq(b, b.like(math.inf)))
    flat = ops.or_(infinite, ops.eq(high, high.like(0.0)))
    ratio = ops.where(flat, high.like(0.0), low) / ops.where(flat, high.like(1.0), high)
    return Tensor(ops.where(infinite, high.like(math.inf), high * ops.sqrt(ratio * ratio + 1.0)))


# Activations and the softmax family.


def relu(x: TensorLike, /) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    node = node_of("nx.relu", x)
    return Tensor(ops.where(ops.le(node, node.like(0)), node.like(0), node))


def sigmoid(x: TensorLike, /) -> Tensor:
    """1 / (1 + exp(-x)), from exp(-|x|), which does not overflow."""
    node = _float("nx.sigmoid", x)
    e = ops.exp(_minus_abs(node))
    return Tensor(ops.where(ops.lt(node, node.like(0.0)), e, node.like(1.0)) / (e + 1.0))


def softplus(x: TensorLike, /) -> Tensor:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    node = _float("nx.softplus", x)
    positive = ops.where(ops.lt(node, node.like(0.0)), node.like(0.0), node)
    return Tensor(positive + ops.log1p(ops.exp(_minus_abs(node))))


def log_sigmoid(x: TensorLike, /) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x)."""
    return -softplus(-Tensor(_float("nx.log_sigmoid", x)))


def _shifted(function: str, x: TensorLike, axis: Axis) -> tuple[Node, tuple[int, ...], Node, Node]:
    """(x, axes, the greatest element along them with axes kept, x less that), in the compute dtype.

    Subtracting the greatest element keeps exp from overflowing; the result does not depend on it, so neither does
    the derivative.
    """
    node = _float(function, x)
    wide = cast(node, node.dtype.compute)
    axes = normalize_axes(function, axis, node.rank)
    if any(node.shape[a] == 0 for a in axes):
        raise invalid_value(function, f"got {describe(node)}: no elements along axis {axis}")
    highest = ops.stop_gradient(reduced(wide, axes, True, ops.reduce_max))
    return node, axes, highest, wide - spread(highest, wide.shape)


def softmax(x: TensorLike, /, axis: Axis = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, computed from x - max(x)."""
    node, axes, _, shifted = _shifted("nx.softmax", x, axis)
    e = ops.exp(shifted)
    result = e / spread(reduced(e, axes, True, ops.reduce_sum), e.shape)
    return Tensor(cast(result, node.dtype))


def log_softmax(x: TensorLike, /, axis: Axis = -1) -> Tensor:
    """log(softmax(x)) = x - max(x) - log(sum(exp(x - max(x)))) along `axis`."""
    node, axes, _, shifted = _shifted("nx.log_softmax", x, axis)
    total = ops.log(reduced(ops.exp(shifted), axes, True, ops.reduce_sum))
    return Tensor(cast(shifted - spread(total, shifted.shape), node.dtype))


def logsumexp(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) along `axis` (None: all axes) = max(x) + log(sum(exp(x - max(x)))).

    -inf over elements that are all -inf.
    """
    node = _float("nx.logsumexp", x)
    wide = cast(node, node.dtype.compute)
    axes = normalize_axes("nx.logsumexp", axis, node.rank)
    highest = ops.stop_gradient(reduced(wide, axes, True, ops.reduce_max))
    # inf - inf is NaN: infinite extremes are left out of the shift.
    finite = ops.lt(ops.abs_(highest), highest.like(math.inf))
    shift = ops.where(finite, highest, highest.like(0.0))
    total = ops.log(reduced(ops.exp(wide - spread(shift, wide.shape)), axes, True, ops.reduce_sum)) + shift
    if not keepdims:
        total = ops.reshape(total, shape=tuple(n for a, n in enumerate(node.shape) if a not in axes))
    return Tensor(cast(total, node.dtype))
