"""The sums of a chain: contractions of what passes keep, over columns or over rows, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from ..schedule.index import Variable
from ..schedule.loop_ir import ChainSum, ProductAt, Term
from .arithmetic import I32, constant
from .chain_blocking import Step
from .chain_contractions import Contractions
from .chain_template import ChainTemplate
from .control_flow import counted_loop, index
from .scopes import Lanes


class Sums:
    """Emits the sums of a chain."""

    def __init__(self, template: ChainTemplate, contractions: Contractions):
        self.template, self.contractions = template, contractions
        self.builder, self.kernel, self.plan = template.builder, template.kernel, template.plan

    def kept_block(self, term: Term) -> ir.Value:
        """Where the block of rows is that a term multiplies."""
        block = term.left.product if isinstance(term.left, ProductAt) else term.left.keep
        return self.template.block(block)

    def over_columns(
        self, each: ChainSum, steps: Sequence[Step], batch: ir.Value, start: ir.Value, rows: ir.Value, low: ir.Value,
        high: ir.Value,
    ) -> None:  # fmt: skip
        """Sums over the columns [low, high) of the rows of the block, finished tile by tile."""
        builder, leading, step = self.builder, self.plan.leading, steps[0]
        result, count = self.template.scratch(step.tile_offset), builder.sub(high, low)
        blocks = [self.kept_block(term) for term in each.terms]
        rights = [self.contractions.right(one, batch, index(0)) for one in steps]

        def tile(row: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            for number, (one, block, right) in enumerate(zip(steps, blocks, rights, strict=True)):
                call = self.contractions.micro_kernel(one, size, columns, one.padded, accumulate=number > 0)
                builder.call(call, [
                    self.template.place(block, (row, leading), (low, 1)),
                    right(low, index(one.contraction.k), column),
                    result,
                    count,
                ])  # fmt: skip
            first = builder.add(start, row, flags=("nsw",))
            self.finish(each, step, batch, self.kernel.rows, first, index(size), column, index(columns))

        self.contractions.tiles(step, rows, self.contractions.row_sizes(step), index(0), index(each.free.extent), tile)

    def over_rows(
        self, each: ChainSum, steps: Sequence[Step], batch: ir.Value, start: ir.Value, rows: ir.Value, first: ir.Value,
        last: ir.Value,
    ) -> None:  # fmt: skip
        """Add what the rows of the block give to the sums of the columns [first, last)."""
        self.contractions.pack_terms(each, steps, batch, self.kernel.rows, start, rows)
        for term, step in zip(each.terms, steps, strict=True):
            self._term_over_rows(each, term, step, batch, start, rows, first, last)

    def _term_over_rows(
        self, each: ChainSum, term: Term, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value,
        first: ir.Value, last: ir.Value,
    ) -> None:  # fmt: skip
        builder = self.builder
        block, sums = self.kept_block(term), self.template.scratch(step.tile_offset)
        right = self.contractions.right(step, batch, index(0))
        base = start if step.tiles.direct_b else index(0)
        block = self.template.place(block, (first, 1))
        sums = self.template.place(sums, (first, step.padded))

        def tile(at: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            call = self.contractions.micro_kernel(step, size, columns, step.padded, accumulate=True)
            builder.call(call, [
                self.template.place(block, (at, 1)),
                right(base, rows, column),
                self.template.place(sums, (at, step.padded), (column, 1)),
                rows,
            ])  # fmt: skip

        rest = self.kernel.columns.extent % step.tiles.mr
        free = index(each.free.extent)
        self.contractions.tiles(step, builder.sub(last, first), [rest] if rest else [], index(0), free, tile)

    def clear(self, step: Step, rows: int) -> None:
        """Zero sums that are added to later."""
        builder, lanes = self.builder, step.tiles.lanes
        kind = ir.VectorType(self.template.scalar, lanes)
        with counted_loop(builder, 0, rows * step.padded, lanes, name="clear") as at:
            pointer = self.template.place(self.template.scratch(step.tile_offset), (at, 1))
            builder.store(ir.Constant(kind, None), pointer, align=lanes * self.template.size)

    def finish(
        self, each: ChainSum, step: Step, batch: ir.Value, across: Variable, first: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        """Evaluate a sum's stores on rows [first, first + rows) x [column, column + columns)."""
        builder, lanes, n = self.builder, step.tiles.lanes, each.free.extent
        sums, kind = self.template.scratch(step.tile_offset), ir.VectorType(self.template.scalar, lanes)
        # Sums over rows lie at their columns; a tile of a sum over columns lies at the start.
        from_column = column if each.over_rows else index(0)

        def vector(row: ir.Value, at: ir.Value, valid: int) -> None:
            pointer = self.template.place(sums, (row, step.padded), (from_column, 1), (at, 1))
            value = builder.load(pointer, typ=kind, align=lanes * self.template.size)
            emitter = self.template.emitter({self.kernel.batch: batch})
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
