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

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from . import filter_transforms as transforms
from .contraction import Memory, Packed, note_packed_b
from .contraction_blocking import Contraction, Operand
from .contraction_packing import pack_memory_b
from .control_flow import block_range, counted_loop, divide, index, offset, smaller
from .filter_blocking import FilterPlan
from .finishing import Finish, Finishing, Range
from .locations import located
from .micro_kernel import MicroKernel, element_type, emit_micro_kernel
from .vector_target import VectorTarget, element_bits
from .window_blocking import WindowContraction

_I32 = ir.IntType(32)

# box(builder, destination, batch, m, k, channels): write the box of the image that begins `plan.origin` from the
# element of row m at step k of batch entry `batch`, with so many channels, to `destination`.
Box = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value], None]


@dataclass(frozen=True)
class _Template:
    """All that the loops below share."""

    builder: ir.IRBuilder
    contraction: WindowContraction
    plan: FilterPlan
    box: Box
    b: Memory | Packed
    b_strides: tuple[int, int]
    finish: Finish
    scratch: ir.Value
    micro_kernels: dict[tuple[int, bool], ir.Function]

    @property
    def scalar(self) -> ir.Type:
        return element_type(self.contraction.element)

    @property
    def bytes(self) -> int:
        return element_bits(self.contraction.element) // 8

    @property
    def vector(self) -> ir.Type:
        return ir.VectorType(self.scalar, self.plan.blocking.lanes)

    @property
    def align(self) -> int:
        return self.plan.blocking.lanes * self.bytes

    def at(self, byte_offset: int) -> ir.Value:
        return offset(self.builder, self.scratch, ir.IntType(8), (byte_offset, 1))

    def place(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return offset(self.builder, base, self.scalar, *terms)

    def load(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return self.builder.load(self.place(base, *terms), typ=self.vector, align=self.align)

    def store(self, value: ir.Value, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> None:
        self.builder.store(value, self.place(base, *terms), align=self.align)

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
    kernels = _emit_micro_kernels(function, contraction, plan, target)
    template = _Template(builder, contraction, plan, box, b, b_strides, finish, scratch, kernels)
    tables = _Tables(
        template.table("patches", plan.patches),
        template.table("taps", [row for step in plan.taps for row in step]),
        template.table("results", [row for group in plan.results for row in group]),
    )
    with counted_loop(builder, begin, end, name="chunk") as chunk:
        _emit_chunk(template, tables, chunk)


@dataclass(frozen=True)
class _Tables:
    """The tables of the plan as constants of the module."""

    patches: ir.Value
    taps: ir.Value
    results: ir.Value


def _emit_micro_kernels(
    function: ir.Function, contraction: WindowContraction, plan: FilterPlan, target: VectorTarget
) -> dict[tuple[int, bool], ir.Function]:
    """A micro-kernel for each shape of tile that occurs, keyed by (rows, whole in n)."""
    blocking = plan.blocking
    blocks = {min(plan.rows, plan.all_rows), plan.all_rows % plan.rows} - {0}
    sizes = {size for rows in blocks for size in (min(blocking.mr, rows), rows % blocking.mr) if size}
    rest = -(-(contraction.n % blocking.nr) // blocking.lanes)
    columns = [(True, blocking.nr // blocking.lanes)] if contraction.n >= blocking.nr else []
    kernels: dict[tuple[int, bool], ir.Function] = {}
    emitted: dict[MicroKernel, ir.Function] = {}
    for whole, vectors in [*columns, *([(False, rest)] if rest else [])]:
        for rows in sorted(sizes, reverse=True):
            kernel = MicroKernel(
                element=contraction.element,
                rows=rows,
                vectors=vectors,
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
            if kernel not in emitted:
                name = f"{function.name}.tile_{rows}x{vectors}"
                emitted[kernel] = emit_micro_kernel(function.module, name, kernel, target.attributes)
            kernels[rows, whole] = emitted[kernel]
    return kernels


def _padded_n(plan: FilterPlan) -> int:
    return -(-plan.blocking.nc // plan.blocking.nr) * plan.blocking.nr


def _emit_chunk(template: _Template, tables: _Tables, chunk: ir.Value) -> None:
    """One chunk: a block of C of one batch entry, a block of steps after the other, then its results."""
    builder, contraction, plan = template.builder, template.contraction, template.plan
    blocking = plan.blocking
    m_blocks, n_blocks = -(-contraction.m // blocking.mc), -(-contraction.n // blocking.nc)
    outer, m_block = divide(builder, chunk, m_blocks)
    batch, n_block = divide(builder, outer, n_blocks)
    m_range = block_range(builder, m_block, blocking.mc, contraction.m)
    n_range = block_range(builder, n_block, blocking.nc, contraction.n)
    _, rows = block_range(builder, m_block, plan.rows, plan.all_rows)
    fresh = note_packed_b(builder, template.scratch, outer) if blocking.keep_b else None
    if plan.all_steps > plan.steps:
        sums = template.at(plan.sums_offset)
        with counted_loop(builder, 0, transforms.POINTS**2 * plan.sum_plane, blocking.lanes, name="clear") as at:
            template.store(ir.Constant(template.vector, None), sums, (at, 1))
    with counted_loop(builder, 0, -(-plan.all_steps // plan.steps), name="k.block") as k_block:
        k_range = block_range(builder, k_block, blocking.kc, contraction.k)
        _, steps = block_range(builder, k_block, plan.steps, plan.all_steps)
        right = template.at(blocking.b_offset)
        if fresh is not None:
            right = template.place(right, (k_block, transforms.POINTS**2 * plan.right_plane))
            with builder.if_then(fresh):
                _transform_right(template, tables.taps, right, batch, k_range, n_range, steps)
        else:
            _transform_right(template, tables.taps, right, batch, k_range, n_range, steps)
        tiles, channels = (rows, steps) if plan.by_places else (steps, rows)
        _clear_box(template)
        template.box(builder, template.at(blocking.a_offset), batch, m_range[0], k_range[0], channels)
        _transform_image(template, tables.patches, tiles, channels)
        _multiply(template, right, rows, n_range[1], steps)
    _transform_sums(template, tables.results, rows, n_range[1])
    Finishing(
        builder=builder,
        scalar=template.scalar,
        bytes=template.bytes,
        lanes=blocking.lanes,
        columns=contraction.n,
        sums=template.at(plan.results_offset),
        row_stride=plan.row_stride,
        finish_rows=plan.finish_rows,
        turned=template.at(plan.turned_offset),
        finish=template.finish,
    ).block(batch, m_range, n_range)


def _transform_right(
    template: _Template, taps: ir.Value, right: ir.Value, batch: ir.Value, k_range: Range, n_range: Range,
    steps: ir.Value,
) -> None:  # fmt: skip
    """A block of B at all points, panel by panel of nr columns: right[point][panel][step][nr]."""
    builder, plan, nr = template.builder, template.plan, template.plan.blocking.nr
    lanes, raw = plan.blocking.lanes, template.at(plan.raw_offset)
    side, transform = (3, transforms.three) if plan.by_places else (2, transforms.two)
    for lane in range(0, nr, lanes):
        template.store(ir.Constant(template.vector, None), raw, (plan.blocking.kc * nr + lane, 1))
    with counted_loop(builder, 0, n_range[1], nr, name="right.panel") as j:
        columns = smaller(builder, builder.sub(n_range[1], j), nr)
        _pack_b(template, raw, batch, k_range, (builder.add(n_range[0], j, flags=("nsw",)), columns))
        panel = template.place(right, (j, plan.steps))
        with counted_loop(builder, 0, steps, name="right.step") as step:
            rows = [template.entry(taps, (step, side**2), (tap, 1)) for tap in range(side**2)]
            to_step = template.place(panel, (step, nr))
            with counted_loop(builder, 0, columns, lanes, name="right.vector") as at:
                values = [template.load(raw, (row, nr), (at, 1)) for row in rows]
                grid = [values[i : i + side] for i in range(0, side**2, side)]
                points = transforms.on_both_axes(builder, transform, grid)
                _store_points(template, points, to_step, at, plan.right_plane)


def _store_points(
    template: _Template, points: list[list[ir.Value]], base: ir.Value, at: ir.Value, plane: int
) -> None:
    for number, value in enumerate(value for row in points for value in row):
        template.store(value, base, (number, plane), (at, 1))


def _pack_b(template: _Template, raw: ir.Value, batch: ir.Value, k_range: Range, n_range: Range) -> None:
    """One panel of B as it is: raw[k][nr]."""
    builder, contraction = template.builder, template.contraction
    with located(builder, template.b.origin):
        if isinstance(template.b, Packed):
            template.b.pack(builder, raw, batch, *k_range, *n_range)
            return
        sizes = (contraction.batch, contraction.m, contraction.n, contraction.k)
        plain = Contraction(*sizes, contraction.element, Operand(), Operand(template.b_strides))
        source = template.b.pointer(builder, batch)
        pack_memory_b(builder, plain, template.plan.blocking, source, raw, k_range, n_range)


def _clear_box(template: _Template) -> None:
    """Zeros, where tiles reach beyond the image."""
    plan = template.plan
    if plan.covered:
        return
    count = plan.image_offset - plan.blocking.a_offset
    box = template.at(plan.blocking.a_offset)
    with counted_loop(template.builder, 0, count // template.bytes, plan.blocking.lanes, name="clear.box") as at:
        template.store(ir.Constant(template.vector, None), box, (at, 1))


def _transform_image(template: _Template, patches: ir.Value, tiles: ir.Value, channels: ir.Value) -> None:
    """The patches of a block at all points: image[point][tile][channel]."""
    builder, plan = template.builder, template.plan
    box, image = template.at(plan.blocking.a_offset), template.at(plan.image_offset)
    down, across = plan.window
    with counted_loop(builder, 0, tiles, name="patch") as tile:
        patch = template.place(box, (template.entry(patches, (tile, 1)), 1))
        to_tile = template.place(image, (tile, plan.channel_step))
        with counted_loop(builder, 0, channels, plan.blocking.lanes, name="patch.channel") as at:
            grid = [[template.load(patch, (at, 1), (y, down), (x, across)) for x in range(4)] for y in range(4)]
            points = transforms.on_both_axes(builder, transforms.image, grid)
            _store_points(template, points, to_tile, at, plan.image_plane)


def _multiply(template: _Template, right: ir.Value, rows: ir.Value, columns: ir.Value, steps: ir.Value) -> None:
    """The products of all points."""
    builder, plan, blocking = template.builder, template.plan, template.plan.blocking
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
                _run_micro_kernel(template, [a, b, tile, steps], count, whole)


def _run_micro_kernel(template: _Template, arguments: list[ir.Value], rows: ir.Value, whole: ir.Value) -> None:
    """Call the micro-kernel made for a tile of this many rows and columns."""
    builder = template.builder

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
    for (size, is_whole), kernel in template.micro_kernels.items():
        fits = builder.icmp_signed("==", rows, index(size))
        choices.append((builder.and_(fits, whole if is_whole else builder.not_(whole)), kernel))
    call(choices)


def _transform_sums(template: _Template, results: ir.Value, rows: ir.Value, columns: ir.Value) -> None:
    """From the sums at all points to the rows of results that they make."""
    builder, plan = template.builder, template.plan
    side, transform = (2, transforms.to_two) if plan.by_places else (3, transforms.to_three)
    sums, made = template.at(plan.sums_offset), template.at(plan.results_offset)
    with counted_loop(builder, 0, rows, name="results.row") as row:
        places = [template.entry(results, (row, side**2), (place, 1)) for place in range(side**2)]
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
