"""In place: intermediates that are written over others, which their kernel is the last to read.

The gradient of a row's scores takes the place of the scores: of both there is never more than one in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Node
from .aliasing import may_overwrite
from .fusion import ScheduledKernel
from .memory import Lifetime


@dataclass(frozen=True)
class Shared:
    """A place in memory, the values that are in it one after the other, and how long it is taken."""

    values: tuple[Node, ...]
    lifetime: Lifetime


def shared_places(
    steps: Sequence[Sequence[Sequence[ScheduledKernel]]], lifetimes: Mapping[Node, Lifetime]
) -> list[Shared]:
    """Every intermediate in one of the places, in the order in which places are first written.

    `steps` are chains of kernels that run at a time, as the lifetimes count them.
    """
    places: dict[Node, Shared] = {node: Shared((node,), life) for node, life in lifetimes.items()}
    for number, chains in enumerate(steps):
        readers = Counter(node for chain in chains for kernel in chain for node in dict.fromkeys(kernel.reads))
        for kernel in (kernel for chain in chains for kernel in chain):
            ending = [
                node for node in kernel.reads
                if node in lifetimes and lifetimes[node].last == number and readers[node] == 1
            ]  # fmt: skip
            written = [node for node in kernel.outputs if node in lifetimes]
            for before, node in _pairs(kernel, ending, written).items():
                joined = _joined(places[before], places[node])
                places.update((value, joined) for value in joined.values)
    return list({id(place): place for place in places.values()}.values())


def _pairs(scheduled: ScheduledKernel, ending: Sequence[Node], written: Sequence[Node]) -> dict[Node, Node]:
    """As many of `ending` as possible, each with another one of `written` that takes its place; the biggest first."""
    buffers = {buffer.node: buffer for buffer in scheduled.kernel.buffers}
    able = {
        node: [before for before in ending if may_overwrite(scheduled.kernel, buffers[before], buffers[node])]
        for node in sorted(written, key=lambda node: -node.nbytes)
    }
    taken: dict[Node, Node] = {}

    def take(node: Node, tried: set[Node]) -> bool:
        """Give the node a place, and whoever has it another one."""
        for before in able[node]:
            if before not in tried:
                tried.add(before)
                if before not in taken or take(taken[before], tried):
                    taken[before] = node
                    return True
        return False

    for node in able:
        take(node, set())
    return taken


def _joined(before: Shared, after: Shared) -> Shared:
    return Shared((*before.values, *after.values), replace(before.lifetime, last=after.lifetime.last))
