"""From lazy nodes to numbers: concrete leaves, and realisation through the compiler."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kaun.compiler.ir import Graph, Node, dtypes, ops, topological
from kaun.compiler.ir.interpreter import evaluate

Array = np.ndarray[Any, np.dtype[Any]]

_identities = itertools.count()


def placeholder(shape: tuple[int, ...], dtype: dtypes.DType) -> Node:
    """A new input node without a value: an argument of a function being traced."""
    return ops.input_(identity=next(_identities), dtype=dtype, shape=shape)


def leaf(array: Array) -> Node:
    """A new input node bound to `array`."""
    node = placeholder(array.shape, dtypes.of(array.dtype))
    node.value = array
    return node


def realize(nodes: Sequence[Node]) -> None:
    """Compute every node that has no value yet."""
    wanted = [node for node in nodes if node.value is None]
    order = topological(wanted, stop=lambda n: n.value is not None)
    leaves = [n for n in order if n.value is not None]
    if any(n.op is ops.input_ and n.value is None for n in order):
        raise ValueError("nx.realize: a traced value has no concrete value while its function is being traced")
    graph = Graph(tuple(leaves), tuple(wanted))
    for node, value in zip(wanted, evaluate(graph, [n.value for n in leaves]), strict=True):
        node.value = value


def array(node: Node) -> Array:
    """The (read-only) array of a node, computing it if needed."""
    realize([node])
    view = np.asarray(node.value).view()
    view.flags.writeable = False
    return view
