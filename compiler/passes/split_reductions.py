"""Split reductions: a long reduction to few results becomes two, so that the first can run in parallel.

    reduce(x: [n])  ->  reduce(reduce(x: [parts, n / parts], axis 1))

The parts depend on the shape alone, and so do the bits of the result. What does not divide is padded with the
reduction's identity, which costs a comparison of indices and no memory.
"""

from __future__ import annotations

from ..ir import Graph, Node, dtypes, ops, rebuild, rewrite
from .rules import isolate_inputs

# With this many results the reduction is parallel enough as it is; below this many elements it is short enough.
FEW_RESULTS, MANY_ELEMENTS = 8, 65_536
PARTS = 64


def split_reductions(graph: Graph) -> Graph:
    """The graph with every long reduction to few results in two steps."""
    return rewrite(isolate_inputs(graph), _split)


def _split(node: Node, inputs: tuple[Node, ...]) -> Node:
    node = rebuild(node, inputs)
    if node.op not in (ops.reduce_sum, ops.reduce_max, ops.reduce_min):
        return node
    operand, axes = node.inputs[0], node.attributes["axes"]
    if node.size >= FEW_RESULTS or node.size == 0 or operand.size < MANY_ELEMENTS:
        return node
    # Axes that together are long enough to be the parts stay for the second step; the rest goes first.
    first = sorted(axes)[0]
    if len(axes) > 1 and PARTS // 4 <= operand.shape[first] <= PARTS * 64:
        rest = tuple(a for a in axes if a != first)
        return _second(node.op(operand, axes=rest), first - sum(a < first for a in rest), node)
    longest = max(axes, key=lambda a: operand.shape[a])
    extent = operand.shape[longest]
    if extent < 2 * PARTS:
        return node
    length = -(-extent // PARTS)
    padded = _padded(operand, longest, length * PARTS - extent, node)
    shape = (*operand.shape[:longest], PARTS, length, *operand.shape[longest + 1 :])
    parts = ops.reshape(padded, shape=shape)
    inner = tuple(a if a < longest else a + 1 for a in axes)
    return _second(node.op(parts, axes=inner), longest - sum(a < longest for a in inner), node)


def _second(partial: Node, axis: int, node: Node) -> Node:
    result = node.op(partial, axes=(axis,))
    assert result.shape == node.shape, (result.shape, node.shape)
    return result


def _padded(operand: Node, axis: int, missing: int, node: Node) -> Node:
    if missing == 0:
        return operand
    lowest, highest = dtypes.value_bounds(operand.dtype)
    identity = {"reduce_sum": 0, "reduce_max": lowest, "reduce_min": highest}[node.op.name]
    zeros = (0,) * operand.rank
    high = tuple(missing if a == axis else 0 for a in range(operand.rank))
    value = float(identity) if operand.dtype.is_float else bool(identity) if operand.dtype is dtypes.bool_ else identity
    return ops.pad(operand, low=zeros, high=high, interior=zeros, value=value)
