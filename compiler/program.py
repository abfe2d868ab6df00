"""A program: launches of kernels in order over inputs, outputs and one arena. What the runtime needs, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .ir.computed import cached_property
from .ir.dtypes import DType
from .ir.graph import Shape


@dataclass(frozen=True)
class Array:
    """The type of an input or output."""

    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Place:
    """Where a buffer lives: "input" or "output" number `position`, or the "arena" at byte `position`."""

    kind: str
    position: int


@dataclass(frozen=True)
class Call:
    """One kernel call: which kernel of the program's table, on which buffers, in how many chunks."""

    kernel: int
    places: tuple[Place, ...]
    chunks: int


@dataclass(frozen=True)
class Chain:
    """Calls that run one after another on one thread, or one call in pieces that threads share.

    `pieces` is into how many parts of its launch it falls, each a range of the call's chunks; 1 for several calls.
    """

    calls: tuple[Call, ...]
    pieces: int


# What one launch runs: chains that do not depend on one another.
Bundle = tuple[Chain, ...]


@dataclass(frozen=True, eq=False)
class Module:
    """LLVM IR that is made when it is needed: `text` is canonical and names it in caches, `emit(name)` writes it."""

    text: str
    emit: Callable[[str], str]


# (program, name, symbols of its kernels or None) to the LLVM IR of its entry.
EntryEmitter: TypeAlias = "Callable[[Program, str, Sequence[str] | None], str]"


@dataclass(frozen=True, eq=False)
class Program:
    """Everything needed to run a graph.

    `bundles` in order: the entry launches each once and waits for it. `kernels` is the table that calls index,
    structurally equal kernels once. `entry`, whose LLVM IR `emit_entry(program, name, None)` writes, defines
    `void name(ptr arguments, ptr kernels, ptr pool, ptr workspace)`, where `arguments` points to the addresses of the
    inputs and then of the outputs that `results` lists as computed, and `workspace` to `arena_bytes` bytes followed by
    `scratch_bytes` for each thread, all aligned to 64 bytes.

    `aliases` lists pairs (input, output) that may have one address: see `program_aliases.py`. No other arrays may
    overlap.

    `results[i]` says where output i of the graph is found: a computed output, or an input handed through.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    results: tuple[Place, ...]
    bundles: tuple[Bundle, ...]
    kernels: tuple[Module, ...]
    emit_entry: EntryEmitter
    arena_bytes: int
    scratch_bytes: int
    aliases: tuple[tuple[int, int], ...] = ()

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all bundles, in an order in which they can run one by one."""
        return tuple(call for bundle in self.bundles for chain in bundle for call in chain.calls)

    @cached_property
    def entry(self) -> Module:
        """The function that runs the program."""
        return Module(self._entry_text(), lambda name: self.emit_entry(self, name, None))

    def linked_entry(self, name: str, symbols: Sequence[str]) -> str:
        """LLVM IR of an entry that calls the kernels by symbol: `void name(arguments, pool or null, workspace)`."""
        return self.emit_entry(self, name, symbols)

    def _entry_text(self) -> str:
        """Text that is equal for programs with equal entry functions."""
        lines = [f"entry inputs={len(self.inputs)} arena={self.arena_bytes} scratch={self.scratch_bytes}"]
        for bundle in self.bundles:
            lines.append("launch")
            for chain in bundle:
                lines.append(f"pieces {chain.pieces}")
                lines += [
                    f"{call.kernel} {call.chunks} {' '.join(f'{p.kind}:{p.position}' for p in call.places)}"
                    for call in chain.calls
                ]
        return "\n".join(lines)
