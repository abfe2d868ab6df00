"""Finds where compiled code first disagrees with the interpreter: pass by pass, kernel by kernel, then as a whole.

    passes      the interpreter on the graph before and after each
    kernels     each real kernel on the interpreter's values of what it reads, so that an error neither hides in the
                kernels that follow nor comes from those before; a wrong one runs in NumPy from its loop IR as well,
                which tells whether the loops are wrong or the code made from them
    program     the memory plan and the launches by their verifier, then the native program, also written in place,
                which has to give the bits that its kernels give one by one
    run         what the call itself gave, from whichever cache, file or memory its program came
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kaun.compiler import passes
from kaun.compiler.ir import Graph, Node, VerificationError, topological, verify
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.passes.rules import isolate_inputs
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Chain, Program
from kaun.compiler.program_verify import verify_program
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.compiler.schedule.run import run_kernel
from kaun.debug import native
from kaun.debug.faults import Fault
from kaun.debug.reproducer import Reproducer
from kaun.debug.rounding import Difference, Expected, exact_difference, expect
from kaun.runtime import activity

Array = np.ndarray[Any, np.dtype[Any]]

# What a compilation makes on the way to the program: the stage, and who is to blame if it raises an error.
_MADE = (
    ("fused", "fuse", "fused"), ("fused", "bundle", "kernels"), ("program", "memory plan", "places"),
    ("program", "program", "program"),
)  # fmt: skip
# A kernel's nodes are compiled one by one to name the op, up to so many.
_MOST_NODES = 64
# Of the frames of an error so many are told.
_FRAMES = 4


def find_fault(graph: Graph, arrays: Sequence[Array]) -> Fault | None:
    """The first disagreement between the interpreter and what is compiled of `graph`, on these inputs."""
    activity.now(f"interpreting {len(graph.nodes):,} nodes")
    graph, arguments = isolate_inputs(graph), tuple(np.asarray(array) for array in arrays)
    expected = expect(graph, arguments)
    whole = Reproducer(graph, arguments)
    fault = _in_passes(graph, arguments, expected)
    if fault is not None:
        return fault
    compilation = native.host_compilation(graph)
    for stage, culprit, attribute in _MADE:
        try:
            getattr(compilation, attribute)
        except Exception as error:
            return _broken(stage, culprit, error, whole)
    program = compilation.program
    illegal = _broken_rule(program)
    # In a program that reads what was not written, kernels are still right or wrong by themselves.
    fault = _in_kernels(compilation, arguments)
    if fault is not None:
        return fault
    if illegal is not None:
        return Fault("program", _rule_breaker(program, illegal), None, None, illegal, whole)
    return _in_program(compilation, whole)


def find_wrong_results(graph: Graph, arrays: Sequence[Array], results: Sequence[Array]) -> Fault | None:
    """The first result of a run of `graph`, on these inputs, that is not as expected."""
    graph, arguments = isolate_inputs(graph), tuple(np.asarray(array) for array in arrays)
    expected, rewritten = expect(graph, arguments), None
    for position, (node, result) in enumerate(zip(graph.outputs, results, strict=True)):
        same_type = (result.dtype, result.shape) == (node.dtype.numpy, node.shape)
        difference = expected.difference(position, result) if same_type else None
        if difference is not None:
            rewritten = expect(passes.run(graph), arguments) if rewritten is None else rewritten
            difference = None if rewritten.explains(position, expected) else difference
        if difference is not None or not same_type:
            reason = (
                "compiled anew the graph is right: what ran came from a cache or a file, took numbers as inputs, or "
                "was given other memory"
            )
            if not same_type:
                reason = f"result {position} is {result.dtype}{list(result.shape)}; {reason}"
            return Fault("run", "the runtime", node, difference, reason, Reproducer(graph, arguments))
    return None


def _broken(stage: str, culprit: str, error: Exception, kept: Reproducer) -> Fault:
    return Fault(stage, culprit, None, None, f"it raised {type(error).__name__}: {error}{_place(error)}", kept)


def _place(error: Exception) -> str:
    """Where it was raised, in words for the end of a line: a rule is found in what called the op that refused it."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this file's
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
    return f" (at {', from '.join(places[:_FRAMES])})" if places else ""


# --- passes ----------------------------------------------------------------------------------------------------------


def _in_passes(graph: Graph, arguments: tuple[Array, ...], expected: Expected) -> Fault | None:
    """The first of the standard passes after which the outputs are others."""
    before = graph
    for name in passes.STANDARD:
        activity.now(f"comparing the graph before and after pass {name}")
        kept = Reproducer(before, arguments)
        try:
            after = passes.run(before, [name])
            verify(after)
        except passes.ChangedResult as error:
            node = _first_of_another_type(before, name)
            kept = kept if node is None else Reproducer(_ending_in(before, node), arguments)
            return Fault("simplified", name, node, None, str(error), kept)
        except Exception as error:
            return _broken("simplified", name, error, kept)
        if after.outputs != before.outputs:
            rewritten = expect(after, arguments)
            found = _first_difference(expected, rewritten.values, rewritten)
            if found is not None:
                position, difference = found
                changed = _first_of_another_type(before, name)
                if changed is not None:
                    return Fault(
                        "simplified", name, changed, None, "it changes the type of this node",
                        Reproducer(_ending_in(before, changed), arguments),
                    )  # fmt: skip
                node, closer = _rewritten_wrongly(before, arguments, name) or (before.outputs[position], difference)
                return Fault("simplified", name, node, closer, "", Reproducer(_ending_in(before, node), arguments))
        before = after
    return None


def _first_of_another_type(graph: Graph, name: str) -> Node | None:
    """The first node that the pass makes one of another type of; None if none, or where the pass raises an error."""
    nodes = graph.nodes[len(graph.inputs) :]
    try:
        passes.run(Graph(graph.inputs, tuple(nodes), graph.input_names), [name])
    except passes.ChangedResult as error:
        return None if error.position is None else nodes[error.position]
    except Exception:  # whatever a broken pass raises: there is no type to tell of
        return None
    return None


def _ending_in(graph: Graph, node: Node) -> Graph:
    return Graph(graph.inputs, (node,), graph.input_names)


def _first_difference(
    expected: Expected, found: Sequence[Array], rewritten: Expected | None = None
) -> tuple[int, Difference] | None:
    """(position, difference) of the first output that is not as expected.

    rewritten: what the graph is after passes. Narrow floats are rounded at every node, and passes leave other nodes, so
    rounding there explains a difference as well.
    """
    for position, array in enumerate(found):
        difference = expected.difference(position, array)
        if difference is not None and not (rewritten is not None and rewritten.explains(position, expected)):
            return position, difference
    return None


def _rewritten_wrongly(graph: Graph, arguments: tuple[Array, ...], name: str) -> tuple[Node, Difference] | None:
    """The first node whose value the pass changes: all of them as outputs, or else each as the only one."""
    nodes = graph.nodes[len(graph.inputs) :]
    for outputs in (nodes, *([node] for node in nodes[: 4 * _MOST_NODES])):
        watched = Graph(graph.inputs, tuple(outputs), graph.input_names)
        try:
            rewritten = expect(passes.run(watched, [name]), arguments)
        except Exception:  # the pass is wrong, and may fail where more is watched than was asked of it
            continue
        found = _first_difference(expect(watched, arguments), rewritten.values, rewritten)
        if found is not None:
            return outputs[found[0]], found[1]
    return None


# --- kernels ---------------------------------------------------------------------------------------------------------


def _in_kernels(compilation: Compilation, arguments: tuple[Array, ...]) -> Fault | None:
    """The first kernel that gives something else than the interpreter, given the interpreter's values."""
    graph = compilation.scheduled_graph
    values: dict[Node, Array] = dict(zip(graph.inputs, arguments, strict=True))
    parts = [_part(graph, scheduled) for scheduled in compilation.kernels]
    read = {node for part in parts for node in part.inputs}

    def keep(node: Node, value: Array) -> None:
        if node in read:
            values[node] = value

    evaluate(graph, arguments, observe=keep)
    for number, (scheduled, part) in enumerate(zip(compilation.kernels, parts, strict=True)):
        activity.now(f"comparing kernel {number + 1} of {len(parts)}")
        given = tuple(np.array(values[node], order="C") for node in part.inputs)
        expected = expect(part, given)
        found = _check(scheduled, expected, partial(_natively, given=dict(zip(part.inputs, given, strict=True))))
        if found is not None:
            return _blamed(number, scheduled, part, given, expected, found)
    return None


def _part(graph: Graph, scheduled: ScheduledKernel) -> Graph:
    """What a kernel computes of what it reads, and of inputs that it has found out not to depend on."""
    given = set(graph.inputs)
    order = topological(scheduled.outputs, stop=set(scheduled.reads).__contains__)
    inputs = dict.fromkeys((*scheduled.reads, *(node for node in order if node in given)))
    return Graph(tuple(inputs), scheduled.outputs)


# What a kernel reads, by node.
Given = Mapping[Node, Array]
Run = Callable[[ScheduledKernel], list[Array]]


def _check(scheduled: ScheduledKernel, expected: Expected, run: Run) -> tuple[int, Difference | None, str] | None:
    """(output, difference, reason) of the first output that is not as expected."""
    try:
        outputs = run(scheduled)
    except Exception as error:  # whatever a broken compiler raises
        return 0, None, f"it raised {type(error).__name__}: {error}"
    found = _first_difference(expected, outputs)
    return None if found is None else (found[0], found[1], "")


def _buffers(scheduled: ScheduledKernel, given: Given) -> list[Array | None]:
    return [given.get(buffer.node) for buffer in scheduled.kernel.buffers]


def _outputs(scheduled: ScheduledKernel, arrays: Sequence[Array]) -> list[Array]:
    by_node = {buffer.node: array for buffer, array in zip(scheduled.kernel.buffers, arrays, strict=True)}
    return [by_node[node].reshape(node.shape) for node in scheduled.outputs]


def _natively(scheduled: ScheduledKernel, given: Given, level: int = 2) -> list[Array]:
    return _outputs(scheduled, native.run_kernel(scheduled.kernel, _buffers(scheduled, given), level))


def _in_numpy(scheduled: ScheduledKernel, given: Given) -> list[Array]:
    arrays = [
        np.full(buffer.size * buffer.dtype.itemsize, 0xFF, np.uint8).view(buffer.dtype.numpy)
        if array is None else np.array(array, order="C").reshape(-1)
        for buffer, array in zip(scheduled.kernel.buffers, _buffers(scheduled, given), strict=True)
    ]  # fmt: skip
    run_kernel(scheduled.kernel, arrays)
    return _outputs(scheduled, arrays)


def _blamed(
    number: int,
    scheduled: ScheduledKernel,
    part: Graph,
    given: tuple[Array, ...],
    expected: Expected,
    found: tuple[int, Difference | None, str],
) -> Fault:
    """The fault of a kernel that is wrong: in its loops, in the LLVM IR made of them, or in what LLVM made of that."""
    position, difference, reason = found
    values = dict(zip(part.inputs, given, strict=True))
    if _check(scheduled, expected, partial(_in_numpy, given=values)) is not None:
        stage, culprit = "scheduled", "lowering"
    elif _check(scheduled, expected, partial(_natively, given=values, level=0)) is None:
        stage, culprit = "assembly", "LLVM"
    else:
        stage, culprit = "llvm", "code generation"
    node = part.outputs[position]
    first = _first_node(part, given)
    if first is not None:
        node, difference = first
    inside = " ".join(n.op.name for n in scheduled.nodes if n.op.kind not in ("leaf", "movement"))
    reason = f"{reason}; " if reason else ""
    kept = Reproducer(*_inputs_named(_ending_in(part, node), given))
    return Fault(stage, culprit, node, difference, f"{reason}kernel {number} computes {inside}", kept)


def _first_node(part: Graph, given: tuple[Array, ...]) -> tuple[Node, Difference | None] | None:
    """The first node of a kernel that is wrong when it is compiled as the kernel's only output."""
    nodes = part.nodes[len(part.inputs) :]
    for node in [n for n in nodes if n.inputs and n.size][:_MOST_NODES]:
        graph, _ = _inputs_named(_ending_in(part, node), given)
        expected = expect(graph, given)
        try:
            found = _first_difference(expected, native.run_program(native.host_compilation(graph, ()).program, given))
        except Exception:  # as above
            return node, None
        if found is not None:
            return node, found[1]
    return None


def _inputs_named(graph: Graph, given: tuple[Array, ...]) -> tuple[Graph, tuple[Array, ...]]:
    """The graph by itself: its inputs are no longer nodes that were computed."""
    return isolate_inputs(graph), given


# --- the program -----------------------------------------------------------------------------------------------------


def _in_program(compilation: Compilation, kept: Reproducer) -> Fault | None:
    """What is wrong with the program although every kernel is right: it gives other bits than they do one by one."""
    activity.now("comparing the program with its kernels one by one")
    alone = _one_by_one(compilation, kept.inputs)
    for in_place in (False, True):
        try:
            outputs = native.run_program(compilation.program, kept.inputs, in_place=in_place)
        except AssertionError as error:
            return _broken("program", "entry", error, kept)
        for node, found, expected in zip(kept.graph.outputs, outputs, alone, strict=True):
            difference = exact_difference(found, expected)
            if difference is not None:
                culprit = "alias" if in_place else "entry"
                reason = "only where outputs are written over inputs" if in_place else "every kernel is right by itself"
                return Fault("program", culprit, node, difference, reason, kept)
    return None


def _broken_rule(program: Program) -> str | None:
    """Which rule of programs it breaks, in words."""
    try:
        verify_program(program)
    except VerificationError as error:
        return str(error)
    return None


def _rule_breaker(program: Program, rule: str) -> str:
    """What made a program that breaks a rule: a memory plan is wrong too if every call is a launch of its own."""
    if "written over input" in rule:
        return "alias"
    serial = replace(program, bundles=tuple((Chain((call,), 1),) for call in program.calls))
    return "launches" if _broken_rule(serial) is None else "memory plan"


def _one_by_one(compilation: Compilation, arguments: Sequence[Array]) -> list[Array]:
    """The graph's outputs as its compiled kernels make them, each in memory of its own."""
    graph = compilation.scheduled_graph
    values: dict[Node, Array] = dict(zip(graph.inputs, arguments, strict=True))
    for scheduled in compilation.kernels:
        values.update(zip(scheduled.outputs, _natively(scheduled, values), strict=True))
    # What has no elements is made by no kernel.
    return [values[node] if node.size else np.empty(node.shape, node.dtype.numpy) for node in graph.outputs]
