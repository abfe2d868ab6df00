"""Memory traffic: the bytes that a kernel has to move at least, each element it touches once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ir import ops
from ..ir.graph import Node


def traffic_bytes(reads: Iterable[Node], outputs: Iterable[Node], computed: Sequence[Node]) -> int:
    """The bytes of what a kernel reads and stores, where `computed` are the nodes it computes.

    An array that is only gathered from counts as much as what is gathered, if that is less: rows of a table that no
    index names are not touched.
    """
    users: dict[Node, list[Node]] = {}
    for node in computed:
        for child in node.inputs:
            users.setdefault(child, []).append(node)

    def touched(array: Node) -> int:
        gathers: dict[Node, None] = {}
        stack = [array]
        while stack:
            node = stack.pop()
            for user in users.get(node, ()):
                if user.op is ops.gather and user.inputs[0] is node and user.inputs[1] is not node:
                    gathers[user] = None
                elif user.op.kind == "movement" and user.size == node.size:
                    stack.append(user)
                else:
                    return array.nbytes
        gathered = sum(gather.size for gather in gathers) * array.dtype.itemsize
        return min(array.nbytes, gathered) if gathers else array.nbytes

    return sum(touched(array) for array in reads) + sum(array.nbytes for array in outputs)
