"""Which elements of an op's inputs reach which elements of its result: masks, handed forward and back through one op.

Elementwise ops hand a mask on as it is. What moves, gathers, sums or multiplies is linear in each input: forward, the
op itself is applied to the mask, with ones beside it; back, its gradient rule is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.ir.interpreter import evaluate
from kaun.debug.reproducer import Array

Values = Mapping[Node, Array]
_FIRST_ALONE = (ops.remat, ops.again)


def reached(node: Node, position: int, mask: Array, values: Values) -> Array:
    """The elements of the node's result that are made of elements in the mask, which is of one of its inputs."""
    if node.op in _FIRST_ALONE:
        return mask if position == 0 else np.zeros(node.shape, np.bool_)
    if node.op.is_elementwise:
        return np.asarray(mask & _shows(node, position, values))
    if node.op in (ops.reduce_max, ops.reduce_min):
        return np.asarray(mask.any(axis=node.attributes["axes"]))
    attributes = {**node.attributes, "value": 0.0} if node.op is ops.pad else node.attributes
    given = [mask.astype(np.float64) if i == position else _beside(node, i, values) for i in range(len(node.inputs))]
    return np.asarray(node.op.meaning(*given, **attributes) != 0)


def reaching(node: Node, position: int, mask: Array, values: Values) -> Array:
    """The elements of one of the node's inputs of which elements in the mask, which is of its result, are made."""
    child = node.inputs[position]
    if not mask.any():
        return np.zeros(child.shape, np.bool_)
    if node.op in _FIRST_ALONE:
        return mask if position == 0 else np.zeros(child.shape, np.bool_)
    if node.op.is_elementwise:
        return np.asarray(mask & _shows(node, position, values))
    if node.op in (ops.reduce_max, ops.reduce_min):
        kept = tuple(1 if axis in node.attributes["axes"] else n for axis, n in enumerate(child.shape))
        return np.broadcast_to(mask.reshape(kept), child.shape)
    kinds = [(dtypes.float64 if each.dtype.is_float else each.dtype, each.shape) for each in node.inputs]
    inputs = [ops.input_(identity=("reach", i), dtype=kind, shape=shape) for i, (kind, shape) in enumerate(kinds)]
    seed = ops.input_(identity=("reach", -1), dtype=dtypes.float64, shape=node.shape)
    found = gradients((node.op(*inputs, **node.attributes),), (seed,), (inputs[position],))
    given = [_beside(node, i, values) for i in range(len(node.inputs))]
    (handed,) = evaluate(Graph((*inputs, seed), tuple(found)), [*given, mask.astype(np.float64)])
    return np.asarray(handed != 0)


def _shows(node: Node, position: int, values: Values) -> Any:
    """Where an input of an elementwise op shows in its result."""
    if node.op is not ops.where or position == 0:
        return True
    condition = values[node.inputs[0]].astype(bool)
    return condition if position == 1 else ~condition


def _beside(node: Node, position: int, values: Values) -> Array:
    """What stands beside the mask: places as they are, ones where it is multiplied, zeros where it is not."""
    child = node.inputs[position]
    if not child.dtype.is_float:
        return values[child]
    return np.full(child.shape, 1.0 if node.op.kind == "contract" else 0.0)
