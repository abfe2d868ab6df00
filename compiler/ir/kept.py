"""A graph at rest: kept as compressed text, and made again from it when somebody looks.

What runs is machine code. The graph that it came from is thousands of nodes, megabytes for a deep network, and is
looked at again by people and tools only. Its text is a few dozen kilobytes.
"""

from __future__ import annotations

import weakref
import zlib

from .graph import Graph
from .parse import parse_graph
from .text import print_graph

__all__ = ["KeptGraph"]


class KeptGraph:
    """A graph, which holds its nodes until `rest` and no values of theirs from then on.

    Without one, it waits for `hold`: objects that stay are better made before many that go. Memory goes back to the
    system by the megabyte, when the last object of a megabyte is gone.
    """

    __slots__ = ("_graph", "_made", "_text", "input_names")

    def __init__(self, graph: Graph | None = None):
        self.input_names: tuple[str, ...] = ()
        self._graph: Graph | None = None
        self._text = b""
        self._made: weakref.ref[Graph] | None = None
        if graph is not None:
            self.hold(graph)

    def hold(self, graph: Graph) -> None:
        """Be this graph."""
        self.input_names, self._graph, self._made = graph.input_names, graph, None

    @property
    def graph(self) -> Graph:
        """The graph; after `rest` one of new nodes, the same as long as somebody holds it."""
        if self._graph is not None:
            return self._graph
        made = None if self._made is None else self._made()
        if made is None:
            parsed = parse_graph(zlib.decompress(self._text).decode())
            made = Graph(parsed.inputs, parsed.outputs, self.input_names)
            self._made = weakref.ref(made)
        return made

    def rest(self) -> None:
        """Let go of the nodes."""
        graph = self._graph
        if graph is not None:
            self._text = zlib.compress(print_graph(graph).encode(), 1)
            self._graph = None

    def named(self, input_names: tuple[str, ...]) -> KeptGraph:
        """The same graph with other names of its inputs."""
        graph = self._graph
        other = KeptGraph(None if graph is None else Graph(graph.inputs, graph.outputs, input_names))
        other.input_names, other._text = input_names, self._text
        return other
