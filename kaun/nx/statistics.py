"""Statistics along axes: mean, variance, standard deviation, differences and norms.

`axis` is an int, a sequence of ints or None (all axes). Integers and bools are converted to float32; float16 and
bfloat16 are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

import math

from kaun.compiler.ir import Node, full, ops

from .errors import describe, invalid_value
from .movement import part
from .operands import cast, floating, node_of, normalize_axes, normalize_axis, spread
from .reductions import reduced
from .tensor import Axis, Tensor, TensorLike


def _mean(node: Node, axes: tuple[int, ...], keepdims: bool, lost: float = 0.0) -> Node:
    """The sum over the number of elements less `lost`; NaN (0 / 0) over none."""
    count = math.prod(node.shape[a] for a in axes) - lost
    total = reduced(node, axes, keepdims, ops.reduce_sum)
    return total / full(max(count, 0.0), total.dtype, total.shape)


def mean(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """sum(x) / n along `axis`; NaN over no elements."""
    node = floating(node_of("nx.mean", x))
    wide = cast(node, node.dtype.compute)
    result = _mean(wide, normalize_axes("nx.mean", axis, node.rank), keepdims)
    return Tensor(cast(result, node.dtype))


def _var(function: str, x: TensorLike, axis: Axis, correction: float, keepdims: bool) -> tuple[Node, Node]:
    node = floating(node_of(function, x))
    wide = cast(node, node.dtype.compute)
    axes = normalize_axes(function, axis, node.rank)
    centred = wide - spread(_mean(wide, axes, keepdims=True), wide.shape)
    return _mean(centred * centred, axes, keepdims, correction), node


def var(x: TensorLike, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """sum((x - mean(x)) ** 2) / (n - correction) along `axis`; `correction=1` is Bessel's."""
    result, node = _var("nx.var", x, axis, correction, keepdims)
    return Tensor(cast(result, node.dtype))


def std(x: TensorLike, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """sqrt(var(x)) along `axis`."""
    result, node = _var("nx.std", x, axis, correction, keepdims)
    return Tensor(cast(ops.sqrt(result), node.dtype))


def diff(x: TensorLike, /, axis: int = -1, *, n: int = 1) -> Tensor:
    """x[i + 1] - x[i] along `axis`, `n` times over; of bools, whether they differ."""
    node = node_of("nx.diff", x)
    place = normalize_axis("nx.diff", axis, node.rank)
    if n < 0:
        raise invalid_value("nx.diff", f"got n = {n}, expected none or more")
    for _ in range(n):
        extent = node.shape[place]
        after, before = part(node, place, min(1, extent), extent), part(node, place, 0, max(0, extent - 1))
        node = ops.ne(after, before) if node.dtype.kind == "bool" else after - before
    return Tensor(node)


def vector_norm(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False, ord: float = 2) -> Tensor:
    """(sum |x| ** ord) ** (1 / ord) along `axis` (None: all axes).

    `ord` inf is the greatest and -inf the least |x|, 0 the number of elements that are not 0.
    """
    node = floating(node_of("nx.vector_norm", x))
    axes = normalize_axes("nx.vector_norm", axis, node.rank)
    wide = cast(node, node.dtype.compute)
    if ord in (math.inf, -math.inf):
        if any(node.shape[a] == 0 for a in axes):
            raise invalid_value("nx.vector_norm", f"got {describe(node)}: no elements along axis {axis}")
        result = reduced(ops.abs_(wide), axes, keepdims, ops.reduce_max if ord > 0 else ops.reduce_min)
    elif ord == 0:
        hits = ops.cast(ops.ne(wide, full(0, wide.dtype, wide.shape)), dtype=wide.dtype)
        result = reduced(hits, axes, keepdims, ops.reduce_sum)
    elif ord == 1:
        result = reduced(ops.abs_(wide), axes, keepdims, ops.reduce_sum)
    elif ord == 2:
        result = ops.sqrt(reduced(wide * wide, axes, keepdims, ops.reduce_sum))
    else:
        powers = ops.pow_(ops.abs_(wide), full(ord, wide.dtype, wide.shape))
        total = reduced(powers, axes, keepdims, ops.reduce_sum)
        result = ops.pow_(total, full(1.0 / ord, wide.dtype, total.shape))
    return Tensor(cast(result, node.dtype))
