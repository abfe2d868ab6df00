"""From lazy nodes to numbers: concrete leaves, and realisation through compiled programs."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kaun import literals, observe, stored_programs
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import (
    Graph,
    KeptGraph,
    Node,
    detached,
    dtypes,
    forget_dead_nodes,
    key,
    ops,
    topological,
    unshared,
)
from kaun.compiler.ir.computed import cached_property
from kaun.runtime import activity
from kaun.runtime import target as targets
from kaun.runtime.buffers import MAPPED_BYTES, Buffer, size_class, take
from kaun.runtime.compiling import compiling
from kaun.runtime.program import Executable

if TYPE_CHECKING:
    from kaun.compiler.pipeline import Compilation
    from kaun.compiler.program import Array as ArrayType

Array = np.ndarray[Any, np.dtype[Any]]

# Programs kept for structures realised before; each is a few kilobytes beside its machine code.
MOST_PROGRAMS = 4096

# A graph of so many nodes takes megabytes, which are worth a look at all objects to have them back.
_MANY_NODES = 2000

_identities = itertools.count()
_LEAF_ATTRIBUTES: dict[str, Any] = {"identity": None, "dtype": None, "shape": None}
_programs: OrderedDict[tuple[str, str], CompiledGraph] = OrderedDict()
# How often an expression was compiled, whatever its numbers: see `literals`.
_patterns: OrderedDict[tuple[str, str], int] = OrderedDict()
_lock = threading.Lock()


def _after_fork() -> None:
    """In a forked child: a thread that held the lock exists no more."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


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
        cores=target.cores,
    )


def placeholder(shape: tuple[int, ...], dtype: dtypes.DType) -> Node:
    """A new input node without a value: an argument of a function being traced."""
    return ops.input_(identity=next(_identities), dtype=dtype, shape=shape)


class Result(NamedTuple):
    """What a computed output is: its type, and how much memory it takes."""

    dtype: dtypes.DType
    shape: tuple[int, ...]
    nbytes: int
    size: int
    """The size class of the memory."""

    @classmethod
    def of(cls, dtype: dtypes.DType, shape: tuple[int, ...], nbytes: int) -> Result:
        return cls(dtype, shape, nbytes, size_class(nbytes))


class Storage(Buffer):
    """The numbers of a tensor, in C order. Nobody writes to them, but for a loop that owns them (see `ownership`).

    Everything that can see the numbers, a NumPy array of them too, holds a reference to their storage.
    """

    __slots__ = ("_array", "dtype", "shape")

    def __init__(self, result: Result):
        """New memory, not initialised, for an output of a program."""
        self._size = 0  # so that nothing is given back if the next line fails
        self.dtype, self.shape, self.nbytes, size = result
        self.address, self._memory = take(size)
        self._size = size
        self._owner = None
        self._array: Array | None = None

    @classmethod
    def of(cls, array: Array) -> Storage:
        """The array's own memory if that is in C order and aligned, else a copy."""
        array = np.asarray(array)
        if not (array.flags.c_contiguous and array.flags.aligned):
            array = np.array(array, order="C")
        storage = cls.__new__(cls)
        storage._size, storage._memory, storage._owner = 0, None, array
        storage.address, storage.nbytes = array.ctypes.data, array.nbytes
        storage.dtype, storage.shape = dtypes.of(array.dtype), array.shape
        shown = array.view()
        shown.flags.writeable = False
        storage._array = shown
        return storage

    @classmethod
    def copy_of(cls, array: Array) -> Storage:
        """A copy in C order; a big one in memory of ours, which a loop that owns the numbers may write over."""
        if array.nbytes < MAPPED_BYTES:
            return cls.of(np.array(array, order="C", copy=True))
        storage = cls(Result.of(dtypes.of(array.dtype), array.shape, array.nbytes))
        np.copyto(storage.view(array.dtype, array.shape), array)
        return storage

    @property
    def array(self) -> Array:
        """A read-only NumPy array of the memory."""
        # One made of our memory is not kept: it would hold the storage that holds it.
        return self.view(self.dtype.numpy, self.shape, writable=False) if self._array is None else self._array


def computed_leaf(storage: Storage) -> Node:
    """A new input node bound to `storage`."""
    node = unshared(ops.input_, storage.dtype, storage.shape, _LEAF_ATTRIBUTES)
    node.value = storage
    return node


def leaf(array: Array) -> Node:
    """A new input node bound to `array`, which must not be written to afterwards."""
    return computed_leaf(Storage.of(array))


def has_value(node: Node) -> bool:
    """Whether graphs start from this node's numbers instead of computing them; constants are better computed."""
    return node.value is not None and (node.op is ops.input_ or bool(node.inputs))


class CompiledProgram:
    """A program with its machine code, called with storages."""

    def __init__(self, executable: Executable):
        self.executable, program = executable, executable.program
        # The computed outputs, and where each result is found: an input handed through, or one of them.
        self.outputs = [Result.of(output.dtype, output.shape, output.nbytes) for output in program.outputs]
        self.results = [(place.kind == "input", place.position) for place in program.results]
        donors = {output: given for given, output in program.aliases}
        # The input whose memory a computed output may take, if there is one.
        self.donors = [donors.get(number) for number in range(len(self.outputs))]
        self._straight = self.results == [(False, number) for number in range(len(self.outputs))]

    def __call__(self, inputs: list[Storage]) -> list[Storage]:
        """The results for storages of the program's input types."""
        outputs = [Storage(output) for output in self.outputs]
        executable = self.executable
        executable.start(executable.record([storage.address for storage in inputs + outputs]))
        return outputs if self._straight else self.arranged(inputs, outputs)

    @property
    def types(self) -> list[ArrayType]:
        """The types of the results."""
        program = self.executable.program
        arrays = {"input": program.inputs, "output": program.outputs}
        return [arrays[place.kind][place.position] for place in program.results]

    def arranged(self, inputs: Sequence[Storage], outputs: Sequence[Storage]) -> list[Storage]:
        """The results, of inputs and computed outputs."""
        return [inputs[position] if given else outputs[position] for given, position in self.results]


class CompiledGraph(CompiledProgram):
    """A compiled graph, called with storages.

    `kept` is the graph, which rests from then on; its `key` is `text`, and `stored` what is on disk for that.
    """

    def __init__(self, kept: KeptGraph, text: str, target: targets.Target, stored: stored_programs.Stored | None):
        self._kept, self._target = kept, target
        executable = None if stored is None else self._stored(stored, text)
        if executable is None:
            with compiling():
                vars(self)["compilation"] = self._way(detached(kept.graph))
                kept.rest()
                executable = Executable(self.compilation.program, target)
            stored_programs.store(text, target, executable.program)
        super().__init__(executable)

    def _stored(self, stored: stored_programs.Stored, text: str) -> Executable | None:
        """The program as it is kept on disk; None, and deleted, if no kernel can be made of what is there."""
        program = stored_programs.load(stored, text, self._target, vector_target(self._target))
        if program is None:
            return None
        try:
            return Executable(program, self._target)
        except (ValueError, TypeError, KeyError, NotImplementedError):
            stored_programs.discard(text, self._target)
            return None

    @cached_property
    def compilation(self) -> Compilation:
        """The way from the graph to the program, to look at; not gone again where the program was found on disk."""
        return self._way(self._kept.graph)

    def _way(self, graph: Graph) -> Compilation:
        from kaun.compiler.pipeline import Compilation  # and with it the compiler, where something is compiled

        return Compilation(graph, vector_target(self._target))


def compiled(
    graph: Graph | KeptGraph, text: str | None = None, target: targets.Target | None = None
) -> CompiledGraph:
    """The compiled form of `graph`: made once for each structure and machine, whatever the graph's nodes are.

    A kept graph rests when something new has been made of it. `text`: the graph's `key`, where the caller has it
    already. `target`: this machine, or what it can run.
    """
    target = targets.host() if target is None else target
    kept = graph if isinstance(graph, KeptGraph) else KeptGraph(graph)
    text = key(kept.graph) if text is None else text
    name = (text, target.key)
    found = _remembered(name)
    if found is not None:
        return found
    forget_dead_nodes()
    nodes = len(kept.graph.nodes)
    activity.now(f"compiling a graph of {nodes:,} nodes")
    try:
        stored = stored_programs.lookup(kept.graph, text, target)
        if stored is not None:
            # Before anything is made of it: what the nodes took is then there for that.
            kept.rest()
            forget_dead_nodes()
            if nodes > _MANY_NODES and gc.isenabled():
                # Python has memory from the system by the megabyte, until the last object of a megabyte is gone. Those
                # that it holds for reuse count too; a full collection ends them.
                gc.collect()
        made = CompiledGraph(kept, text, target, stored)
    except Exception:
        if observe.observers:
            observe.running(kept.graph, None)
        raise
    with _lock:
        _programs[name] = made
        while len(_programs) > MOST_PROGRAMS:
            _programs.popitem(last=False)
    return made


def _remembered(name: tuple[str, str]) -> CompiledGraph | None:
    with _lock:
        found = _programs.get(name)
        if found is not None:
            _programs.move_to_end(name)
        return found


def is_traced(nodes: Sequence[Node]) -> bool:
    """Whether a node depends on an argument of a function being traced, and so has no value yet."""
    wanted = [node for node in nodes if node.value is None]
    if not wanted:
        return False
    order = topological(wanted, stop=has_value)
    return any(node.op is ops.input_ and node.value is None for node in order)


def realize(nodes: Sequence[Node]) -> list[Storage]:
    """The numbers of the nodes, computed in one program where they are not known yet.

    Computed nodes remember their numbers for the nodes that use them; constants are as quickly made again.
    """
    wanted = list(dict.fromkeys(node for node in nodes if not has_value(node)))
    found = _compute(wanted) if wanted else {}
    return [found[node] if node in found else node.value for node in nodes]


def _compute(wanted: list[Node]) -> dict[Node, Storage]:
    order = topological(wanted, stop=has_value)
    for node in order:
        if node.op is ops.input_ and node.value is None:
            raise ValueError(
                "nx.realize: this value is being traced and has no numbers yet; a function given to jit, grad or "
                f"train must not look at values (float(), bool(), .numpy(), ...); traced at {node.source}"
            )
    leaves = tuple(node for node in order if has_value(node))
    graph = Graph(leaves, tuple(wanted))
    inputs = [node.value for node in leaves]
    ran = observe.running(graph, inputs) if observe.observers else None
    text = key(graph)
    found = _remembered((text, targets.host().key))
    outputs = found(inputs) if found is not None else _first_run(graph, text, inputs)
    if ran is not None:
        ran(outputs)
    for node, value in zip(wanted, outputs, strict=True):
        if node.inputs:
            node.value = value
    return dict(zip(wanted, outputs, strict=True))


def _first_run(graph: Graph, text: str, inputs: list[Storage]) -> list[Storage]:
    """Run a graph not seen before, as its own program or as one that takes its numbers as inputs (see `literals`)."""
    pattern = (literals.pattern(graph), targets.host().key)
    with _lock:
        seen = _patterns.pop(pattern, 0)
        _patterns[pattern] = seen + 1
        while len(_patterns) > MOST_PROGRAMS:
            _patterns.popitem(last=False)
    if seen:
        general, values = literals.lifted(graph)
        if values:
            return compiled(general)([*inputs, *(Storage.of(value) for value in values)])
    return compiled(graph, text)(inputs)


def array(node: Node) -> Array:
    """The read-only array of a node, computed if it was not."""
    return realize([node])[0].array
