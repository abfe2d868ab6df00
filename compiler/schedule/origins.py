"""Which nodes of the graph each line of a kernel's text computes, loads or stores."""

from __future__ import annotations

from ..ir import ops
from ..ir.graph import Node
from .expand import moves_only
from .fusion import ScheduledKernel
from .text import line_origins


def line_nodes(scheduled: ScheduledKernel) -> list[tuple[Node, ...]]:
    """For each line of the kernel's text the nodes it comes from; none for the lines of loops.

    What only moves elements has no line of its own: it is part of where the lines of what it moves load from.
    """
    lines: dict[Node, list[int]] = {}
    found: list[tuple[Node, ...]] = []
    for number, origin in enumerate(line_origins(scheduled.kernel)):
        found.append((origin,) if isinstance(origin, Node) else ())
        if isinstance(origin, Node):
            lines.setdefault(origin, []).append(number)
    for node in scheduled.nodes:
        if node not in lines and (moves_only(node) or node.op is ops.gather):
            for number in lines.get(_moved(node, lines), ()):
                found[number] += (node,)
    return found


def _moved(node: Node, lines: dict[Node, list[int]]) -> Node:
    """What the node shows the elements of, as far back as it takes to find something that has lines."""
    while node not in lines and (moves_only(node) or node.op is ops.gather):
        node = node.inputs[0]
    return node
