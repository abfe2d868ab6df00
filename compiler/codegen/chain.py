"""The chain template: contractions to a matrix, passes over its rows, and contractions of what they keep.

    for chunk in begin..end:                               parallel: batch entries, or rows of one
      for b in the chunk's batch entries:
        pack the products' right operands (and those of sums over columns) into panels, unless read in place
        for m0 in the chunk's rows step block_rows:
          the range of columns that are live for one of the rows: the rest is never computed
          for each product:  tiles of (rows, columns in range) by the micro-kernel, into a block of scratch
          for each pass, for each row: vectors along the columns; results of reductions and kept values to scratch
          for each row:      its stores
          for each sum over columns: tiles of (rows, e) by the micro-kernel, from a block; finished and stored
          for each sum over rows:    tiles of (columns in range, e) added to sums that stay in scratch
        finish and store the sums over rows

The scores of attention are such a matrix: of its T x S elements there are never more than a block of rows, so memory
grows with the length, not with its square. Row passes see whole rows, so that a softmax is the one of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from ..schedule.collapse import all_values, roots_of
from ..schedule.index import Atom, Remainder, Variable
from ..schedule.loop_ir import (
    Buffer,
    ChainSum,
    Condition,
    Keep,
    Kept,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    RowPass,
    Term,
    Value,
)
from .accumulators import Accumulator
from .arithmetic import BIT, I32, Arithmetic, constant, lanes_of, memory_type, register_type, widened
from .chain_blocking import ChainPlan, Memory, Step
from .contraction_packing import pack_memory_b
from .control_flow import counted_loop, index, offset, smaller
from .emitter import Emitter
from .locations import located
from .loops import load_pointers
from .micro_kernel import MicroKernel, emit_micro_kernel
from .panels import Axis, PanelWriter
from .scopes import Lanes
from .vector_target import VectorTarget

_BYTE = ir.IntType(8)


class _ChainEmitter(Emitter):
    """An emitter that reads products and kept values from the current row of their blocks."""

    def __init__(
        self, builder: ir.IRBuilder, arithmetic: Arithmetic, pointers: dict[Buffer, ir.Value], columns: Variable
    ):
        super().__init__(builder, arithmetic, pointers)
        self.columns = columns
        self.row_of: dict[Product | Keep, ir.Value] = {}
        # The column that blocks begin with.
        self.origin: ir.Value = index(0)
        self.element: ir.Type = I32
        self.align = 1

    def _emit(self, value: Value) -> ir.Value:
        if isinstance(value, ProductAt):
            return self.read(value.product, value)
        if isinstance(value, Kept):
            return self.read(value.keep, value)
        return super()._emit(value)

    def _count(self) -> int:
        return self.lanes.count if self.lanes is not None else 0

    def _place(self, block: Product | Keep) -> ir.Value:
        column = self.builder.sub(self.bindings[self.columns], self.origin, flags=("nsw",))
        return offset(self.builder, self.row_of[block], self.element, (column, 1))

    def read(self, block: Product | Keep, value: Value) -> ir.Value:
        kind = register_type(value.dtype.compute)
        raw_kind = ir.IntType(_bits(self.element)) if kind == BIT else kind
        raw = self.builder.load(self._place(block), typ=widened(raw_kind, self._count()), align=self.align)
        return self.builder.trunc(raw, widened(BIT, self._count())) if kind == BIT else raw

    def keep(self, block: Keep, value: ir.Value) -> None:
        """Write down a value of the current vector of columns; bools take the room of an element."""
        if self.lanes is not None:
            value = self.spread(value)
        scalar = value.type.element if lanes_of(value) else value.type
        if scalar == BIT:
            value = self.builder.zext(value, widened(ir.IntType(_bits(self.element)), lanes_of(value)))
        self.builder.store(value, self._place(block), align=self.align)


def _bits(element: ir.Type) -> int:
    return element.width if isinstance(element, ir.IntType) else 32 if isinstance(element, ir.FloatType) else 64


class ChainFunction:
    """Emits the loops of one chain."""

    def __init__(
        self, chosen: ChainPlan, target: VectorTarget, function: ir.Function, builder: ir.IRBuilder
    ):
        kernel = chosen.kernel
        self.kernel, self.plan, self.target = kernel, chosen, target
        self.function, self.builder = function, builder
        self.scalar = register_type(kernel.element)
        self.size = kernel.element.itemsize
        self.pointers = load_pointers(builder, function.args[0], kernel.buffers)
        self.micro_kernels: dict[MicroKernel, ir.Function] = {}
        # The column that blocks of scratch and packed operands begin with.
        self.origin: ir.Value = index(0)
        # The reductions whose results are there.
        self.reduced: list[Reduction] = []
        # What depends on no loop is computed once, here in the entry block, and known to all later emitters.
        self.known: dict[object, ir.Value] = {}
        entry = self._emitter({})
        for value in all_values(roots_of(kernel)):
            if not value.variables and not isinstance(value, (ProductAt, Kept, Reduced)):
                entry.evaluate(value)
                for each in value.indices:
                    entry.index(each)
        self.known = dict(entry.scopes[0].memo)

    def _emitter(self, bound: dict[Variable, ir.Value]) -> _ChainEmitter:
        """An emitter at the builder's position that knows some variables."""
        arithmetic = Arithmetic(self.builder, self.target.has_fma, self.target.has_f16c)
        emitter = _ChainEmitter(self.builder, arithmetic, self.pointers, self.kernel.columns)
        emitter.element, emitter.align = self.scalar, self.size * self.plan.products[0].tiles.lanes
        emitter.origin = self.origin
        emitter.scopes[0].memo.update(self.known)
        for variable, value in bound.items():
            emitter.bind(variable, value)
        return emitter

    def _scratch(self, nbytes: int) -> ir.Value:
        return offset(self.builder, self.function.args[3], _BYTE, (nbytes, 1))

    def emit(self) -> None:
        builder, kernel, chosen = self.builder, self.kernel, self.plan
        parts = -(-kernel.rows.extent // chosen.rows)
        _, begin, end, _ = self.function.args
        with counted_loop(builder, begin, end, name="chunk") as chunk:
            entry = builder.udiv(chunk, index(parts)) if parts > 1 else chunk
            part = builder.urem(chunk, index(parts)) if parts > 1 else index(0)
            first_row = builder.mul(part, index(chosen.rows), flags=("nsw",))
            last_row = smaller(builder, builder.add(first_row, index(chosen.rows)), kernel.rows.extent)
            first = builder.mul(entry, index(chosen.batches), flags=("nsw",))
            last = smaller(builder, builder.add(first, index(chosen.batches)), kernel.batch.extent)
            with counted_loop(builder, first, last, name="batch") as batch:
                self._batch_entry(batch, first_row, last_row)

    def _batch_entry(self, batch: ir.Value, first_row: ir.Value, last_row: ir.Value) -> None:
        builder, kernel, chosen = self.builder, self.kernel, self.plan
        self._pack_products(batch, kernel.columns.extent)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            if each.over_rows:
                self._clear(steps[0], kernel.columns.extent)
            else:
                self._pack_terms(each, steps, batch, kernel.columns, index(0), index(kernel.columns.extent))
        with counted_loop(builder, first_row, last_row, chosen.block_rows, name="block") as start:
            rows = smaller(builder, builder.sub(last_row, start), chosen.block_rows)
            self._block(batch, start, rows)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            if each.over_rows:
                with located(builder, each.origin):
                    self._finish(
                        each, steps[0], batch, kernel.columns, index(0), index(kernel.columns.extent), index(0),
                        index(each.free.extent),
                    )  # fmt: skip

    def _block(self, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """One block of rows, from the products to the sums."""
        kernel, chosen = self.kernel, self.plan
        low, high = self._live(start, rows)
        nr = chosen.products[0].tiles.nr
        first, last = self._whole_tiles(low, high, nr)
        for product, step in zip(kernel.products, chosen.products, strict=True):
            self._pack_left(product, step, batch, start, rows)
            with located(self.builder, product.origin):
                self._product(product, step, batch, start, rows, first, last)
        # Pass by pass: rows do not wait for one another, as the passes over one row do.
        for each_pass in kernel.passes:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                emitter = self._on_row(batch, start, row)
                self._pass(emitter, each_pass, row, first, last)
            self.reduced += each_pass.reductions
        self._store_rows(batch, start, rows)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            with located(self.builder, each.origin):
                if each.over_rows:
                    self._sum_over_rows(each, steps, batch, start, rows, first, last)
                else:
                    self._sum_over_columns(each, steps, batch, start, rows, low, high)

    def _store_rows(self, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """The stores of each row."""
        if self.kernel.stores:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                emitter = self._on_row(batch, start, row)
                for store in self.kernel.stores:
                    emitter.store(store)

    # Which columns

    def _live(self, start: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The columns from the first to behind the last that is live for one of the rows; at least one."""
        builder, extent = self.builder, self.kernel.columns.extent
        low, high = index(0), index(extent)
        last_row = builder.sub(builder.add(start, rows), index(1))
        for condition in self.kernel.live:
            least, most = self._bounds(condition, start, last_row)
            if least is not None:
                low = _larger(builder, low, least)
            if most is not None:
                high = smaller(builder, high, builder.add(most, index(1)))
        if self.kernel.live:
            low = smaller(builder, low, extent - 1)
            high = _larger(builder, high, builder.add(low, index(1)))
        return low, high

    def _bounds(
        self, condition: Condition, first_row: ir.Value, last_row: ir.Value
    ) -> tuple[ir.Value | None, ir.Value | None]:
        """(smallest, largest) column for which the condition can hold for one of the rows, None for any.

        With the condition low <= c * column + rest < high, c being 1 or -1 and the rest about the row.
        """
        builder = self.builder
        c = dict(condition.index.terms)[self.kernel.columns]
        lesser = greater = index(condition.index.constant)
        for atom, step in condition.index.terms:
            if atom != self.kernel.columns:
                ends = [builder.mul(end, index(step)) for end in self._atom_range(atom, first_row, last_row)]
                low, high = ends if step > 0 else ends[::-1]
                lesser, greater = builder.add(lesser, low), builder.add(greater, high)
        bottom, top = condition.index.bounds
        by_low = by_high = None
        if c == 1:
            if bottom < condition.low:
                by_low = builder.sub(index(condition.low), greater)
            if top >= condition.high:
                by_high = builder.sub(index(condition.high - 1), lesser)
            return by_low, by_high
        if bottom < condition.low:
            by_high = builder.sub(greater, index(condition.low))
        if top >= condition.high:
            by_low = builder.sub(lesser, index(condition.high - 1))
        return by_low, by_high

    def _atom_range(self, atom: Atom, first_row: ir.Value, last_row: ir.Value) -> tuple[ir.Value, ir.Value]:
        """(smallest, largest) value of what depends on the row alone."""
        builder, rows = self.builder, self.kernel.rows
        low, high = atom.bounds
        if atom == rows:
            return first_row, last_row
        if isinstance(atom, Remainder) and atom.index.single_variable() == rows:
            divisor = index(atom.divisor)
            together = builder.icmp_signed("==", builder.udiv(first_row, divisor), builder.udiv(last_row, divisor))
            return (
                builder.select(together, builder.urem(first_row, divisor), index(low)),
                builder.select(together, builder.urem(last_row, divisor), index(high)),
            )
        return index(low), index(high)

    def _whole_tiles(self, low: ir.Value, high: ir.Value, nr: int) -> tuple[ir.Value, ir.Value]:
        """The range widened to whole tiles; it holds a whole tile if there is one, so that vector loops run."""
        builder, extent = self.builder, self.kernel.columns.extent
        if not self.kernel.live:
            return low, high
        tiles = max(1, extent // nr)
        first = builder.mul(smaller(builder, builder.udiv(low, index(nr)), tiles - 1), index(nr))
        last = builder.mul(builder.udiv(builder.add(high, index(nr - 1)), index(nr)), index(nr))
        return first, smaller(builder, last, extent)

    # Contractions

    def _pack_products(self, batch: ir.Value, columns: ir.Value | int) -> None:
        """Pack so many columns of the products' right operands, from the one that blocks begin with."""
        for product, step in zip(self.kernel.products, self.plan.products, strict=True):
            axes, rows = (product.depth, self.kernel.columns), (index(0), index(step.contraction.k))
            self._pack_right(step, product.right, axes, batch, rows, (self.origin, index(columns)))

    def _pack_terms(
        self, each: ChainSum, steps: Sequence[Step], batch: ir.Value, over: Variable, start: ir.Value, count: ir.Value
    ) -> None:
        """Pack rows [start, start + count) of the right operands of a sum's terms."""
        for term, step in zip(each.terms, steps, strict=True):
            columns = (index(0), index(step.contraction.n))
            self._pack_right(step, term.right, (over, each.free), batch, (start, count), columns)

    def _pack_right(
        self, step: Step, value: Value, axes: tuple[Variable, Variable], batch: ir.Value,
        k_range: tuple[ir.Value, ir.Value], n_range: tuple[ir.Value, ir.Value],
    ) -> None:  # fmt: skip
        """Pack a part of a right operand, given by (start, count), into panels of nr columns."""
        if step.tiles.direct_b or not step.contraction.k:
            return
        destination = self._scratch(step.right_offset)
        (start, count), (from_column, columns) = k_range, n_range
        if step.right is not None:
            with located(self.builder, value.origin):
                source = self._memory(step.right, batch)
                pack_memory_b(self.builder, step.contraction, step.tiles, source, destination, k_range, n_range)
            return
        emitter = self._emitter({self.kernel.batch: batch})
        nr, lanes = step.tiles.nr, self.target.lanes(self.kernel.element.name)
        writer = PanelWriter(emitter, self.kernel.element, value, lanes)
        in_depth = Axis(axes[0], start, count, nr)
        squares = step.contraction.b.fastest == 0 and step.tiles.lanes == lanes > 1

        def panel(at: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            to_panel = offset(self.builder, destination, self.scalar, (self.builder.mul(at, count), 1))
            width = smaller(self.builder, self.builder.sub(columns, at), nr)
            in_columns = Axis(axes[1], self.builder.add(from_column, at), width, 1, aligned=True)
            (writer.squares if squares else writer.columns)(to_panel, in_depth, in_columns)
            return []

        with located(self.builder, value.origin):
            emitter.loop(None, 0, columns, nr, [], panel)

    def _memory(self, memory: Memory, batch: ir.Value) -> ir.Value:
        """The address of an operand's element (0, 0)."""
        emitter = self._emitter({self.kernel.batch: batch})
        element = memory_type(memory.load.buffer.dtype)
        return offset(self.builder, self.pointers[memory.load.buffer], element, (emitter.index(memory.base), 1))

    def _right(
        self, step: Step, batch: ir.Value, first_column: ir.Value
    ) -> Callable[[ir.Value, ir.Value, ir.Value], ir.Value]:
        """right(k, count, column): the address of a tile's right operand, of which `count` rows are packed."""
        if step.tiles.direct_b:
            assert step.right is not None
            base, stride = self._memory(step.right, batch), step.right.strides[0]
            return lambda k, count, column: offset(self.builder, base, self.scalar, (k, stride), (column, 1))
        panels, nr = self._scratch(step.right_offset), step.tiles.nr
        return lambda k, count, column: offset(
            self.builder, panels, self.scalar,
            (self.builder.mul(self.builder.sub(column, first_column), count), 1), (k, nr),
        )  # fmt: skip

    def _pack_left(self, product: Product, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """Write down the left operand of a block of rows if it is computed."""
        if step.left is None and step.contraction.k:
            strides = step.contraction.a.strides or (0, 0)
            element = self.kernel.element
            emitter = self._emitter({self.kernel.batch: batch})
            writer = PanelWriter(emitter, element, product.left, self.target.lanes(element.name))
            in_depth = Axis(product.depth, index(0), index(step.contraction.k), 1, aligned=True)
            in_rows = Axis(self.kernel.rows, start, rows, strides[0])
            with located(self.builder, product.left.origin):
                writer.rows(self._scratch(step.left_offset), in_rows, in_depth)

    def _product(
        self, product: Product, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value, first: ir.Value,
        last: ir.Value,
    ) -> None:  # fmt: skip
        builder = self.builder
        block = self._scratch(self.plan.offsets[self.plan.blocks[product]])
        depth = index(step.contraction.k)
        strides = step.contraction.a.strides or (0, 0)
        if step.left is not None:
            left = offset(builder, self._memory(step.left, batch), self.scalar, (start, strides[0]))
        else:
            left = self._scratch(step.left_offset)
        right, origin = self._right(step, batch, self.origin), self.origin

        def tile(row: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            call = self._micro_kernel(step, size, columns, self.plan.leading, accumulate=False)
            builder.call(call, [
                offset(builder, left, self.scalar, (row, strides[0])),
                right(index(0), depth, column),
                offset(builder, block, self.scalar, (row, self.plan.leading), (builder.sub(column, origin), 1)),
                depth,
            ])  # fmt: skip

        self._tiles(step, rows, self._row_sizes(step), first, last, tile)

    def _row_sizes(self, step: Step) -> list[int]:
        """The smaller tiles that end a block of rows."""
        block, total, mr = self.plan.block_rows, self.kernel.rows.extent, step.tiles.mr
        return sorted({size for size in (block % mr, total % block % mr) if size})

    def _tiles(
        self, step: Step, rows: ir.Value, sizes: Sequence[int], first: ir.Value, last: ir.Value,
        tile: Callable[[ir.Value, int, ir.Value, int], None],
    ) -> None:  # fmt: skip
        """`tile(row, rows, column, columns)` for all tiles of rows x [first, last); a column of tiles at a time."""
        builder, n, nr, mr = self.builder, step.contraction.n, step.tiles.nr, step.tiles.mr
        whole = n - n % nr

        def down(column: ir.Value, columns: int) -> None:
            full = builder.mul(builder.udiv(rows, index(mr)), index(mr))
            with counted_loop(builder, 0, full, mr, name="tile.m") as row:
                tile(row, mr, column, columns)
            left = builder.sub(rows, full)
            for size in sizes:
                with builder.if_then(builder.icmp_signed("==", left, index(size))):
                    tile(full, size, column, columns)

        if whole:
            with counted_loop(builder, first, smaller(builder, last, whole), nr, name="tile.n") as column:
                down(column, nr)
        if n % nr:
            with builder.if_then(builder.icmp_signed(">", last, index(whole))):
                down(index(whole), n % nr)

    def _micro_kernel(self, step: Step, rows: int, columns: int, tile_stride: int, accumulate: bool) -> ir.Function:
        tiles, contraction = step.tiles, step.contraction
        partial = columns % tiles.lanes if tiles.direct_b else 0
        kernel = MicroKernel(
            element=contraction.element,
            rows=rows,
            vectors=-(-columns // tiles.lanes),
            lanes=tiles.lanes,
            tile_stride=tile_stride,
            a_strides=contraction.a.strides or (0, 0),
            b_stride=(contraction.b.strides or (0, 0))[0] if tiles.direct_b else tiles.nr,
            b_aligned=not tiles.direct_b,
            last_lanes=partial or tiles.lanes,
            unroll=tiles.unroll,
            k_remainder=tiles.unroll > 1,
            accumulate=accumulate,
            has_fma=self.target.has_fma,
        )
        if kernel not in self.micro_kernels:
            name = f"{self.function.name}.tile{len(self.micro_kernels)}"
            self.micro_kernels[kernel] = emit_micro_kernel(
                self.function.module, name, kernel, self.target.attributes
            )
        return self.micro_kernels[kernel]

    # Sums

    def _kept_block(self, term: Term) -> ir.Value:
        block = term.left.product if isinstance(term.left, ProductAt) else term.left.keep
        return self._scratch(self.plan.offsets[self.plan.blocks[block]])

    def _sum_over_columns(
        self, each: ChainSum, steps: Sequence[Step], batch: ir.Value, start: ir.Value, rows: ir.Value, low: ir.Value,
        high: ir.Value,
    ) -> None:  # fmt: skip
        """Sums over the columns [low, high) of the rows of the block, finished tile by tile."""
        builder, leading, step = self.builder, self.plan.leading, steps[0]
        result, count = self._scratch(step.tile_offset), builder.sub(high, low)
        blocks = [self._kept_block(term) for term in each.terms]
        rights = [self._right(one, batch, index(0)) for one in steps]

        def tile(row: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            for number, (one, block, right) in enumerate(zip(steps, blocks, rights, strict=True)):
                call = self._micro_kernel(one, size, columns, one.padded, accumulate=number > 0)
                builder.call(call, [
                    offset(builder, block, self.scalar, (row, leading), (low, 1)),
                    right(low, index(one.contraction.k), column),
                    result,
                    count,
                ])  # fmt: skip
            first = builder.add(start, row, flags=("nsw",))
            self._finish(each, step, batch, self.kernel.rows, first, index(size), column, index(columns))

        self._tiles(step, rows, self._row_sizes(step), index(0), index(each.free.extent), tile)

    def _sum_over_rows(
        self, each: ChainSum, steps: Sequence[Step], batch: ir.Value, start: ir.Value, rows: ir.Value, first: ir.Value,
        last: ir.Value,
    ) -> None:  # fmt: skip
        """Add what the rows of the block give to the sums of the columns [first, last)."""
        self._pack_terms(each, steps, batch, self.kernel.rows, start, rows)
        for term, step in zip(each.terms, steps, strict=True):
            self._term_over_rows(each, term, step, batch, start, rows, first, last)

    def _term_over_rows(
        self, each: ChainSum, term: Term, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value,
        first: ir.Value, last: ir.Value,
    ) -> None:  # fmt: skip
        builder = self.builder
        block, sums = self._kept_block(term), self._scratch(step.tile_offset)
        right = self._right(step, batch, index(0))
        base = start if step.tiles.direct_b else index(0)
        block = offset(builder, block, self.scalar, (first, 1))
        sums = offset(builder, sums, self.scalar, (first, step.padded))

        def tile(at: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            call = self._micro_kernel(step, size, columns, step.padded, accumulate=True)
            builder.call(call, [
                offset(builder, block, self.scalar, (at, 1)),
                right(base, rows, column),
                offset(builder, sums, self.scalar, (at, step.padded), (column, 1)),
                rows,
            ])  # fmt: skip

        rest = self.kernel.columns.extent % step.tiles.mr
        free = index(each.free.extent)
        self._tiles(step, builder.sub(last, first), [rest] if rest else [], index(0), free, tile)

    def _clear(self, step: Step, rows: int) -> None:
        """Zero sums that are added to later."""
        builder, lanes = self.builder, step.tiles.lanes
        kind = ir.VectorType(self.scalar, lanes)
        with counted_loop(builder, 0, rows * step.padded, lanes, name="clear") as at:
            pointer = offset(builder, self._scratch(step.tile_offset), self.scalar, (at, 1))
            builder.store(ir.Constant(kind, None), pointer, align=lanes * self.size)

    def _finish(
        self, each: ChainSum, step: Step, batch: ir.Value, across: Variable, first: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        """Evaluate a sum's stores on rows [first, first + rows) x [column, column + columns)."""
        builder, lanes, n = self.builder, step.tiles.lanes, each.free.extent
        sums, kind = self._scratch(step.tile_offset), ir.VectorType(self.scalar, lanes)
        # Sums over rows lie at their columns; a tile of a sum over columns lies at the start.
        from_column = column if each.over_rows else index(0)

        def vector(row: ir.Value, at: ir.Value, valid: int) -> None:
            pointer = offset(builder, sums, self.scalar, (row, step.padded), (from_column, 1), (at, 1))
            value = builder.load(pointer, typ=kind, align=lanes * self.size)
            emitter = self._emitter({self.kernel.batch: batch})
            where: Lanes | None = None
            if lanes == 1:
                value = builder.extract_element(value, constant(I32, 0))
            else:
                where = Lanes(each.free, lanes, valid if valid < lanes else None)
            emitter.accumulator = value
            bound = {across: builder.add(first, row), each.free: builder.add(column, at)}
            with emitter.scope(bound, where):
                for store in each.stores:
                    emitter.store(store)

        partial = n % lanes
        with counted_loop(builder, 0, rows, name="finish.m") as row:
            whole = builder.and_(columns, index(-lanes)) if partial else columns
            if n >= lanes:
                with counted_loop(builder, 0, whole, lanes, name="finish.n") as at:
                    vector(row, at, lanes)
            if partial:
                with builder.if_then(builder.icmp_signed("<", whole, columns)):
                    vector(row, whole, partial)

    # Rows

    def _on_row(self, batch: ir.Value, start: ir.Value, row: ir.Value) -> _ChainEmitter:
        """An emitter that knows a row of the block, and what earlier passes made of it."""
        kernel, chosen = self.kernel, self.plan
        m = self.builder.add(start, row, flags=("nsw",))
        emitter = self._emitter({kernel.batch: batch, kernel.rows: m})
        for block, number in chosen.blocks.items():
            to_block = self._scratch(chosen.offsets[number])
            emitter.row_of[block] = offset(self.builder, to_block, self.scalar, (row, chosen.leading))
        for reduction in self.reduced:
            place, kind = self._result(reduction, row)
            value = self.builder.load(place, typ=kind)
            emitter.reduced[reduction] = self.builder.trunc(value, BIT) if reduction.dtype.kind == "bool" else value
        return emitter

    def _result(self, reduction: Reduction, row: ir.Value) -> tuple[ir.Value, ir.Type]:
        """Where the result of a reduction over a row is kept."""
        kind = register_type(reduction.dtype)
        kind = ir.IntType(8) if kind == BIT else kind
        return offset(self.builder, self._scratch(self.plan.results[reduction]), kind, (row, 1)), kind

    def _pass(
        self, emitter: _ChainEmitter, each: RowPass, row: ir.Value, first: ir.Value, last: ir.Value
    ) -> None:
        accumulators = self._accumulators(emitter, each)
        lanes = self.plan.lanes
        carried = [value for a in accumulators for value in a.initial(lanes if lanes > 1 else 0)]
        carried = self._along_row(emitter, each, accumulators, carried, first, last)
        for accumulator, value in zip(accumulators, carried, strict=True):
            self._reduced_to(accumulator, value, row)

    def _accumulators(self, emitter: _ChainEmitter, each: RowPass) -> list[Accumulator]:
        return [Accumulator(r, emitter, (self.kernel.columns,), True) for r in each.reductions]

    def _reduced_to(self, accumulator: Accumulator, value: ir.Value, row: ir.Value) -> None:
        """Write down the result of a reduction over a row."""
        with located(self.builder, accumulator.reduction.origin):
            place, kind = self._result(accumulator.reduction, row)
            result = accumulator.finish([value])
            self.builder.store(self.builder.zext(result, kind) if result.type == BIT else result, place)

    def _along_row(
        self, emitter: _ChainEmitter, each: RowPass, accumulators: Sequence[Accumulator], carried: list[ir.Value],
        first: ir.Value, last: ir.Value,
    ) -> list[ir.Value]:  # fmt: skip
        """Take a pass over the columns [first, last) of a row; what its reductions then carry."""
        columns, lanes = self.kernel.columns, self.plan.lanes
        whole = columns.extent - columns.extent % lanes

        def body(counter: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            result = [v for a, value in zip(accumulators, values, strict=True) for v in a.step([value])]
            kept = [emitter.evaluate(keep.value) for keep in each.keeps]
            for keep, value in zip(each.keeps, kept, strict=True):
                with located(self.builder, keep.value.origin):
                    emitter.keep(keep, value)
            return result

        if whole:
            stop = smaller(self.builder, last, whole)
            vector = Lanes(columns, lanes) if lanes > 1 else None
            carried = emitter.loop(columns, first, stop, lanes, carried, body, vector)
        if whole < columns.extent:
            tail = Lanes(columns, lanes, columns.extent - whole)
            if whole and (self.kernel.live or self.plan.is_streamed):
                carried = self._perhaps(emitter, last, whole, carried, body, tail)
            else:
                carried = emitter.loop(columns, whole, whole + 1, 1, carried, body, tail)
        return carried

    def _perhaps(
        self, emitter: _ChainEmitter, last: ir.Value, whole: int, carried: list[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]], tail: Lanes,
    ) -> list[ir.Value]:  # fmt: skip
        """The masked last vector, if the range reaches it. What is carried goes through memory that LLVM removes."""
        builder = self.builder
        with builder.goto_entry_block():
            places = [builder.alloca(value.type) for value in carried]
        for place, value in zip(places, carried, strict=True):
            builder.store(value, place)

        def run() -> None:
            before = [builder.load(place, typ=v.type) for place, v in zip(places, carried, strict=True)]
            after = emitter.loop(self.kernel.columns, whole, whole + 1, 1, before, body, tail)
            for place, value in zip(places, after, strict=True):
                builder.store(value, place)

        emitter.when(builder.icmp_signed(">", last, index(whole)), run)
        return [builder.load(place, typ=v.type) for place, v in zip(places, carried, strict=True)]


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed(">", a, b), a, b)
