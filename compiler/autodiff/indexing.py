"""Gradient rules of gather and scatter_add: each is the transpose of the other."""

from __future__ import annotations

from ..ir import Node, dtypes, ops
from .vjp import Cotangents, rule


@rule(ops.gather)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Rows add up where they were read; an index out of range read the nearest row."""
    operand, indices = node.inputs
    if node.size == 0:
        return None, None
    size = operand.shape[0]
    lowest, highest = dtypes.value_bounds(indices.dtype)
    if lowest < 0:
        indices = ops.maximum(indices, indices.like(0))
    if highest > size - 1:
        indices = ops.minimum(indices, indices.like(size - 1))
    return ops.scatter_add(indices, cotangent, size=size), None


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
