"""Makes a failing graph smaller as long as it fails: fewer outputs, nodes and inputs, shorter axes, simpler numbers.

Delta debugging (Zeller and Hildebrandt, 2002) on graphs: a node may become an input with the value it had, which takes
everything before it away, or give way to one of its own inputs. What is tried first takes most away: great parts of the
graph's beginning and end, as long as that goes, and then node by node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kaun.compiler.ir import Graph, Node, ops, rebuild, source, topological
from kaun.compiler.ir.interpreter import evaluate
from kaun.debug.reproducer import Array, Reproducer
from kaun.runtime import activity

Fails = Callable[[Reproducer], bool]


def shrink(
    failure: Reproducer, fails: Fails, most_tries: int = 600, found: Callable[[Reproducer], None] | None = None
) -> Reproducer:
    """The smallest variant found for which `fails` still holds, after at most so many tries.

    found: told of each smaller one, for whoever may have to stop before the end.

    ValueError if `fails` does not hold for what is given.
    """
    if not fails(failure):
        raise ValueError("debug.shrink: what is given does not fail")
    tries = 0
    improved = True
    while improved and tries < most_tries:
        improved = False
        for variants in (_ended_sooner, _begun_later, _fewer_outputs, _cut, _bypassed, _fewer_inputs, _shorter,
                         _simpler_numbers):  # fmt: skip
            smaller = True
            while smaller and tries < most_tries:
                smaller = False
                for candidate in variants(failure):
                    tries += 1
                    activity.now(f"shrinking: {len(failure.graph.nodes)} nodes left, variant {tries} of {most_tries}")
                    if _holds(fails, candidate):
                        failure, smaller, improved = candidate, True, True
                        if found is not None:
                            found(failure)
                        break
                    if tries >= most_tries:
                        break
    return failure


def _holds(fails: Fails, candidate: Reproducer) -> bool:
    try:
        return fails(candidate)
    except Exception:  # something that cannot be run is no smaller failure, whatever a broken compiler raises
        return False


# Where to cut a graph, as shares of its nodes.
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16)
# Of so many nodes every one is tried.
_FEW = 12


def _ended_sooner(failure: Reproducer) -> Iterator[Reproducer]:
    """The beginning of the graph: its outputs are what the rest would have read."""
    graph = failure.graph
    inner = graph.nodes[len(graph.inputs) :]
    for number in _places(len(inner), _SHARES):
        read = {child for node in inner[number:] for child in node.inputs} | set(graph.outputs)
        ends = tuple(node for node in inner[:number] if node in read and node.inputs)
        if ends:
            yield _used(Reproducer(Graph(graph.inputs, ends), failure.inputs))


def _begun_later(failure: Reproducer) -> Iterator[Reproducer]:
    """The end of the graph: what it reads of the rest are inputs, with the values that the interpreter gave them."""
    graph = failure.graph
    values: dict[Node, Array] = {}
    evaluate(graph, failure.inputs, observe=values.__setitem__)
    inner = graph.nodes[len(graph.inputs) :]
    for number in reversed(_places(len(inner), _SHARES)):
        read = {child for node in inner[number:] for child in node.inputs}
        starts = [node for node in inner[:number] if node in read and node.inputs]
        if starts and not any(node in graph.outputs for node in inner[:number]):
            yield _with_inputs(failure, starts, values)


def _places(count: int, shares: Sequence[float]) -> list[int]:
    """Where to cut so many nodes in two: at the shares, or anywhere if they are few."""
    return list(range(1, count)) if count <= _FEW else sorted({int(count * share) for share in shares} - {0})


def _with_inputs(failure: Reproducer, nodes: Sequence[Node], values: dict[Node, Array]) -> Reproducer:
    """The nodes as inputs with these values."""
    graph = failure.graph
    cuts = {n: ops.input_(identity=("cut", n.serial), dtype=n.dtype, shape=n.shape) for n in nodes}
    changed = _substituted(graph, cuts, (*graph.inputs, *cuts.values()))
    return _used(Reproducer(changed, (*failure.inputs, *(np.array(values[node]) for node in nodes))))


def _fewer_outputs(failure: Reproducer) -> Iterator[Reproducer]:
    graph = failure.graph
    distinct = tuple(dict.fromkeys(graph.outputs))
    if len(graph.outputs) == 1:
        return
    for output in sorted(distinct, key=lambda node: len(topological([node]))):
        yield Reproducer(Graph(graph.inputs, (output,), graph.input_names), failure.inputs)
    for left_out in range(len(graph.outputs) - 1, -1, -1):
        outputs = graph.outputs[:left_out] + graph.outputs[left_out + 1 :]
        yield Reproducer(Graph(graph.inputs, outputs, graph.input_names), failure.inputs)


def _cut(failure: Reproducer) -> Iterator[Reproducer]:
    """A node as an input with the value that the interpreter gave it."""
    graph = failure.graph
    values: dict[Node, Array] = {}
    evaluate(graph, failure.inputs, observe=values.__setitem__)
    inner = [node for node in graph.nodes[len(graph.inputs) :] if node.inputs and node not in graph.outputs]
    for node in reversed(inner):
        yield _with_inputs(failure, [node], values)


def _bypassed(failure: Reproducer) -> Iterator[Reproducer]:
    """A node replaced by one of its inputs of the same type."""
    graph = failure.graph
    for node in reversed(graph.nodes[len(graph.inputs) :]):
        for child in dict.fromkeys(node.inputs):
            if (child.dtype, child.shape) == (node.dtype, node.shape) and node not in graph.outputs:
                yield _used(Reproducer(_substituted(graph, {node: child}, graph.inputs), failure.inputs))


def _fewer_inputs(failure: Reproducer) -> Iterator[Reproducer]:
    smaller = _used(failure)
    if len(smaller.graph.inputs) < len(failure.graph.inputs):
        yield smaller


def _used(failure: Reproducer) -> Reproducer:
    """Without inputs that nothing reads. Names go, as they no longer match."""
    graph = failure.graph
    reached = set(topological(graph.outputs, stop=set(graph.inputs).__contains__))
    kept = [(node, array) for node, array in zip(graph.inputs, failure.inputs, strict=True) if node in reached]
    return Reproducer(Graph(tuple(n for n, _ in kept), graph.outputs), tuple(a for _, a in kept))


def _substituted(graph: Graph, mapping: dict[Node, Node], inputs: tuple[Node, ...]) -> Graph:
    result: dict[Node, Node] = {node: node for node in inputs}
    for node in graph.nodes:
        if node in mapping:
            image = mapping[node]
            result[node] = result.get(image, image)
        elif node not in result:
            with source.inherit(node.source):
                result[node] = rebuild(node, tuple(result[child] for child in node.inputs))
    return Graph(inputs, tuple(result[node] for node in graph.outputs))


# --- shapes and numbers ----------------------------------------------------------------------------------------------


def _shorter(failure: Reproducer) -> Iterator[Reproducer]:
    """Every axis of one extent shorter, all through the graph."""
    extents = {extent for node in failure.graph.nodes for extent in node.shape if extent > 1}
    for extent in sorted(extents, reverse=True):
        for shorter in sorted({1, 2, 3, extent // 2, extent - 1} - {0}):
            if shorter < extent:
                for multiples in (False, True):
                    candidate = _with_extent(failure, extent, shorter, multiples)
                    if candidate is not None and _elements(candidate) < _elements(failure):
                        yield candidate


def _elements(failure: Reproducer) -> int:
    return sum(node.size for node in failure.graph.nodes)


def _with_extent(failure: Reproducer, old: int, new: int, multiples: bool) -> Reproducer | None:
    """With `new` for `old` in shapes, and with `multiples` n * new for n * old; None where ops do not allow it."""

    def other(extent: int) -> int:
        if extent == old:
            return new
        return extent // old * new if multiples and extent and extent % old == 0 else extent

    def changed(name: str, value: Any) -> Any:
        if name in ("shape", "stops") and isinstance(value, tuple):
            return tuple(map(other, value))
        return other(value) if name == "size" else value

    mapping: dict[Node, Node] = {}
    arrays = []
    for number, (node, array) in enumerate(zip(failure.graph.inputs, failure.inputs, strict=True)):
        shape = tuple(map(other, node.shape))
        mapping[node] = ops.input_(identity=("shorter", number), dtype=node.dtype, shape=shape)
        arrays.append(np.array(array[tuple(slice(0, extent) for extent in shape)]))
    try:
        for node in failure.graph.nodes[len(failure.graph.inputs) :]:
            attributes = {name: changed(name, value) for name, value in node.attributes.items()}
            with source.inherit(node.source):
                mapping[node] = node.op(*(mapping[child] for child in node.inputs), **attributes)
    except (ValueError, TypeError):
        return None
    inputs, outputs = (tuple(mapping[n] for n in nodes) for nodes in (failure.graph.inputs, failure.graph.outputs))
    return Reproducer(Graph(inputs, outputs, failure.graph.input_names), tuple(arrays))


def _simpler_numbers(failure: Reproducer) -> Iterator[Reproducer]:
    """One input at a time: all ones, or rounded to whole numbers."""
    for number, array in enumerate(failure.inputs):
        if array.dtype.kind in "biu":
            continue
        finite = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        for simpler in (np.ones(array.shape), np.rint(finite)):
            made = np.asarray(simpler).astype(array.dtype)
            if not np.array_equal(made, array):
                inputs = (*failure.inputs[:number], made, *failure.inputs[number + 1 :])
                yield Reproducer(failure.graph, inputs)
                break
