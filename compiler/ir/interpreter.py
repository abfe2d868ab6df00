"""The NumPy interpreter: runs any graph node by node. The oracle for tests and the debugger, never the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .graph import Graph, Node
from .meaning import Array


def evaluate(
    graph: Graph, arguments: Sequence[Array], observe: Callable[[Node, Array], None] | None = None
) -> list[Array]:
    """The outputs of `graph` for `arguments` (one array per input, of its dtype and shape).

    `observe(node, value)` is called for every node computed, in order. ValueError if an argument does not fit.
    """
    if len(arguments) != len(graph.inputs):
        raise ValueError(f"interpreter.evaluate: {len(arguments)} arguments for {len(graph.inputs)} inputs")
    values: dict[Node, Array] = {}
    for node, argument in zip(graph.inputs, arguments, strict=True):
        argument = np.asarray(argument)
        if argument.dtype != node.dtype.numpy or argument.shape != node.shape:
            raise ValueError(
                f"interpreter.evaluate: got {argument.dtype}{list(argument.shape)} for an input of type "
                f"{node.dtype}{list(node.shape)}"
            )
        values[node] = argument
    for node in graph.nodes[len(graph.inputs) :]:
        value = np.asarray(node.op.meaning(*(values[child] for child in node.inputs), **node.attributes))
        if value.dtype != node.dtype.numpy or value.shape != node.shape:
            raise AssertionError(f"interpreter.evaluate: {node!r} gave {value.dtype}{list(value.shape)}")
        values[node] = value
        if observe is not None:
            observe(node, value)
        for dead in graph.dying.get(node, ()):
            del values[dead]
    return [values[node] for node in graph.outputs]
