"""Functions that move elements without computing: shapes, axes, joining, splitting, repeating and padding."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

from kaun.compiler.ir import Node, full, ops

from .errors import describe, invalid_type, invalid_value
from .operands import broadcast_shape, node_of, normalize_axes, normalize_axis, same_dtype, spread
from .tensor import Axis, Tensor, TensorLike


def shape_of(function: str, shape: Any) -> tuple[int, ...]:
    """A shape given as an int or a sequence of ints; TypeError for others, ValueError for negative extents."""
    try:
        extents = tuple(map(operator.index, shape)) if isinstance(shape, (tuple, list)) else (operator.index(shape),)
    except TypeError:
        try:
            extents = tuple(map(operator.index, shape))
        except TypeError:
            raise invalid_type(function, f"got shape {shape!r}, expected an int or a sequence of ints") from None
    if any(extent < 0 for extent in extents):
        raise invalid_value(function, f"negative extent in shape {list(extents)}")
    return extents


def reshape(x: TensorLike, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The same elements in row-major order in another shape, of which one extent may be -1: what remains.

    ValueError if the sizes differ. `copy` is accepted for the standard and makes no difference.
    """
    node = node_of("nx.reshape", x)
    extents = [shape] if isinstance(shape, int) else list(shape)
    if -1 in extents:
        place = extents.index(-1)
        known = math.prod(extents[:place] + extents[place + 1 :])
        if known <= 0 or node.size % known:
            raise invalid_value("nx.reshape", f"cannot reshape {describe(node)} to {extents}")
        extents[place] = node.size // known
    target = shape_of("nx.reshape", extents)
    if target == node.shape:
        return Tensor(node)
    if math.prod(target) != node.size:
        raise invalid_value("nx.reshape", f"cannot reshape {describe(node)} to {list(target)}")
    return Tensor(ops.reshape(node, shape=target))


def permute_dims(x: TensorLike, /, axes: Sequence[int]) -> Tensor:
    """Axis i of the result is axis `axes[i]` of x. ValueError unless `axes` names every axis once."""
    node = node_of("nx.permute_dims", x)
    order = tuple(normalize_axis("nx.permute_dims", axis, node.rank) for axis in axes)
    if len(set(order)) != len(order) or len(order) != node.rank:
        raise invalid_value("nx.permute_dims", f"axes {tuple(axes)} do not name every axis of {describe(node)} once")
    return Tensor(permuted(node, order))


def permuted(node: Node, order: tuple[int, ...]) -> Node:
    """The node with its axes in `order`; itself if that is how they are."""
    return node if order == tuple(range(node.rank)) else ops.permute(node, axes=order)


def transpose(x: TensorLike, /, axes: Sequence[int] | None = None) -> Tensor:
    """`nx.permute_dims`, reversing all axes if none are given."""
    node = node_of("nx.transpose", x)
    return permute_dims(Tensor(node), tuple(range(node.rank))[::-1] if axes is None else axes)


def matrix_transpose(x: TensorLike, /) -> Tensor:
    """The last two axes exchanged. ValueError with fewer than two axes."""
    node = node_of("nx.matrix_transpose", x)
    if node.rank < 2:
        raise invalid_value("nx.matrix_transpose", f"got {describe(node)}, expected at least two axes")
    return Tensor(permuted(node, (*range(node.rank - 2), node.rank - 1, node.rank - 2)))


def moveaxis(x: TensorLike, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """The axes `source` moved to the places `destination`; the others keep their order."""
    node = node_of("nx.moveaxis", x)
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    sources = [normalize_axis("nx.moveaxis", axis, node.rank) for axis in sources]
    targets = [normalize_axis("nx.moveaxis", axis, node.rank) for axis in targets]
    if len(sources) != len(targets) or len(set(sources)) != len(sources) or len(set(targets)) != len(targets):
        raise invalid_value("nx.moveaxis", f"cannot move axes {source} to {destination} of {describe(node)}")
    order = [axis for axis in range(node.rank) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return Tensor(permuted(node, tuple(order)))


def swapaxes(x: TensorLike, axis1: int, axis2: int, /) -> Tensor:
    """Two axes exchanged."""
    node = node_of("nx.swapaxes", x)
    order = list(range(node.rank))
    first, second = (normalize_axis("nx.swapaxes", axis, node.rank) for axis in (axis1, axis2))
    order[first], order[second] = order[second], order[first]
    return Tensor(permuted(node, tuple(order)))


def expand_dims(x: TensorLike, /, axis: int | Sequence[int] = 0) -> Tensor:
    """New axes of extent 1 at the positions `axis` of the result."""
    node = node_of("nx.expand_dims", x)
    axes = [axis] if isinstance(axis, int) else list(axis)
    places = normalize_axes("nx.expand_dims", axes, node.rank + len(axes))
    extents = iter(node.shape)
    shape = tuple(1 if place in places else next(extents) for place in range(node.rank + len(axes)))
    return Tensor(ops.reshape(node, shape=shape))


def squeeze(x: TensorLike, /, axis: Axis = None) -> Tensor:
    """Without the axes `axis` of extent 1 (None: all such). ValueError if one has another extent."""
    node = node_of("nx.squeeze", x)
    if axis is None:
        axes = tuple(place for place, extent in enumerate(node.shape) if extent == 1)
    else:
        axes = normalize_axes("nx.squeeze", axis, node.rank)
    if any(node.shape[place] != 1 for place in axes):
        raise invalid_value("nx.squeeze", f"axis {axis} of {describe(node)} is not of extent 1")
    shape = tuple(extent for place, extent in enumerate(node.shape) if place not in axes)
    return Tensor(node if shape == node.shape else ops.reshape(node, shape=shape))


def flatten(x: TensorLike, /, start: int = 0, stop: int = -1) -> Tensor:
    """The axes from `start` to `stop` (inclusive) merged into one."""
    node = node_of("nx.flatten", x)
    if node.rank == 0:
        return Tensor(ops.reshape(node, shape=(1,)))
    first, last = (normalize_axis("nx.flatten", axis, node.rank) for axis in (start, stop))
    if first > last:
        raise invalid_value("nx.flatten", f"axis {start} comes after axis {stop} of {describe(node)}")
    shape = (*node.shape[:first], math.prod(node.shape[first : last + 1]), *node.shape[last + 1 :])
    return Tensor(node if shape == node.shape else ops.reshape(node, shape=shape))


def broadcast_to(x: TensorLike, /, shape: int | Sequence[int]) -> Tensor:
    """x repeated along new axes and axes of extent 1 to fill `shape`. ValueError if it does not fit."""
    node = node_of("nx.broadcast_to", x)
    target = shape_of("nx.broadcast_to", shape)
    offset = len(target) - node.rank
    if offset < 0 or any(n not in (1, m) for n, m in zip(node.shape, target[offset:], strict=True)):
        raise invalid_value("nx.broadcast_to", f"cannot broadcast {describe(node)} to {list(target)}")
    return Tensor(spread(node, target))


def broadcast_arrays(*tensors: TensorLike) -> list[Tensor]:
    """All tensors broadcast to their common shape; each keeps its dtype."""
    nodes = [node_of("nx.broadcast_arrays", x) for x in tensors]
    shape = broadcast_shape("nx.broadcast_arrays", *nodes) if nodes else ()
    return [Tensor(spread(node, shape)) for node in nodes]


def concat(tensors: Sequence[TensorLike], /, axis: int | None = 0) -> Tensor:
    """The tensors one after the other along `axis` (None: all flattened); dtypes promote.

    ValueError if there are none or if they differ in another axis.
    """
    nodes = same_dtype("nx.concat", _some("nx.concat", tensors))
    if axis is None:
        nodes, place = [ops.reshape(node, shape=(node.size,)) for node in nodes], 0
    else:
        place = normalize_axis("nx.concat", axis, nodes[0].rank)
    rank = nodes[0].rank
    others = nodes[0].shape[:place] + nodes[0].shape[place + 1 :]
    for node in nodes[1:]:
        if node.rank != rank or node.shape[:place] + node.shape[place + 1 :] != others:
            raise invalid_value("nx.concat", f"got {describe(*nodes)}, expected equal shapes but for axis {axis}")
    return Tensor(ops.concat(*nodes, axis=place) if len(nodes) > 1 else nodes[0])


def stack(tensors: Sequence[TensorLike], /, axis: int = 0) -> Tensor:
    """The tensors, of equal shapes, side by side along a new axis at position `axis`; dtypes promote."""
    nodes = same_dtype("nx.stack", _some("nx.stack", tensors))
    shape = nodes[0].shape
    if any(node.shape != shape for node in nodes):
        raise invalid_value("nx.stack", f"got {describe(*nodes)}, expected equal shapes")
    place = normalize_axis("nx.stack", axis, len(shape) + 1)
    wider = (*shape[:place], 1, *shape[place:])
    parts = [ops.reshape(node, shape=wider) for node in nodes]
    return Tensor(ops.concat(*parts, axis=place) if len(parts) > 1 else parts[0])


def _some(function: str, tensors: Sequence[TensorLike]) -> list[Node]:
    nodes = [node_of(function, x) for x in tensors]
    if not nodes:
        raise invalid_value(function, "got no tensors, expected at least one")
    return nodes


def part(node: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
    """Positions [start, stop) of one axis, every `step`-th."""
    if (start, stop, step) == (0, node.shape[axis], 1):
        return node
    starts, stops, steps = [0] * node.rank, list(node.shape), [1] * node.rank
    starts[axis], stops[axis], steps[axis] = start, stop, step
    return ops.slice_(node, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def split(x: TensorLike, parts: int | Sequence[int], /, axis: int = 0) -> list[Tensor]:
    """x cut along `axis` into `parts` equal pieces, or before each of the positions `parts`.

    ValueError if the extent is not a multiple of `parts`, or positions do not ascend within the axis.
    """
    node = node_of("nx.split", x)
    place = normalize_axis("nx.split", axis, node.rank)
    extent = node.shape[place]
    if isinstance(parts, int):
        if parts < 1 or extent % parts:
            raise invalid_value("nx.split", f"axis {axis} of {describe(node)} is not a multiple of {parts}")
        cuts = [extent // parts * i for i in range(parts + 1)]
    else:
        cuts = [0, *(operator.index(cut) for cut in parts), extent]
    if any(a > b for a, b in itertools.pairwise(cuts)):
        raise invalid_value("nx.split", f"positions {parts} do not ascend within axis {axis} of {describe(node)}")
    return [Tensor(part(node, place, a, b)) for a, b in itertools.pairwise(cuts)]


def unstack(x: TensorLike, /, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of x along `axis`, without that axis."""
    node = node_of("nx.unstack", x)
    place = normalize_axis("nx.unstack", axis, node.rank)
    shape = node.shape[:place] + node.shape[place + 1 :]
    return tuple(
        Tensor(ops.reshape(part(node, place, i, i + 1), shape=shape)) for i in range(node.shape[place])
    )


def flip(x: TensorLike, /, axis: Axis = None) -> Tensor:
    """The order of elements reversed along `axis` (None: all axes)."""
    node = node_of("nx.flip", x)
    axes = normalize_axes("nx.flip", axis, node.rank)
    return Tensor(ops.flip(node, axes=axes) if axes else node)


def roll(x: TensorLike, /, shift: int | Sequence[int], axis: Axis = None) -> Tensor:
    """Elements moved `shift` places along `axis`, those that leave one end entering at the other.

    Without an axis the flattened tensor is rolled. Several shifts go with as many axes.
    """
    node = node_of("nx.roll", x)
    if axis is None:
        if not isinstance(shift, int):
            raise invalid_value("nx.roll", f"got shifts {shift} without axes, expected one shift")
        return Tensor(ops.reshape(_rolled(ops.reshape(node, shape=(node.size,)), shift, 0), shape=node.shape))
    axes = [axis] if isinstance(axis, int) else list(axis)
    shifts = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    if len(shifts) != len(axes):
        raise invalid_value("nx.roll", f"got {len(shifts)} shifts for {len(axes)} axes")
    for places, one in zip(shifts, axes, strict=True):
        node = _rolled(node, places, normalize_axis("nx.roll", one, node.rank))
    return Tensor(node)


def _rolled(node: Node, shift: int, axis: int) -> Node:
    extent = node.shape[axis]
    shift = shift % extent if extent else 0
    if shift == 0:
        return node
    return ops.concat(part(node, axis, extent - shift, extent), part(node, axis, 0, extent - shift), axis=axis)


def repeat(x: TensorLike, repeats: int, /, axis: int | None = None) -> Tensor:
    """Every element `repeats` times in a row along `axis` (None: of the flattened tensor)."""
    node = node_of("nx.repeat", x)
    count = operator.index(repeats)
    if count < 0:
        raise invalid_value("nx.repeat", f"got {count} repeats, expected none or more")
    if axis is None:
        node, place = ops.reshape(node, shape=(node.size,)), 0
    else:
        place = normalize_axis("nx.repeat", axis, node.rank)
    before, after = node.shape[: place + 1], node.shape[place + 1 :]
    wide = spread(ops.reshape(node, shape=(*before, 1, *after)), (*before, count, *after))
    return Tensor(ops.reshape(wide, shape=(*before[:-1], before[-1] * count, *after)))


def tile(x: TensorLike, repetitions: int | Sequence[int], /) -> Tensor:
    """x repeated as a whole, `repetitions[i]` times along axis i; the shorter of the two gets leading ones."""
    node = node_of("nx.tile", x)
    counts = shape_of("nx.tile", repetitions)
    rank = max(len(counts), node.rank)
    counts = (1,) * (rank - len(counts)) + counts
    shape = (1,) * (rank - node.rank) + node.shape
    doubled = ops.reshape(node, shape=tuple(n for extent in shape for n in (1, extent)))
    doubled = spread(doubled, tuple(n for pair in zip(counts, shape, strict=True) for n in pair))
    return Tensor(ops.reshape(doubled, shape=tuple(a * b for a, b in zip(counts, shape, strict=True))))


def pad(
    x: TensorLike, pad_width: int | Sequence[Any], /, *, mode: str = "constant", constant_values: float = 0
) -> Tensor:
    """x with `constant_values` around it.

    `pad_width`: one int for all sides, a pair (before, after) for all axes, or one pair per axis. Only the mode
    "constant" exists. ValueError for negative widths or another number of pairs than axes.
    """
    node = node_of("nx.pad", x)
    if mode != "constant":
        raise invalid_value("nx.pad", f"unknown mode {mode!r}; expected 'constant'")
    widths: list[Any] = [pad_width] if isinstance(pad_width, int) else list(pad_width)
    if all(isinstance(width, int) for width in widths):
        pairs = [(widths[0], widths[-1])] * node.rank
        valid = len(widths) in (1, 2)
    else:
        pairs = [(width, width) if isinstance(width, int) else tuple(width) for width in widths]
        pairs = pairs * node.rank if len(pairs) == 1 else pairs
        valid = len(pairs) == node.rank and all(len(two) == 2 for two in pairs)
    if not valid or any(width < 0 for two in pairs for width in two):
        raise invalid_value("nx.pad", f"pad widths {pad_width} do not fit {describe(node)}")
    value = full(constant_values, node.dtype).attributes["value"]
    low, high = (tuple(two[side] for two in pairs) for side in (0, 1))
    return Tensor(ops.pad(node, low=low, high=high, interior=(0,) * node.rank, value=value))
