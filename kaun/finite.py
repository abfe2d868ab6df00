"""Where numbers stopped being finite: layers' outputs in a traced model, and leaves of a training state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kaun import nx, ptree
from kaun.compiler.ir import Node, topological
from kaun.compiler.ir.dtypes import bool_
from kaun.nx import Tensor
from kaun.ptree import Tree
from kaun.training_state import State


class NotFiniteError(ValueError):
    """The loss of a step was NaN or infinite, or its update made NaN or infinity in a state that was finite.

    `step` counts from 1, `layer` is the path of the first layer whose output was not finite (None if that of no layer),
    `state` the training state before the step and `element` the data's element it was made on, so that
    `kn.debug.nan(kn.train.fit, trainer, error.state, [error.element], loss=loss)` finds the op.
    """

    def __init__(self, message: str, step: int, layer: str | None, state: State, element: Any) -> None:
        super().__init__(message)
        self.step = step
        self.layer = layer
        self.state = state
        self.element = element


class Watch:
    """Tells which leaves of a training state a step has broken.

    Infinity that is there from the start stays allowed, and so does, in what is not a parameter, any infinity: running
    values such as the best loss so far start from it.
    """

    def __init__(self, function: Callable[[Tree, Tree], Tensor], state: State) -> None:
        """`function` is `whole_leaves`, compiled."""
        self._function = function
        self._whole = self._look(state)

    def broken(self, state: State) -> list[str]:
        """What the step that led to this state broke; of parameters and the rest, the parameters alone."""
        before, self._whole = self._whole, self._look(state)
        made = before & ~self._whole
        if not made.any():
            return []
        names = [f"the parameter `{path}`" for path in _float_leaves(state.vars.params)]
        parameters = len(names)
        names += [f"the layers' state `{path}`" for path in _float_leaves(state.vars.state)]
        names += [f"the optimizer's state `{path}`" for path in _float_leaves(state.opt_state)]
        shown = slice(parameters) if made[:parameters].any() else slice(None)
        return [name for name, hit in zip(names[shown], made[shown], strict=True) if hit]

    def _look(self, state: State) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.array(self._function(state.vars.params, (state.vars.state, state.opt_state)).numpy())


def whole_leaves(params: Tree, others: Tree) -> Tensor:
    """A bool for each float leaf: whether those of `params` are finite, and the others without NaN."""
    flags = [nx.all(nx.isfinite(leaf)) for leaf in _float_leaves(params).values()]
    flags += [nx.all(~nx.isnan(leaf)) for leaf in _float_leaves(others).values()]
    return nx.stack(flags) if flags else nx.zeros((0,), dtype=bool_)


def _float_leaves(tree: Tree) -> dict[str, Tensor]:
    tensors = ((path, nx.asarray(leaf)) for path, leaf in ptree.flatten_with_paths(tree))
    return {path: tensor for path, tensor in tensors if tensor.dtype.is_float}


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
