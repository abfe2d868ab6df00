"""Arguments as graph nodes: conversion of what users pass, dtype promotion and broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kaun import execution
from kaun.compiler.ir import Node, dtypes, full, ops
from kaun.compiler.ir.dtypes import DType
from kaun.compiler.ir.graph import Shape

from .errors import describe, invalid_type, invalid_value
from .promotion import dtype_of, number_dtype, promote, promote_number
from .tensor import Array, Tensor, TensorLike

NUMBERS = (bool, int, float)


def node_of(function: str, value: Any) -> Node:
    """The node of a tensor, or of the tensor that `value` converts to. TypeError in the name of `function`."""
    if type(value) is Tensor:
        return value._node
    return convert(function, value, None, None)


def convert(function: str, value: Any, dtype: DType | None, copy: bool | None) -> Node:
    """`value` as a node of `dtype` (None: what the value suggests); see `nx.asarray` for the rules."""
    if isinstance(value, Tensor):
        return cast(value._node, dtype or value.dtype)
    if isinstance(value, NUMBERS):
        dtype = dtype or number_dtype(value)
        promote_number(function, dtype, int(value) if isinstance(value, int) else 0)
        return full(value, dtype)
    if isinstance(value, (list, tuple)):
        return _from_sequence(function, value, dtype)
    if isinstance(value, (np.ndarray, np.generic)):
        return _from_array(function, np.asarray(value), dtype, copy)
    if hasattr(value, "__array__"):
        return _from_array(function, np.asarray(value), dtype, copy)
    if hasattr(value, "__dlpack__"):
        return _from_array(function, np.from_dlpack(value), dtype, copy)
    raise invalid_type(
        function, f"got {type(value).__name__}, expected a tensor, an array, a number or nested lists of numbers"
    )


def _from_array(function: str, array: Array, dtype: DType | None, copy: bool | None) -> Node:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    own = dtype_of(function, array.dtype)
    if dtype is not None and dtype is not own:
        if copy is False:
            raise invalid_value(function, f"{own} cannot become {dtype} without a copy")
        return cast(_from_array(function, array, None, None), dtype)
    if copy is False and not array.flags.c_contiguous:
        raise invalid_value(function, "the array is not contiguous in row-major order, so it cannot be shared")
    if copy or (copy is None and not _is_frozen(array)):
        return execution.computed_leaf(execution.Storage.copy_of(array))
    return execution.leaf(np.asarray(array, order="C"))


def _is_frozen(array: Array) -> bool:
    """Whether nobody can write to the array's memory through NumPy."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)


def _from_sequence(function: str, value: Sequence[Any], dtype: DType | None) -> Node:
    kinds = set(_leaf_types(value))
    if any(issubclass(kind, Tensor) for kind in kinds):
        rows = [convert(function, item, dtype, None) for item in value]
        if any(row.shape != rows[0].shape for row in rows):
            raise invalid_value(function, f"got a sequence of {describe(*rows)}, expected equal shapes")
        return ops.concat(*(ops.reshape(row, shape=(1, *row.shape)) for row in same_dtype(function, rows)), axis=0)
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise invalid_value(function, f"the nested sequence is not an array: {error}") from None
    if not any(issubclass(kind, (np.ndarray, np.generic)) for kind in kinds):
        # Python numbers only, so the library's default types: NumPy's default float is float64.
        if array.dtype == np.float64:
            array = array.astype((dtype or dtypes.float32).numpy)
        if dtype is not None and array.dtype.kind in "iu":
            for bound in (array.min(), array.max()) if array.size and dtype.is_integer else ():
                promote_number(function, dtype, int(bound))
            array = array.astype(dtype.numpy)
    array.flags.writeable = False
    return _from_array(function, array, dtype, None)


def _leaf_types(value: Any) -> Any:
    for item in value:
        if isinstance(item, (list, tuple)):
            yield from _leaf_types(item)
        else:
            yield type(item)


def cast(node: Node, dtype: DType) -> Node:
    """The node in `dtype`."""
    if node.dtype is dtype:
        return node
    if node.op is ops.constant:
        value = node.attributes["value"]
        # Small whole numbers are the same in every dtype; others are left to the compiler, which rounds and wraps.
        if 0 <= value <= 127 and value == int(value):
            return full(value, dtype, node.shape)
    return ops.cast(node, dtype=dtype)


def floating(node: Node) -> Node:
    """The node itself if it holds floats, else converted to float32, the default float."""
    return node if node.dtype.kind == "float" else cast(node, dtypes.float32)


def spread(node: Node, shape: Shape) -> Node:
    """The node broadcast to `shape`, which it is known to broadcast to."""
    old = node.shape
    if old == shape:
        return node
    if node.op is ops.constant:
        return ops.constant(value=node.attributes["value"], dtype=node.dtype, shape=shape)
    missing = len(shape) - len(old)
    if missing:
        node = ops.reshape(node, shape=(1,) * missing + old)
    return node if node.shape == shape else ops.broadcast(node, shape=shape)


def broadcast_shape(function: str, *nodes: Node) -> Shape:
    """The shape the nodes broadcast to; ValueError in the name of `function` if there is none."""
    rank = max(len(node.shape) for node in nodes)
    result = [1] * rank
    for node in nodes:
        offset = rank - len(node.shape)
        for axis, extent in enumerate(node.shape, offset):
            if extent != 1 and extent != result[axis]:
                if result[axis] != 1:
                    raise invalid_value(function, f"cannot broadcast {describe(*nodes)} to one shape")
                result[axis] = extent
    return tuple(result)


def same_dtype(function: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes converted to their common dtype."""
    dtype = nodes[0].dtype
    for node in nodes[1:]:
        if node.dtype is not dtype:
            dtype = promote(function, dtype, node.dtype)
    return [cast(node, dtype) for node in nodes]


def promoted(function: str, x1: TensorLike, x2: TensorLike) -> tuple[Node, Node]:
    """Both arguments as nodes of their common dtype; a Python number becomes a constant of the other's shape."""
    if isinstance(x2, NUMBERS):
        if isinstance(x1, NUMBERS):
            dtype = promote(function, number_dtype(x1), number_dtype(x2))
            return full(x1, dtype), full(x2, dtype)
        a = node_of(function, x1)
        a = cast(a, promote_number(function, a.dtype, x2))
        return a, full(x2, a.dtype, a.shape)
    b = node_of(function, x2)
    if isinstance(x1, NUMBERS):
        b = cast(b, promote_number(function, b.dtype, x1))
        return full(x1, b.dtype, b.shape), b
    a = node_of(function, x1)
    if a.dtype is not b.dtype:
        dtype = promote(function, a.dtype, b.dtype)
        return cast(a, dtype), cast(b, dtype)
    return a, b


def pair(function: str, x1: TensorLike, x2: TensorLike) -> tuple[Node, Node]:
    """Both arguments as nodes of their common dtype and shape."""
    a, b = promoted(function, x1, x2)
    if a.shape != b.shape:
        shape = broadcast_shape(function, a, b)
        return spread(a, shape), spread(b, shape)
    return a, b


def normalize_axis(function: str, axis: int, rank: int) -> int:
    """The axis counted from the front; ValueError in the name of `function` unless -rank <= axis < rank."""
    try:
        position = axis.__index__()
    except AttributeError:
        raise invalid_type(function, f"axis {axis!r} is not an integer") from None
    if not -rank <= position < rank:
        raise invalid_value(function, f"axis {axis} is out of range for {rank} axes")
    return position % rank


def normalize_axes(function: str, axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """The axes counted from the front, ascending; None means all. ValueError if one is out of range or repeated."""
    if axis is None:
        return tuple(range(rank))
    if isinstance(axis, int):
        return (normalize_axis(function, axis, rank),)
    if not isinstance(axis, (tuple, list)):
        return (normalize_axis(function, axis, rank),)  # type: ignore[arg-type]
    axes = tuple(sorted(normalize_axis(function, one, rank) for one in axis))
    if len(set(axes)) != len(axes):
        raise invalid_value(function, f"axes {tuple(axis)} name an axis twice")
    return axes
