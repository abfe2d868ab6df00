"""From lazy nodes to numbers: concrete leaves, and realisation through compiled programs."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, Node, dtypes, key, ops, topological
from kaun.compiler.pipeline import Compilation
from kaun.runtime import target as targets
from kaun.runtime.program import Executable

Array = np.ndarray[Any, np.dtype[Any]]

# Programs kept for structures realised before; each is a few kilobytes beside its machine code.
MOST_PROGRAMS = 4096

_identities = itertools.count()
_programs: OrderedDict[tuple[str, str], CompiledGraph] = OrderedDict()
_lock = threading.Lock()


@lru_cache(maxsize=8)
def vector_target(target: targets.Target) -> VectorTarget:
    """What the compiler needs to know of a machine."""
    return VectorTarget(
        vector_bits=target.vector_bits,
        vector_registers=target.vector_registers,
        has_fma=target.has_fma,
        l1_bytes=target.l1_bytes,
        l2_bytes=target.l2_bytes,
        l3_bytes=target.l3_bytes,
        has_f16c=target.has_f16c,
        attributes=targets.function_attributes(target),
    )


def placeholder(shape: tuple[int, ...], dtype: dtypes.DType) -> Node:
    """A new input node without a value: an argument of a function being traced."""
    return ops.input_(identity=next(_identities), dtype=dtype, shape=shape)


def leaf(array: Array) -> Node:
    """A new input node bound to `array`, which must not be written to afterwards."""
    array = np.asarray(array)
    node = placeholder(array.shape, dtypes.of(array.dtype))
    node.value = array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")
    return node


class CompiledGraph:
    """A compiled graph, called with arrays."""

    def __init__(self, graph: Graph, target: targets.Target):
        self.compilation = Compilation(graph, vector_target(target))
        self.executable = Executable(self.compilation.program, target)
        program = self.compilation.program
        self._outputs = [(array.dtype.numpy, array.shape) for array in program.outputs]
        self._results = [(place.kind == "input", place.position) for place in program.results]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The outputs for C-contiguous arrays of the graph's input types; read-only arrays."""
        buffers = self.executable.run([array.ctypes.data for array in arrays])
        computed = [
            buffer.view(dtype, shape, writable=False)
            for buffer, (dtype, shape) in zip(buffers, self._outputs, strict=True)
        ]
        return [arrays[position] if given else computed[position] for given, position in self._results]


def compiled(graph: Graph) -> CompiledGraph:
    """The compiled form of `graph`: made once for each structure and machine, whatever the graph's nodes are."""
    target = targets.host()
    name = (key(graph), target.key)
    with _lock:
        found = _programs.get(name)
        if found is not None:
            _programs.move_to_end(name)
            return found
    made = CompiledGraph(graph, target)
    with _lock:
        _programs[name] = made
        while len(_programs) > MOST_PROGRAMS:
            _programs.popitem(last=False)
    return made


def realize(nodes: Sequence[Node]) -> None:
    """Compute every node that has no value yet, all in one program."""
    wanted = list(dict.fromkeys(node for node in nodes if node.value is None))
    if not wanted:
        return
    order = topological(wanted, stop=lambda n: n.value is not None)
    for node in order:
        if node.op is ops.input_ and node.value is None:
            raise ValueError(
                "nx.realize: this value is being traced and has no numbers yet; a function given to jit, grad or "
                f"train must not look at values (float(), bool(), .numpy(), ...); traced at {node.source}"
            )
    leaves = tuple(node for node in order if node.value is not None)
    graph = Graph(leaves, tuple(wanted))
    for node, value in zip(wanted, compiled(graph)([n.value for n in leaves]), strict=True):
        node.value = value


def array(node: Node) -> Array:
    """The read-only array of a node, computed if it was not."""
    realize([node])
    view: Array = node.value.view()
    view.flags.writeable = False
    return view

