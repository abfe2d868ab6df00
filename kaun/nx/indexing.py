"""Indexing: slices, integer arrays and masks with NumPy's meaning, gathering and its gradient scatter_add."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kaun import execution
from kaun.compiler.ir import Node, dtypes, full, ops
from kaun.compiler.ir.graph import Shape

from .errors import describe, invalid_type, invalid_value, located, restated
from .operands import broadcast_shape, cast, node_of, normalize_axis, spread
from .promotion import dtype_of
from .tensor import Array, Tensor, TensorLike, is_traced

_GETITEM = "nx.Tensor.__getitem__"


def index(x: Tensor, key: Any) -> Tensor:
    """`x[key]` as NumPy defines it.

    Integers, slices with any step, `...`, None, integer arrays (broadcast against each other; negative positions
    count from the back; positions out of range are clamped when they are known only as the program runs) and masks.
    A mask must have known values: shapes are static. IndexError for static positions out of range or too many
    indices; ValueError for masks that are being traced; TypeError for other keys.
    """
    node = x._node
    if type(key) is int and node.shape:  # The common case, and the one that iteration takes.
        return Tensor(ops.reshape(_slices(node, [_position(key, node.shape[0])]), shape=node.shape[1:]))
    items = _expanded(node, list(key) if isinstance(key, tuple) else [key])
    axis, shape = 0, []
    slices: list[slice] = []
    arrays: list[tuple[int, Node]] = []  # (axis of the tensor after slicing, index)
    group: list[int] = []  # places, in the sequence of items, of what NumPy counts as advanced
    front = 0  # where the result of contiguous advanced indices goes
    advanced = any(not isinstance(item, (int, slice)) and item is not None for item in items)
    for place, item in enumerate(items):
        if item is None:
            shape.append(1)
            continue
        extent = node.shape[axis]
        if isinstance(item, int):
            slices.append(_position(item, extent))
            if advanced:
                group.append(place)
                front = len(shape) - len(arrays) if len(group) == 1 else front
        elif isinstance(item, slice):
            slices.append(item)
            shape.append(len(range(*_bounds(item, extent))))
        else:
            group.append(place)
            front = len(shape) - len(arrays) if len(group) == 1 else front
            arrays.append((len(shape), _positions(item, extent)))
            slices.append(slice(None))
            shape.append(extent)
        axis += 1
    result = _slices(node, slices)
    result = result if result.shape == tuple(shape) else ops.reshape(result, shape=tuple(shape))
    if not arrays:
        return Tensor(result)
    contiguous = group == list(range(group[0], group[0] + len(group)))
    return Tensor(_gathered(result, arrays, front if contiguous else 0))


def _expanded(node: Node, items: list[Any]) -> list[Any]:
    """The items of a key with masks turned into positions, and `...` and missing axes into full slices."""
    result: list[Any] = []
    used = 0
    ellipses = 0
    for item in items:
        if item is None:
            result.append(item)
        elif item is Ellipsis:
            ellipses += 1
            result.append(item)
        elif isinstance(item, slice):
            result.append(item)
            used += 1
        elif isinstance(item, (bool, np.bool_)) or _is_mask(item):
            positions = _mask_positions(node, used, item)
            result.extend(positions)
            used += len(positions)
        else:
            result.append(item if isinstance(item, (Tensor, np.ndarray, list, tuple)) else _static(item))
            used += 1
    if ellipses > 1:
        raise IndexError(located(f"{_GETITEM}: an index can have one ellipsis, got {ellipses}"))
    if used > node.rank:
        raise IndexError(located(f"{_GETITEM}: got {used} indices for {describe(node)}"))
    missing = [slice(None)] * (node.rank - used)
    if not ellipses:
        return result + missing
    place = next(i for i, item in enumerate(result) if item is Ellipsis)
    return result[:place] + missing + result[place + 1 :]


def _static(item: Any) -> int:
    try:
        return operator.index(item)
    except TypeError:
        raise invalid_type(
            _GETITEM, f"got an index of type {type(item).__name__}, expected integers, slices, ..., None or arrays"
        ) from None


def _is_mask(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.dtype is dtypes.bool_
    if isinstance(item, np.ndarray):
        return bool(item.dtype == np.bool_)
    return isinstance(item, list) and bool(item) and _all_bool(item)


def _all_bool(items: Sequence[Any]) -> bool:
    return all(_all_bool(item) if isinstance(item, list) else isinstance(item, (bool, np.bool_)) for item in items)


def _mask_positions(node: Node, axis: int, mask: Any) -> list[Array]:
    if isinstance(mask, Tensor):
        if is_traced(mask):
            raise invalid_value(
                _GETITEM,
                f"the mask {describe(mask._node)} is being traced: the shape of the result would depend on its values, "
                "and shapes are static; use nx.where",
            )
        mask = mask.numpy()
    mask = np.asarray(mask, dtype=np.bool_)
    covered = node.shape[axis : axis + mask.ndim]
    if mask.ndim == 0 or mask.shape != covered:
        raise IndexError(located(f"{_GETITEM}: a mask of shape {list(mask.shape)} does not fit axes {list(covered)}"))
    return list(np.nonzero(mask))


def _position(item: int, extent: int) -> slice:
    if not -extent <= item < extent:
        raise IndexError(located(f"{_GETITEM}: index {item} is out of range for an axis of extent {extent}"))
    item %= extent
    return slice(item, item + 1)


def _bounds(item: slice, extent: int) -> tuple[int, int, int]:
    try:
        return item.indices(extent)
    except (TypeError, ValueError) as error:
        raise invalid_type(_GETITEM, f"{item}: {error}") from None


def _slices(node: Node, slices: list[slice]) -> Node:
    """The node sliced along its leading axes; a negative step is the mirrored slice of a positive one."""
    starts, stops, steps = [0] * node.rank, list(node.shape), [1] * node.rank
    mirrored = []
    for axis, item in enumerate(slices):
        start, stop, step = _bounds(item, node.shape[axis])
        places = range(start, stop, step)
        if step < 0:
            mirrored.append(axis)
            places = places[::-1]
        if len(places) == 0:
            starts[axis] = stops[axis] = 0
        else:
            starts[axis], stops[axis], steps[axis] = places[0], places[-1] + 1, places.step if len(places) > 1 else 1
    if any(starts) or tuple(stops) != node.shape or any(step != 1 for step in steps):
        node = ops.slice_(node, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    return ops.flip(node, axes=tuple(mirrored)) if mirrored else node


def _positions(item: Any, extent: int, function: str = _GETITEM) -> Node:
    """An index array as a node of positions counted from the front."""
    if not isinstance(item, Tensor):
        array = np.asarray(item)
        if array.size == 0 and array.dtype.kind == "f":
            array = array.astype(np.int64)
        if array.dtype.kind in "iu":  # Known now: check and wrap here.
            if array.size and (array.min() < -extent or array.max() >= extent):
                raise IndexError(located(f"{function}: a position is out of range for an axis of extent {extent}"))
            wrapped = np.where(array < 0, array.astype(np.int64) + extent, array.astype(np.int64))
            return execution.leaf(np.asarray(wrapped))
        item = Tensor(node_of(function, array))
    node: Node = item._node
    if not node.dtype.is_integer:
        raise invalid_type(function, f"got {describe(node)} as positions, expected integers")
    if node.dtype.bits < 32:
        node = cast(node, dtypes.int64)
    if node.dtype.kind == "unsigned":
        return node
    if node.dtype is dtypes.int32 and extent >= 2**31:
        node = cast(node, dtypes.int64)
    zero = full(0, node.dtype, node.shape)
    return ops.where(ops.lt(node, zero), node + extent, node)


def _gathered(node: Node, arrays: list[tuple[int, Node]], front: int) -> Node:
    """Elements at the positions `arrays` of their axes; the arrays' own axes go before axis `front` of the rest."""
    axes = [axis for axis, _ in arrays]
    rest = [axis for axis in range(node.rank) if axis not in axes]
    indices = [positions for _, positions in arrays]
    shape = broadcast_shape(_GETITEM, *indices)
    node = ops.permute(node, axes=(*axes, *rest)) if axes + rest != list(range(node.rank)) else node
    extents = node.shape[: len(axes)]
    flat = spread(indices[0], shape)
    if len(axes) > 1:
        # One gather over the merged axes: positions become row-major numbers.
        flat = _clamped(cast(flat, dtypes.int64), extents[0])
        for extent, positions in zip(extents[1:], indices[1:], strict=True):
            flat = flat * extent + _clamped(cast(spread(positions, shape), dtypes.int64), extent)
        node = ops.reshape(node, shape=(math.prod(extents), *node.shape[len(axes) :]))
    return _placed(_gather(_GETITEM, node, flat), len(shape), front)


def _clamped(positions: Node, extent: int) -> Node:
    """Positions into one of several merged axes, kept within their own axis as a single gather's are."""
    if positions.op is ops.input_ or extent == 0:  # Known positions have been checked.
        return positions
    low, high = full(0, positions.dtype, positions.shape), full(extent - 1, positions.dtype, positions.shape)
    return ops.minimum(ops.maximum(positions, low), high)


def _placed(result: Node, count: int, front: int) -> Node:
    """The first `count` axes moved behind the `front` axes that follow them."""
    if front == 0 or count == 0:
        return result
    order = (*range(count, count + front), *range(count), *range(count + front, result.rank))
    return ops.permute(result, axes=order)


def _gather(function: str, operand: Node, indices: Node) -> Node:
    try:
        return ops.gather(operand, indices)
    except (TypeError, ValueError) as error:
        raise restated(function, error) from None


def take(x: TensorLike, indices: TensorLike, /, axis: int | None = None) -> Tensor:
    """The slices of x at `indices` along `axis`; the axes of `indices` take the place of that axis.

    `axis` may be None only if x has one axis. Negative indices count from the back. Indices out of range: IndexError
    if they are given as numbers or NumPy arrays, else clamped.
    """
    node = node_of("nx.take", x)
    if axis is None and node.rank != 1:
        raise invalid_value("nx.take", f"got {describe(node)} without an axis, expected one axis")
    place = normalize_axis("nx.take", 0 if axis is None else axis, node.rank)
    positions = _positions(indices, node.shape[place], "nx.take")
    if place:
        node = ops.permute(node, axes=(place, *(a for a in range(node.rank) if a != place)))
    return Tensor(_placed(_gather("nx.take", node, positions), positions.rank, place))


def take_along_axis(x: TensorLike, indices: TensorLike, /, axis: int = -1) -> Tensor:
    """y[i.., j, k..] = x[i.., indices[i.., j, k..], k..] along `axis`.

    x and `indices` have equal ranks and broadcast in the other axes. Indices as for `nx.take`.
    """
    node = node_of("nx.take_along_axis", x)
    place = normalize_axis("nx.take_along_axis", axis, node.rank)
    positions = _positions(indices, node.shape[place], "nx.take_along_axis")
    if positions.rank != node.rank:
        raise invalid_value("nx.take_along_axis", f"got {describe(node, positions)}, expected equal ranks")
    others = tuple(a for a in range(node.rank) if a != place)
    node, positions = (ops.permute(n, axes=(*others, place)) for n in (node, positions))
    outer = broadcast_shape(
        "nx.take_along_axis", *(ops.reshape(part, shape=part.shape) for part in _without_last(node, positions))
    )
    extent = node.shape[-1]
    node = spread(node, (*outer, extent))
    positions = _clamped(cast(spread(positions, (*outer, positions.shape[-1])), dtypes.int64), extent)
    rows = ops.iota(shape=(math.prod(outer), 1), axis=0, dtype=dtypes.int64) * extent
    rows = spread(ops.reshape(rows, shape=(*outer, 1)), positions.shape)
    result = _gather("nx.take_along_axis", ops.reshape(node, shape=(node.size,)), rows + positions)
    return Tensor(_placed_last(result, place))


def _without_last(*nodes: Node) -> list[Node]:
    """Stand-ins of the nodes' shapes without their last axis."""
    return [full(0, dtypes.bool_, node.shape[:-1]) for node in nodes]


def _placed_last(node: Node, place: int) -> Node:
    """The last axis moved to `place`."""
    if place == node.rank - 1:
        return node
    return ops.permute(node, axes=(*range(place), node.rank - 1, *range(place, node.rank - 1)))


def scatter_add(indices: TensorLike, updates: TensorLike, /, size: int) -> Tensor:
    """y[k] = the sum of `updates[i]` over all i with `indices[i] == k`, for k in [0, size).

    `updates` starts with the shape of `indices`; the result has shape (size, *rest of updates). Indices below 0 or
    from `size` on are dropped. The gradient of `nx.take` along the first axis.
    """
    positions, values = node_of("nx.scatter_add", indices), node_of("nx.scatter_add", updates)
    try:
        return Tensor(ops.scatter_add(positions, values, size=operator.index(size)))
    except (TypeError, ValueError) as error:
        raise restated("nx.scatter_add", error) from None


def one_hot(indices: TensorLike, num_classes: int, /, *, dtype: Any = dtypes.float32, axis: int = -1) -> Tensor:
    """1 where the position along the new `axis`, of extent `num_classes`, equals the index, else 0.

    Integer indices of shape S give shape (*S, num_classes) for the default axis; indices outside give all zeros.
    """
    node = node_of("nx.one_hot", indices)
    if not node.dtype.is_integer:
        raise invalid_type("nx.one_hot", f"got {describe(node)}, expected integer indices")
    count = operator.index(num_classes)
    if count < 0:
        raise invalid_value("nx.one_hot", f"got {count} classes, expected none or more")
    place = normalize_axis("nx.one_hot", axis, node.rank + 1)
    if node.dtype.bits < 32:
        node = cast(node, dtypes.int64)  # Class numbers may not fit the indices' own type.
    shape: Shape = (*node.shape[:place], count, *node.shape[place:])
    wide = spread(ops.reshape(node, shape=(*node.shape[:place], 1, *node.shape[place:])), shape)
    hit = ops.eq(wide, ops.iota(shape=shape, axis=place, dtype=node.dtype))
    return Tensor(cast(hit, dtype_of("nx.one_hot", dtype)))


# Sorting compares every pair along the axis; longer axes would take quadratic time without saying so.
SORT_LIMIT = 8192


def argsort(x: TensorLike, /, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Tensor:
    """The int64 positions that put x in ascending (`descending`) order along `axis`; equals keep their order.

    NaNs come last in ascending and first in descending order. Every element's rank is counted by comparing it with
    all others: quadratic in the extent, which must not exceed 8192 (ValueError).
    """
    node, place = _sortable("nx.argsort", x, axis)
    return Tensor(_placed_last(_order(node, descending), place))


def sort(x: TensorLike, /, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Tensor:
    """x in ascending (`descending`) order along `axis`; see `nx.argsort` for NaNs and the limit."""
    node, place = _sortable("nx.sort", x, axis)
    result = take_along_axis(Tensor(node), Tensor(_order(node, descending)))
    return Tensor(_placed_last(result._node, place))


def _sortable(function: str, x: TensorLike, axis: int) -> tuple[Node, int]:
    node = node_of(function, x)
    place = normalize_axis(function, axis, node.rank)
    if node.shape[place] > SORT_LIMIT:
        raise invalid_value(function, f"axis {axis} of {describe(node)} is longer than {SORT_LIMIT}")
    return ops.permute(node, axes=(*(a for a in range(node.rank) if a != place), place)), place


def _order(node: Node, descending: bool) -> Node:
    """Positions in sorted order along the last axis."""
    extent, outer = node.shape[-1], node.shape[:-1]
    shape = (*outer, extent, extent)
    mine = spread(ops.reshape(node, shape=(*outer, extent, 1)), shape)
    other = spread(ops.reshape(node, shape=(*outer, 1, extent)), shape)
    rank = node.rank
    earlier = ops.lt(
        ops.iota(shape=shape, axis=rank, dtype=dtypes.int32), ops.iota(shape=shape, axis=rank - 1, dtype=dtypes.int32)
    )
    before, after = ops.lt(other, mine), ops.lt(mine, other)
    if descending:
        before, after = after, before
    if node.dtype.is_float:
        mine_nan, other_nan = ops.ne(mine, mine), ops.ne(other, other)
        first, last = (other_nan, mine_nan) if descending else (mine_nan, other_nan)
        before = ops.or_(before, ops.and_(first, ops.not_(last)))
        after = ops.or_(after, ops.and_(last, ops.not_(first)))
    tied = ops.and_(earlier, ops.not_(ops.or_(before, after)))
    counted = ops.cast(ops.or_(before, tied), dtype=dtypes.int64)
    ranks = ops.reduce_sum(counted, axes=(rank,))
    # order[ranks[i]] = i: the inverse permutation, row by row.
    if node.size == 0:
        return ops.iota(shape=node.shape, axis=rank - 1, dtype=dtypes.int64)
    rows = ops.reshape(ops.iota(shape=(math.prod(outer), 1), axis=0, dtype=dtypes.int64) * extent, shape=(*outer, 1))
    positions = ops.iota(shape=node.shape, axis=rank - 1, dtype=dtypes.int64)
    order = ops.scatter_add(ranks + spread(rows, node.shape), positions, size=node.size)
    return ops.reshape(order, shape=node.shape)
