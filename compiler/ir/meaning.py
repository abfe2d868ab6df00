"""What each primitive op computes, in NumPy: the oracle that compiled code is checked against.

Narrow floats (float16, bfloat16) are computed in float32 and rounded once; reductions and contractions accumulate
floats in float64 (the compiled code is compared with a tolerance), integers in their own type (wrapping).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import dtypes

Array = np.ndarray[Any, np.dtype[Any]]


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if dtypes.of(x.dtype).compute.numpy != x.dtype else x


def rounded(function: Callable[..., Any]) -> Callable[..., Array]:
    """`function` on arrays computed in the compute type and rounded back to the first array's dtype."""

    def compute(*arrays: Array, **attributes: Any) -> Array:
        with np.errstate(all="ignore"):
            result = function(*(_wide(a) for a in arrays), **attributes)
            return np.asarray(result).astype(arrays[0].dtype, copy=False)

    return compute


def compared(function: Callable[..., Any]) -> Callable[..., Array]:
    """A comparison: computed wide, a bool array."""

    def compute(*arrays: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(*(_wide(a) for a in arrays)), dtype=np.bool_)

    return compute


def divide(a: Array, b: Array) -> Array:
    """Floats: IEEE division. Integers: truncated; x / 0 is 0 and lowest / -1 wraps."""
    if a.dtype.kind == "f":
        return a / b
    return _truncated(a, b)[0]


def remainder(a: Array, b: Array) -> Array:
    """Remainder with the sign of the dividend (C's fmod); integers: x % 0 is 0."""
    if a.dtype.kind == "f":
        return np.asarray(np.fmod(a, b))
    return _truncated(a, b)[1]


def _truncated(a: Array, b: Array) -> tuple[Array, Array]:
    safe = np.where(b == 0, np.ones_like(b), b)
    rest = np.fmod(a, safe)
    if a.dtype.kind == "i":
        negate = b == -1
        safe = np.where(negate, np.ones_like(b), safe)
        rest = np.where(negate, np.zeros_like(a), np.fmod(a, safe))
        quotient = np.where(negate, np.negative(a), (a - rest) // safe)
    else:
        quotient = a // safe
    zero = b == 0
    return np.where(zero, np.zeros_like(a), quotient), np.where(zero, np.zeros_like(a), rest)


def shift_left(a: Array, b: Array) -> Array:
    """a << b; amounts outside [0, bits) shift everything out."""
    bits = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < bits)
    return np.where(inside, np.left_shift(a, np.where(inside, b, 0).astype(a.dtype)), np.zeros_like(a))


def shift_right(a: Array, b: Array) -> Array:
    """a >> b, filling with the sign for signed types; amounts outside [0, bits) shift everything out."""
    bits = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < bits)
    amount = np.where(inside, b, bits - 1).astype(a.dtype)
    shifted = np.right_shift(a, amount)
    return shifted if a.dtype.kind == "i" else np.where(inside, shifted, np.zeros_like(a))


def erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def cast(x: Array, *, dtype: dtypes.DType) -> Array:
    """Conversion by value: to bool is x != 0; float to integer truncates and saturates, NaN becomes 0."""
    with np.errstate(all="ignore"):
        if dtype is dtypes.bool_:
            return np.asarray(_wide(x) != 0)
        source = dtypes.of(x.dtype)
        if source.is_float and dtype.is_integer:
            low, high = dtypes.value_bounds(dtype)
            wide = np.trunc(x.astype(np.float64))
            inside = (wide >= float(low)) & (wide < float(high) + (0 if dtype.bits == 64 else 1))
            result = np.where(inside, wide, 0).astype(dtype.numpy)
            result = np.where(~inside & (wide > 0), dtype.numpy.type(high), result)
            result = np.where(~inside & (wide < 0), dtype.numpy.type(low), result)
            return result.astype(dtype.numpy)
        return x.astype(dtype.numpy)


def bitcast(x: Array, *, dtype: dtypes.DType) -> Array:
    return np.array(x, order="C").view(dtype.numpy)


def reduce_sum(x: Array, *, axes: tuple[int, ...]) -> Array:
    with np.errstate(all="ignore"):
        if dtypes.of(x.dtype).is_float:
            return np.asarray(x.astype(np.float64).sum(axis=axes)).astype(x.dtype)
        return np.asarray(x.sum(axis=axes, dtype=x.dtype))


def _extremum(ufunc: np.ufunc, index: int) -> Callable[..., Array]:
    def compute(x: Array, *, axes: tuple[int, ...]) -> Array:
        identity = dtypes.value_bounds(dtypes.of(x.dtype))[index]
        with np.errstate(all="ignore"):
            return np.asarray(ufunc.reduce(_wide(x), axis=axes, initial=_wide(np.asarray(identity, x.dtype)))).astype(
                x.dtype
            )

    return compute


reduce_max = _extremum(np.maximum, 0)
reduce_min = _extremum(np.minimum, 1)


def argmax(x: Array, *, axis: int) -> Array:
    return np.asarray(np.argmax(_wide(x), axis=axis), dtype=np.int64)


def argmin(x: Array, *, axis: int) -> Array:
    return np.asarray(np.argmin(_wide(x), axis=axis), dtype=np.int64)


def iota(*, shape: tuple[int, ...], axis: int, dtype: dtypes.DType) -> Array:
    column = np.arange(shape[axis], dtype=np.int64).astype(dtype.numpy)
    return np.broadcast_to(column.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011)."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    with np.errstate(over="ignore"):
        k0, k1 = (k.astype(np.uint32) for k in key)
        keys = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
        x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
        for block in range(5):
            for rotation in rotations[block % 2]:
                x0 = x0 + x1
                x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
                x1 = x1 ^ x0
            x0 = x0 + keys[(block + 1) % 3]
            x1 = x1 + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1


def random_bits(key: Array, counter: Array, *, shape: tuple[int, ...]) -> Array:
    """Word i of the stream is word i % 2 of Threefry-2x32(key, (i // 2, counter))."""
    size = math.prod(shape)
    blocks = np.arange(-(-size // 2), dtype=np.uint64).astype(np.uint32)
    high = np.full_like(blocks, counter)
    words = threefry2x32((key[0], key[1]), (blocks, high))
    return np.stack(words, axis=1).reshape(-1)[:size].reshape(shape)


def pad(x: Array, *, low: Any, high: Any, interior: Any, value: float) -> Array:
    shape = tuple(a + n + max(0, n - 1) * i + b for a, b, i, n in zip(low, high, interior, x.shape, strict=True))
    result = np.full(shape, value, dtype=x.dtype)
    if x.size:
        inner = tuple(
            slice(a, a + (n - 1) * (i + 1) + 1, i + 1) for a, i, n in zip(low, interior, x.shape, strict=True)
        )
        result[inner] = x
    return result


def window(x: Array, *, axes: Any, sizes: Any, strides: Any, dilations: Any) -> Array:
    shape, steps = list(x.shape), list(x.strides)
    for axis, size, stride, dilation in zip(axes, sizes, strides, dilations, strict=True):
        shape[axis] = max(0, (x.shape[axis] - (size - 1) * dilation - 1) // stride + 1)
        steps[axis] *= stride
        shape.append(size)
        steps.append(x.strides[axis] * dilation)
    if 0 in shape:
        return np.empty(shape, x.dtype)
    return np.lib.stride_tricks.as_strided(x, shape, steps, writeable=False)


def gather(operand: Array, indices: Array) -> Array:
    if not indices.size:
        return np.empty(indices.shape + operand.shape[1:], operand.dtype)
    return np.asarray(operand[np.clip(indices.astype(np.int64), 0, operand.shape[0] - 1)])


def scatter_add(indices: Array, updates: Array, *, size: int) -> Array:
    result = np.zeros((size, *updates.shape[indices.ndim :]), dtypes.of(updates.dtype).compute.numpy)
    flat = indices.reshape(-1)
    rows = updates.reshape(flat.size, *updates.shape[indices.ndim :])
    inside = (flat >= 0) & (flat < size)
    with np.errstate(all="ignore"):
        np.add.at(result, flat[inside].astype(np.int64), rows[inside].astype(result.dtype))
        return result.astype(updates.dtype)


def dot_general(
    lhs: Array, rhs: Array, *, lhs_batch: Any, rhs_batch: Any, lhs_contract: Any, rhs_contract: Any
) -> Array:
    wide = np.dtype(np.float64) if dtypes.of(lhs.dtype).is_float else lhs.dtype
    rows = [a for a in range(lhs.ndim) if a not in lhs_batch and a not in lhs_contract]
    columns = [a for a in range(rhs.ndim) if a not in rhs_batch and a not in rhs_contract]

    def extents(x: Array, axes: Any) -> tuple[int, ...]:
        return tuple(x.shape[a] for a in axes)

    batch, depth = extents(lhs, lhs_batch), math.prod(extents(lhs, lhs_contract))
    outer, inner = extents(lhs, rows), extents(rhs, columns)
    left = np.transpose(lhs, (*lhs_batch, *rows, *lhs_contract)).astype(wide)
    right = np.transpose(rhs, (*rhs_batch, *rhs_contract, *columns)).astype(wide)
    with np.errstate(all="ignore"):
        result = left.reshape((*batch, math.prod(outer), depth)) @ right.reshape((*batch, depth, math.prod(inner)))
        return np.asarray(result).reshape((*batch, *outer, *inner)).astype(lhs.dtype)


def conv_general(
    x: Array, w: Array, *, strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any, groups: int
) -> Array:
    spatial = len(strides)
    low = (0, 0, *(p[0] for p in padding))
    high = (0, 0, *(p[1] for p in padding))
    padded = pad(x, low=low, high=high, interior=(0, 0, *(d - 1 for d in lhs_dilation)), value=0)
    axes = tuple(range(2, 2 + spatial))
    windows = window(padded, axes=axes, sizes=w.shape[2:], strides=strides, dilations=rhs_dilation)
    n, c = x.shape[:2]
    places = windows.shape[2 : 2 + spatial]
    windows = windows.reshape(n, groups, c // groups, *windows.shape[2:])
    weights = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    kernel = tuple(range(1, 2 + spatial))
    result = dot_general(
        weights,
        windows,
        lhs_batch=(0,),
        rhs_batch=(1,),
        lhs_contract=tuple(a + 1 for a in kernel),
        rhs_contract=(2, *range(3 + spatial, 3 + 2 * spatial)),
    )  # fmt: skip  (groups, O/groups, N, *places)
    return np.ascontiguousarray(np.moveaxis(result, 2, 0)).reshape(n, w.shape[0], *places)
