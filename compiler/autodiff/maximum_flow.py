"""Maximum flow and minimum cut of a network with numbered nodes.

Dinic, Algorithm for solution of a problem of maximum flow in networks with power estimation (1970): nodes are levelled
by their distance from the source, flow is pushed along edges that go one level up until no path is left, and again.
Capacities that are whole multiples of a power of two, as bytes are, are added and subtracted without rounding.
"""

from __future__ import annotations

from math import inf


class Network:
    """A network that edges are added to; each is stored beside its reverse, whose capacity is the flow so far."""

    def __init__(self, nodes: int):
        self._edges: list[list[int]] = [[] for _ in range(nodes)]
        self._targets: list[int] = []
        self._left: list[float] = []

    def add_edge(self, start: int, end: int, capacity: float = inf) -> None:
        """An edge of that capacity; without one it cannot be cut."""
        for node, other, left in ((start, end, capacity), (end, start, 0.0)):
            self._edges[node].append(len(self._targets))
            self._targets.append(other)
            self._left.append(left)

    def minimum_cut(self, source: int, sink: int) -> set[int]:
        """The nodes on the source's side of the minimum cut that is nearest to the sink.

        ValueError if edges that cannot be cut lead all the way.
        """
        while self._push_along_levels(source, sink):
            pass
        # Whatever can still send something to the sink is on its side.
        behind, stack = {sink}, [sink]
        while stack:
            for edge in self._edges[stack.pop()]:
                node = self._targets[edge]
                if node not in behind and self._left[edge ^ 1] > 0:
                    behind.add(node)
                    stack.append(node)
        return set(range(len(self._edges))) - behind

    def _push_along_levels(self, source: int, sink: int) -> bool:
        """Push what the shortest paths can take. False if there is no path any more."""
        levels = self._levels(source)
        if levels[sink] < 0:
            return False
        following = [0] * len(self._edges)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                node = self._push(path, source)
                continue
            edges = self._edges[node]
            while following[node] < len(edges):
                edge = edges[following[node]]
                if self._left[edge] > 0 and levels[self._targets[edge]] == levels[node] + 1:
                    break
                following[node] += 1
            if following[node] < len(edges):
                path.append(edges[following[node]])
                node = self._targets[path[-1]]
            elif path:
                node = self._targets[path.pop() ^ 1]
                following[node] += 1
            else:
                return True

    def _push(self, path: list[int], source: int) -> int:
        """Push along a path, and go back on it to the node before the first edge that is full."""
        amount = min(self._left[edge] for edge in path)
        if amount == inf:
            raise ValueError("maximum_flow.minimum_cut: a path of edges without a capacity leads to the sink")
        full = None
        for position, edge in enumerate(path):
            self._left[edge] -= amount
            self._left[edge ^ 1] += amount
            if full is None and self._left[edge] == 0:
                full = position
        assert full is not None
        del path[full:]
        return self._targets[path[-1]] if path else source

    def _levels(self, source: int) -> list[int]:
        """The distance of each node from the source over edges that are not full, -1 where there is no way."""
        levels = [-1] * len(self._edges)
        levels[source] = 0
        front = [source]
        while front:
            reached = []
            for node in front:
                for edge in self._edges[node]:
                    other = self._targets[edge]
                    if levels[other] < 0 and self._left[edge] > 0:
                        levels[other] = levels[node] + 1
                        reached.append(other)
            front = reached
        return levels
