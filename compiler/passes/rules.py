"""How a pass made of local rules is applied: each node, bottom up, until no rule has anything to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..ir import Graph, Node, Op, dtypes, full, ops, rebuild, source, substitute

# A rule returns the node to use instead, or None where it does not apply. It may build any number of new nodes; they
# are brought to normal form in turn. It must make progress by some measure, so that no chain of rules is endless.
Rule = Callable[[Node], Node | None]
Table = Mapping[str, Sequence[Rule]]


class RuleTable(dict[str, list[Rule]]):
    """Rules by op name, in the order in which they are tried."""

    def rule(self, *operations: Op) -> Callable[[Rule], Rule]:
        """Register the decorated function for `operations`."""

        def register(function: Rule) -> Rule:
            for op in operations:
                self.setdefault(op.name, []).append(function)
            return function

        return register


def merged(*tables: Table) -> RuleTable:
    """The rules of all the tables; those of earlier tables are tried first."""
    result = RuleTable()
    for table in tables:
        for name, rules in table.items():
            result.setdefault(name, []).extend(rules)
    return result


def isolate_inputs(graph: Graph) -> Graph:
    """Turn inputs that are computed nodes into plain `input` nodes, so that nothing looks at what they came from."""
    computed = [node for node in graph.inputs if node.op is not ops.input_]
    if not computed:
        return graph
    # The serial number tells them apart from one another and, with the word before it, from every other input.
    mapping = {
        node: ops.input_(identity=("computed", node.serial), dtype=node.dtype, shape=node.shape) for node in computed
    }
    inputs = tuple(mapping.get(node, node) for node in graph.inputs)
    keep = {node: node for node in graph.inputs if node not in mapping}
    return Graph(inputs, tuple(substitute(graph.outputs, mapping | keep)), graph.input_names)


def normalise(graph: Graph, table: Table) -> Graph:
    """The graph with every node in the normal form that `table` defines; one walk, however rules enable one another."""
    graph = isolate_inputs(graph)
    normal: dict[Node, Node] = {node: node for node in graph.inputs}
    for output in graph.outputs:
        _normalise_node(output, table, normal)
    return Graph(graph.inputs, tuple(normal[node] for node in graph.outputs), graph.input_names)


def _normalise_node(root: Node, table: Table, normal: dict[Node, Node]) -> None:
    stack = [root]
    while stack:
        node = stack[-1]
        if node in normal:
            stack.pop()
            continue
        pending = [child for child in node.inputs if child not in normal]
        if pending:
            stack.extend(reversed(pending))
            continue
        with source.inherit(node.source):
            rebuilt = rebuild(node, tuple(normal[child] for child in node.inputs))
            result = rebuilt if rebuilt in normal else _apply(rebuilt, table)
        if result is rebuilt:
            normal.setdefault(rebuilt, rebuilt)
        elif result not in normal:
            stack.append(result)  # then come back to this node
            continue
        normal[node] = normal[rebuilt] = normal[result]
        stack.pop()


def _apply(node: Node, table: Table) -> Node:
    for function in table.get(node.op.name, ()):
        result = function(node)
        if result is not None and result is not node:
            return result
    return node


def uniform(node: Node) -> Any:
    """The value of a constant as a Python bool, int or float, rounded to its dtype; None for any other node."""
    if node.op is not ops.constant:
        return None
    value = node.attributes["value"]
    return _rounded(node.dtype, value, math.copysign(1, value)) if node.dtype.is_float else value


@lru_cache(maxsize=1024)
def _rounded(dtype: dtypes.DType, value: float, sign: float) -> float:
    # (The sign tells the zeros apart in the cache.)
    with np.errstate(over="ignore"):
        return float(dtype.numpy.type(value))


def is_uniform(node: Node, value: float) -> bool:
    """Whether node is the constant `value`, telling -0.0 from 0.0; a NaN is never found."""
    found = uniform(node)
    if found is None or found != value:
        return False
    return not node.dtype.is_float or math.copysign(1, found) == math.copysign(1, value)


def same_constant(a: Node, b: Node) -> bool:
    """Whether both are constants of one dtype and, bit for bit, one value (NaNs being equal)."""
    return a.op is b.op is ops.constant and a.dtype is b.dtype and repr(uniform(a)) == repr(uniform(b))


def spread(node: Node, shape: tuple[int, ...]) -> Node:
    """A constant's value in another shape."""
    return full(node.attributes["value"], node.dtype, shape)


def zeros(node: Node) -> Node:
    """Zero of the node's dtype and shape."""
    return full(0, node.dtype, node.shape)


def is_integral(dtype: dtypes.DType) -> bool:
    """Integer or bool: where equal means identical and nothing rounds."""
    return not dtype.is_float
