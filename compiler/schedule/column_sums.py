"""Column sums: reductions that a contraction does beside its own, as they sum an operand over the depth.

The gradient of a linear layer's weight is x^T dy, that of its bias the sum of dy over the rows. The second is what the
first would have in one more row, were the left operand 1 there; it costs one addition for each element of dy that the
contraction holds anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ir import ops
from ..ir.graph import Node
from .expand import Illegal, Indices, moved, moves_only, spread
from .index import Variable
from .placing import Side, fresh, place_from, solve

HasMemory = Callable[[Node], bool]


def may_sum_columns(contraction: Node, reduction: Node, has_memory: HasMemory) -> bool:
    """Whether the reduction sums as many elements of an operand as the depth; which, is for `summed_place` to say."""
    if reduction.op is not ops.reduce_sum or reduction.dtype.compute is not contraction.dtype.compute:
        return False
    (summed,), side = reduction.inputs, Side.of(contraction, 0)
    if summed.size != reduction.size * math.prod(side.extents(side.contract)):
        return False
    return origin(summed, has_memory) in [origin(operand, has_memory) for operand in contraction.inputs]


def summed_place(
    reduction: Node, side: Side, indices: Indices, across: Sequence[Variable], depth: Variable, has_memory: HasMemory
) -> Indices | None:
    """Where the reduction is what the operand, at `indices`, sums to over `depth`; None if it does not sum it at all.

    `across` are the loops around the sum. Illegal if the reduction is over other axes of the operand.
    """
    (summed,) = reduction.inputs
    variables = fresh(summed, "y")
    node, here = _place_in_origin(summed, spread(summed.shape, variables), has_memory)
    other, there = _place_in_origin(side.node, indices, has_memory)
    if node is not other:
        return None
    # Both show every element of one array once, so the solution is one to one.
    solution = solve(list(zip(here, there, strict=True)), variables)
    place = place_from(variables, summed, solution)
    axes = reduction.attributes["axes"]
    kept = tuple(index for axis, index in enumerate(place) if axis not in axes)
    if any(not index.variables <= set(across) for index in kept):
        raise Illegal("a sum over a part of the depth")
    if any(not place[axis].variables <= {depth} for axis in axes):
        raise Illegal("a sum over other axes than the depth")
    return kept


def origin(node: Node, has_memory: HasMemory) -> Node:
    """The node whose elements this one shows in another order, each once."""
    return _traced(node, has_memory)[-1]


def _traced(node: Node, has_memory: HasMemory) -> list[Node]:
    """The node, what it shows, what that shows, ..."""
    path = [node]
    while moves_only(path[-1]) and not has_memory(path[-1]) and path[-1].size == path[-1].inputs[0].size:
        path.append(path[-1].inputs[0])
    return path


def _place_in_origin(node: Node, indices: Indices, has_memory: HasMemory) -> tuple[Node, Indices]:
    """The node's origin, and where in it the element at `indices` is found."""
    *moving, found = _traced(node, has_memory)
    for each in moving:
        indices = moved(each, indices)
    return found, indices
