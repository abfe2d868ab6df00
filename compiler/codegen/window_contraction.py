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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from ..schedule.loop_ir import Origin
from .column_sums import ColumnSums, FinishColumns
from .contraction import Memory, Packed
from .control_flow import counted_loop, index, on_first, smaller
from .finishing import Finish
from .locations import located
from .micro_kernel import MicroKernel
from .vector_target import VectorTarget
from .window_blocking import WindowContraction, WindowPlan
from .window_template import MicroKernels, WindowTemplate, emit_micro_kernels, run_micro_kernel

__all__ = ["Finish", "Image", "Memory", "Packed", "emit"]

# image(builder, destination, batch, m, k) -> pointer to the element of row m at step k of batch entry `batch`. For an
# image that is not read in place, the box that starts at `plan.origin` from it is written to `destination` first.
Image = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class _Windows:
    """What the loops below share beside the template."""

    template: WindowTemplate
    plan: WindowPlan
    image: Image
    finish_columns: FinishColumns | None
    sums_origin: Origin
    depth_table: ir.Value
    tile_table: ir.Value
    micro_kernels: MicroKernels


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
    template = WindowTemplate(builder, contraction, plan.blocking, b, b_strides, finish, scratch)
    windows = _Windows(
        template=template,
        plan=plan,
        image=image,
        finish_columns=finish_columns,
        sums_origin=sums_origin,
        depth_table=template.table("depth", plan.depth_offsets),
        tile_table=template.table("tiles", plan.tile_offsets),
        micro_kernels=_emit_micro_kernels(function, contraction, plan, target),
    )
    with counted_loop(builder, begin, end, name="chunk") as chunk:
        _emit_chunk(windows, chunk)


def _emit_micro_kernels(
    function: ir.Function, contraction: WindowContraction, plan: WindowPlan, target: VectorTarget
) -> MicroKernels:
    blocking = plan.blocking
    common = MicroKernel(
        element=contraction.element,
        rows=blocking.mr,
        vectors=blocking.nr // blocking.lanes,
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
        a_rows=plan.row_offsets,
    )
    return emit_micro_kernels(function, common, contraction.n, plan.tile_sizes, target)


def _emit_chunk(windows: _Windows, chunk: ir.Value) -> None:
    """One chunk: a block of C of one batch entry, k block after k block, then its results."""
    template, plan = windows.template, windows.plan
    builder, blocking = template.builder, plan.blocking
    block = template.block(chunk)
    fresh = template.fresh(block)
    padded_n = -(-blocking.nc // blocking.nr) * blocking.nr
    if template.k_blocks > 1:
        template.clear(template.at(blocking.tile_offset), blocking.mc * plan.tile_rows, "clear")
    sums = ColumnSums(builder, template.plain, blocking, template.at(blocking.sums_offset))
    if windows.finish_columns is not None:
        sums.clear()
    with template.blocks_of_steps() as (_, k_range):
        pack = partial(template.pack_b, batch=block.batch, k_range=k_range, n_range=block.n_range)
        b_panels = template.packed(fresh, (k_range[0], padded_n), pack)
        first = windows.image(builder, template.at(blocking.a_offset), block.batch, block.m_range[0], k_range[0])
        _emit_tiles(windows, first, b_panels, block.m_range[1], block.n_range[1], k_range[1])
        if windows.finish_columns is not None:
            with located(builder, windows.sums_origin), on_first(builder, block.m_range[0]):
                sums.add(partial(_panel, template, b_panels, k_range[1]), k_range[1], block.n_range[1])
    if windows.finish_columns is not None:
        with on_first(builder, block.m_range[0]):
            sums.finish(windows.finish_columns, block.batch, block.n_range)
    tiles, turned = template.at(blocking.tile_offset), template.at(plan.turned_offset)
    template.finish_block(block, tiles, plan.tile_rows, plan.finish_rows, turned)


def _panel(template: WindowTemplate, b_panels: ir.Value, k_count: ir.Value, j: ir.Value) -> ir.Value:
    """The panel of B that starts with column j of the block."""
    return template.place(b_panels, (template.builder.mul(j, k_count, flags=("nsw",)), 1))


def _emit_tiles(
    windows: _Windows, first: ir.Value, b_panels: ir.Value, m_count: ir.Value, n_count: ir.Value, k_count: ir.Value
) -> None:
    """All tiles of the block: down its segments, and each row of tiles against all panels of B."""
    template, plan = windows.template, windows.plan
    builder, blocking = template.builder, plan.blocking
    tiles = template.at(blocking.tile_offset)
    with counted_loop(builder, 0, m_count, plan.segment, name="segment") as segment:
        number = builder.udiv(segment, index(plan.segment))
        rows_here = smaller(builder, builder.sub(m_count, segment), plan.segment)
        with counted_loop(builder, 0, rows_here, blocking.mr, name="m.tile") as i:
            entry = builder.add(
                builder.mul(number, index(plan.tiles_per_segment)), builder.udiv(i, index(blocking.mr))
            )
            a = template.place(first, (template.entry(windows.tile_table, (entry, 1)), 1))
            rows = smaller(builder, builder.sub(rows_here, i), blocking.mr)
            row = builder.add(segment, i, flags=("nsw",))
            with counted_loop(builder, 0, n_count, blocking.nr, name="n.tile") as j:
                b_panel = _panel(template, b_panels, k_count, j)
                tile = template.place(tiles, (row, plan.tile_rows), (j, 1))
                whole = builder.icmp_signed(">=", builder.sub(n_count, j), index(blocking.nr))
                arguments = [a, b_panel, tile, k_count, windows.depth_table]
                run_micro_kernel(builder, windows.micro_kernels, arguments, rows, whole)
