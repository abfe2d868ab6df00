"""Split concatenations: one of very many parts becomes a tree, so that no kernel has more than a few dozen buffers."""

from __future__ import annotations

from ..ir import Graph, Node, ops, rebuild, rewrite
from .rules import isolate_inputs

MOST_PARTS = 32


def split_concatenations(graph: Graph) -> Graph:
    """The graph with no concatenation of more than `MOST_PARTS` parts."""
    return rewrite(isolate_inputs(graph), _split)


def _split(node: Node, inputs: tuple[Node, ...]) -> Node:
    if node.op is not ops.concat or len(inputs) <= MOST_PARTS:
        return rebuild(node, inputs)
    axis = node.attributes["axis"]
    parts = list(inputs)
    while len(parts) > MOST_PARTS:
        groups = [parts[i : i + MOST_PARTS] for i in range(0, len(parts), MOST_PARTS)]
        parts = [ops.concat(*group, axis=axis) if len(group) > 1 else group[0] for group in groups]
    return ops.concat(*parts, axis=axis)
