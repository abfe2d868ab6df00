"""What lowering looks at in nodes that share a kernel: layers that are made alike are found out about once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ..ir.graph import Node, topological


def structure(members: Sequence[Node], outputs: Sequence[Node], has_memory: Callable[[Node], bool]) -> Hashable:
    """Equal for members that are computed alike, whichever nodes they are; arguments as of `lowering.lower`.

    Whether they can be lowered, and what kernel they make but for its buffers, follows from this.
    """
    inside = set(members)

    def is_loaded(node: Node) -> bool:
        return node not in inside and has_memory(node)

    order = topological(members, stop=is_loaded)
    numbers = {node: number for number, node in enumerate(order)}
    entries: list[tuple[Hashable, ...]] = []
    for node in order:
        if is_loaded(node):
            entries.append((node.dtype.name, node.shape))
        else:
            operands = tuple([numbers[child] for child in node.inputs])
            attributes = tuple(node.attributes.values())
            entries.append((node.op.name, node.dtype.name, node.shape, operands, attributes, has_memory(node)))
    return (tuple(entries), *(tuple([numbers[node] for node in nodes]) for nodes in (members, outputs)))
