"""Runs compiled programs on machines that this one is not: emulators of other processors, and Node.js.

Programs go into one object as an export has it, are linked by the system's own compiler for the machine with a small
program that calls them (`cross/run_programs.c`, or `.mjs`), and read and write two files.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kaun.compiler.ir import Graph
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Program
from kaun.runtime.one_object import entry_symbol, one_object
from kaun.runtime.target import Target, named

from kaun.execution import vector_target

Array = Any
HERE = Path(__file__).parent / "cross"
GUARD = 64

CORTEX_M7 = ("-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard")


@dataclass(frozen=True)
class Machine:
    """A way to link and run code for a target.

    target: its name. tools: commands that must be there, and the Debian package that has each.
    link: of a folder with the sources and objects named, into `program` (or `programs.wasm`).
    run: the command that runs it in that folder.
    oldest: the first version of the emulator that can, 0 if all can.
    """

    target: str
    tools: dict[str, str]
    link: Callable[[Sequence[str], Sequence[str]], list[str]]
    run: tuple[str, ...]
    oldest: int = 0

    @property
    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        absent = [f"{tool} (Debian: {package})" for tool, package in self.tools.items() if shutil.which(tool) is None]
        if absent:
            return f"needs {', '.join(absent)}"
        if self.oldest and (version := _version(self.run[0])) < self.oldest:
            return f"needs {self.run[0]} {self.oldest}, which is here in version {version}"
        return ""

    def build(self, folder: Path, sources: Sequence[str], options: Sequence[str] = ()) -> None:
        """Link the sources and objects; raises with what the linker said."""
        succeed(self.link(sources, options), folder)

    def start(self, folder: Path, *arguments: str) -> str:
        """Run what was built; what it printed. Raises if it failed."""
        return succeed([*self.run, *arguments], folder)


def _version(command: str) -> int:
    """The first number of what a command says its version is."""
    told = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", told)
    return int(found[1]) if found else 0


def succeed(command: list[str], folder: Path) -> str:
    """What a command prints. Raises with all it said if it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def _linux(compiler: str) -> Callable[[Sequence[str], Sequence[str]], list[str]]:
    return lambda sources, options: [compiler, "-O1", *options, *sources, "-o", "program", "-lm", "-lpthread"]


def _board(sources: Sequence[str], options: Sequence[str]) -> list[str]:
    board = ["-T", str(HERE / "mps2_an500.ld"), str(HERE / "mps2_an500.c"), "-nostartfiles", "--specs=rdimon.specs"]
    return ["arm-none-eabi-gcc", *CORTEX_M7, "-O1", *options, *board, *sources, "-o", "program", "-lm"]


def _wasm(sources: Sequence[str], options: Sequence[str]) -> list[str]:
    return ["wasm-ld", "--no-entry", "--export=__heap_base", *options, *sources, "-o", "programs.wasm"]


_QEMU_ARM = ("qemu-system-arm", "-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none")
_SEMIHOSTING = ("-semihosting-config", "enable=on,target=native", "-kernel", "program")
_AARCH64 = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
_RISCV64 = {"riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu", "qemu-riscv64": "qemu-user"}
# Before version 8 the emulator fails on masked vector instructions (gitlab.com/qemu-project/qemu/-/issues/1441).
_VECTORS = ("qemu-riscv64", "-cpu", "rv64,v=true,vlen=128,vext_spec=v1.0", "-L", "/usr/riscv64-linux-gnu", "./program")
_WASM = {"wasm-ld": "lld", "node": "nodejs"}
_NODE = ("node", str(HERE / "run_programs.mjs"))

MACHINES: dict[str, Machine] = {
    machine.target: machine
    for machine in (
        Machine("raspberry-pi-4", _AARCH64, _linux("aarch64-linux-gnu-gcc"),
                ("qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu", "./program")),
        Machine("linux-riscv64", _RISCV64, _linux("riscv64-linux-gnu-gcc"),
                ("qemu-riscv64", "-L", "/usr/riscv64-linux-gnu", "./program")),
        Machine("linux-riscv64,+v", _RISCV64, _linux("riscv64-linux-gnu-gcc"), _VECTORS, oldest=8),
        Machine("cortex-m7", {"arm-none-eabi-gcc": "gcc-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"},
                _board, (*_QEMU_ARM, *_SEMIHOSTING)),
        Machine("wasm32", _WASM, _wasm, _NODE),
        Machine("wasm32,-simd128", _WASM, _wasm, _NODE),
    )
}  # fmt: skip


def run_graphs(
    machine: Machine, graphs: Sequence[Graph], arguments: Sequence[Sequence[Array]], folder: Path
) -> list[list[Array]]:
    """The outputs of each graph for its arguments, computed on the machine. No output may be an input as it is."""
    target = named(machine.target)
    programs = {f"p{i}": compiled(graph, target) for i, graph in enumerate(graphs)}
    symbols = [entry_symbol(name) for name in programs]
    (folder / "programs.o").write_bytes(one_object(programs, target, symbols))
    given = b"".join(np.ascontiguousarray(a).tobytes() for each in arguments for a in each)
    (folder / "input.bin").write_bytes(given)
    if target.architecture == "wasm32":
        (folder / "table.json").write_text(json.dumps([_row(n, p) for n, p in programs.items()]))
        machine.build(folder, ["programs.o"], [f"--export={symbol}" for symbol in symbols])
    else:
        (folder / "table.h").write_text(_table(programs))
        machine.build(folder, [str(HERE / "run_programs.c"), "programs.o"], ["-I", str(folder)])
    machine.start(folder)
    data, position, results = (folder / "output.bin").read_bytes(), 0, []
    for program, each in zip(programs.values(), arguments, strict=True):
        computed = []
        for output in program.outputs:
            array = np.frombuffer(data, output.dtype.numpy, int(np.prod(output.shape)), position)
            computed.append(array.reshape(output.shape))
            position += output.nbytes
        results.append([
            np.asarray(each[place.position]) if place.kind == "input" else computed[place.position]
            for place in program.results
        ])  # fmt: skip
    assert position == len(data)
    return results


def compiled(graph: Graph, target: Target) -> Program:
    """The program for a target."""
    return Compilation(graph, vector_target(target)).program


def _row(name: str, program: Program) -> dict[str, Any]:
    sizes = [array.nbytes for array in (*program.inputs, *program.outputs)]
    workspace = program.arena_bytes + program.scratch_bytes
    return {"name": entry_symbol(name), "inputs": len(program.inputs), "sizes": sizes, "workspace": workspace}


def _table(programs: dict[str, Program]) -> str:
    """The C table of `run_programs.c`."""
    lines = [
        "typedef void entry(void *arguments, void *pool, void *workspace);",
        "struct program { entry *run; size_t inputs, outputs; const size_t *sizes; size_t workspace; };",
    ]
    rows = []
    for name, program in programs.items():
        row = _row(name, program)
        lines.append(f"extern entry {row['name']};")
        lines.append(f"static const size_t sizes_{name}[] = {{{', '.join(map(str, [*row['sizes'], 0]))}}};")
        counts = f"{row['inputs']}, {len(program.outputs)}"
        rows.append(f"    {{{row['name']}, {counts}, sizes_{name}, {row['workspace']}}},")
    return "\n".join([*lines, "static const struct program entries[] = {", *rows, "};"]) + "\n"
