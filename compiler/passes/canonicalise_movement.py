"""The normal form of movement ops, a part of `canonicalise`: composed, without identities, pushed off constants."""

from __future__ import annotations

from ..ir import Node, full, ops
from .rules import RuleTable, same_constant, spread

TABLE = RuleTable()


@TABLE.rule(ops.reshape, ops.permute, ops.broadcast, ops.slice_, ops.flip, ops.window)
def moved_constant(node: Node) -> Node | None:
    """Every element is the same, so only the shape matters."""
    (x,) = node.inputs
    return spread(x, node.shape) if x.op is ops.constant else None


@TABLE.rule(ops.reshape)
def reshape_reshape(node: Node) -> Node | None:
    (x,) = node.inputs
    if node.shape == x.shape:
        return x
    return ops.reshape(x.inputs[0], shape=node.shape) if x.op is ops.reshape else None


@TABLE.rule(ops.permute)
def permute_permute(node: Node) -> Node | None:
    (x,), axes = node.inputs, node.attributes["axes"]
    if axes == tuple(range(x.rank)):
        return x
    if x.op is ops.permute:
        inner = x.attributes["axes"]
        return ops.permute(x.inputs[0], axes=tuple(inner[axis] for axis in axes))
    long = [axis for axis in axes if x.shape[axis] != 1]
    return ops.reshape(x, shape=node.shape) if long == sorted(long) else None


@TABLE.rule(ops.broadcast)
def broadcast_broadcast(node: Node) -> Node | None:
    (x,) = node.inputs
    if node.shape == x.shape:
        return x
    return ops.broadcast(x.inputs[0], shape=node.shape) if x.op is ops.broadcast else None


@TABLE.rule(ops.flip)
def flip_flip(node: Node) -> Node | None:
    """Axes that are flipped twice, or too short to flip, drop out."""
    (x,), axes = node.inputs, node.attributes["axes"]
    inner = x.attributes["axes"] if x.op is ops.flip else ()
    odd = tuple(sorted(axis for axis in set(axes) ^ set(inner) if x.shape[axis] != 1))
    base = x.inputs[0] if x.op is ops.flip else x
    if not odd:
        return base
    return None if base is x and odd == axes else ops.flip(base, axes=odd)


def _cut(x: Node, starts: tuple[int, ...], counts: tuple[int, ...], steps: tuple[int, ...]) -> Node:
    """`counts` elements from `starts`, `steps` apart, in the one way to write it."""
    steps = tuple(1 if count == 1 else step for count, step in zip(counts, steps, strict=True))
    stops = tuple(a + (n - 1) * s + 1 for a, n, s in zip(starts, counts, steps, strict=True))
    return ops.slice_(x, starts=starts, stops=stops, steps=steps)


@TABLE.rule(ops.slice_)
def slice_slice(node: Node) -> Node | None:
    """The whole is no slice; a slice of a slice is one; steps and stops are as small as they can be."""
    (x,) = node.inputs
    if node.shape == x.shape:
        return x
    starts, steps = node.attributes["starts"], node.attributes["steps"]
    if x.op is not ops.slice_:
        result = _cut(x, starts, node.shape, steps)
        return None if result is node else result
    inner_starts, inner_steps = x.attributes["starts"], x.attributes["steps"]
    return _cut(
        x.inputs[0],
        tuple(a + b * s for a, b, s in zip(inner_starts, starts, inner_steps, strict=True)),
        node.shape,
        tuple(s * t for s, t in zip(inner_steps, steps, strict=True)),
    )


@TABLE.rule(ops.slice_)
def slice_broadcast(node: Node) -> Node | None:
    """Cut the operand, then repeat it."""
    (x,) = node.inputs
    if x.op is not ops.broadcast:
        return None
    (base,) = x.inputs
    starts, steps = node.attributes["starts"], node.attributes["steps"]
    repeated = [old != new for old, new in zip(base.shape, x.shape, strict=True)]
    part = _cut(
        base,
        tuple(0 if again else a for a, again in zip(starts, repeated, strict=True)),
        tuple(1 if again else n for n, again in zip(node.shape, repeated, strict=True)),
        steps,
    )
    return ops.broadcast(part, shape=node.shape)


@TABLE.rule(ops.slice_)
def slice_concat(node: Node) -> Node | None:
    """A slice within one piece is a slice of that piece."""
    (x,) = node.inputs
    if x.op is not ops.concat:
        return None
    axis, offset = x.attributes["axis"], 0
    first = node.attributes["starts"][axis]
    last = first + (node.shape[axis] - 1) * node.attributes["steps"][axis]
    for piece in x.inputs:
        if offset <= first and last < offset + piece.shape[axis]:
            starts = list(node.attributes["starts"])
            starts[axis] -= offset
            return _cut(piece, tuple(starts), node.shape, node.attributes["steps"])
        offset += piece.shape[axis]
    return None


@TABLE.rule(ops.slice_)
def slice_pad(node: Node) -> Node | None:
    """Cutting off what was just padded: pads less and cuts less. Only without interior padding and with steps 1."""
    (x,) = node.inputs
    if x.op is not ops.pad or any(x.attributes["interior"]) or any(step != 1 for step in node.attributes["steps"]):
        return None
    (base,) = x.inputs
    low, high, starts, stops = [], [], [], []
    for begin, end, before, extent in zip(
        node.attributes["starts"], node.attributes["stops"], x.attributes["low"], base.shape, strict=True
    ):
        # In the base's own coordinates the slice is first..last, which may reach beyond 0..extent.
        first, last = begin - before, end - before
        if last <= 0 or first >= extent:
            return full(x.attributes["value"], node.dtype, node.shape)
        low.append(max(0, -first))
        high.append(max(0, last - extent))
        starts.append(max(0, first))
        stops.append(min(extent, last))
    part = ops.slice_(base, starts=tuple(starts), stops=tuple(stops), steps=(1,) * base.rank)
    result = ops.pad(part, low=tuple(low), high=tuple(high), interior=(0,) * base.rank, value=x.attributes["value"])
    return None if part is base and result is x else result


@TABLE.rule(ops.pad)
def pad_pad(node: Node) -> Node | None:
    """Without padding: the input. Padding of nothing or of its own value: a constant. Twice with one value: once."""
    (x,), attributes = node.inputs, node.attributes
    value = full(attributes["value"], node.dtype, node.shape)
    if x.size == 0 or same_constant(spread(x, node.shape) if x.op is ops.constant else x, value):
        return value
    interior = tuple(i if n > 1 else 0 for i, n in zip(attributes["interior"], x.shape, strict=True))
    low, high = attributes["low"], attributes["high"]
    if not any((*low, *high, *interior)):
        return x
    own = value.attributes["value"]  # the value as a Python number of the dtype's kind
    if x.op is ops.pad and not any(interior) and same_constant(full(x.attributes["value"], x.dtype, node.shape), value):
        return ops.pad(
            x.inputs[0],
            low=tuple(a + b for a, b in zip(low, x.attributes["low"], strict=True)),
            high=tuple(a + b for a, b in zip(high, x.attributes["high"], strict=True)),
            interior=x.attributes["interior"],
            value=own,
        )
    return ops.pad(x, low=low, high=high, interior=interior, value=own)


@TABLE.rule(ops.concat)
def concat_concat(node: Node) -> Node | None:
    """Nested pieces are listed flat, empty ones dropped; one piece is itself, equal constants are one."""
    axis = node.attributes["axis"]
    pieces: list[Node] = []
    for piece in node.inputs:
        nested = piece.op is ops.concat and piece.attributes["axis"] == axis
        pieces.extend(piece.inputs if nested else [piece])
    merged: list[Node] = []
    for piece in pieces:
        if piece.size == 0:
            continue
        if merged and same_constant(merged[-1], piece):
            total = merged[-1].shape[axis] + piece.shape[axis]
            piece = spread(piece, (*piece.shape[:axis], total, *piece.shape[axis + 1 :]))
            merged.pop()
        merged.append(piece)
    if len(merged) == 1:
        return merged[0]
    return None if tuple(merged) == node.inputs else ops.concat(*merged, axis=axis)


@TABLE.rule(ops.window)
def window_of_one(node: Node) -> Node | None:
    """A window one element wide is a slice."""
    (x,), attributes = node.inputs, node.attributes
    windows = list(
        zip(attributes["axes"], attributes["sizes"], attributes["strides"], attributes["dilations"], strict=True)
    )
    steps = [1] * x.rank
    counts = list(x.shape)
    real = []
    for axis, size, stride, dilation in windows:
        if size == 1:
            steps[axis], counts[axis] = stride, node.shape[axis]
        else:
            real.append((axis, size, stride, dilation))
    if real == windows:
        return None
    base = _cut(x, (0,) * x.rank, tuple(counts), tuple(steps))
    if real:
        axes, sizes, strides, dilations = zip(*real, strict=True)
        base = ops.window(base, axes=axes, sizes=sizes, strides=strides, dilations=dilations)
    return ops.reshape(base, shape=node.shape)
