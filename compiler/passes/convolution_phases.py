"""A convolution of an image with gaps between its elements is several convolutions of the image without them.

With x dilated by L along an axis, y[p] = sum over k of w[k] x[(p + k * d - low) / L] has terms only where the division
is exact: for the places p = L * q + a of one phase, those are every (L / gcd(d, L))-th k, from the first that fits. So

    y[a::L] = convolution of x with w[first::L / gcd(d, L)], dilated by d / gcd(d, L)

and the phases together do 1 / L of the multiplications. The gradient of a strided convolution has this form.
"""

from __future__ import annotations

from math import gcd

from ..ir import Node, full, ops


def split_phases(node: Node) -> Node | None:
    """The conv_general `node` without gaps along one axis that has some, as convolutions interleaved; None if none."""
    attributes = node.attributes
    for axis, (gap, stride) in enumerate(zip(attributes["lhs_dilation"], attributes["strides"], strict=True)):
        if gap > 1 and stride == 1 and node.size:
            return _interleaved([_phase(node, axis, phase) for phase in range(gap)], axis + 2, node)
    return None


def _phase(node: Node, axis: int, phase: int) -> Node:
    """y[phase::gap] along the axis, padded with whatever to as many places as the first phase has."""
    x, w = node.inputs
    attributes = node.attributes
    gap, dilation = attributes["lhs_dilation"][axis], attributes["rhs_dilation"][axis]
    low = attributes["padding"][axis][0]
    places, size = -(-node.shape[axis + 2] // gap), w.shape[axis + 2]
    shape = (*node.shape[: axis + 2], places, *node.shape[axis + 3 :])
    fitting = [k for k in range(size) if (phase + k * dilation - low) % gap == 0]
    if not fitting:
        return full(0, node.dtype, shape)
    step = gap // gcd(dilation, gap)
    begin = (phase + fitting[0] * dilation - low) // gap
    reach = (len(fitting) - 1) * (dilation // gcd(dilation, gap))
    cut, padding = _cut(x, axis + 2, begin, begin + places + reach)
    if cut.shape[axis + 2] == 0:
        return full(0, node.dtype, shape)

    def changed(name: str, value: object) -> tuple[object, ...]:
        kept = attributes[name]
        return (*kept[:axis], value, *kept[axis + 1 :])

    return ops.conv_general(
        cut,
        _every(w, axis + 2, fitting[0], step),
        strides=attributes["strides"],
        padding=changed("padding", padding),
        lhs_dilation=changed("lhs_dilation", 1),
        rhs_dilation=changed("rhs_dilation", dilation // gcd(dilation, gap)),
        groups=attributes["groups"],
    )


def _cut(x: Node, axis: int, begin: int, end: int) -> tuple[Node, tuple[int, int]]:
    """The part of x in positions begin..end along the axis, and the padding that the rest of them is."""
    extent = x.shape[axis]
    start, stop = min(max(begin, 0), extent), max(0, min(end, extent))
    stop = max(start, stop)
    starts = tuple(start if a == axis else 0 for a in range(x.rank))
    stops = tuple(stop if a == axis else n for a, n in enumerate(x.shape))
    if (start, stop) != (0, extent):
        x = ops.slice_(x, starts=starts, stops=stops, steps=(1,) * x.rank)
    return x, (start - begin, end - stop)


def _every(w: Node, axis: int, start: int, step: int) -> Node:
    """w[start::step] along the axis."""
    if start == 0 and (step == 1 or w.shape[axis] == 1):
        return w
    starts = tuple(start if a == axis else 0 for a in range(w.rank))
    steps = tuple(step if a == axis else 1 for a in range(w.rank))
    return ops.slice_(w, starts=starts, stops=w.shape, steps=steps)


def _interleaved(phases: list[Node], axis: int, node: Node) -> Node:
    """Element by element one of each phase in turn, as many as the node has."""
    shape = phases[0].shape
    apart = [ops.reshape(phase, shape=(*shape[: axis + 1], 1, *shape[axis + 1 :])) for phase in phases]
    joined = apart[0]
    for part in apart[1:]:
        joined = ops.concat(joined, part, axis=axis + 1)
    merged = ops.reshape(joined, shape=(*shape[:axis], shape[axis] * len(phases), *shape[axis + 1 :]))
    if merged.shape == node.shape:
        return merged
    return ops.slice_(merged, starts=(0,) * node.rank, stops=node.shape, steps=(1,) * node.rank)
