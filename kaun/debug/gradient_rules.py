"""Finds a wrong gradient: the rule of each op against differences of the op itself, then whole graphs the same way.

For a node y = f(x), a cotangent c and a direction v, both random,

    <vjp(c), v>  =  d/dt <c, f(x + t v)>  =  (<c, f(x + h v)> - <c, f(x - h v)>) / 2h

which is forward mode by differences. It is computed in float64 near the values that the step saw, by the interpreter,
so that neither rounding nor compiled code has a say. Griewank and Walther, Evaluating Derivatives (2008), chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kaun.compiler.autodiff.vjp import RULES, gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, rebuild, source, topological
from kaun.compiler.ir.interpreter import evaluate
from kaun.debug.faults import Fault
from kaun.debug.reproducer import Reproducer
from kaun.debug.rounding import Difference
from kaun.runtime import activity

Array = np.ndarray[Any, np.dtype[Any]]

_STEP = 1e-6
_TRIES = 3
# Beyond this a number stands for infinity, as in masks.
_HUGE = 1e15
# How far the two may differ, as a share of the sum of what they add up: of one op, and of a graph of many.
_OF_AN_OP, _OF_A_GRAPH = 1e-6, 1e-4
# Nodes of a graph whose gradients are compared one by one, to find where a wrong one begins.
_MOST_NODES = 400


def find_wrong_gradient(forward: Graph, arrays: Sequence[Array]) -> Fault | None:
    """The op whose gradient rule is wrong on values like these, or the node at which gradients are put together wrong.

    `forward`: the part of a step that gradients are taken of.
    """
    values: dict[Node, Array] = dict(zip(forward.inputs, map(np.asarray, arrays), strict=True))
    evaluate(forward, arrays, observe=values.__setitem__)
    checked: set[Any] = set()
    for number, node in enumerate(forward.nodes[len(forward.inputs) :], 1):
        name = (node.op, tuple(map(repr, node.attributes.items())), tuple((c.dtype, c.shape) for c in node.inputs))
        if name in checked or node.op.name not in RULES or not node.dtype.is_float:
            continue
        checked.add(name)
        activity.now(
            f"comparing gradient rules: {node.op.name}, node {number} of {len(forward.nodes) - len(forward.inputs)}"
        )
        given = [values[child] for child in node.inputs]
        difference = _wrong_rule(node, given)
        if difference is not None:
            single, kept = _single(node, given)
            reason = f"the gradient rule of `{node.op.name}` differs from differences of `{node.op.name}` itself"
            return Fault("gradient", node.op.name, node, difference, reason, Reproducer(single, kept))
    activity.now("comparing the gradient of the whole graph")
    return _wrong_in_graph(forward, arrays)


# --- one op ----------------------------------------------------------------------------------------------------------


def _wrong_rule(node: Node, given: Sequence[Array]) -> Difference | None:
    varied = [child.dtype.is_float for child in node.inputs]
    if not node.size or not any(varied):
        return None
    inputs = tuple(
        _placeholder(i, dtypes.float64 if child.dtype.is_float else child.dtype, child.shape)
        for i, child in enumerate(node.inputs)
    )
    if node.op is ops.stop_gradient:
        return _passed_on(node.op(*inputs), inputs)
    # A cast is the identity in float64.
    attributes = {**node.attributes, "dtype": dtypes.float64} if node.op is ops.cast else node.attributes
    return _compare(Graph(inputs, (node.op(*inputs, **attributes),)), given, varied, _OF_AN_OP)


def _passed_on(node: Node, inputs: tuple[Node, ...]) -> Difference | None:
    """What stops gradients differs from its derivative on purpose: it gives nothing, whatever it is given."""
    (made,) = gradients((node,), (full(1.0, dtypes.float64, node.shape),), inputs)
    (found,) = evaluate(Graph(inputs, (made,)), [np.ones(node.shape)])
    total = float(np.sum(found))
    return Difference(node.size, node.size, (), total, 0.0, 0.0) if total else None


def _single(node: Node, given: Sequence[Array]) -> tuple[Graph, tuple[Array, ...]]:
    """The op alone, on the values it had."""
    inputs = tuple(_placeholder(i, child.dtype, child.shape) for i, child in enumerate(node.inputs))
    with source.inherit(node.source):
        alone = node.op(*inputs, **node.attributes)
    return Graph(inputs, (alone,)), tuple(given)


def _placeholder(number: int, dtype: dtypes.DType, shape: tuple[int, ...]) -> Node:
    return ops.input_(identity=("gradient rules", number), dtype=dtype, shape=shape)


def _generic(array: Array, draw: np.random.Generator) -> Array:
    """Values near those given, but no two equal, none zero and all finite: where rules have no corner cases."""
    wide = array.astype(np.float64)
    ordinary = np.abs(wide) < _HUGE
    scale = min(max(_typical(wide), 1e-3), 1e3)
    filled = np.where((wide == 0) | ~ordinary, scale * draw.uniform(0.5, 1.5, wide.shape), wide)
    return np.asarray(filled * (1 + 1e-2 * draw.uniform(-1, 1, wide.shape)))


def _compare(graph: Graph, arrays: Sequence[Array], varied: Sequence[bool], share: float) -> Difference | None:
    """How the derivative by reverse mode along a direction differs from that by differences; None if it does not.

    It has to differ at several points near those given, along several directions: one of them may be a corner.
    """
    found = None
    for seed in range(_TRIES):
        draw = np.random.default_rng((5, seed))
        near = [_generic(a, draw) if v else np.asarray(a) for a, v in zip(arrays, varied, strict=True)]
        found = _difference_at(graph, near, varied, share, draw)
        if found is None:
            return None
    return found


def _difference_at(
    graph: Graph, arrays: Sequence[Array], varied: Sequence[bool], share: float, draw: np.random.Generator
) -> Difference | None:
    cotangents = [draw.standard_normal(node.shape) for node in graph.outputs]
    seeds = tuple(_placeholder(-1 - i, dtypes.float64, node.shape) for i, node in enumerate(graph.outputs))
    wrt = [node for node, varies in zip(graph.inputs, varied, strict=True) if varies]
    made = gradients(graph.outputs, seeds, wrt)
    found = evaluate(Graph((*graph.inputs, *seeds), tuple(made)), [*arrays, *cotangents])
    directions = [
        draw.standard_normal(array.shape) * _reach(array) if varies else None
        for array, varies in zip(arrays, varied, strict=True)
    ]
    ends = []
    for step in (_STEP, -_STEP, 0.0):
        moved = [a if v is None else a + step * v for a, v in zip(arrays, directions, strict=True)]
        ends.append(evaluate(graph, moved))
    with np.errstate(all="ignore"):
        slopes = [(high - low) / (2 * _STEP) for high, low, _ in zip(*ends, strict=True)]
        bends = [(high + low - 2 * middle) / _STEP for high, low, middle in zip(*ends, strict=True)]
        bend = float(sum(np.sum(c * each) for c, each in zip(cotangents, bends, strict=True)))
        terms = [c * slope for c, slope in zip(cotangents, slopes, strict=True)]
        ways = [v for v in directions if v is not None]
        products = [g * v for g, v in zip(found, ways, strict=True)]
        reverse, forward = (float(sum(np.sum(part) for part in parts)) for parts in (products, terms))
        size = sum(float(np.sum(np.abs(part))) for part in (*products, *terms))
        # What subtracting nearly equal numbers loses.
        size_of_values = sum(float(np.sum(np.abs(c * e))) for c, e in zip(cotangents, ends[0], strict=True))
        allowed = share * size + 1e-15 / _STEP * size_of_values + 1e-12
    distance = abs(reverse - forward)
    # Beyond the range of the function, and where slopes to both sides differ as much, nothing can be said.
    if not np.isfinite(forward + bend) or abs(bend) > distance / 2 or distance <= allowed:
        return None
    return Difference(1, 1, (), reverse, forward, allowed)


def _reach(array: Array) -> Array:
    """How far to move each number: by its own size, so that no logarithm or root leaves its range."""
    return np.asarray(np.where(np.abs(array) < _HUGE, np.abs(array) + 1e-3 * _typical(array), 0.0))


def _typical(array: Array) -> float:
    """The root of the mean square of what is neither infinite nor as good as that."""
    ordinary = array[np.abs(array) < _HUGE]
    return float(np.sqrt(np.mean(np.square(ordinary)))) if ordinary.size else 0.0


# --- whole graphs ----------------------------------------------------------------------------------------------------


def _wrong_in_graph(forward: Graph, arrays: Sequence[Array]) -> Fault | None:
    """Rules that are right may be put together wrong; then the node nearest the outputs whose total is wrong."""
    outputs = [node for node in forward.outputs if node.dtype.is_float and node.inputs]
    floats = [node.dtype.is_float and node.size > 0 for node in forward.inputs]
    if not outputs or not any(floats):
        return None
    wide, mapping = _in_float64(Graph(forward.inputs, tuple(outputs)))
    given = [np.asarray(a).astype(n.dtype.numpy, copy=False) for a, n in zip(arrays, wide.inputs, strict=True)]
    wide, given, floats = _with_stopped_values(wide, given, floats)
    whole = _compare(wide, given, floats, _OF_A_GRAPH)
    if whole is None:
        return None
    node, difference = _first_wrong_total(wide, given) or (wide.outputs[0], whole)
    back = {image: original for original, image in mapping.items()}
    reason = "every rule is right by itself, so contributions are put together wrong"
    kept = Reproducer(forward, tuple(map(np.asarray, arrays)))
    return Fault("gradient", "gradients", back.get(node, node), difference, reason, kept)


def _with_stopped_values(
    graph: Graph, arrays: list[Array], varied: list[bool]
) -> tuple[Graph, list[Array], list[bool]]:
    """The graph with what no gradient flows through as further inputs, which stay as they are while others move."""
    values: dict[Node, Array] = {}
    evaluate(graph, arrays, observe=values.__setitem__)
    stops = [node for node in graph.nodes if node.op in (ops.stop_gradient, ops.bitcast)]
    return (
        Graph((*graph.inputs, *stops), graph.outputs),
        [*arrays, *(values[node] for node in stops)],
        [*varied, *(False for _ in stops)],
    )


def _first_wrong_total(graph: Graph, arrays: Sequence[Array]) -> tuple[Node, Difference] | None:
    """Going back from the outputs, the first node whose cotangent is wrong."""
    values: dict[Node, Array] = dict(zip(graph.inputs, arrays, strict=True))
    evaluate(graph, arrays, observe=values.__setitem__)
    inner = [n for n in graph.nodes if n.dtype is dtypes.float64 and n.inputs and n.op.kind != "leaf"][-_MOST_NODES:]
    given = [n for n in graph.inputs if n.dtype is dtypes.float64 and n.op is ops.input_ and n.size]
    for node in reversed((*given, *inner)):
        others = [(n, array) for n, array in zip(graph.inputs, arrays, strict=True) if n is not node]
        cut = Graph((node, *(n for n, _ in others)), graph.outputs)
        varied = [True] + [False] * len(others)
        found = _compare(cut, [values[node], *(array for _, array in others)], varied, _OF_A_GRAPH)
        if found is not None:
            return node, found
    return None


def _in_float64(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """The graph with every float in float64 but where bits are looked at, and the nodes that stand for its own."""
    mapping: dict[Node, Node] = {}
    for number, node in enumerate(graph.inputs):
        dtype = dtypes.float64 if node.dtype.is_float else node.dtype
        mapping[node] = ops.input_(identity=("in float64", number), dtype=dtype, shape=node.shape)
    for node in topological(graph.outputs, stop=mapping.__contains__):
        if node in mapping:
            continue
        inputs = tuple(mapping[child] for child in node.inputs)
        attributes = dict(node.attributes)
        if node.op is ops.bitcast:
            narrow = tuple(
                ops.cast(image, dtype=child.dtype) if image.dtype is not child.dtype else image
                for image, child in zip(inputs, node.inputs, strict=True)
            )
            made = rebuild(node, narrow)
            mapping[node] = ops.cast(made, dtype=dtypes.float64) if made.dtype.is_float else made
            continue
        if "dtype" in attributes and attributes["dtype"].is_float:
            attributes["dtype"] = dtypes.float64
        mapping[node] = node.op(*inputs, **attributes)
    inputs, outputs = (tuple(mapping[node] for node in nodes) for nodes in (graph.inputs, graph.outputs))
    return Graph(inputs, outputs, graph.input_names), mapping
