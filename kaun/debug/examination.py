"""Examines every program that a function runs, on the inputs it runs on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kaun import nx, observe
from kaun.compiled import AheadOfTime
from kaun.compiler.ir import Graph, Node, key
from kaun.debug.faults import Fault
from kaun.debug.gradient_rules import find_wrong_gradient
from kaun.debug.native import host_compilation
from kaun.debug.not_finite import AllFinite, NotFinite, find_not_finite, infinite_result
from kaun.debug.reproducer import Array
from kaun.debug.search import find_fault, find_wrong_results
from kaun.execution import Storage
from kaun.nested import tensors_in
from kaun.observe import Results

# How many runs of each structure are compared.
_RUNS = 3


@dataclass(frozen=True, eq=False)
class Examination:
    """What came of comparing programs with the interpreter. True as a condition if nothing disagreed.

    programs: how many were compared; nodes: how many nodes they have; fault: the first disagreement, or None.
    """

    programs: int
    nodes: int
    fault: Fault | None

    def __bool__(self) -> bool:
        return self.fault is None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fault's reproducer. ValueError if nothing disagreed."""
        if self.fault is None:
            raise ValueError("debug.save: nothing disagreed, so there is nothing to reproduce")
        return self.fault.save(path)

    def __repr__(self) -> str:
        if self.fault is not None:
            return f"<disagreement: {self.fault}>"
        if not self.programs:
            return "<no program ran, so nothing was compared>"
        programs = f"{self.programs} program{'s' if self.programs != 1 else ''}"
        return f"<agreement: {programs} of {self.nodes} nodes compute what the interpreter does>"


def examine(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, gradients: bool
) -> Examination:
    """Compare every program that the function runs, once for each structure, until one disagrees.

    Of each structure, what the first runs give is compared too: the first may be another program than those that follow
    it, and only they write over what the first has made.
    """
    caller = "bisect" if gradients else "compare"
    seen: Counter[int] = Counter()
    nodes = 0
    fault: Fault | None = None

    def compare(graph: Graph, arrays: tuple[Array, ...]) -> Results | None:
        nonlocal nodes, fault
        text = hash(key(graph))
        if fault is not None or seen[text] >= _RUNS:
            return None
        seen[text] += 1
        if seen[text] == 1:
            nodes += len(graph.nodes)
            fault = examine_graph(graph, arrays, gradients=gradients)
        return None if fault is not None else partial(compare_results, graph, arrays)

    def compare_results(graph: Graph, arrays: tuple[Array, ...], results: Sequence[Storage]) -> None:
        nonlocal fault
        if fault is None:
            fault = find_wrong_results(graph, arrays, [storage.array for storage in results])

    if isinstance(function, AheadOfTime) and not args and not kwargs:
        # By itself, on numbers that its types allow.
        for native in function.functions.values():
            compare(native.graph, random_inputs(native.graph))
    else:
        try:
            watch(caller, function, args, kwargs, compare)
        except Exception:
            # A program that cannot be compiled was looked at before this came here.
            if fault is None:
                raise
    return Examination(len(seen), nodes, fault)


def examine_graph(graph: Graph, arrays: Sequence[Array], *, gradients: bool) -> Fault | None:
    """The first disagreement on one graph: of its gradient rules, if asked for, and of what is compiled."""
    if gradients:
        fault = find_wrong_gradient(host_compilation(graph).traced, arrays)
        if fault is not None:
            return fault
    return find_fault(graph, arrays)


def first_not_finite(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> NotFinite | AllFinite:
    """The first op that made NaN or infinity in what the function runs."""
    found: NotFinite | None = None
    meant: Node | None = None
    programs = 0

    def look(graph: Graph, arrays: tuple[Array, ...]) -> None:
        nonlocal found, meant, programs
        programs += 1
        if found is None:
            found = find_not_finite(graph, arrays)
        if found is None and meant is None:
            meant = infinite_result(graph, arrays)

    try:
        watch("nan", function, args, kwargs, look)
    except Exception:
        # What stops at NaN, such as `train.fit(check_finite=True)`, has been looked at before it does.
        if found is None:
            raise
    return AllFinite(programs, meant) if found is None else found


def watch(
    caller: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    look: Callable[[Graph, tuple[Array, ...]], Results | None],
) -> None:
    """Call the function, and show every program that it runs, with copies of its inputs.

    What `look` returns, if anything, is called with the program's results. One that cannot be compiled is shown with
    random inputs, and then its error is raised. TypeError, in the name of the `caller`, for what cannot be called.
    """
    if not callable(function):
        raise TypeError(
            f"debug.{caller}: got {type(function).__name__}, expected a function and its arguments: "
            f"{caller}(function, x) and not {caller}(function(x))"
        )
    nx.realize(*tensors_in((tuple(args), kwargs)))

    def show(graph: Graph, inputs: Sequence[Storage] | None) -> Results | None:
        if inputs is None:
            return look(graph, random_inputs(graph))
        return look(graph, tuple(np.array(storage.array) for storage in inputs))

    with observe.observing(show):
        nx.realize(*tensors_in(function(*args, **kwargs)))


def random_inputs(graph: Graph) -> tuple[Array, ...]:
    """Numbers for a graph's inputs: normal floats, whose squares' means an optimizer keeps as positive; small integers.

    Integers are 0 or 1, which are valid as indices and classes nearly everywhere.
    """
    draw = np.random.default_rng(0)
    arrays: list[Array] = []
    array: Any
    names = graph.input_names or ("",) * len(graph.inputs)
    for node, name in zip(graph.inputs, names, strict=True):
        if node.dtype.is_float:
            array = draw.standard_normal(node.shape)
            array = np.abs(array) if "optimizer" in name else array
        elif node.dtype.name == "uint32":
            array = draw.integers(0, 2**32, node.shape)
        else:
            array = draw.integers(0, 2, node.shape)
        arrays.append(np.asarray(array).astype(node.dtype.numpy))
    return tuple(arrays)
