"""The loops around both contractions of an image: chunks, blocks of steps, B packed once a column, results finished.

    for chunk in begin..end:                                   parallel: chunks share nothing
      for each block of steps:
        pack B[block, n block]                                 unless kept from the last chunk
        what `window_contraction.py` or `filter_contraction.py` makes of the image and B
      finish the sums of the block
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llvmlite import ir

from .contraction import note_packed_b
from .contraction_blocking import Blocking, Contraction, Operand
from .contraction_packing import Memory, Packed, pack_b
from .control_flow import block_range, clear, counted_loop, divide, index, offset
from .finishing import Finish, Finishing, Range
from .micro_kernel import MicroKernel, element_type, emit_micro_kernel
from .vector_target import VectorTarget, element_bits
from .window_blocking import WindowContraction

_I32 = ir.IntType(32)

# For each shape of tile that occurs, (rows, whole in n).
MicroKernels = dict[tuple[int, bool], ir.Function]


@dataclass(frozen=True)
class Block:
    """What one chunk computes: a block of C of one batch entry.

    column: the number of its column of blocks, all of which see the same B
    """

    batch: ir.Value
    column: ir.Value
    m_block: ir.Value
    m_range: Range
    n_range: Range


@dataclass(frozen=True)
class WindowTemplate:
    """All that the loops share.

    b_strides: of B along (k, n) where it is in memory
    scratch:   of the thread, laid out as the plan says
    """

    builder: ir.IRBuilder
    contraction: WindowContraction
    blocking: Blocking
    b: Memory | Packed
    b_strides: tuple[int, int]
    finish: Finish
    scratch: ir.Value

    # Places in memory.

    @property
    def scalar(self) -> ir.Type:
        return element_type(self.contraction.element)

    @property
    def bytes(self) -> int:
        return element_bits(self.contraction.element) // 8

    @property
    def vector(self) -> ir.Type:
        return ir.VectorType(self.scalar, self.blocking.lanes)

    @property
    def align(self) -> int:
        return self.blocking.lanes * self.bytes

    def at(self, byte_offset: int) -> ir.Value:
        return offset(self.builder, self.scratch, ir.IntType(8), (byte_offset, 1))

    def place(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return offset(self.builder, base, self.scalar, *terms)

    def load(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return self.builder.load(self.place(base, *terms), typ=self.vector, align=self.align)

    def store(self, value: ir.Value, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> None:
        self.builder.store(value, self.place(base, *terms), align=self.align)

    def clear(self, base: ir.Value, count: int, name: str) -> None:
        """So many zeros, in whole vectors."""
        clear(self.builder, base, self.vector, count, self.align, name)

    def table(self, name: str, values: Sequence[int]) -> ir.Value:
        """A constant array of i32 in the function's module, written as bytes: arrays of numbers take long to print."""
        kind = ir.ArrayType(ir.IntType(8), 4 * len(values))
        function = self.builder.function
        table = ir.GlobalVariable(function.module, kind, f"{function.name}.{name}")
        table.linkage, table.global_constant, table.align = "internal", True, 4
        table.initializer = ir.Constant(kind, bytearray(struct.pack(f"={len(values)}i", *values)))
        return table

    def entry(self, table: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        loaded = self.builder.load(offset(self.builder, table, _I32, *terms), typ=_I32, align=4)
        return self.builder.sext(loaded, index(0).type)

    # The loops.

    def block(self, chunk: ir.Value) -> Block:
        """The block of a chunk; chunks go down a column of blocks."""
        builder, contraction, blocking = self.builder, self.contraction, self.blocking
        m_blocks, n_blocks = -(-contraction.m // blocking.mc), -(-contraction.n // blocking.nc)
        column, m_block = divide(builder, chunk, m_blocks)
        batch, n_block = divide(builder, column, n_blocks)
        m_range = block_range(builder, m_block, blocking.mc, contraction.m)
        n_range = block_range(builder, n_block, blocking.nc, contraction.n)
        return Block(batch, column, m_block, m_range, n_range)

    def fresh(self, block: Block) -> ir.Value | None:
        """Whether this thread has yet to pack the block's B; None if B is not kept from block to block."""
        return note_packed_b(self.builder, self.scratch, block.column) if self.blocking.keep_b else None

    @property
    def k_blocks(self) -> int:
        return -(-self.contraction.k // self.blocking.kc)

    @contextmanager
    def blocks_of_steps(self) -> Iterator[tuple[ir.Value, Range]]:
        """For each block of steps, its number and its steps."""
        with counted_loop(self.builder, 0, self.k_blocks, name="k.block") as k_block:
            yield k_block, block_range(self.builder, k_block, self.blocking.kc, self.contraction.k)

    def packed(
        self, fresh: ir.Value | None, kept_at: tuple[ir.Value, int], pack: Callable[[ir.Value], None]
    ) -> ir.Value:
        """Where B's part of a block of steps is, which `pack` writes there unless it is kept, then at `kept_at`."""
        place = self.at(self.blocking.b_offset)
        if fresh is None:
            pack(place)
            return place
        place = self.place(place, kept_at)
        with self.builder.if_then(fresh):
            pack(place)
        return place

    @property
    def plain(self) -> Contraction:
        """The same contraction without a word on its image."""
        whole = self.contraction
        b = Operand(self.b_strides if isinstance(self.b, Memory) else None)
        return Contraction(whole.batch, whole.m, whole.n, whole.k, whole.element, Operand(), b)

    def pack_b(self, destination: ir.Value, batch: ir.Value, k_range: Range, n_range: Range) -> None:
        """A part of B as it is, in panels: destination[j // nr][k][j % nr]."""
        pack_b(self.builder, self.plain, self.blocking, self.b, destination, batch, k_range, n_range)

    def finish_block(self, block: Block, sums: ir.Value, row_stride: int, finish_rows: int, turned: ir.Value) -> None:
        """Hand the block's sums, rows `row_stride` apart, to `finish`; see `finishing.py`."""
        Finishing(
            builder=self.builder,
            scalar=self.scalar,
            bytes=self.bytes,
            lanes=self.blocking.lanes,
            columns=self.contraction.n,
            sums=sums,
            row_stride=row_stride,
            finish_rows=finish_rows,
            turned=turned,
            finish=self.finish,
        ).block(block.batch, block.m_range, block.n_range)


def emit_micro_kernels(
    function: ir.Function, common: MicroKernel, n: int, row_counts: Iterable[int], target: VectorTarget
) -> MicroKernels:
    """A micro-kernel for each shape of tile that occurs: `common` with its rows and vectors."""
    nr = common.vectors * common.lanes
    rest = -(-(n % nr) // common.lanes)
    columns = [(True, common.vectors)] if n >= nr else []
    counts = list(row_counts)
    kernels: MicroKernels = {}
    emitted: dict[MicroKernel, ir.Function] = {}
    for whole, vectors in [*columns, *([(False, rest)] if rest else [])]:
        for rows in counts:
            kernel = replace(common, rows=rows, vectors=vectors, a_rows=common.a_rows[:rows])
            if kernel not in emitted:
                name = f"{function.name}.tile_{rows}x{vectors}"
                emitted[kernel] = emit_micro_kernel(function.module, name, kernel, target.attributes)
            kernels[rows, whole] = emitted[kernel]
    return kernels


def run_micro_kernel(
    builder: ir.IRBuilder, kernels: MicroKernels, arguments: list[ir.Value], rows: ir.Value, whole: ir.Value
) -> None:
    """Call the micro-kernel made for a tile of this many rows and columns."""

    def call(choices: list[tuple[ir.Value, ir.Function]]) -> None:
        (condition, kernel), *others = choices
        if not others:
            builder.call(kernel, arguments)
            return
        with builder.if_else(condition) as (then, otherwise):
            with then:
                builder.call(kernel, arguments)
            with otherwise:
                call(others)

    choices = []
    for (size, is_whole), kernel in kernels.items():
        fits = builder.icmp_signed("==", rows, index(size))
        choices.append((builder.and_(fits, whole if is_whole else builder.not_(whole)), kernel))
    call(choices)
