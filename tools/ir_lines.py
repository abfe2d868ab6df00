"""LLVM IR and assembly with what each line is for behind it: ops, and the lines of the user's files they come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kaun.compiler.codegen.line_tables import Located, read_assembly, read_llvm
from kaun.compiler.ir.graph import Node
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.origins import line_nodes
from kaun.runtime import engine
from kaun.runtime import target as targets

STAGES = ("llvm", "assembly")

# What begins a comment in the assembly of an architecture.
_COMMENTS = {"aarch64": "//", "arm": "@"}


def with_lines(compilation: Compilation, stage: str) -> str:
    """The text of one of STAGES, for this machine. Of kernels that share their code, it tells what the first is for."""
    machine, program = targets.host(), compilation.program

    def located(number: int) -> Located:
        llvm = compilation.located(number)
        read = read_llvm(llvm)
        return read if stage == "llvm" else read_assembly(engine.assembly(llvm, machine), read.helpers)

    entry = program.entry.emit("entry")
    comment = ";" if stage == "llvm" else _COMMENTS.get(machine.architecture, "#")
    users: dict[int, list[int]] = {}
    for number, call in enumerate(program.calls):
        users.setdefault(call.kernel, []).append(number)
    with ThreadPoolExecutor(targets.usable_cores(), "kaun-lines") as workers:
        parts = []
        for number, read in enumerate(workers.map(located, range(len(program.kernels)))):
            nodes = line_nodes(compilation.kernels[users[number][0]])
            parts.append("\n".join(_commented(read, nodes, comment)))
    return "\n".join([*parts, entry if stage == "llvm" else engine.assembly(entry, machine)])


def _commented(read: Located, nodes: Sequence[Sequence[Node]], comment: str) -> Iterator[str]:
    for line, numbers in zip(read.text.split("\n"), read.lines, strict=True):
        found = dict.fromkeys(node for number in numbers for node in nodes[number - 1])
        yield f"{line}  {comment} {_named(found)}" if found else line


def _named(nodes: Collection[Node]) -> str:
    """The ops, each once, and the lines of the user that asked for them."""
    names = dict.fromkeys(node.op.name for node in nodes)
    sources = [node.source for node in nodes if node.source.file]
    lines = dict.fromkeys(f"{Path(source.file).name}:{source.line}" for source in sources)
    return " ".join([*names, *lines])
