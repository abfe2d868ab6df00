"""Memory traffic: the bytes that a kernel has to move at least, each element it touches once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ir import ops
from ..ir.graph import Node


def traffic_bytes(reads: Iterable[Node], outputs: Iterable[Node], computed: Sequence[Node]) -> int:
    """The bytes of what a kernel reads and stores, where `computed` are the nodes it computes.

    Of an array that is only sliced or gathered from, what is taken counts, if that is less than all of it: the rest, as
    rows of a table that no index names, is not touched.
    """
    outputs = list(outputs)
    users: dict[Node, list[Node]] = {}
    for node in computed:
        for child in dict.fromkeys(node.inputs):
            users.setdefault(child, []).append(node)
    stored = set(outputs)
    known: dict[Node, int] = {}

    def touched(array: Node) -> int:
        """How many elements of an array somebody looks at."""
        if array not in known:
            seen = array.size if array in stored else 0
            for user in users.get(array, ()):
                if user.op is ops.gather and user.inputs[1] is not array:
                    seen += user.size
                elif user.op.kind == "movement":
                    seen += min(user.size, touched(user))
                else:
                    seen = array.size
            known[array] = min(seen, array.size) if array in users else array.size
        return known[array]

    return sum(touched(array) * array.dtype.itemsize for array in reads) + sum(array.nbytes for array in outputs)
