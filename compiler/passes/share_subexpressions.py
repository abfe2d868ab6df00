"""Equal subexpressions are one node by construction; here a + b and b + a become equal.

The order in which the program first wrote the operands is kept (constants go last), so that layers that were written
alike stay alike and share kernels.
"""

from __future__ import annotations

from typing import Any

from ..ir import Graph, Node, ops, rebuild, source
from .canonicalise import COMMUTATIVE
from .rules import isolate_inputs


def share_subexpressions(graph: Graph) -> Graph:
    """The graph with one order of operands for each commutative expression."""
    graph = isolate_inputs(graph)
    result: dict[Node, Node] = {node: node for node in graph.inputs}
    first: dict[Any, Node] = {}
    for node in graph.nodes[len(graph.inputs) :]:
        inputs = tuple(result[child] for child in node.inputs)
        if node.op in COMMUTATIVE:
            inputs = tuple(sorted(inputs, key=lambda child: child.op is ops.constant))
        with source.inherit(node.source):
            made = rebuild(node, inputs)
        if node.op in COMMUTATIVE:
            made = first.setdefault((node.op.name, frozenset(inputs)), made)
        result[node] = made
    return Graph(graph.inputs, tuple(result[node] for node in graph.outputs), graph.input_names)
