"""Gradient rules of the reductions."""

from __future__ import annotations

import math

from ..ir import Node, Op, dtypes, full, ops
from .vjp import Cotangents, rule


def spread(value: Node, axes: tuple[int, ...], shape: tuple[int, ...]) -> Node:
    """`value`, a reduction of `shape` over `axes`, repeated along those axes."""
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return ops.broadcast(ops.reshape(value, shape=kept), shape=shape)


@rule(ops.reduce_sum)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (spread(cotangent, node.attributes["axes"], x.shape),)


@rule(ops.reduce_max)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (_to_first(node, cotangent, ops.argmax),)


@rule(ops.reduce_min)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (_to_first(node, cotangent, ops.argmin),)


def _to_first(node: Node, cotangent: Node, position: Op) -> Node | None:
    """The cotangent at the first extremum in row-major order, zero elsewhere."""
    (x,) = node.inputs
    axes = tuple(sorted(node.attributes["axes"]))
    depth = math.prod(x.shape[axis] for axis in axes)
    if depth == 0:
        return None
    # Bring the reduced axes to the end and make them one, which argmax can search.
    order = tuple(axis for axis in range(x.rank) if axis not in axes) + axes
    moved = ops.permute(x, axes=order)
    rows = (*node.shape, depth)
    last = len(node.shape)
    first = position(ops.reshape(moved, shape=rows), axis=last)
    places = ops.iota(shape=rows, axis=last, dtype=dtypes.int64)
    chosen = ops.eq(places, spread(first, (last,), rows))
    scattered = ops.where(chosen, spread(cotangent, (last,), rows), full(0, x.dtype, rows))
    inverse = tuple(order.index(axis) for axis in range(x.rank))
    return ops.permute(ops.reshape(scattered, shape=moved.shape), axes=inverse)
