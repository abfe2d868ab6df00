"""Where numbers stopped being finite: the layers of a traced model whose outputs can be looked at one by one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kaun import nx, ptree
from kaun.compiler.ir import Node, topological
from kaun.nx import Tensor
from kaun.ptree import Tree


class NotFiniteError(ValueError):
    """The loss of a step was NaN or infinite.

    `step` counts from 1, `layer` is the path of the first layer whose output was not finite (None if that of no layer),
    and `state` the training state before the step.
    """

    def __init__(self, message: str, step: int, layer: str | None, state: object) -> None:
        super().__init__(message)
        self.step = step
        self.layer = layer
        self.state = state


def outputs_by_layer(outputs: Iterable[Tensor]) -> list[tuple[str, Tensor]]:
    """(path, tensor) for every float that one layer of a traced model hands to another, no layer before its inputs.

    Nodes carry the path of the layer that made them: what a node with another path reads is handed over. What the
    model itself returns comes last, under the path of the layer that made it.
    """
    results = [tensor._node for tensor in outputs]
    order = topological(results)
    handed: dict[Node, None] = {}
    for node in order:
        for read in node.inputs:
            if read.inputs and read.dtype.is_float and read.source.path != node.source.path:
                handed[read] = None
    for node in results:
        handed.pop(node, None)
    between = [node for node in order if node in handed]
    return [(node.source.path, Tensor(node)) for node in (*between, *results) if node.dtype.is_float]


def broken_leaves(tree: Tree) -> list[str]:
    """The paths of the float leaves that hold NaN or infinity."""
    paths = []
    for path, leaf in ptree.flatten_with_paths(tree):
        tensor = nx.asarray(leaf)
        if tensor.dtype.is_float and not np.isfinite(tensor.numpy().astype(np.float64)).all():
            paths.append(path)
    return paths
