"""The graph: immutable, hash-consed nodes, and a graph as inputs and outputs over them."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import source as source_module
from .computed import cached_property
from .dtypes import DType
from .source import Source

Shape = tuple[int, ...]
Inferred = tuple[DType, Shape]


@dataclass(frozen=True, eq=False)
class Op:
    """A primitive operation: one row of the op table.

    `arity` is the number of inputs (None: one or more), `attributes` their names in printing order, `infer` maps
    (inputs, attributes) to (dtype, shape) or raises ValueError/TypeError, `meaning` computes the result from NumPy
    arrays, and `kind` groups ops that passes and the scheduler treat alike:
    "leaf", "unary", "binary", "select", "convert", "reduce", "movement", "index" or "contract".
    `flops` counts floating-point operations per *output element* for elementwise ops, given the node.
    """

    name: str
    kind: str
    arity: int | None
    attributes: tuple[str, ...]
    infer: Callable[[Sequence[Node], Mapping[str, Any]], Inferred]
    meaning: Callable[..., Any]
    flops: Callable[[Node], int] = lambda node: 0

    def __call__(self, *inputs: Node, **attributes: Any) -> Node:
        """The (unique) node of this op on these inputs."""
        return intern(self, inputs, attributes)

    def __repr__(self) -> str:
        return self.name

    @property
    def is_elementwise(self) -> bool:
        return self.kind in ("unary", "binary", "select", "convert")


class Node:
    """One operation in the graph. Never mutated; equal nodes are the same object.

    `value` is not part of the mathematics: it holds the buffer of a node already computed (or of concrete data), so
    that later graphs start from it instead of computing it again.
    """

    __slots__ = ("__weakref__", "attributes", "dtype", "inputs", "op", "serial", "shape", "source", "value")

    op: Op
    inputs: tuple[Node, ...]
    attributes: Mapping[str, Any]
    dtype: DType
    shape: Shape
    source: Source
    serial: int
    value: Any

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.dtype}{list(self.shape)} from {self.source}>"

    # Arithmetic for gradient rules and passes. A Python number on the other side becomes a constant of equal
    # dtype and shape; nothing else is converted or broadcast.
    def __add__(self, other: Node | float) -> Node:
        return TABLE["add"](self, self.like(other))

    def __radd__(self, other: float) -> Node:
        return TABLE["add"](self.like(other), self)

    def __sub__(self, other: Node | float) -> Node:
        return TABLE["sub"](self, self.like(other))

    def __rsub__(self, other: float) -> Node:
        return TABLE["sub"](self.like(other), self)

    def __mul__(self, other: Node | float) -> Node:
        return TABLE["mul"](self, self.like(other))

    def __rmul__(self, other: float) -> Node:
        return TABLE["mul"](self.like(other), self)

    def __truediv__(self, other: Node | float) -> Node:
        return TABLE["div"](self, self.like(other))

    def __rtruediv__(self, other: float) -> Node:
        return TABLE["div"](self.like(other), self)

    def __neg__(self) -> Node:
        return TABLE["neg"](self)

    def like(self, value: Node | float) -> Node:
        """`value` itself if it is a node, else the number spread to this node's dtype and shape."""
        return value if isinstance(value, Node) else full(value, self.dtype, self.shape)


# Every primitive op by name; filled by `ops.py`, where each is declared.
TABLE: dict[str, Op] = {}

_serials = itertools.count()
# Weak references without callbacks: what a callback raises, Ctrl-C for one, would be lost. Dead entries are swept when
# the table has doubled since the last sweep.
_interned: dict[tuple[Any, ...], weakref.ref[Node]] = {}
_SMALLEST_TABLE = 10_000
_sweep_at = _SMALLEST_TABLE
_lock = threading.Lock()


def _after_fork() -> None:
    """In a forked child: a thread that held the lock exists no more."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _key(value: Any) -> Any:
    # 0.0 == -0.0, 1 == 1.0 == True and nan != nan: equality of attributes is equality of their printed form.
    return (type(value), repr(value)) if isinstance(value, (float, int, complex)) else value


def intern(op: Op, inputs: tuple[Node, ...], attributes: Mapping[str, Any]) -> Node:
    """The node for (op, inputs, attributes): an existing one, or a new one after its types have been checked."""
    values = tuple(attributes[name] for name in op.attributes)
    key = (op.name, tuple(node.serial for node in inputs), tuple(map(_key, values)))
    known = _interned.get(key)
    node = known() if known is not None else None
    if node is not None:
        return node
    if len(attributes) != len(op.attributes):
        raise TypeError(f"{op.name}: attributes {sorted(attributes)} given, expected {list(op.attributes)}")
    if op.arity is not None and len(inputs) != op.arity:
        raise TypeError(f"{op.name}: {len(inputs)} inputs given, expected {op.arity}")
    if op.arity is None and not inputs:
        raise TypeError(f"{op.name}: no inputs given, expected one or more")
    dtype, shape = op.infer(inputs, attributes)
    node = Node()
    node.op, node.inputs, node.attributes = op, inputs, dict(zip(op.attributes, values, strict=True))
    node.dtype, node.shape = dtype, shape
    # Equal constants of the whole process are one node, so a constant comes from nowhere in particular.
    node.source = source_module.current() if inputs or op.name == "input" else source_module.UNKNOWN
    node.value = None
    node.serial = next(_serials)
    return _register(key, node)


def forget_dead_nodes() -> None:
    """Drop the entries of nodes that are gone: worth it after a trace, when most of what it made is."""
    with _lock:
        _sweep()


def _sweep() -> None:
    global _interned, _sweep_at
    # A new table, since one that had many entries stays as big.
    _interned = {k: reference for k, reference in _interned.items() if reference() is not None}
    _sweep_at = max(_SMALLEST_TABLE, 2 * len(_interned))


def _register(key: tuple[Any, ...], node: Node) -> Node:
    """The node that stands for `key`: another thread's if that was first."""
    with _lock:
        known = _interned.get(key)
        first = known() if known is not None else None
        if first is not None:
            return first
        if len(_interned) >= _sweep_at:
            _sweep()
        _interned[key] = weakref.ref(node)
        return node


def unshared(op: Op, dtype: DType, shape: Shape, attributes: Mapping[str, Any]) -> Node:
    """A node that is equal to no other, made without looking for one: for leaves that stand for data."""
    node = Node()
    node.op, node.inputs, node.attributes = op, (), attributes
    node.dtype, node.shape, node.source, node.value = dtype, shape, source_module.UNKNOWN, None
    node.serial = next(_serials)
    return node


def detached(graph: Graph) -> Graph:
    """A copy that shares no node with the original: keeping it keeps nobody's values alive."""
    copies: dict[Node, Node] = {}
    leaves = set(graph.inputs)
    for node in graph.nodes:
        copy = unshared(node.op, node.dtype, node.shape, node.attributes)
        copy.source = node.source
        if node not in leaves:
            copy.inputs = tuple(copies[child] for child in node.inputs)
        elif node.inputs:
            copy.op, copy.attributes = TABLE["input"], {"identity": None, "dtype": None, "shape": None}
        copies[node] = copy
    inputs, outputs = (tuple(copies[node] for node in nodes) for nodes in (graph.inputs, graph.outputs))
    return Graph(inputs, outputs, graph.input_names)


def full(value: float, dtype: DType, shape: Shape = ()) -> Node:
    """The constant `value` everywhere in `shape`, converted to `dtype` as Python converts."""
    if dtype.kind == "bool":
        value = bool(value)
    elif dtype.is_integer:
        value = int(value)
    else:
        value = float(value)
    return TABLE["constant"](value=value, dtype=dtype, shape=shape)


def topological(outputs: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """Every node the outputs depend on, inputs before users; not looking behind nodes for which `stop` holds."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in outputs:
        if root in done:
            continue
        stack: list[tuple[Node, int]] = [(root, 0)]
        done.add(root)
        while stack:
            node, position = stack[-1]
            if position < len(node.inputs) and not stop(node):
                stack[-1] = (node, position + 1)
                child = node.inputs[position]
                if child not in done:
                    done.add(child)
                    stack.append((child, 0))
            else:
                stack.pop()
                order.append(node)
    return order


@dataclass(frozen=True, eq=False)
class Graph:
    """A function from input nodes to output nodes. Input order is the calling convention."""

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    input_names: tuple[str, ...] = field(default=())

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes reachable from the outputs, and all inputs, inputs before users."""
        leaves = set(self.inputs)
        order = [node for node in topological(self.outputs, stop=lambda n: n in leaves) if node not in leaves]
        return list(self.inputs) + order

    @cached_property
    def users(self) -> dict[Node, list[Node]]:
        """Node -> the nodes that read it (a node reading it twice is listed twice)."""
        result: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        leaves = set(self.inputs)
        for node in self.nodes:
            if node not in leaves:
                for child in node.inputs:
                    result[child].append(node)
        return result

    @cached_property
    def dying(self) -> dict[Node, tuple[Node, ...]]:
        """Node -> what nothing needs once the node is computed: no later node reads it, and it is no output."""
        kept = set(self.outputs)
        result: dict[Node, list[Node]] = {}
        for node in reversed(self.nodes[len(self.inputs) :]):
            for child in dict.fromkeys((*node.inputs, node)):
                if child not in kept:
                    kept.add(child)
                    result.setdefault(node, []).append(child)
        return {node: tuple(children) for node, children in result.items()}


def rewrite(graph: Graph, replace: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
    """Rebuild `graph` bottom up: `replace(node, new_inputs)` returns the node to use in its place."""
    mapping: dict[Node, Node] = {node: node for node in graph.inputs}
    for node in graph.nodes:
        if node in mapping:
            continue
        inputs = tuple(mapping[child] for child in node.inputs)
        with source_module.inherit(node.source):
            mapping[node] = replace(node, inputs)
    return Graph(graph.inputs, tuple(mapping[node] for node in graph.outputs), graph.input_names)


def rebuild(node: Node, inputs: tuple[Node, ...]) -> Node:
    """The same op on other inputs."""
    if inputs == node.inputs:
        return node
    return intern(node.op, inputs, node.attributes)


def substitute(outputs: Sequence[Node], mapping: Mapping[Node, Node]) -> list[Node]:
    """`outputs` with every node in `mapping` replaced by its image."""
    result: dict[Node, Node] = dict(mapping)
    # A node is newer than its inputs, so what is older than every node in the mapping stays as it is.
    oldest = min((node.serial for node in mapping), default=0)
    for node in topological(outputs, stop=lambda n: n in mapping or n.serial < oldest):
        if node.serial < oldest:
            result[node] = node
        elif node not in result:
            with source_module.inherit(node.source):
                result[node] = rebuild(node, tuple(result[child] for child in node.inputs))
    return [result[node] for node in outputs]
