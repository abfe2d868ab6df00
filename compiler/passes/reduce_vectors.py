"""Products with a vector along the rows of a matrix become row sums, which read the matrix once and in order.

    dot_general(w: [n, k], x: [k])  ->  reduce_sum(w * broadcast(x), axis k)

Contractions run vectors along the result and would first transpose such a matrix. One whose columns run along the
vector stays a contraction: there the result's vectors are the matrix's.
"""

from __future__ import annotations

import math

from ..ir import Graph, Node, ops
from .rules import RuleTable, normalise

TABLE = RuleTable()


def reduce_vectors(graph: Graph) -> Graph:
    """The graph with every such product as multiplication and reduction."""
    return normalise(graph, TABLE)


@TABLE.rule(ops.dot_general)
def sum_rows(node: Node) -> Node | None:
    """A product with a vector, as the sums of the rows of an elementwise product."""
    # Contractions add up products that are not rounded to narrow types; multiplications would round them.
    if node.dtype.compute is not node.dtype:
        return None
    free = [_free(node, side) for side in (0, 1)]
    vectors = [math.prod(node.inputs[side].shape[a] for a in free[side]) == 1 for side in (0, 1)]
    if not any(vectors) or not all(vectors[side] or _contracts_innermost(node, side) for side in (0, 1)):
        return None
    batch, contract = node.attributes["lhs_batch"], node.attributes["lhs_contract"]
    shape = (*node.shape, *(node.inputs[0].shape[a] for a in contract))
    factors = []
    for side in (0, 1):
        operand = node.inputs[side]
        moved = ops.permute(operand, axes=(*_axes(node, side, "batch"), *free[side], *_axes(node, side, "contract")))
        extents = list(shape)
        first = len(batch) + (len(free[0]) if side == 0 else 0)  # of the other operand's free axes
        for axis in range(first, first + len(free[1 - side])):
            extents[axis] = 1
        factors.append(ops.broadcast(ops.reshape(moved, shape=tuple(extents)), shape=shape))
    return ops.reduce_sum(factors[0] * factors[1], axes=tuple(range(node.rank, len(shape))))


def _axes(node: Node, side: int, role: str) -> tuple[int, ...]:
    axes: tuple[int, ...] = node.attributes[f"{('lhs', 'rhs')[side]}_{role}"]
    return axes


def _free(node: Node, side: int) -> list[int]:
    used = {*_axes(node, side, "batch"), *_axes(node, side, "contract")}
    return [axis for axis in range(node.inputs[side].rank) if axis not in used]


def _contracts_innermost(node: Node, side: int) -> bool:
    """Whether neighbours along a contracted axis of the operand are neighbours in memory, as far as one can tell."""
    operand, axes = node.inputs[side], set(_axes(node, side, "contract"))
    while operand.op is ops.permute:
        order = operand.attributes["axes"]
        operand, axes = operand.inputs[0], {order[axis] for axis in axes}
    long = [axis for axis in range(operand.rank) if operand.shape[axis] > 1]
    return bool(long) and long[-1] in axes
