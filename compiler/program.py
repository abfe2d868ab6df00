"""A program: kernel calls in order over inputs, outputs and one arena. What the runtime needs, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .ir.dtypes import DType
from .ir.graph import Shape


@dataclass(frozen=True)
class Array:
    """The type of an input or output."""

    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for extent in self.shape:
            size *= extent
        return size


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


@dataclass(frozen=True, eq=False)
class Module:
    """LLVM IR that is made when it is needed: `text` is canonical and names it in caches, `emit(name)` writes it."""

    text: str
    emit: Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Program:
    """Everything needed to run a graph.

    `calls` in order; `kernels` is the table they index, structurally equal kernels once. `entry` defines
    `void name(ptr arguments, ptr kernels, ptr pool, ptr workspace)`, where `arguments` points to the addresses of the
    inputs and then of the outputs that `results` lists as computed, and `workspace` to `arena_bytes` bytes followed by
    `scratch_bytes` for each thread, all aligned to 64 bytes.

    `results[i]` says where output i of the graph is found: a computed output, or an input handed through.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    results: tuple[Place, ...]
    calls: tuple[Call, ...]
    kernels: tuple[Module, ...]
    entry: Module
    arena_bytes: int
    scratch_bytes: int
