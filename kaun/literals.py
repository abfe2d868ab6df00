"""Numbers of eager programs as inputs: a loop whose Python numbers change must not compile anew each time.

A number in an expression is a constant of its program, which is what makes programs fast and traced functions simple.
Outside traced functions the same expression often comes again with other numbers (`x * (0.5 / step)`). Then it is
compiled once more with its numbers as scalar inputs, and that program serves all further ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kaun.compiler.ir import Graph, Node, full, key, ops, rebuild, rewrite, unshared

# Numbers that simplify the expressions they stand in; they stay constants.
_SPECIAL = (0, 1, -1, 2, 0.5)


def _is_literal(node: Node) -> bool:
    if node.op is not ops.constant:
        return False
    value = node.attributes["value"]
    return (
        node.size > 0
        and not isinstance(value, bool)
        and value not in _SPECIAL
        and math.isfinite(float(value))
    )


def pattern(graph: Graph) -> str:
    """Text that is equal for graphs that differ in their numbers only."""
    return key(rewrite(graph, _hidden))


def _hidden(node: Node, inputs: tuple[Node, ...]) -> Node:
    # Every number becomes the same unusual one, so that equal nodes stay as many as they were in most programs.
    return full(7.0, node.dtype, node.shape) if _is_literal(node) else rebuild(node, inputs)


def lifted(graph: Graph) -> tuple[Graph, list[np.ndarray[Any, np.dtype[Any]]]]:
    """The graph with its numbers as further scalar inputs, and their values in that order."""
    scalars: list[Node] = []
    values: list[np.ndarray[Any, np.dtype[Any]]] = []

    def lift(node: Node, inputs: tuple[Node, ...]) -> Node:
        if not _is_literal(node):
            return rebuild(node, inputs)
        attributes = {"identity": None, "dtype": None, "shape": None}
        scalar = unshared(ops.input_, node.dtype, (), attributes)
        scalars.append(scalar)
        values.append(np.asarray(node.attributes["value"]).astype(node.dtype.numpy))
        if not node.shape:
            return scalar
        spread = ops.reshape(scalar, shape=(1,) * node.rank)
        return ops.broadcast(spread, shape=node.shape)

    result = rewrite(graph, lift)
    return Graph((*graph.inputs, *scalars), result.outputs), values
