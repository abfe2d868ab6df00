"""Functions that make tensors: from data, filled, counted, and matrices of a given form."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kaun.compiler.ir import Node, dtypes, ops
from kaun.compiler.ir import full as full_node

from .elementwise import where
from .errors import describe, invalid_value
from .movement import broadcast_arrays, shape_of
from .operands import NUMBERS, cast, convert, node_of, spread
from .promotion import dtype_of, number_dtype, promote_number
from .tensor import Tensor, TensorLike


def asarray(obj: Any, /, dtype: Any = None, *, copy: bool | None = None) -> Tensor:
    """A tensor of what `obj` holds, in `dtype` (default: what `obj` suggests).

    `obj` is a tensor, a NumPy array or anything with `__array__` or `__dlpack__` (the dtype is kept), a Python number
    (bool, int64, float32) or nested lists and tuples of all of these (floats give float32, ints int64).

    `copy=None` copies a NumPy array unless nobody can write to it: changing the array later never changes the tensor.
    `copy=False` shares the memory; the caller promises not to write to it. ValueError if that is impossible (another
    dtype, not contiguous). TypeError for dtypes without a counterpart and for other objects.
    """
    return Tensor(convert("nx.asarray", obj, None if dtype is None else dtype_of("nx.asarray", dtype), copy))


def from_dlpack(x: Any, /) -> Tensor:
    """A tensor that shares the memory of an object with `__dlpack__`; whoever owns it must not write to it."""
    return Tensor(convert("nx.from_dlpack", np.from_dlpack(x), None, False))


def full(shape: int | Sequence[int], fill_value: TensorLike, /, *, dtype: Any = None) -> Tensor:
    """`fill_value` everywhere in `shape`; the dtype defaults to the one of `nx.asarray(fill_value)`."""
    target = shape_of("nx.full", shape)
    kind = None if dtype is None else dtype_of("nx.full", dtype)
    if isinstance(fill_value, NUMBERS):
        kind = kind or number_dtype(fill_value)
        if isinstance(fill_value, int):
            promote_number("nx.full", kind, fill_value)
        return Tensor(full_node(fill_value, kind, target))
    node = node_of("nx.full", fill_value)
    return Tensor(spread(node if kind is None else cast(node, kind), target))


def zeros(shape: int | Sequence[int], /, *, dtype: Any = dtypes.float32) -> Tensor:
    """0 everywhere in `shape`."""
    return Tensor(full_node(0, dtype_of("nx.zeros", dtype), shape_of("nx.zeros", shape)))


def ones(shape: int | Sequence[int], /, *, dtype: Any = dtypes.float32) -> Tensor:
    """1 everywhere in `shape`."""
    return Tensor(full_node(1, dtype_of("nx.ones", dtype), shape_of("nx.ones", shape)))


def empty(shape: int | Sequence[int], /, *, dtype: Any = dtypes.float32) -> Tensor:
    """The same as `nx.zeros`: a lazy tensor cannot be uninitialised."""
    return zeros(shape, dtype=dtype)


def _like(function: str, x: TensorLike, value: float, dtype: Any) -> Tensor:
    node = node_of(function, x)
    kind = node.dtype if dtype is None else dtype_of(function, dtype)
    promote_number(function, kind, int(value) if isinstance(value, int) else 0)
    return Tensor(full_node(value, kind, node.shape))


def full_like(x: TensorLike, /, fill_value: float, *, dtype: Any = None) -> Tensor:
    """The number `fill_value` in the shape of x, and its dtype unless one is given."""
    return _like("nx.full_like", x, fill_value, dtype)


def zeros_like(x: TensorLike, /, *, dtype: Any = None) -> Tensor:
    """0 in the shape of x, and its dtype unless one is given."""
    return _like("nx.zeros_like", x, 0, dtype)


def ones_like(x: TensorLike, /, *, dtype: Any = None) -> Tensor:
    """1 in the shape of x, and its dtype unless one is given."""
    return _like("nx.ones_like", x, 1, dtype)


def empty_like(x: TensorLike, /, *, dtype: Any = None) -> Tensor:
    """The same as `nx.zeros_like`."""
    return _like("nx.empty_like", x, 0, dtype)


def arange(start: float, /, stop: float | None = None, step: float = 1, *, dtype: Any = None) -> Tensor:
    """start + i * step for i = 0, 1, ... while it is before `stop`; `arange(n)` counts from 0 to n - 1.

    int64 for ints, float32 as soon as one argument is a float. ValueError for a step of 0.
    """
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise invalid_value("nx.arange", "got a step of 0")
    count = max(0, math.ceil((last - first) / step))
    whole = all(isinstance(value, int) for value in (first, last, step))
    if whole:
        count = len(range(int(first), int(last), int(step)))
    kind = dtype_of("nx.arange", dtype) if dtype is not None else dtypes.int64 if whole else dtypes.float32
    if kind.is_integer and count and whole:
        for value in (first, first + (count - 1) * step):
            promote_number("nx.arange", kind, int(value))
    return Tensor(cast(_affine(count, first, step, dtypes.int64 if whole else kind.compute), kind))


def _affine(count: int, start: float, step: float, kind: dtypes.DType) -> Node:
    """start + i * step along one axis."""
    if kind is dtypes.bool_:
        kind = dtypes.int64
    places = ops.iota(shape=(count,), axis=0, dtype=kind)
    if step != 1:
        places = places * full_node(step, kind, (count,))
    return places if start == 0 else places + full_node(start, kind, (count,))


def linspace(start: float, stop: float, /, num: int, *, dtype: Any = dtypes.float32, endpoint: bool = True) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop`, which is the last one unless `endpoint` is False."""
    count = operator.index(num)
    if count < 0:
        raise invalid_value("nx.linspace", f"got {count} numbers, expected none or more")
    kind = dtype_of("nx.linspace", dtype)
    wide = kind.compute if kind.is_float else dtypes.float64
    gaps = count - 1 if endpoint else count
    node = _affine(count, float(start), (float(stop) - float(start)) / max(gaps, 1), wide)
    if endpoint and count > 1:
        is_last = ops.eq(
            ops.iota(shape=(count,), axis=0, dtype=dtypes.int64), full_node(count - 1, dtypes.int64, (count,))
        )
        node = ops.where(is_last, full_node(float(stop), wide, (count,)), node)
    return Tensor(cast(node, kind))


def _diagonal_distance(outer: tuple[int, ...], rows: int, columns: int) -> Node:
    """column - row, for every place of a matrix."""
    shape, rank = (*outer, rows, columns), len(outer)
    return ops.iota(shape=shape, axis=rank + 1, dtype=dtypes.int64) - ops.iota(
        shape=shape, axis=rank, dtype=dtypes.int64
    )


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = dtypes.float32) -> Tensor:
    """1 on the diagonal number k (0 the main one, positive above), 0 elsewhere; (n_rows, n_cols or n_rows)."""
    rows, columns = shape_of("nx.eye", (n_rows, n_rows if n_cols is None else n_cols))
    distance = _diagonal_distance((), rows, columns)
    return Tensor(cast(ops.eq(distance, full_node(k, dtypes.int64, distance.shape)), dtype_of("nx.eye", dtype)))


def _triangle(function: str, x: TensorLike, k: int, lower: bool) -> Tensor:
    node = node_of(function, x)
    if node.rank < 2:
        raise invalid_value(function, f"got {describe(node)}, expected at least two axes")
    distance = _diagonal_distance(node.shape[:-2], *node.shape[-2:])
    limit = full_node(operator.index(k), dtypes.int64, distance.shape)
    kept = ops.le(distance, limit) if lower else ops.le(limit, distance)
    return where(Tensor(kept), Tensor(node), Tensor(full_node(0, node.dtype, node.shape)))


def tril(x: TensorLike, /, *, k: int = 0) -> Tensor:
    """The last two axes' elements on and below diagonal k, 0 above."""
    return _triangle("nx.tril", x, k, lower=True)


def triu(x: TensorLike, /, *, k: int = 0) -> Tensor:
    """The last two axes' elements on and above diagonal k, 0 below."""
    return _triangle("nx.triu", x, k, lower=False)


def meshgrid(*arrays: TensorLike, indexing: str = "xy") -> list[Tensor]:
    """Coordinates of a grid from one-dimensional tensors.

    "ij": result i varies along axis i. "xy": the first two axes are exchanged. ValueError for other inputs.
    """
    nodes = [node_of("nx.meshgrid", x) for x in arrays]
    if indexing not in ("xy", "ij"):
        raise invalid_value("nx.meshgrid", f"unknown indexing {indexing!r}; expected 'xy' or 'ij'")
    if any(node.rank != 1 for node in nodes):
        raise invalid_value("nx.meshgrid", f"got {describe(*nodes)}, expected one axis each")
    order = list(range(len(nodes)))
    if indexing == "xy" and len(nodes) > 1:
        order[:2] = [1, 0]
    lines = [
        ops.reshape(node, shape=tuple(node.size if place == order[i] else 1 for place in range(len(nodes))))
        for i, node in enumerate(nodes)
    ]
    return broadcast_arrays(*map(Tensor, lines))
