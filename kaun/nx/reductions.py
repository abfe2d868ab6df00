"""Reductions along axes: sums, products, extrema and their places, truth, counts and running sums.

`axis` is an int, a sequence of ints or None (all axes); negative axes count from the back; `keepdims` keeps the
reduced axes with extent 1. ValueError for an axis out of range or named twice.
"""

from __future__ import annotations

import builtins
from typing import Any

from kaun.compiler.ir import Node, dtypes, full, ops
from kaun.compiler.ir.graph import Op

from .elementwise import truth
from .errors import describe, invalid_type, invalid_value
from .operands import cast, node_of, normalize_axes, normalize_axis
from .promotion import accumulator, dtype_of
from .tensor import Axis, Tensor, TensorLike


def reduced(node: Node, axes: tuple[int, ...], keepdims: bool, op: Op) -> Node:
    """`op` along the (normalised) axes."""
    result = op(node, axes=axes) if axes else node
    if keepdims and axes:
        result = ops.reshape(result, shape=tuple(1 if a in axes else n for a, n in enumerate(node.shape)))
    return result


def sum(x: TensorLike, /, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum along `axis`; 0 over no elements.

    Without `dtype`, bools and integers are summed and returned in 64 bits and floats in their own dtype.
    """
    node = node_of("nx.sum", x)
    node = cast(node, accumulator(node.dtype) if dtype is None else dtype_of("nx.sum", dtype))
    if node.dtype.kind == "bool":
        raise invalid_type("nx.sum", "got dtype bool for the sum, expected a number type")
    return Tensor(reduced(node, normalize_axes("nx.sum", axis, node.rank), keepdims, ops.reduce_sum))


def prod(x: TensorLike, /, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product along `axis`; 1 over no elements. The dtype is as for `nx.sum`.

    Computed by halving: log2(n) rounds of multiplying one half by the other, so it is differentiable at zeros.
    """
    node = node_of("nx.prod", x)
    node = cast(node, accumulator(node.dtype) if dtype is None else dtype_of("nx.prod", dtype))
    if node.dtype.kind == "bool":
        raise invalid_type("nx.prod", "got dtype bool for the product, expected a number type")
    axes = normalize_axes("nx.prod", axis, node.rank)
    kept = tuple(a for a in range(node.rank) if a not in axes)
    extent = 1
    for a in axes:
        extent *= node.shape[a]
    outer = tuple(node.shape[a] for a in kept)
    result = cast(node, node.dtype.compute)
    result = ops.reshape(ops.permute(result, axes=kept + axes), shape=(*outer, extent))
    if extent == 0:
        result = full(1, result.dtype, (*outer, 1))
    while result.shape[-1] > 1:
        half = result.shape[-1] // 2
        product = _part(result, 0, half) * _part(result, half, 2 * half)
        rest = result.shape[-1] - 2 * half
        result = ops.concat(product, _part(result, 2 * half, 2 * half + 1), axis=len(outer)) if rest else product
    shape = tuple(1 if a in axes else n for a, n in enumerate(node.shape)) if keepdims else outer
    return Tensor(cast(ops.reshape(result, shape=shape), node.dtype))


def _part(node: Node, start: int, stop: int) -> Node:
    """Positions [start, stop) of the last axis."""
    rank = node.rank
    return ops.slice_(
        node, starts=(0,) * (rank - 1) + (start,), stops=(*node.shape[:-1], stop), steps=(1,) * rank
    )


def _extremum(function: str, x: TensorLike, axis: Axis, keepdims: bool, op: Op) -> Tensor:
    node = node_of(function, x)
    axes = normalize_axes(function, axis, node.rank)
    if builtins.any(node.shape[a] == 0 for a in axes):
        raise invalid_value(function, f"got {describe(node)}: no elements along axis {axis}")
    return Tensor(reduced(node, axes, keepdims, op))


def max(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The greatest element along `axis`; NaN if there is one. ValueError over no elements."""
    return _extremum("nx.max", x, axis, keepdims, ops.reduce_max)


def min(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The least element along `axis`; NaN if there is one. ValueError over no elements."""
    return _extremum("nx.min", x, axis, keepdims, ops.reduce_min)


def _place(function: str, x: TensorLike, axis: int | None, keepdims: bool, op: Op) -> Tensor:
    node = node_of(function, x)
    rank, extents = node.rank, node.shape
    if axis is None:
        node, position = ops.reshape(node, shape=(node.size,)), 0
        kept: tuple[int, ...] = (1,) * rank
    else:
        position = normalize_axis(function, axis, rank)
        kept = tuple(1 if a == position else n for a, n in enumerate(extents))
    if node.shape[position] == 0:
        raise invalid_value(function, f"got {describe(node)}: no elements along axis {axis}")
    result = op(node, axis=position)
    return Tensor(ops.reshape(result, shape=kept) if keepdims else result)


def argmax(x: TensorLike, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The int64 position of the greatest element along `axis` (None: of the flattened tensor), the first of equals.

    A NaN counts as the greatest. ValueError over no elements.
    """
    return _place("nx.argmax", x, axis, keepdims, ops.argmax)


def argmin(x: TensorLike, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The int64 position of the least element along `axis` (None: of the flattened tensor), the first of equals.

    A NaN counts as the least. ValueError over no elements.
    """
    return _place("nx.argmin", x, axis, keepdims, ops.argmin)


def any(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether an element along `axis` is not zero; bool, False over no elements."""
    node = truth("nx.any", x)
    return Tensor(reduced(node, normalize_axes("nx.any", axis, node.rank), keepdims, ops.reduce_max))


def all(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether no element along `axis` is zero; bool, True over no elements."""
    node = truth("nx.all", x)
    return Tensor(reduced(node, normalize_axes("nx.all", axis, node.rank), keepdims, ops.reduce_min))


def count_nonzero(x: TensorLike, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """How many elements along `axis` are not zero; int64."""
    node = cast(truth("nx.count_nonzero", x), dtypes.int64)
    return Tensor(reduced(node, normalize_axes("nx.count_nonzero", axis, node.rank), keepdims, ops.reduce_sum))


# Running sums work on blocks of this many positions.
_BLOCK = 32


def cumulative_sum(
    x: TensorLike, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """y[i] = x[0] + ... + x[i] along `axis`, which may be None only for one axis; the dtype is as for `nx.sum`.

    `include_initial` puts a 0 in front. Computed in blocks of 32: every position sums a window of its block, and the
    running sums of the block totals (found in the same way) are added.
    """
    node, position = _running("nx.cumulative_sum", x, axis, dtype)
    order = (*(a for a in range(node.rank) if a != position), position)
    narrow = node.dtype
    result = _running_sum(cast(ops.permute(node, axes=order), narrow.compute))
    return _running_result(cast(result, narrow), order, 0, include_initial)


def cumulative_prod(
    x: TensorLike, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """y[i] = x[0] * ... * x[i] along `axis`, which may be None only for one axis; the dtype is as for `nx.sum`.

    `include_initial` puts a 1 in front. Computed by doubling: Hillis and Steele, Data parallel algorithms (1986).
    """
    node, position = _running("nx.cumulative_prod", x, axis, dtype)
    order = (*(a for a in range(node.rank) if a != position), position)
    narrow = node.dtype
    result = cast(ops.permute(node, axes=order), narrow.compute)
    extent, distance = node.shape[position], 1
    while distance < extent:
        result = result * _shifted(result, distance, 1)
        distance *= 2
    return _running_result(cast(result, narrow), order, 1, include_initial)


def _running(function: str, x: TensorLike, axis: int | None, dtype: Any) -> tuple[Node, int]:
    node = node_of(function, x)
    node = cast(node, accumulator(node.dtype) if dtype is None else dtype_of(function, dtype))
    if node.dtype.kind == "bool":
        raise invalid_type(function, "got dtype bool for the result, expected a number type")
    if axis is None and node.rank != 1:
        raise invalid_value(function, f"got {describe(node)} without an axis, expected one axis")
    return node, normalize_axis(function, 0 if axis is None else axis, node.rank)


def _running_result(result: Node, order: tuple[int, ...], initial: int, include_initial: bool) -> Tensor:
    if include_initial:
        rank = result.rank
        zeros, low = (0,) * rank, (0,) * (rank - 1) + (1,)
        value = full(initial, result.dtype).attributes["value"]
        result = ops.pad(result, low=low, high=zeros, interior=zeros, value=value)
    return Tensor(ops.permute(result, axes=tuple(order.index(a) for a in range(len(order)))))


def _shifted(node: Node, distance: int, fill: int) -> Node:
    """Position i of the last axis becomes position i + distance; the first ones are `fill`."""
    kept = _part(node, 0, node.shape[-1] - distance)
    zeros, low = (0,) * node.rank, (0,) * (node.rank - 1) + (distance,)
    return ops.pad(kept, low=low, high=zeros, interior=zeros, value=full(fill, node.dtype).attributes["value"])


def _running_sum(node: Node) -> Node:
    """The running sum along the last axis."""
    extent, outer = node.shape[-1], node.shape[:-1]
    if extent <= 1:
        return node
    zero = full(0, node.dtype).attributes["value"]
    zeros = (0,) * node.rank
    width = extent if extent <= _BLOCK else _BLOCK
    blocks = -(-extent // width)
    padded = ops.pad(
        node, low=zeros, high=(*zeros[1:], blocks * width - extent), interior=zeros, value=zero
    )
    rows = ops.reshape(padded, shape=(*outer, blocks, width))
    # Position i sums the window that ends at i, of which what lies before the block is padding.
    before = ops.pad(rows, low=(*zeros, width - 1), high=(*zeros, 0), interior=(*zeros, 0), value=zero)
    windows = ops.window(before, axes=(rows.rank - 1,), sizes=(width,), strides=(1,), dilations=(1,))
    sums = ops.reduce_sum(windows, axes=(windows.rank - 1,))
    if blocks > 1:
        totals = ops.reshape(_part(sums, width - 1, width), shape=(*outer, blocks))
        earlier = _shifted(_running_sum(totals), 1, 0)
        sums = sums + ops.broadcast(ops.reshape(earlier, shape=(*outer, blocks, 1)), shape=sums.shape)
    return _part(ops.reshape(sums, shape=(*outer, blocks * width)), 0, extent)
