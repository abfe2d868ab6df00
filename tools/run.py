"""`kaun run`: runs the text of a graph, a program or a kernel, or a reproducer, natively or in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from kaun.compiler.ir import dtypes
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.program import Program
from kaun.compiler.program_run import run_program
from kaun.compiler.schedule.loop_ir import Kernel
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.run import run_kernel
from kaun.tools import subject
from kaun.tools.arguments import parser_of
from kaun.tools.failures import refuse
from kaun.tools.files import writing, wrote
from kaun.tools.status import shown

from kaun.debug import native, reproducer

Array = np.ndarray[Any, np.dtype[Any]]
Parsed = TypeVar("Parsed")


def main(arguments: Sequence[str], prog: str = "kaun run") -> int:
    """Run it and show the results, or write them to a file."""
    parser = parser_of(
        prog,
        "Run the text of a graph, of a program (stage `scheduled`) or of one kernel, on given inputs.",
        "The inputs are arrays named as in the graph, or input_0, input_1, ...; a kernel's are buffer_0, ... for the "
        "buffers that it does not write. A reproducer brings its own.",
        ["kaun run graph.txt --inputs x.npz --backend interpreter", "kaun run wrong.npz"],
    )
    parser.add_argument("file", metavar="FILE", help=f"{subject.HELP}, or the text of a program or kernel; - for stdin")
    parser.add_argument("--inputs", metavar="X.npz", help="the arrays to run it on, as numpy.savez writes them")
    parser.add_argument(
        "--backend", choices=["compiled", "interpreter"], default="compiled", help="native code or NumPy"
    )
    parser.add_argument("--output", metavar="Y.npz", help="write the results to this file instead of showing them")
    given = parser.parse_args(arguments)
    with shown(f"running {given.file}"):
        try:
            results = _results(given.file, given.inputs, given.backend == "compiled")
        except (ValueError, OSError) as error:
            refuse(prog, error)
    if given.output:
        stored: dict[str, Any] = {name: reproducer.storable(array) for name, array in results.items()}
        path = given.output if given.output.endswith(".npz") else f"{given.output}.npz"  # as `savez` does
        with writing(path):
            np.savez(path, **stored)
        wrote(path, "numpy.load reads it")
    else:
        for name, array in results.items():
            print(f"{name} {dtypes.of(array.dtype)}{list(array.shape)}\n{array}")
    return 0


def _results(file: str, inputs: str | None, compiled: bool) -> dict[str, Array]:
    text = "" if file.endswith(".npz") or (":" in file) else subject.read_text(file)
    kind = subject.kind_of(text)
    if kind == "program":
        return _of_program(_parsed(file, _native_program if compiled else native.program_of, text), inputs, compiled)
    if kind == "kernel":
        return _of_kernel(_parsed(file, parse_kernel, text), inputs, compiled)
    found = subject.Subject(subject.graph_of_text(text, file)) if file == "-" else subject.find(file)
    graph = found.graph
    arrays = found.inputs if inputs is None else reproducer.load_inputs(inputs, graph)
    if arrays is None:
        if graph.inputs:
            raise ValueError(f"{file} has {len(graph.inputs)} inputs; give their values with --inputs X.npz")
        arrays = ()
    run = native.run_program(native.host_compilation(graph).program, arrays) if compiled else evaluate(graph, arrays)
    return {f"output_{number}": array for number, array in enumerate(run)}


def _native_program(text: str) -> Program:
    program = native.program_of(text)
    native.check_launches(program)
    return program


def _parsed(file: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _of_program(program: Program, inputs: str | None, compiled: bool) -> dict[str, Array]:
    names = [f"input_{number}" for number in range(len(program.inputs))]
    types = [(each.dtype, each.nbytes // each.dtype.itemsize) for each in program.inputs]
    arrays = _plain(inputs, names, types)
    shaped = [array.reshape(each.shape) for array, each in zip(arrays, program.inputs, strict=True)]
    run = native.run_program(program, shaped) if compiled else run_program(program, shaped)
    return {f"output_{number}": array for number, array in enumerate(run)}


def _of_kernel(kernel: Kernel, inputs: str | None, compiled: bool) -> dict[str, Array]:
    written = native.written(kernel)
    read = [buffer for buffer, is_written in zip(kernel.buffers, written, strict=True) if not is_written]
    names = [f"buffer_{buffer.position}" for buffer in read]
    arrays = iter(_plain(inputs, names, [(buffer.dtype, buffer.size) for buffer in read]))
    given = [None if is_written else next(arrays) for is_written in written]
    if compiled:
        found = native.run_kernel(kernel, given)
    else:
        found = [
            np.full(buffer.size * buffer.dtype.itemsize, 0xFF, np.uint8).view(buffer.dtype.numpy)
            if array is None else array.copy()
            for buffer, array in zip(kernel.buffers, given, strict=True)
        ]  # fmt: skip
        run_kernel(kernel, found)
    return {f"buffer_{number}": found[number] for number, is_written in enumerate(written) if is_written}


def _plain(inputs: str | None, names: Sequence[str], types: Sequence[tuple[dtypes.DType, int]]) -> list[Array]:
    if not names:
        return []
    if inputs is None:
        raise ValueError(f"values are needed for {', '.join(names)}: give them with --inputs X.npz")
    return reproducer.load_plain(inputs, names, types)
