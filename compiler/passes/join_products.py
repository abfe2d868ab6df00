"""A sum of two matrix products is one product of operands laid end to end, where the result is what is large.

    x^T u + y^T v  =  [x; y]^T [u; v]

The first form writes a product to memory, and reads it again to add the other. The second has no result but the sum,
which goes through registers: gradients of a parameter that is used twice, such as a token embedding that is also the
output projection, meet its update there. It pays where results outweigh operands, which are read piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph, Node, ops, rebuild, source
from .rules import isolate_inputs


def join_products(graph: Graph) -> Graph:
    """The graph with such sums as one product, where nothing else needs its terms."""
    graph = isolate_inputs(graph)
    uses = {node: len(users) for node, users in graph.users.items()}
    for node in graph.outputs:
        uses[node] += 1
    mapping: dict[Node, Node] = {node: node for node in graph.inputs}
    for node in graph.nodes[len(graph.inputs) :]:
        with source.inherit(node.source):
            joined = _joined(node, uses, mapping) if node.op is ops.add else None
            mapping[node] = joined or rebuild(node, tuple(mapping[child] for child in node.inputs))
    return Graph(graph.inputs, tuple(mapping[node] for node in graph.outputs), graph.input_names)


@dataclass(frozen=True)
class _Product:
    """left^T right: operands of shapes (depth, rows) and (depth, columns)."""

    left: Node
    right: Node

    @classmethod
    def of(cls, node: Node, uses: dict[Node, int], mapping: dict[Node, Node]) -> _Product | None:
        """The product that `node`, or what it is the transpose of, is; None if it is none or is used elsewhere."""
        transposed = node.op is ops.permute and node.rank == 2
        if transposed:
            if uses[node] > 1:
                return None
            (node,) = node.inputs
        if node.op is not ops.dot_general or uses[node] > 1 or any(child.rank != 2 for child in node.inputs):
            return None
        depths = (node.attributes["lhs_contract"], node.attributes["rhs_contract"])
        if node.attributes["lhs_batch"] or any(len(depth) != 1 for depth in depths):
            return None
        sides = [
            mapping[child] if depth == (0,) else ops.permute(mapping[child], axes=(1, 0))
            for child, depth in zip(node.inputs, depths, strict=True)
        ]
        return cls(*reversed(sides)) if transposed else cls(*sides)


def _joined(node: Node, uses: dict[Node, int], mapping: dict[Node, Node]) -> Node | None:
    """The sum as one product, or None."""
    if node.inputs[0] is node.inputs[1]:
        return None
    first, second = (_Product.of(child, uses, mapping) for child in node.inputs)
    if first is None or second is None or node.size == 0:
        return None
    parts = (first.left, first.right, second.left, second.right)
    if any(part.op is ops.concat for part in parts):
        return None  # of many pieces each would be looked up at every element
    rows, columns = node.shape
    depth = first.left.shape[0] + second.left.shape[0]
    if 2 * rows * columns <= depth * (rows + columns):
        return None
    left, right = (ops.concat(a, b, axis=0) for a, b in ((first.left, second.left), (first.right, second.right)))
    return ops.dot_general(left, right, lhs_batch=(), rhs_batch=(), lhs_contract=(0,), rhs_contract=(0,))
