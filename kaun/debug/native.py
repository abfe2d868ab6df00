"""Runs compiled kernels and programs on copies of arrays, with marked memory around each that nothing may write to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from kaun import execution
from kaun.compiler.codegen.entry import emit_entry
from kaun.compiler.codegen.kernels import emit_kernel, launch
from kaun.compiler.ir import Graph
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Program
from kaun.compiler.program_text import parse_program
from kaun.compiler.program_verify import verify_program
from kaun.compiler.schedule.loop_ir import Kernel
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.text import print_kernel, stores_of
from kaun.runtime import target as targets
from kaun.runtime import threads
from kaun.runtime.buffers import ALIGNMENT, Buffer
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.profile import repeat_kernel
from kaun.runtime.program import Executable

Array = np.ndarray[Any, np.dtype[Any]]

# Every byte of memory that nobody has written to, and of the bytes around. As floats these are NaN.
_MARK = 0xFF
_MARGIN = 4 * ALIGNMENT


class OutOfBounds(AssertionError):
    """A kernel wrote outside of the memory it was given."""


class Guarded:
    """A copy of an array between two margins of marked memory; without an array, `nbytes` of marked memory."""

    def __init__(self, nbytes: int, array: Array | None = None):
        self.nbytes = nbytes
        self._buffer = Buffer(nbytes + 2 * _MARGIN)
        self._bytes = self._buffer.view(np.uint8, (nbytes + 2 * _MARGIN,))
        self._bytes[:] = _MARK
        self.address = self._buffer.address + _MARGIN
        if array is not None and nbytes:
            self.array(array.dtype, array.shape)[...] = array

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The memory between the margins."""
        return self._bytes[_MARGIN : _MARGIN + self.nbytes].view(dtype).reshape(shape)

    def check(self, what: str) -> None:
        """OutOfBounds if a margin is not as it was."""
        if (self._bytes[:_MARGIN] != _MARK).any() or (self._bytes[_MARGIN + self.nbytes :] != _MARK).any():
            raise OutOfBounds(f"{what} was written outside of its {self.nbytes} bytes")


def host_compilation(graph: Graph, pass_names: tuple[str, ...] | None = None) -> Compilation:
    """The graph's way to a program for this machine, after the standard passes if not others."""
    target = execution.vector_target(targets.host())
    return Compilation(graph, target) if pass_names is None else Compilation(graph, target, pass_names)


def run_kernel(kernel: Kernel, arrays: Sequence[Array | None], level: int = 2) -> list[Array]:
    """The arrays of all buffers after one native run; None for a buffer that the kernel writes.

    level: how much LLVM optimises. OutOfBounds if the kernel wrote elsewhere.
    """
    target = targets.host()
    vectors = execution.vector_target(target)
    how = launch(kernel, vectors)
    text = print_kernel(kernel)
    name = f"kaun_debugged_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    request = KernelRequest(name, text, partial(emit_kernel, kernel, name, vectors), level)
    (address,) = compile_kernels([request], target)
    buffers = [
        Guarded(buffer.size * buffer.dtype.itemsize, None if array is None else array.reshape(-1))
        for buffer, array in zip(kernel.buffers, arrays, strict=True)
    ]
    scratch = Guarded(threads.pool().threads * how.scratch_bytes)
    addresses = [buffer.address for buffer in buffers]
    repeat_kernel(1, address, addresses, how.chunks, scratch.address, how.scratch_bytes, target)
    for number, guarded in enumerate(buffers):
        guarded.check(f"buffer %{number}")
    scratch.check("the scratch memory")
    return [
        guarded.array(buffer.dtype.numpy, (buffer.size,)).copy()
        for guarded, buffer in zip(buffers, kernel.buffers, strict=True)
    ]


def written(kernel: Kernel) -> list[bool]:
    """For each buffer, whether the kernel stores into it."""
    stored = {store.buffer for store in stores_of(kernel)}
    return [buffer in stored for buffer in kernel.buffers]


def run_program(program: Program, arrays: Sequence[Array], *, in_place: bool = False) -> list[Array]:
    """The results of one native run; with `in_place`, outputs are written over the inputs that they may replace."""
    executable = Executable(program, targets.host())
    inputs = [Guarded(kind.nbytes, array) for kind, array in zip(program.inputs, arrays, strict=True)]
    donors = {output: given for given, output in program.aliases} if in_place else {}
    outputs = [
        inputs[donors[number]] if number in donors else Guarded(kind.nbytes)
        for number, kind in enumerate(program.outputs)
    ]
    executable.start(executable.record([guarded.address for guarded in (*inputs, *outputs)]))
    for name, group in (("input", inputs), ("output", outputs)):
        for number, guarded in enumerate(group):
            guarded.check(f"{name} {number}")
    found = {"input": (inputs, program.inputs), "output": (outputs, program.outputs)}
    results = []
    for place in program.results:
        group, types = found[place.kind]
        kind = types[place.position]
        results.append(group[place.position].array(kind.dtype.numpy, kind.shape).copy())
    return results


def check_launches(program: Program) -> None:
    """ValueError unless the program keeps the rules, and runs its kernels in the chunks that they have on this machine.

    The scratch memory has to be enough for them too: otherwise they would write where nothing is.
    """
    verify_program(program)
    vectors = execution.vector_target(targets.host())
    launches = [launch(parse_kernel(module.text), vectors) for module in program.kernels]
    for call in program.calls:
        how = launches[call.kernel]
        if call.chunks != how.chunks:
            raise ValueError(
                f"native.check_launches: kernel {call.kernel} is run in {call.chunks} chunks, on this machine it has "
                f"{how.chunks}; `kaun opt --pass schedule` makes this machine's program of a graph"
            )
    most = max((launches[call.kernel].scratch_bytes for call in program.calls), default=0)
    if program.scratch_bytes < most:
        raise ValueError(
            f"native.check_launches: the program has {program.scratch_bytes} bytes of scratch memory, its kernels need "
            f"{most} on this machine"
        )


def program_of(text: str) -> Program:
    """The program that a text describes, for this machine. ValueError where it does not parse."""
    vectors = execution.vector_target(targets.host())
    return parse_program(
        text,
        lambda kernel, name: emit_kernel(parse_kernel(kernel), name, vectors),
        lambda program, name, symbols: emit_entry(program, name, vectors, symbols),
    )
