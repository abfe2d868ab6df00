"""Gradient rules of gather and scatter_add: each is the transpose of the other."""

from __future__ import annotations

from ..ir import Node, dtypes, ops
from .vjp import Cotangents, rule


@rule(ops.gather)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Rows add up where they were read; an index out of range read the nearest row."""
    if node.size == 0:
        return None, None
    return ops.scatter_add(_places(node), cotangent, size=node.inputs[0].shape[0]), None


def _places(node: Node) -> Node:
    """The rows that a gather reads: its indices, those out of range replaced by the nearest."""
    operand, indices = node.inputs
    size = operand.shape[0]
    lowest, highest = dtypes.value_bounds(indices.dtype)
    if lowest < 0:
        indices = ops.maximum(indices, indices.like(0))
    if highest > size - 1:
        indices = ops.minimum(indices, indices.like(size - 1))
    return indices


def by_product(node: Node, cotangent: Node) -> Cotangents:
    """The rule of gather with a product instead: of who reads which row, and the cotangents of what was read.

    It is the same sum as that of `scatter_add`, with many zeros in it. But the update of the parameter can finish a
    product, tile by tile, so that the cotangent, as large as the parameter, is never in memory.
    """
    operand, indices = node.inputs
    rows, width = indices.size, operand.size // operand.shape[0]
    table = (rows, operand.shape[0])
    column = ops.broadcast(ops.reshape(_places(node), shape=(rows, 1)), shape=table)
    reads = ops.cast(ops.eq(column, ops.iota(shape=table, axis=1, dtype=indices.dtype)), dtype=cotangent.dtype)
    read = ops.reshape(cotangent, shape=(rows, width))
    sums = ops.dot_general(reads, read, lhs_batch=(), rhs_batch=(), lhs_contract=(0,), rhs_contract=(0,))
    return ops.reshape(sums, shape=operand.shape), None


@rule(ops.scatter_add)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Rows are read where they were added; a row whose index is out of range was dropped and gets zero."""
    indices, updates = node.inputs
    size = node.attributes["size"]
    if updates.size == 0 or size == 0:
        return None, None
    rows = ops.gather(cotangent, indices)
    lowest, highest = dtypes.value_bounds(indices.dtype)
    checks = [ops.le(indices.like(0), indices)] if lowest < 0 else []
    if highest > size - 1:
        checks.append(ops.le(indices, indices.like(size - 1)))
    for inside in checks:
        column = ops.reshape(inside, shape=inside.shape + (1,) * (rows.rank - indices.rank))
        rows = ops.where(ops.broadcast(column, shape=rows.shape), rows, rows.like(0))
    return None, rows
