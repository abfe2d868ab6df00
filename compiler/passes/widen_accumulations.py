"""Widen accumulations: sums that go through memory are kept in float32 and rounded to a narrow float once.

Reductions and contractions accumulate in registers, which are wide already; `scatter_add` adds in memory.
"""

from __future__ import annotations

from ..ir import Graph, Node, ops, rebuild, rewrite
from .rules import isolate_inputs


def widen_accumulations(graph: Graph) -> Graph:
    """The graph with every scatter_add of narrow floats done in the type they are computed in."""
    return rewrite(isolate_inputs(graph), _widen)


def _widen(node: Node, inputs: tuple[Node, ...]) -> Node:
    if node.op is not ops.scatter_add or node.dtype.compute is node.dtype:
        return rebuild(node, inputs)
    indices, updates = inputs
    wide = ops.scatter_add(indices, ops.cast(updates, dtype=node.dtype.compute), size=node.attributes["size"])
    return ops.cast(wide, dtype=node.dtype)
