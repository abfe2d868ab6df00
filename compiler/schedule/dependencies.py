"""Which kernels wait for which: an acyclic graph of numbers whose nodes merge, and that knows what reaches what.

For every node the nodes above and below it are kept as the bits of one integer. Whether merging two nodes would close a
cycle is then a look at the bits of their neighbours, and a merge changes only the bits of nodes that reach, or are
reached from, one of the two and not the other: seldom any, when a producer merges into its consumer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator


class Dependencies:
    """Nodes 0 to `count` - 1, and edges from a node to one that waits for it; every edge leads to a greater number."""

    def __init__(self, count: int, edges: Iterable[tuple[int, int]]):
        # In the order in which the edges came, so that every walk is the same in every process.
        self.before: dict[int, dict[int, None]] = {node: {} for node in range(count)}
        self.after: dict[int, dict[int, None]] = {node: {} for node in range(count)}
        for source, target in edges:
            self.before[target][source] = None
            self.after[source][target] = None
        self._above, self._below = [0] * count, [0] * count
        for node in range(count):
            for source in self.before[node]:
                self._above[node] |= self._above[source] | 1 << source
        for node in reversed(range(count)):
            for target in self.after[node]:
                self._below[node] |= self._below[target] | 1 << target

    def leads_around(self, first: int, second: int) -> bool:
        """Whether a path leads from one node to the other through a third."""
        for start, goal in ((first, second), (second, first)):
            if any(node != goal and self._below[node] >> goal & 1 for node in self.after[start]):
                return True
        return False

    def merge(self, first: int, second: int) -> None:
        """Make `first` part of `second`. No path may lead around."""
        for source in self.before.pop(first):
            del self.after[source][first]
            if source != second:
                self.before[second][source] = None
                self.after[source][second] = None
        for target in self.after.pop(first):
            del self.before[target][first]
            if target != second:
                self.after[second][target] = None
                self.before[target][second] = None
        self._spread(self._above, self._below, first, second)
        self._spread(self._below, self._above, first, second)
        # The bit of the node that is gone stays where it was: nobody asks for it.
        both = ~(1 << first | 1 << second)
        self._above[second] = (self._above[first] | self._above[second]) & both
        self._below[second] = (self._below[first] | self._below[second]) & both

    def _spread(self, towards: list[int], away: list[int], first: int, second: int) -> None:
        """Tell the nodes towards one side of the merged node what now lies on its other side."""
        found = away[first] | away[second] | 1 << second
        for one, other in ((first, second), (second, first)):
            if found & ~(away[one] | 1 << one):
                for node in _bits(towards[one] & ~towards[other]):
                    if node in self.before:
                        away[node] |= found

    def by_generation(self) -> list[int]:
        """The nodes, those that wait for nobody first, then those that wait only for them, and so on."""
        waiting = {node: len(sources) for node, sources in self.before.items()}
        order: list[int] = []
        generation = sorted(node for node, count in waiting.items() if not count)
        while generation:
            order += generation
            following = []
            for node in generation:
                for target in self.after[node]:
                    waiting[target] -= 1
                    if not waiting[target]:
                        following.append(target)
            generation = following
        return order

    def first_numbers_first(self) -> list[int]:
        """The nodes after those they wait for, the smallest number first wherever there is a choice."""
        waiting = {node: len(sources) for node, sources in self.before.items()}
        ready = [node for node, count in waiting.items() if not count]
        heapq.heapify(ready)
        order: list[int] = []
        while ready:
            node = heapq.heappop(ready)
            order.append(node)
            for target in self.after[node]:
                waiting[target] -= 1
                if not waiting[target]:
                    heapq.heappush(ready, target)
        return order


def _bits(bits: int) -> Iterator[int]:
    """The positions of the bits that are set."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
