"""The one contraction template: C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n] with fused loads and stores.

Matrix products, batched ones and all three convolutions are this loop nest; what differs is how A and B are read
(in place, packed by the template, or packed by a callback that computes them: transposes, masks, casts, windows) and
how C is finished (a callback evaluates the epilogue on each vector of sums and stores it wherever it belongs).

    for chunk in begin..end:                                   parallel: chunks share nothing
      for batch in the chunk's batches:
        for k0 in 0..K step kc:
          pack B[k0.., n block] into panels of nr columns      unless B is read in place, or kept from an earlier chunk;
                                                               rows in memory the first tile of rows packs
          for i in the m block step mr:
            pack A[i.., k0..] into one panel of mr rows        unless A is read in place, or its block computed at once
            for j in the n block step nr:
              micro-kernel: tile (+)= A panel * B panel        registers only, vectors along n
              if this k block is the last: finish(tile)

Where column sums are wanted too, the chunks with the first rows add up B's rows block by block (`column_sums.py`).

A's panel stays in the first-level cache for a whole sweep over j, or is rows in memory whose lines are asked for while
the tiles above them are computed; B's block stays in the second-level cache for all i. Tiles live in scratch: one if
there is a single k block, else the whole block of C. Sums are always taken in the order of k, and which thread runs a
chunk changes nothing, so a result has the same bits on any number of threads.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from llvmlite import ir

from ..schedule.loop_ir import Origin
from .column_sums import ColumnSums, FinishColumns
from .contraction_blocking import Blocking, Contraction, Operand, plan, readable_in_place
from .contraction_packing import Memory, Packed, pack_b, pack_memory_a
from .control_flow import INDEX, block_range, clear, counted_loop, divide, index, offset, on_first, smaller
from .locations import located
from .micro_kernel import MicroKernel, element_type, emit_micro_kernel
from .vector_target import VectorTarget, element_bits

__all__ = ["Blocking", "Contraction", "Memory", "Operand", "Packed", "emit", "plan"]


# finish(builder, batch, m, n, sums, valid): evaluate the epilogue of C[batch, m, n : n + valid] and store it. `sums` is
# a vector of blocking.lanes accumulators (also if that is 1), `valid` an int: lanes, or n % lanes at the right edge.
Finish = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value, int], None]


@dataclass(frozen=True)
class _Template:
    """All that the loops below share: the plan, the callbacks, the scratch pointers and the micro-kernels."""

    builder: ir.IRBuilder
    contraction: Contraction
    blocking: Blocking
    a: Memory | Packed
    b: Memory | Packed
    finish: Finish
    finish_columns: FinishColumns | None
    sums_origin: Origin
    scalar: ir.Type
    scratch: ir.Value
    a_panel: ir.Value
    tiles: ir.Value
    b_panels: ir.Value
    micro_kernels: dict[tuple[bool, bool, bool], ir.Function]

    @property
    def k_blocks(self) -> int:
        return max(1, -(-self.contraction.k // self.blocking.kc))


def emit(
    function: ir.Function,
    builder: ir.IRBuilder,
    contraction: Contraction,
    blocking: Blocking,
    target: VectorTarget,
    a: Memory | Packed,
    b: Memory | Packed,
    finish: Finish,
    finish_columns: FinishColumns | None = None,
    sums_origin: Origin = None,
) -> None:
    """Emit chunks [begin, end) of the contraction into `function`, void(ptr buffers, i64 begin, i64 end, ptr scratch).

    The builder stands in a block of the function that dominates everything the callbacks use, and is left behind the
    loops in a block without terminator. `scratch` must be 64-byte aligned and hold blocking.scratch_bytes; its first
    word must be zero when a thread begins the kernel's loop and may then be left alone (see runtime/pool_loops.py).
    Micro-kernels become internal functions of the same module, named after `function`. Callbacks may open blocks.

    Raises ValueError if a computed operand comes as Memory, or one to be read in place as Packed, and if column sums
    are wanted and not finished, or the other way round.
    """
    if contraction.column_sums != (finish_columns is not None):
        raise ValueError(f"contraction.emit: got finish_columns {finish_columns} for {contraction}")
    for name, operand, source in (("a", contraction.a, a), ("b", contraction.b, b)):
        if (operand.strides is not None) != isinstance(source, Memory):
            expected = "Packed" if operand.strides is None else "Memory"
            got = type(source).__name__
            raise ValueError(f"contraction.emit: got {name} as {got} for {operand}, expected {expected}")
    if blocking.chunks == 0:
        return
    _, begin, end, scratch = function.args
    byte = ir.IntType(8)
    template = _Template(
        builder=builder,
        contraction=contraction,
        blocking=blocking,
        a=a,
        b=b,
        finish=finish,
        finish_columns=finish_columns,
        sums_origin=sums_origin,
        scalar=element_type(contraction.element),
        scratch=scratch,
        a_panel=offset(builder, scratch, byte, (blocking.a_offset, 1)),
        tiles=offset(builder, scratch, byte, (blocking.tile_offset, 1)),
        b_panels=offset(builder, scratch, byte, (blocking.b_offset, 1)),
        micro_kernels=_emit_micro_kernels(function, contraction, blocking, target),
    )
    with counted_loop(builder, begin, end, name="chunk") as chunk:
        _emit_chunk(template, chunk)


def _emit_micro_kernels(
    function: ir.Function, contraction: Contraction, blocking: Blocking, target: VectorTarget
) -> dict[tuple[bool, bool, bool], ir.Function]:
    """A micro-kernel for each shape of tile that occurs, keyed by (whole in m, whole in n, writes the panel of B)."""
    emitted: dict[MicroKernel, ir.Function] = {}
    kernels = {}
    tiles = itertools.product(
        _tile_sizes(contraction.m, blocking.mr),
        _tile_sizes(contraction.n, blocking.nr),
        (False, True) if _packs_on_the_way(contraction, blocking) else (False,),
    )
    for (whole_m, rows), (whole_n, columns), packs in tiles:
        kernel = MicroKernel(
            element=contraction.element,
            rows=rows,
            vectors=-(-columns // blocking.lanes),
            lanes=blocking.lanes,
            tile_stride=blocking.nr,
            a_strides=(contraction.a.strides or (0, 0)) if blocking.direct_a else blocking.a_panel,
            b_stride=(contraction.b.strides or (0, 0))[0] if blocking.direct_b else blocking.nr,
            b_aligned=not blocking.direct_b,
            last_lanes=(columns % blocking.lanes if blocking.direct_b or packs else 0) or blocking.lanes,
            unroll=blocking.unroll,
            k_remainder=contraction.k % blocking.unroll != 0,
            accumulate=contraction.k > blocking.kc,
            has_fma=target.has_fma,
            rows_ahead=not packs and _rows_follow(contraction, blocking),
            source_stride=(contraction.b.strides or (0, 0))[0] if packs else None,
        )
        if kernel not in emitted:
            name = f"{function.name}.{'packing_' if packs else ''}tile_{rows}x{columns}"
            emitted[kernel] = emit_micro_kernel(function.module, name, kernel, target.attributes)
        kernels[whole_m, whole_n, packs] = emitted[kernel]
    return kernels


def _packs_on_the_way(contraction: Contraction, blocking: Blocking) -> bool:
    """Whether the first tile of rows reads B in place and writes the panels that the others read.

    Lines of B then arrive while the units multiply; a copy of its own would wait for them.
    """
    return not blocking.direct_b and readable_in_place(contraction)[1] and contraction.k > 0


def _rows_follow(contraction: Contraction, blocking: Blocking) -> bool:
    """Whether the micro-kernel reads A in place, by rows or by columns that are runs of memory, and more tiles follow.

    A processor follows a run of lines once it has seen some of it, and at the end of each row has to begin again; runs
    along m, a line or two at each k, it does not follow at all.
    """
    strides = contraction.a.strides
    return blocking.direct_a and strides is not None and 1 in strides and contraction.m > blocking.mr


def _tile_sizes(total: int, tile: int) -> list[tuple[bool, int]]:
    """(whole, size) of the tiles that occur along a dimension."""
    return [(whole, size) for whole, size in ((True, tile if total >= tile else 0), (False, total % tile)) if size]


def _emit_chunk(template: _Template, chunk: ir.Value) -> None:
    """One chunk: find its block of C, then run it for each of its batch entries."""
    builder, contraction, blocking = template.builder, template.contraction, template.blocking
    m_blocks, n_blocks = -(-contraction.m // blocking.mc), -(-contraction.n // blocking.nc)
    outer, m_block = divide(builder, chunk, m_blocks)
    batch_block, n_block = divide(builder, outer, n_blocks)
    m_start, m_count = block_range(builder, m_block, blocking.mc, contraction.m)
    n_start, n_count = block_range(builder, n_block, blocking.nc, contraction.n)
    batch_start, batch_count = block_range(builder, batch_block, blocking.batches, contraction.batch)
    fresh = note_packed_b(builder, template.scratch, outer) if blocking.keep_b else None
    if blocking.batches == 1:
        _emit_block(template, batch_start, (m_start, m_count), (n_start, n_count), fresh)
        return
    with counted_loop(builder, batch_start, builder.add(batch_start, batch_count), name="batch") as batch:
        _emit_block(template, batch, (m_start, m_count), (n_start, n_count), fresh)


def note_packed_b(builder: ir.IRBuilder, scratch: ir.Value, column: ir.Value) -> ir.Value:
    """Whether this thread's packed B is not that of the column of blocks; the scratch then says that it is.

    Chunks go down a column of blocks, so that each thread packs a column at most once, however the chunks are dealt.
    The note also names the kernel and its buffers: whoever runs several kernels in one loop shares their scratch.
    """
    function = builder.function
    pointers = [builder.ptrtoint(pointer, INDEX) for pointer in (function, function.args[0])]
    fresh: ir.Value = ir.Constant(ir.IntType(1), 0)
    for place, value in enumerate([builder.add(column, index(1)), *pointers]):
        word = offset(builder, scratch, INDEX, (place, 1))
        fresh = builder.or_(fresh, builder.icmp_signed("!=", builder.load(word, typ=INDEX), value))
        builder.store(value, word)
    return fresh


def _bytes(contraction: Contraction) -> int:
    return element_bits(contraction.element) // 8


def _emit_block(
    template: _Template,
    batch: ir.Value,
    m_range: tuple[ir.Value, ir.Value],
    n_range: tuple[ir.Value, ir.Value],
    fresh: ir.Value | None,
) -> None:
    """One block of C of one batch entry, k block after k block."""
    builder, contraction, blocking = template.builder, template.contraction, template.blocking
    padded_n = -(-blocking.nc // blocking.nr) * blocking.nr
    on_the_way = _packs_on_the_way(contraction, blocking)
    if template.k_blocks > 1:
        vector, rows = ir.VectorType(template.scalar, blocking.lanes), -(-blocking.mc // blocking.mr) * blocking.mr
        clear(builder, template.tiles, vector, rows * padded_n, blocking.lanes * _bytes(contraction))
    sums = _column_sums(template)
    if sums is not None:
        sums.clear()
    with counted_loop(builder, 0, template.k_blocks, name="k.block") as k_block:
        k_start, k_count = block_range(builder, k_block, blocking.kc, contraction.k)
        b_panels = template.b_panels
        if blocking.keep_b:
            b_panels = offset(builder, b_panels, template.scalar, (k_start, padded_n))
        if not (blocking.direct_b or on_the_way) and contraction.k:
            with builder.if_then(fresh) if fresh is not None else nullcontext():
                pack_b(builder, contraction, blocking, template.b, b_panels, batch, (k_start, k_count), n_range)
        if blocking.a_block and contraction.k:
            assert isinstance(template.a, Packed)
            with located(builder, template.a.origin):
                template.a.pack(builder, template.a_panel, batch, *m_range, k_start, k_count)
        with counted_loop(builder, 0, m_range[1], blocking.mr, name="m.tile") as i:
            row = builder.add(m_range[0], i, flags=("nsw",))
            rows = _tile_count(builder, i, m_range[1], blocking.mr, contraction.m)
            if blocking.a_block:
                a_panel = offset(builder, template.a_panel, template.scalar, (i, blocking.a_panel[0]))
            else:
                a_panel = _a_panel(template, batch, row, rows, k_start, k_count)
            packs = None
            if on_the_way:
                packs = builder.icmp_signed("==", i, index(0))
                packs = packs if fresh is None else builder.and_(packs, fresh)
            with counted_loop(builder, 0, n_range[1], blocking.nr, name="n.tile") as j:
                column = builder.add(n_range[0], j, flags=("nsw",))
                columns = _tile_count(builder, j, n_range[1], blocking.nr, contraction.n)
                tile = template.tiles
                if template.k_blocks > 1:
                    tile = offset(builder, tile, template.scalar, (i, padded_n), (j, blocking.mr))
                if not blocking.direct_b:
                    b_panel = offset(builder, b_panels, template.scalar, (builder.mul(j, k_count, flags=("nsw",)), 1))
                if blocking.direct_b or on_the_way:
                    source = _b_in_memory(template, batch, column, k_start)
                arguments = [a_panel, source if blocking.direct_b else b_panel, tile, k_count]
                _run_micro_kernel(template, arguments, (rows, columns), None if packs is None else (packs, source))
                if template.k_blocks == 1:
                    _finish_tile(template, batch, (row, rows), (column, columns), tile)
                else:
                    with builder.if_then(builder.icmp_signed("==", k_block, index(template.k_blocks - 1))):
                        _finish_tile(template, batch, (row, rows), (column, columns), tile)
        if sums is not None:
            with located(builder, template.sums_origin), on_first(builder, m_range[0]):
                _add_column_sums(template, sums, b_panels, batch, (k_start, k_count), n_range)
    if sums is not None and template.finish_columns is not None:
        with on_first(builder, m_range[0]):
            sums.finish(template.finish_columns, batch, n_range)


def _column_sums(template: _Template) -> ColumnSums | None:
    if template.finish_columns is None:
        return None
    builder, blocking = template.builder, template.blocking
    sums = offset(builder, template.scratch, ir.IntType(8), (blocking.sums_offset, 1))
    return ColumnSums(builder, template.contraction, blocking, sums)


def _add_column_sums(
    template: _Template,
    sums: ColumnSums,
    b_panels: ir.Value,
    batch: ir.Value,
    k_range: tuple[ir.Value, ir.Value],
    n_range: tuple[ir.Value, ir.Value],
) -> None:
    """Add up the rows of one k block, from where the tiles have read them."""
    builder = template.builder

    def panel(j: ir.Value) -> ir.Value:
        if template.blocking.direct_b:
            return _b_in_memory(template, batch, builder.add(n_range[0], j, flags=("nsw",)), k_range[0])
        return offset(builder, b_panels, template.scalar, (builder.mul(j, k_range[1], flags=("nsw",)), 1))

    sums.add(panel, k_range[1], n_range[1])


def _tile_count(builder: ir.IRBuilder, start: ir.Value, count: ir.Value, tile: int, total: int) -> ir.Value:
    """Rows (or columns) of the tile at `start` of a block; a constant if all tiles are whole."""
    return index(tile) if total % tile == 0 else smaller(builder, builder.sub(count, start), tile)


def _a_panel(
    template: _Template, batch: ir.Value, row: ir.Value, rows: ir.Value, k_start: ir.Value, k_count: ir.Value
) -> ir.Value:
    """The address of A[row, k_start]: in memory, or of the panel packed here."""
    builder, contraction = template.builder, template.contraction
    if isinstance(template.a, Packed):
        if contraction.k:
            with located(builder, template.a.origin):
                template.a.pack(builder, template.a_panel, batch, row, rows, k_start, k_count)
        return template.a_panel
    strides = contraction.a.strides or (0, 0)
    source = offset(
        builder, template.a.pointer(builder, batch), template.scalar, (row, strides[0]), (k_start, strides[1])
    )
    if template.blocking.direct_a:
        return source
    with located(builder, template.a.origin):
        pack_memory_a(builder, contraction, template.blocking, source, template.a_panel, rows, k_count)
    return template.a_panel


def _b_in_memory(template: _Template, batch: ir.Value, column: ir.Value, k_start: ir.Value) -> ir.Value:
    """The address of B[k_start, column] where the operand is."""
    assert isinstance(template.b, Memory)
    stride = (template.contraction.b.strides or (0, 0))[0]
    pointer = template.b.pointer(template.builder, batch)
    return offset(template.builder, pointer, template.scalar, (k_start, stride), (column, 1))


def _run_micro_kernel(
    template: _Template,
    arguments: list[ir.Value],
    counts: tuple[ir.Value, ir.Value],
    packing: tuple[ir.Value, ir.Value] | None,
) -> None:
    """Call the micro-kernel made for a tile of this many rows and columns.

    packing: whether the tile writes its panel of B (an i1), and where B is in memory; None if no tile does.
    """
    builder, blocking = template.builder, template.blocking
    conditions = [
        builder.icmp_signed("==", count, index(size))
        for count, size in zip(counts, (blocking.mr, blocking.nr), strict=True)
    ]
    if packing is not None:
        conditions.append(packing[0])

    def call(chosen: dict[tuple[bool, bool, bool], ir.Function], side: int) -> None:
        """Branch on the sides that still differ; where they lead to the same kernel, there is nothing to branch on."""
        if len(set(chosen.values())) == 1:
            (key, kernel), *_ = chosen.items()
            assert packing is not None or not key[2]
            builder.call(kernel, [*arguments, packing[1]] if key[2] and packing is not None else arguments)
            return
        yes = {key: kernel for key, kernel in chosen.items() if key[side]}
        no = {key: kernel for key, kernel in chosen.items() if not key[side]}
        if not yes or not no:
            call(yes or no, side + 1)
            return
        with builder.if_else(conditions[side]) as (then, otherwise):
            with then:
                call(yes, side + 1)
            with otherwise:
                call(no, side + 1)

    call(template.micro_kernels, 0)


def _finish_tile(
    template: _Template,
    batch: ir.Value,
    row_range: tuple[ir.Value, ir.Value],
    column_range: tuple[ir.Value, ir.Value],
    tile: ir.Value,
) -> None:
    """Hand each row's vectors to `finish`; the code for a whole vector and for the partial one appears once each."""
    builder, blocking = template.builder, template.blocking
    lanes, partial = blocking.lanes, template.contraction.n % blocking.lanes
    vector = ir.VectorType(template.scalar, lanes)
    align = lanes * _bytes(template.contraction)
    column, columns = column_range

    def finish(row: ir.Value, at: ir.Value, valid: int) -> None:
        pointer = offset(builder, tile, template.scalar, (row, blocking.nr), (at, 1))
        sums = builder.load(pointer, typ=vector, align=align)
        m = builder.add(row_range[0], row, flags=("nsw",))
        template.finish(builder, batch, m, builder.add(column, at, flags=("nsw",)), sums, valid)

    with counted_loop(builder, 0, row_range[1], name="finish.m") as row:
        whole = builder.and_(columns, index(-lanes)) if partial else columns
        if template.contraction.n >= lanes:
            with counted_loop(builder, 0, whole, lanes, name="finish.n") as at:
                finish(row, at, lanes)
        if partial:
            with builder.if_then(builder.icmp_signed("<", whole, columns)):
                finish(row, whole, partial)
