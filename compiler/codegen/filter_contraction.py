"""The contraction template for 3x3 windows that move by one, with 16 products of tiles where there would be 36.

    for chunk in begin..end:                                   parallel: chunks share nothing
      for each block of steps:
        pack and transform B[block, n block] at 16 points      unless kept from the last chunk
        compute the box of image that the block sees, and transform its 4x4 patches at 16 points
        for each of 16 points:
          for i in the block's rows step mr:
            for j in the n block step nr:
              micro-kernel: sums[point, i, j] += image[point, i, steps] * B[point, steps, j]
      transform the sums at 16 points to the rows they make, and finish those

Vectors run along the channels while the image is transformed, and along n in all that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from . import filter_transforms as transforms
from .contraction import Memory, Packed
from .control_flow import block_range, counted_loop, index, smaller
from .filter_blocking import FilterPlan
from .finishing import Finish, Range
from .micro_kernel import MicroKernel
from .vector_target import VectorTarget
from .window_blocking import WindowContraction
from .window_template import MicroKernels, WindowTemplate, emit_micro_kernels, run_micro_kernel

# box(builder, destination, batch, m, k, channels): write the box of the image that begins `plan.origin` from the
# element of row m at step k of batch entry `batch`, with so many channels, to `destination`.
Box = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value], None]


@dataclass(frozen=True)
class _Filter:
    """What the loops below share beside the template; the tables of the plan are constants of the module."""

    template: WindowTemplate
    plan: FilterPlan
    box: Box
    micro_kernels: MicroKernels
    patches: ir.Value
    taps: ir.Value
    results: ir.Value


def emit(
    function: ir.Function,
    builder: ir.IRBuilder,
    contraction: WindowContraction,
    plan: FilterPlan,
    target: VectorTarget,
    box: Box,
    b: Memory | Packed,
    b_strides: tuple[int, int],
    finish: Finish,
) -> None:
    """Emit chunks [begin, end) into `function`, void(ptr buffers, i64 begin, i64 end, ptr scratch).

    As `window_contraction.emit`, but that the box is written with its channels together.
    """
    if plan.blocking.chunks == 0:
        return
    _, begin, end, scratch = function.args
    template = WindowTemplate(builder, contraction, plan.blocking, b, b_strides, finish, scratch)
    filtering = _Filter(
        template=template,
        plan=plan,
        box=box,
        micro_kernels=_emit_micro_kernels(function, contraction, plan, target),
        patches=template.table("patches", plan.patches),
        taps=template.table("taps", [row for step in plan.taps for row in step]),
        results=template.table("results", [row for group in plan.results for row in group]),
    )
    with counted_loop(builder, begin, end, name="chunk") as chunk:
        _emit_chunk(filtering, chunk)


def _emit_micro_kernels(
    function: ir.Function, contraction: WindowContraction, plan: FilterPlan, target: VectorTarget
) -> MicroKernels:
    blocking = plan.blocking
    blocks = {min(plan.rows, plan.all_rows), plan.all_rows % plan.rows} - {0}
    sizes = {size for rows in blocks for size in (min(blocking.mr, rows), rows % blocking.mr) if size}
    common = MicroKernel(
        element=contraction.element,
        rows=blocking.mr,
        vectors=blocking.nr // blocking.lanes,
        lanes=blocking.lanes,
        tile_stride=_padded_n(plan),
        a_strides=(plan.channel_step, 1) if plan.by_places else (1, plan.channel_step),
        b_stride=blocking.nr,
        b_aligned=True,
        last_lanes=blocking.lanes,
        unroll=blocking.unroll,
        k_remainder=plan.all_steps % blocking.unroll != 0 or plan.steps % blocking.unroll != 0,
        accumulate=plan.all_steps > plan.steps,
        has_fma=target.has_fma,
    )
    return emit_micro_kernels(function, common, contraction.n, sorted(sizes, reverse=True), target)


def _padded_n(plan: FilterPlan) -> int:
    return -(-plan.blocking.nc // plan.blocking.nr) * plan.blocking.nr


def _emit_chunk(filtering: _Filter, chunk: ir.Value) -> None:
    """One chunk: a block of C of one batch entry, a block of steps after the other, then its results."""
    template, plan = filtering.template, filtering.plan
    builder, blocking = template.builder, plan.blocking
    block = template.block(chunk)
    _, rows = block_range(builder, block.m_block, plan.rows, plan.all_rows)
    fresh = template.fresh(block)
    if plan.all_steps > plan.steps:
        template.clear(template.at(plan.sums_offset), transforms.POINTS**2 * plan.sum_plane, "clear")
    with template.blocks_of_steps() as (k_block, k_range):
        _, steps = block_range(builder, k_block, plan.steps, plan.all_steps)
        transform = partial(_transform_right, filtering, batch=block.batch, k_range=k_range, n_range=block.n_range,
                            steps=steps)  # fmt: skip
        right = template.packed(fresh, (k_block, transforms.POINTS**2 * plan.right_plane), transform)
        tiles, channels = (rows, steps) if plan.by_places else (steps, rows)
        _clear_box(filtering)
        box = template.at(blocking.a_offset)
        filtering.box(builder, box, block.batch, block.m_range[0], k_range[0], channels)
        _transform_image(filtering, tiles, channels)
        _multiply(filtering, right, rows, block.n_range[1], steps)
    _transform_sums(filtering, rows, block.n_range[1])
    results, turned = template.at(plan.results_offset), template.at(plan.turned_offset)
    template.finish_block(block, results, plan.row_stride, plan.finish_rows, turned)


def _transform_right(
    filtering: _Filter, right: ir.Value, batch: ir.Value, k_range: Range, n_range: Range, steps: ir.Value
) -> None:
    """A block of B at all points, panel by panel of nr columns: right[point][panel][step][nr]."""
    template, plan = filtering.template, filtering.plan
    builder, nr, lanes = template.builder, plan.blocking.nr, plan.blocking.lanes
    raw = template.at(plan.raw_offset)
    side, transform = (3, transforms.three) if plan.by_places else (2, transforms.two)
    for lane in range(0, nr, lanes):
        template.store(ir.Constant(template.vector, None), raw, (plan.blocking.kc * nr + lane, 1))
    with counted_loop(builder, 0, n_range[1], nr, name="right.panel") as j:
        columns = smaller(builder, builder.sub(n_range[1], j), nr)
        template.pack_b(raw, batch, k_range, (builder.add(n_range[0], j, flags=("nsw",)), columns))
        panel = template.place(right, (j, plan.steps))
        with counted_loop(builder, 0, steps, name="right.step") as step:
            rows = [template.entry(filtering.taps, (step, side**2), (tap, 1)) for tap in range(side**2)]
            to_step = template.place(panel, (step, nr))
            with counted_loop(builder, 0, columns, lanes, name="right.vector") as at:
                values = [template.load(raw, (row, nr), (at, 1)) for row in rows]
                grid = [values[i : i + side] for i in range(0, side**2, side)]
                points = transforms.on_both_axes(builder, transform, grid)
                _store_points(template, points, to_step, at, plan.right_plane)


def _store_points(
    template: WindowTemplate, points: list[list[ir.Value]], base: ir.Value, at: ir.Value, plane: int
) -> None:
    for number, value in enumerate(value for row in points for value in row):
        template.store(value, base, (number, plane), (at, 1))


def _clear_box(filtering: _Filter) -> None:
    """Zeros, where tiles reach beyond the image."""
    template, plan = filtering.template, filtering.plan
    if not plan.covered:
        nbytes = plan.image_offset - plan.blocking.a_offset
        template.clear(template.at(plan.blocking.a_offset), nbytes // template.bytes, "clear.box")


def _transform_image(filtering: _Filter, tiles: ir.Value, channels: ir.Value) -> None:
    """The patches of a block at all points: image[point][tile][channel]."""
    template, plan = filtering.template, filtering.plan
    builder = template.builder
    box, image = template.at(plan.blocking.a_offset), template.at(plan.image_offset)
    down, across = plan.window
    with counted_loop(builder, 0, tiles, name="patch") as tile:
        patch = template.place(box, (template.entry(filtering.patches, (tile, 1)), 1))
        to_tile = template.place(image, (tile, plan.channel_step))
        with counted_loop(builder, 0, channels, plan.blocking.lanes, name="patch.channel") as at:
            grid = [[template.load(patch, (at, 1), (y, down), (x, across)) for x in range(4)] for y in range(4)]
            points = transforms.on_both_axes(builder, transforms.image, grid)
            _store_points(template, points, to_tile, at, plan.image_plane)


def _multiply(filtering: _Filter, right: ir.Value, rows: ir.Value, columns: ir.Value, steps: ir.Value) -> None:
    """The products of all points."""
    template, plan = filtering.template, filtering.plan
    builder, blocking = template.builder, plan.blocking
    row_step = plan.channel_step if plan.by_places else 1
    with counted_loop(builder, 0, transforms.POINTS**2, name="point") as point:
        image = template.place(template.at(plan.image_offset), (point, plan.image_plane))
        panels = template.place(right, (point, plan.right_plane))
        sums = template.place(template.at(plan.sums_offset), (point, plan.sum_plane))
        with counted_loop(builder, 0, rows, blocking.mr, name="m.tile") as i:
            a = template.place(image, (i, row_step))
            count = smaller(builder, builder.sub(rows, i), blocking.mr)
            with counted_loop(builder, 0, columns, blocking.nr, name="n.tile") as j:
                b = template.place(panels, (j, plan.steps))
                tile = template.place(sums, (i, _padded_n(plan)), (j, 1))
                whole = builder.icmp_signed(">=", builder.sub(columns, j), index(blocking.nr))
                run_micro_kernel(builder, filtering.micro_kernels, [a, b, tile, steps], count, whole)


def _transform_sums(filtering: _Filter, rows: ir.Value, columns: ir.Value) -> None:
    """From the sums at all points to the rows of results that they make."""
    template, plan = filtering.template, filtering.plan
    builder = template.builder
    side, transform = (2, transforms.to_two) if plan.by_places else (3, transforms.to_three)
    sums, made = template.at(plan.sums_offset), template.at(plan.results_offset)
    with counted_loop(builder, 0, rows, name="results.row") as row:
        places = [template.entry(filtering.results, (row, side**2), (place, 1)) for place in range(side**2)]
        from_row = template.place(sums, (row, _padded_n(plan)))
        with counted_loop(builder, 0, columns, plan.blocking.lanes, name="results.vector") as at:
            numbers = range(transforms.POINTS)
            grid = [
                [template.load(from_row, (at, 1), (y * transforms.POINTS + x, plan.sum_plane)) for x in numbers]
                for y in numbers
            ]
            outputs = transforms.on_both_axes(builder, transform, grid)
            for place, value in zip(places, (value for line in outputs for value in line), strict=True):
                template.store(value, made, (place, plan.row_stride), (at, 1))
