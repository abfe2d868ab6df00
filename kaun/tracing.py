"""jit: functions over trees of tensors, traced once for each structure and run as one native program."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from kaun import execution, nx, observe, probes, ptree
from kaun.compiler.ir import Graph, KeptGraph, Node, ops, topological
from kaun.execution import CompiledGraph, Storage
from kaun.probes import Probe

# Specialisations kept per function; the least recently used goes first.
MOST_SPECIALISATIONS = 128


class Traced(NamedTuple):
    """A function as a graph of the leaves of its arguments, and of what it captured after them."""

    graph: Graph
    # The numbers of tensors that the function used without being given them; they follow the arguments.
    captured: tuple[Storage, ...]
    result: ptree.Structure
    # What the function shows or checks.
    probes: tuple[Probe, ...] = ()

    @property
    def showing(self) -> Graph:
        """The graph with what is shown in front of the results."""
        return probes.showing(self.graph, self.probes)


def trace(function: Callable[..., Any], structure: ptree.Structure, nodes: Iterable[Node]) -> Traced | None:
    """`function` traced for a tuple of trees of this structure whose leaves have the types of `nodes`.

    None if it used what has no value outside of another trace.
    """
    inputs = [execution.placeholder(node.shape, node.dtype) for node in nodes]
    names = structure.paths  # which stay, and are made before all that goes again
    with probes.collecting() as seen:
        result = function(*structure([nx.Tensor(node) for node in inputs]))
    leaves, rebuild = _flatten(result)
    outputs = tuple(_node(leaf) for leaf in leaves)
    known = set(inputs)
    order = topological([*(probe.node for probe in seen), *outputs], stop=execution.has_value)
    if any(node.op is ops.input_ and node.value is None and node not in known for node in order):
        return None
    captured = [node for node in order if execution.has_value(node) and node not in known]
    names += tuple(f"captured.{i}" for i in range(len(captured)))
    graph = Graph((*inputs, *captured), outputs, names)
    return Traced(graph, tuple(node.value for node in captured), rebuild, tuple(seen))


class Specialisation(NamedTuple):
    """A function traced for one structure of arguments."""

    kept: KeptGraph
    compiled: CompiledGraph
    # The numbers of tensors that the function used without being given them; they follow the arguments.
    captured: tuple[Storage, ...]
    rebuild: Callable[[list[nx.Tensor]], Any]
    # What the function shows or checks. Their values come before the graph's other results.
    probes: tuple[Probe, ...] = ()

    @property
    def graph(self) -> Graph:
        """What is computed. To look at: it is made again from its text."""
        return self.kept.graph

    def results(self, outputs: list[Storage]) -> list[Storage]:
        """What the function returns, of all that its graph does; what it shows is shown."""
        return probes.shown(self.probes, outputs) if self.probes else outputs

    def run(self, inputs: list[Storage]) -> Any:
        """The function's result for storages of the arguments' leaves and of what it captured."""
        ran = observe.running(self.graph, inputs) if observe.observers else None
        outputs = self.compiled(inputs)
        if ran is not None:
            ran(outputs)
        results = self.results(outputs)
        return self.rebuild([nx.Tensor(execution.computed_leaf(storage)) for storage in results])


def known(leaves: Iterable[Any]) -> list[Storage] | None:
    """The storages of leaves that are all tensors with values; None if one is not."""
    storages = []
    for leaf in leaves:
        if type(leaf) is not nx.Tensor:
            return None
        node = leaf._node
        if node.value is None or not (node.inputs or node.op is ops.input_):
            return None
        storages.append(node.value)
    return storages


def known_nodes(nodes: Iterable[Node]) -> list[Storage] | None:
    """The storages of nodes that all have values; None if one does not."""
    storages = []
    for node in nodes:
        if node.value is None or not (node.inputs or node.op is ops.input_):
            return None
        storages.append(node.value)
    return storages


def types_of(leaves: Iterable[Node | Storage]) -> tuple[Hashable, ...]:
    """The dtypes and shapes, in a row."""
    types: list[Hashable] = []
    for leaf in leaves:
        types.append(leaf.dtype)
        types.append(leaf.shape)
    return tuple(types)


class Function:
    """A traced and compiled form of `function`, which takes and returns trees of tensors.

    Called with trees, it returns trees of concrete tensors. The first call with new structures, dtypes or shapes traces
    the function (it runs with tensors that have no values) and compiles the graph; further calls only run it. Tensors
    that the function uses without taking them as arguments keep the values they had when it was traced.

    Called while another function is being traced or differentiated, on what depends on that one's arguments, it becomes
    part of that function: it calls `function` and compiles nothing itself.

    ValueError if `function` looks at the value of a traced tensor; TypeError if an argument is not a tree.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._specialisations: OrderedDict[Hashable, Specialisation] = OrderedDict()

    def __call__(self, *trees: Any) -> Any:
        leaves, structure = _flatten(trees)
        storages = known(leaves)
        if storages is not None:
            # Nearly every call: all arguments have values, and arguments like these were seen before.
            key = (structure, types_of(storages))
            special = self._specialisations.get(key)
            if special is not None:
                self._specialisations.move_to_end(key)
                return special.run([*storages, *special.captured])
        nodes = [_node(leaf) for leaf in leaves]
        if execution.is_traced(nodes):
            return self.function(*structure([nx.Tensor(node) for node in nodes]))
        # Tracing comes first: a mistake in the function surfaces before anything is compiled or computed.
        special = self._specialise(structure, nodes)
        if special is None:
            return self.function(*structure([nx.Tensor(node) for node in nodes]))
        return special.run([*execution.realize(nodes), *special.captured])

    def specialise(self, *trees: Any) -> Specialisation:
        """The traced and compiled form for arguments like these.

        ValueError if `function` uses an argument of another function that is being traced.
        """
        leaves, structure = _flatten(trees)
        special = self._specialise(structure, [_node(leaf) for leaf in leaves])
        if special is None:
            raise ValueError("tracing.specialise: the function uses an argument of a function that is being traced")
        return special

    def _specialise(self, structure: ptree.Structure, nodes: list[Node]) -> Specialisation | None:
        key = (structure, types_of(nodes))
        found = self._specialisations.get(key)
        if found is None:
            found = self._trace(structure, nodes)
            if found is None:
                return None
            self._specialisations[key] = found
            while len(self._specialisations) > MOST_SPECIALISATIONS:
                self._specialisations.popitem(last=False)
        else:
            self._specialisations.move_to_end(key)
        return found

    def _trace(self, structure: ptree.Structure, nodes: list[Node]) -> Specialisation | None:
        """The new specialisation; None if the function captured what has no value outside of another trace."""
        kept = KeptGraph()
        found = trace(self.function, structure, nodes)
        if found is None:
            return None
        kept.hold(found.showing)
        captured, result, probes = found.captured, found.result, found.probes
        del found  # and with it the nodes, if what is compiled is found on disk
        return Specialisation(kept, execution.compiled(kept), captured, result, probes)


def _flatten(tree: Any) -> tuple[list[Any], ptree.Structure]:
    """`ptree.flatten` for trees that may also hold Python numbers."""
    try:
        return ptree.flatten(tree)
    except TypeError:  # rare, and so kept out of the way of training steps
        return ptree.flatten(_with_tensors(tree))


def _with_tensors(tree: Any) -> Any:
    """The same tree with its Python numbers as tensors."""
    if isinstance(tree, (bool, int, float)):
        return nx.asarray(tree)
    if isinstance(tree, (tuple, list)):
        parts = [_with_tensors(part) for part in tree]
        return tree._make(parts) if hasattr(tree, "_make") else type(tree)(parts)
    if isinstance(tree, Mapping):
        return ptree.Dict({name: _with_tensors(part) for name, part in tree.items()})
    return tree


def _node(leaf: Any) -> Node:
    tensor = leaf if isinstance(leaf, nx.Tensor) else nx.asarray(leaf)
    return tensor._node


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled: traced once for each structure of its arguments, then run as one native program.

    Arguments and results are trees of tensors (numbers and arrays count as tensors); pass settings by closing over
    them. The function must be pure: it runs only while it is traced. Random numbers drawn from a scope around it are
    therefore the same at every call; pass a key and draw inside `nx.rng.with_key(key)`. Usable as a decorator:

        @kn.jit
        def step(params, x):
            ...

    The returned function has the attribute `function` (what was traced) and `compiled` (the `Function`).
    """
    compiled = Function(function)

    @functools.wraps(function)
    def call(*trees: Any) -> Any:
        return compiled(*trees)

    call.compiled = compiled  # type: ignore[attr-defined]
    call.function = function  # type: ignore[attr-defined]
    return call
