"""What is computed again waits: the order that `again` asks for, taken out of the graph: kernels see data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ir import Graph, Node, ops, rebuild, source


@dataclass(frozen=True, eq=False)
class Waits:
    """Of nodes `again` of a graph: what must have been computed before they are read.

    `order` are the graph's nodes, each after its inputs and after what it waits for. `freed`: what became of the nodes
    of the graph that had waits.
    """

    awaited: Mapping[Node, tuple[Node, ...]]
    order: Sequence[Node]
    freed: Mapping[Node, Node]

    @classmethod
    def none(cls, graph: Graph) -> Waits:
        """For a graph in which nothing waits."""
        return cls({}, graph.nodes, {node: node for node in graph.nodes})


def without_waits(graph: Graph) -> tuple[Graph, Waits]:
    """The graph with `again` of one input, and what each of those waits for.

    Where an awaited node serves nothing but that, what it would be computed from is awaited instead.
    """
    if not any(node.op is ops.again for node in graph.nodes):
        return graph, Waits.none(graph)
    mapping: dict[Node, Node] = {node: node for node in graph.inputs}
    numbers: dict[tuple[Node, ...], int] = {}
    awaited: dict[Node, tuple[Node, ...]] = {}
    for node in graph.nodes[len(graph.inputs) :]:
        inputs = tuple(mapping[child] for child in node.inputs)
        with source.inherit(node.source):
            if node.op is ops.again:
                number = numbers.setdefault(inputs[1:], len(numbers))
                mapping[node] = ops.again(inputs[0], number=number)
                awaited[mapping[node]] = inputs[1:]
            else:
                mapping[node] = rebuild(node, inputs)
    freed = Graph(graph.inputs, tuple(mapping[node] for node in graph.outputs), graph.input_names)
    reached = set(freed.nodes)
    waits = {node: _among(nodes, reached) for node, nodes in awaited.items() if node in reached}
    order = [node for node in dict.fromkeys(mapping.values()) if node in reached]
    return freed, Waits(waits, order, mapping)


def _among(nodes: tuple[Node, ...], reached: set[Node]) -> tuple[Node, ...]:
    """The nodes that are reached, and for others the nearest of those that they depend on."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(reversed(nodes))
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in reached:
            found[node] = None
        else:
            stack.extend(reversed(node.inputs))
    return tuple(found)
