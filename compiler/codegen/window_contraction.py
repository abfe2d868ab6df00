"""The contraction template for rows that are an image: C[b, m, n] = sum over k of image[f(m) + g(k)] * B[b, k, n].

A window shows each element of an image many times. Instead of packing what is shown, this template packs the image: a
block of rows and a block of the depth see a box of it, which is computed once, borders included, and read in place by
broadcasts. Tables say how far from a tile's first element its rows and its k steps lie.

    for chunk in begin..end:                                   parallel: chunks share nothing
      for k0 in 0..K step kc:
        pack B[k0.., n block] into panels of nr columns        unless kept from the last chunk
        compute the box of image that m block and k block see  unless it lies in memory as it is
        for each tile of rows of the m block:
          for j in the n block step nr:
            micro-kernel: tile (+)= image[tile's rows, k block] * B panel
      finish the m block's sums: turned in squares where results lie together along m

Sums are always taken in the order of k, whichever thread runs a chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from ..schedule.loop_ir import Origin
from .column_sums import ColumnSums, FinishColumns
from .contraction import Memory, Packed, note_packed_b
from .contraction_blocking import Contraction, Operand
from .contraction_packing import pack_memory_b
from .control_flow import block_range, counted_loop, divide, index, offset, on_first, smaller
from .finishing import Finish, Finishing
from .locations import located
from .micro_kernel import MicroKernel, element_type, emit_micro_kernel
from .vector_target import VectorTarget, element_bits
from .window_blocking import WindowContraction, WindowPlan

__all__ = ["Finish", "Image", "Memory", "Packed", "emit"]

_I32 = ir.IntType(32)

# image(builder, destination, batch, m, k) -> pointer to the element of row m at step k of batch entry `batch`. For an
# image that is not read in place, the box that starts at `plan.origin` from it is written to `destination` first.
Image = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class _Template:
    """All that the loops below share."""

    builder: ir.IRBuilder
    contraction: WindowContraction
    plan: WindowPlan
    image: Image
    b: Memory | Packed
    b_strides: tuple[int, int]
    finish: Finish
    finish_columns: FinishColumns | None
    sums_origin: Origin
    scratch: ir.Value
    depth_table: ir.Value
    tile_table: ir.Value
    micro_kernels: dict[tuple[int, bool], ir.Function]

    @property
    def scalar(self) -> ir.Type:
        return element_type(self.contraction.element)

    @property
    def bytes(self) -> int:
        return element_bits(self.contraction.element) // 8

    @property
    def plain(self) -> Contraction:
        """The same contraction without a word on its image."""
        whole = self.contraction
        b = Operand(self.b_strides if isinstance(self.b, Memory) else None)
        return Contraction(whole.batch, whole.m, whole.n, whole.k, whole.element, Operand(), b)

    def at(self, byte_offset: int) -> ir.Value:
        return offset(self.builder, self.scratch, ir.IntType(8), (byte_offset, 1))


def emit(
    function: ir.Function,
    builder: ir.IRBuilder,
    contraction: WindowContraction,
    plan: WindowPlan,
    target: VectorTarget,
    image: Image,
    b: Memory | Packed,
    b_strides: tuple[int, int],
    finish: Finish,
    finish_columns: FinishColumns | None = None,
    sums_origin: Origin = None,
) -> None:
    """Emit chunks [begin, end) into `function`, void(ptr buffers, i64 begin, i64 end, ptr scratch).

    As for `contraction.emit`: the builder's block dominates what the callbacks use, scratch is 64-byte aligned and
    holds plan.blocking.scratch_bytes. `b_strides`: of B along (k, n) where it is in memory.
    """
    if plan.blocking.chunks == 0:
        return
    _, begin, end, scratch = function.args
    template = _Template(
        builder=builder,
        contraction=contraction,
        plan=plan,
        image=image,
        b=b,
        b_strides=b_strides,
        finish=finish,
        finish_columns=finish_columns,
        sums_origin=sums_origin,
        scratch=scratch,
        depth_table=_table(function, "depth", plan.depth_offsets),
        tile_table=_table(function, "tiles", plan.tile_offsets),
        micro_kernels=_emit_micro_kernels(function, contraction, plan, target),
    )
    with counted_loop(builder, begin, end, name="chunk") as chunk:
        _emit_chunk(template, chunk)


def _table(function: ir.Function, name: str, values: tuple[int, ...]) -> ir.Value:
    """A constant array of i32 in the function's module, written as bytes: long arrays of numbers take long to print."""
    kind = ir.ArrayType(ir.IntType(8), 4 * len(values))
    table = ir.GlobalVariable(function.module, kind, f"{function.name}.{name}")
    table.linkage, table.global_constant, table.align = "internal", True, 4
    table.initializer = ir.Constant(kind, bytearray(struct.pack(f"={len(values)}i", *values)))
    return table


def _emit_micro_kernels(
    function: ir.Function, contraction: WindowContraction, plan: WindowPlan, target: VectorTarget
) -> dict[tuple[int, bool], ir.Function]:
    """A micro-kernel for each shape of tile that occurs, keyed by (rows, whole in n)."""
    blocking = plan.blocking
    emitted: dict[MicroKernel, ir.Function] = {}
    kernels: dict[tuple[int, bool], ir.Function] = {}
    rest = -(-(contraction.n % blocking.nr) // blocking.lanes)
    columns = [(True, blocking.nr // blocking.lanes)] if contraction.n >= blocking.nr else []
    for whole, vectors in [*columns, *([(False, rest)] if rest else [])]:
        for rows in plan.tile_sizes:
            kernel = MicroKernel(
                element=contraction.element,
                rows=rows,
                vectors=vectors,
                lanes=blocking.lanes,
                tile_stride=plan.tile_rows,
                a_strides=(0, 0),
                b_stride=blocking.nr,
                b_aligned=True,
                last_lanes=blocking.lanes,
                unroll=blocking.unroll,
                k_remainder=contraction.k % blocking.unroll != 0 or blocking.kc % blocking.unroll != 0,
                accumulate=contraction.k > blocking.kc,
                has_fma=target.has_fma,
                a_rows=plan.row_offsets[:rows],
            )
            if kernel not in emitted:
                name = f"{function.name}.tile_{rows}x{vectors}"
                emitted[kernel] = emit_micro_kernel(function.module, name, kernel, target.attributes)
            kernels[rows, whole] = emitted[kernel]
    return kernels


def _emit_chunk(template: _Template, chunk: ir.Value) -> None:
    """One chunk: a block of C of one batch entry, k block after k block, then its results."""
    builder, contraction, blocking = template.builder, template.contraction, template.plan.blocking
    m_blocks, n_blocks = -(-contraction.m // blocking.mc), -(-contraction.n // blocking.nc)
    k_blocks = -(-contraction.k // blocking.kc)
    outer, m_block = divide(builder, chunk, m_blocks)
    batch, n_block = divide(builder, outer, n_blocks)
    m_range = block_range(builder, m_block, blocking.mc, contraction.m)
    n_range = block_range(builder, n_block, blocking.nc, contraction.n)
    fresh = note_packed_b(builder, template.scratch, outer) if blocking.keep_b else None
    padded_n = -(-blocking.nc // blocking.nr) * blocking.nr
    if k_blocks > 1:
        _clear_tiles(template, blocking.mc * template.plan.tile_rows)
    sums = ColumnSums(builder, template.plain, blocking, template.at(blocking.sums_offset))
    if template.finish_columns is not None:
        sums.clear()
    with counted_loop(builder, 0, k_blocks, name="k.block") as k_block:
        k_range = block_range(builder, k_block, blocking.kc, contraction.k)
        b_panels = template.at(blocking.b_offset)
        if fresh is not None:
            b_panels = offset(builder, b_panels, template.scalar, (k_range[0], padded_n))
            with builder.if_then(fresh):
                _pack_b(template, b_panels, batch, k_range, n_range)
        else:
            _pack_b(template, b_panels, batch, k_range, n_range)
        first = template.image(builder, template.at(blocking.a_offset), batch, m_range[0], k_range[0])
        _emit_tiles(template, first, b_panels, m_range[1], n_range[1], k_range[1])
        if template.finish_columns is not None:
            with located(builder, template.sums_origin), on_first(builder, m_range[0]):
                sums.add(partial(_panel, template, b_panels, k_range[1]), k_range[1], n_range[1])
    if template.finish_columns is not None:
        with on_first(builder, m_range[0]):
            sums.finish(template.finish_columns, batch, n_range)
    Finishing(
        builder=builder,
        scalar=template.scalar,
        bytes=template.bytes,
        lanes=blocking.lanes,
        columns=contraction.n,
        sums=template.at(blocking.tile_offset),
        row_stride=template.plan.tile_rows,
        finish_rows=template.plan.finish_rows,
        turned=template.at(template.plan.turned_offset),
        finish=template.finish,
    ).block(batch, m_range, n_range)


def _clear_tiles(template: _Template, count: int) -> None:
    """Zero the sums that the k blocks add up in."""
    builder, lanes = template.builder, template.plan.blocking.lanes
    vector = ir.VectorType(template.scalar, lanes)
    tiles = template.at(template.plan.blocking.tile_offset)
    with counted_loop(builder, 0, count, lanes, name="clear") as at:
        pointer = offset(builder, tiles, template.scalar, (at, 1))
        builder.store(ir.Constant(vector, None), pointer, align=lanes * template.bytes)


def _pack_b(
    template: _Template,
    destination: ir.Value,
    batch: ir.Value,
    k_range: tuple[ir.Value, ir.Value],
    n_range: tuple[ir.Value, ir.Value],
) -> None:
    builder = template.builder
    with located(builder, template.b.origin):
        if isinstance(template.b, Packed):
            template.b.pack(builder, destination, batch, *k_range, *n_range)
            return
        source = template.b.pointer(builder, batch)
        pack_memory_b(builder, template.plain, template.plan.blocking, source, destination, k_range, n_range)


def _panel(template: _Template, b_panels: ir.Value, k_count: ir.Value, j: ir.Value) -> ir.Value:
    """The panel of B that starts with column j of the block."""
    return offset(template.builder, b_panels, template.scalar, (template.builder.mul(j, k_count, flags=("nsw",)), 1))


def _emit_tiles(
    template: _Template, first: ir.Value, b_panels: ir.Value, m_count: ir.Value, n_count: ir.Value, k_count: ir.Value
) -> None:
    """All tiles of the block: down its segments, and each row of tiles against all panels of B."""
    builder, plan, blocking = template.builder, template.plan, template.plan.blocking
    tiles = template.at(blocking.tile_offset)
    with counted_loop(builder, 0, m_count, plan.segment, name="segment") as segment:
        number = builder.udiv(segment, index(plan.segment))
        rows_here = smaller(builder, builder.sub(m_count, segment), plan.segment)
        with counted_loop(builder, 0, rows_here, blocking.mr, name="m.tile") as i:
            entry = builder.add(
                builder.mul(number, index(plan.tiles_per_segment)), builder.udiv(i, index(blocking.mr))
            )
            distance = builder.load(offset(builder, template.tile_table, _I32, (entry, 1)), typ=_I32, align=4)
            a = offset(builder, first, template.scalar, (builder.sext(distance, index(0).type), 1))
            rows = smaller(builder, builder.sub(rows_here, i), blocking.mr)
            row = builder.add(segment, i, flags=("nsw",))
            with counted_loop(builder, 0, n_count, blocking.nr, name="n.tile") as j:
                b_panel = _panel(template, b_panels, k_count, j)
                tile = offset(builder, tiles, template.scalar, (row, plan.tile_rows), (j, 1))
                whole = builder.icmp_signed(">=", builder.sub(n_count, j), index(blocking.nr))
                _run_micro_kernel(template, [a, b_panel, tile, k_count, template.depth_table], rows, whole)


def _run_micro_kernel(template: _Template, arguments: list[ir.Value], rows: ir.Value, whole: ir.Value) -> None:
    """Call the micro-kernel made for a tile of this many rows and columns."""
    builder = template.builder

    def call(choices: list[tuple[ir.Value | None, ir.Function]]) -> None:
        (condition, kernel), *others = choices
        if not others or condition is None:
            builder.call(kernel, arguments)
            return
        with builder.if_else(condition) as (then, otherwise):
            with then:
                builder.call(kernel, arguments)
            with otherwise:
                call(others)

    choices: list[tuple[ir.Value | None, ir.Function]] = []
    for (size, is_whole), kernel in template.micro_kernels.items():
        fits = builder.icmp_signed("==", rows, index(size))
        choices.append((builder.and_(fits, whole if is_whole else builder.not_(whole)), kernel))
    call(choices)
