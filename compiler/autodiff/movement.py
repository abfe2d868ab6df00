"""Gradient rules of the ops that only move data: each cotangent moves back the way the value came."""

from __future__ import annotations

from functools import reduce

from ..ir import Node, ops
from .vjp import Cotangents, rule


@rule(ops.reshape)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (ops.reshape(cotangent, shape=x.shape),)


@rule(ops.again, ops.remat)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Both are their first input; the others say when, or from what, it may be computed."""
    return (cotangent, *(None for _ in node.inputs[1:]))


@rule(ops.permute)
def _(node: Node, cotangent: Node) -> Cotangents:
    axes = node.attributes["axes"]
    return (ops.permute(cotangent, axes=tuple(axes.index(axis) for axis in range(len(axes)))),)


@rule(ops.broadcast)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    axes = tuple(axis for axis, (old, new) in enumerate(zip(x.shape, node.shape, strict=True)) if old != new)
    return (ops.reshape(ops.reduce_sum(cotangent, axes=axes), shape=x.shape) if axes else cotangent,)


@rule(ops.flip)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (ops.flip(cotangent, axes=node.attributes["axes"]),)


@rule(ops.slice_)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    if node.size == 0:
        return (None,)
    starts, steps = node.attributes["starts"], node.attributes["steps"]
    return (_place(cotangent, x.shape, starts, steps),)


def _place(value: Node, shape: tuple[int, ...], starts: tuple[int, ...], steps: tuple[int, ...]) -> Node:
    """`value` at starts, starts + steps, ... of a tensor of `shape`, zero elsewhere: the transpose of a slice."""
    ends = (a + (n - 1) * s + 1 for a, n, s in zip(starts, value.shape, steps, strict=True))
    high = tuple(extent - end for extent, end in zip(shape, ends, strict=True))
    zero = False if value.dtype.kind == "bool" else 0.0 if value.dtype.is_float else 0
    return ops.pad(value, low=starts, high=high, interior=tuple(s - 1 for s in steps), value=zero)


@rule(ops.pad)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    if x.size == 0:
        return (None,)
    starts = node.attributes["low"]
    steps = tuple(i + 1 for i in node.attributes["interior"])
    stops = tuple(a + (n - 1) * s + 1 for a, n, s in zip(starts, x.shape, steps, strict=True))
    return (ops.slice_(cotangent, starts=starts, stops=stops, steps=steps),)


@rule(ops.concat)
def _(node: Node, cotangent: Node) -> Cotangents:
    axis, position, parts = node.attributes["axis"], 0, []
    for piece in node.inputs:
        starts = tuple(position if a == axis else 0 for a in range(node.rank))
        stops = tuple(position + piece.shape[axis] if a == axis else n for a, n in enumerate(node.shape))
        parts.append(ops.slice_(cotangent, starts=starts, stops=stops, steps=(1,) * node.rank))
        position += piece.shape[axis]
    return parts


@rule(ops.window)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Each window position adds back to where it was read from; one axis at a time, so work is a sum, not a product."""
    (x,) = node.inputs
    if node.size == 0:
        return (None,)
    axes, sizes = node.attributes["axes"], node.attributes["sizes"]
    strides, dilations = node.attributes["strides"], node.attributes["dilations"]
    for axis, size, stride, dilation in reversed(list(zip(axes, sizes, strides, dilations, strict=True))):
        fold = _fold_apart if stride >= size and (dilation == 1 or size == 1) else _fold_overlapping
        cotangent = fold(cotangent, axis, size, stride, dilation, x.shape[axis])
    return (cotangent,)


def _fold_apart(value: Node, axis: int, size: int, stride: int, dilation: int, extent: int) -> Node:
    """Windows on the last axis of `value` that do not overlap, laid side by side along `axis`."""
    rank = value.rank - 1
    places = value.shape[axis]
    order = (*range(axis + 1), rank, *range(axis + 1, rank))
    blocks = ops.permute(value, axes=order)
    if stride > size:
        blocks = _place(blocks, (*blocks.shape[: axis + 1], stride, *blocks.shape[axis + 2 :]), *_origin(rank + 1))
    joined = ops.reshape(blocks, shape=(*value.shape[:axis], places * stride, *value.shape[axis + 1 : rank]))
    shape = (*joined.shape[:axis], extent, *joined.shape[axis + 1 :])
    if places * stride > extent:
        return ops.slice_(joined, starts=(0,) * rank, stops=shape, steps=(1,) * rank)
    return joined if places * stride == extent else _place(joined, shape, *_origin(rank))


def _origin(rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Starts 0 and steps 1."""
    return (0,) * rank, (1,) * rank


def _fold_overlapping(value: Node, axis: int, size: int, stride: int, dilation: int, extent: int) -> Node:
    """Windows on the last axis of `value`, added up where they overlap along `axis`."""
    rank = value.rank - 1
    shape = (*value.shape[:axis], extent, *value.shape[axis + 1 : rank])
    terms = []
    for position in range(size):
        starts, stops = (0,) * rank + (position,), (*value.shape[:rank], position + 1)
        part = ops.slice_(value, starts=starts, stops=stops, steps=(1,) * (rank + 1))
        part = ops.reshape(part, shape=value.shape[:rank])
        offsets = tuple(position * dilation if a == axis else 0 for a in range(rank))
        terms.append(_place(part, shape, offsets, tuple(stride if a == axis else 1 for a in range(rank))))
    return reduce(lambda total, term: total + term, terms)
