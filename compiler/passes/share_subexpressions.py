"""Equal subexpressions are one node by construction; here a + b and b + a become equal.

Operands of commutative ops are put in the order of a structural hash, constants last. The hash knows only ops,
attributes and positions of inputs, so the same program is ordered the same in every process.
"""

from __future__ import annotations

import hashlib

from ..ir import Graph, Node, ops, rebuild, source
from .canonicalise import COMMUTATIVE
from .rules import isolate_inputs


def share_subexpressions(graph: Graph) -> Graph:
    """The graph with commutative operands in one order."""
    graph = isolate_inputs(graph)
    result: dict[Node, Node] = {node: node for node in graph.inputs}
    hashes: dict[Node, bytes] = {
        node: _hash(f"argument {position} {node.dtype} {node.shape}") for position, node in enumerate(graph.inputs)
    }
    for node in graph.nodes[len(graph.inputs) :]:
        inputs = [result[child] for child in node.inputs]
        if node.op in COMMUTATIVE:
            inputs.sort(key=lambda child: (child.op is ops.constant, hashes[child]))
        with source.inherit(node.source):
            with_order = rebuild(node, tuple(inputs))
        result[node] = with_order
        if with_order not in hashes:
            text = f"{node.op.name} {sorted(node.attributes.items())!r} "
            hashes[with_order] = _hash(text, *(hashes[child] for child in inputs))
    return Graph(graph.inputs, tuple(result[node] for node in graph.outputs), graph.input_names)


def _hash(text: str, *parts: bytes) -> bytes:
    return hashlib.blake2b(text.encode() + b"".join(parts), digest_size=16).digest()
