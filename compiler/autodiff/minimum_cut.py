"""The least that a gradient has to keep of a forward pass if no product of matrices is done again: a minimum cut.

Every value is an edge whose capacity is its bytes, which is cut if the value is kept. Computing a value again costs
something too, a small price for each operation, so that cheap operations on many bytes are done again and small results
of long computations are kept.

The cut is that of the partitioner of PyTorch's AOTAutograd: He and Yu, Transcending runtime-memory tradeoffs in
checkpointing by being fusion aware (2023).
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from ..ir import Node, topological
from .maximum_flow import Network

# What an operation costs, in bytes kept: a chain of a hundred or so is worth the four bytes of its result.
PRICE = 1 / 32


def minimum_cut(members: Collection[Node], needed: Collection[Node]) -> frozenset[Node]:
    """The members to keep so that the `needed` ones can be computed from them and from what is not a member."""
    inside = frozenset(members)
    order = [node for node in topological(needed, stop=lambda n: n not in inside) if node in inside]
    numbers = {node: number for number, node in enumerate(order)}
    # Each value is an edge from its even to its odd number; edges without a capacity cannot be cut.
    source, sink = 2 * len(order), 2 * len(order) + 1
    network = Network(2 * len(order) + 2)
    for node, number in numbers.items():
        entrance, leaving = 2 * number, 2 * number + 1
        network.add_edge(entrance, leaving, float(node.nbytes) if _can_be_kept(node) else inf)
        network.add_edge(source, entrance, inf if node.op.kind == "contract" else PRICE * _operations(node))
        for child in node.inputs:
            if child in numbers:
                network.add_edge(2 * numbers[child] + 1, entrance)
        if node in needed:
            network.add_edge(leaving, sink)
    reached = network.minimum_cut(source, sink)
    return frozenset(n for n, i in numbers.items() if 2 * i in reached and 2 * i + 1 not in reached)


def _can_be_kept(node: Node) -> bool:
    """Movement is done by whoever reads; its operand is kept instead, unless that is more."""
    return node.op.kind != "movement" or any(node.nbytes < child.nbytes for child in node.inputs)


def _operations(node: Node) -> int:
    return node.op.flops(node) if node.op.kind == "movement" else max(node.op.flops(node), node.size)
