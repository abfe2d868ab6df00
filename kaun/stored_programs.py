"""Programs kept on disk beside their kernels: a graph that any process has compiled is not fused and lowered again.

An entry is the program's text, under a key made of the graph's text, the machine and the version of the compiler. It is
checked as it is parsed, kernels included are found by their text or made from it, and one that does not fit is deleted.
The checksum of the cache finds damage; the folder is trusted as the machine code in it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, Node
from kaun.compiler.program import Array, Program
from kaun.compiler.program_text import parse_program, print_program
from kaun.runtime.cache import default_cache, kernel_key
from kaun.runtime.target import Target


class Stored(NamedTuple):
    """What is on disk for a graph, and what a program of it takes and gives."""

    content: bytes
    types: str


def lookup(graph: Graph, text: str, target: Target) -> Stored | None:
    """What is on disk for `graph`, whose `key` is `text`; None if there is nothing, or not as it was written."""
    content = default_cache().lookup(_key(text, target))
    return None if content is None else Stored(content, _types_text(graph.inputs, graph.outputs))


def load(stored: Stored, text: str, target: Target, vectors: VectorTarget) -> Program | None:
    """The program of what `lookup` found; None, and deleted, if it is none for that graph."""
    try:
        program = parsed(stored.content.decode(), vectors)
    except (ValueError, TypeError):
        program = None
    if program is None or not _fits(program, stored.types):
        discard(text, target)
        return None
    return program


def parsed(text: str, vectors: VectorTarget) -> Program:
    """The program of a text, whose kernels and entry can be emitted again. ValueError or TypeError if it is none."""

    def emit_kernel(kernel: str, name: str) -> str:
        from kaun.compiler.codegen import kernels  # the compiler is loaded only where a kernel is missing
        from kaun.compiler.schedule.parse import parse_kernel

        return kernels.emit_kernel(parse_kernel(kernel), name, vectors)

    def emit_entry(program: Program, name: str, symbols: Sequence[str] | None) -> str:
        from kaun.compiler.codegen import entry

        return entry.emit_entry(program, name, vectors, symbols)

    return parse_program(text, emit_kernel, emit_entry)


def store(text: str, target: Target, program: Program) -> None:
    """Keep the program of the graph whose `key` is `text`."""
    default_cache().store(_key(text, target), print_program(program).encode())


def discard(text: str, target: Target) -> None:
    """Delete the program of the graph whose `key` is `text`."""
    default_cache().discard(_key(text, target))


def _key(text: str, target: Target) -> str:
    return kernel_key("program\n" + text, target)


def _fits(program: Program, types: str) -> bool:
    """Whether the program takes and gives what the graph does."""
    arrays = {"input": program.inputs, "output": program.outputs}
    return _types_text(program.inputs, [arrays[place.kind][place.position] for place in program.results]) == types


def _types_text(inputs: Iterable[Node | Array], outputs: Iterable[Node | Array]) -> str:
    takes, gives = (", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) for arrays in (inputs, outputs))
    return f"{takes} -> {gives}"
