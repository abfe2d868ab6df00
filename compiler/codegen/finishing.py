"""Finishes a block of sums that lie row by row in scratch memory: vectors of them, along whichever way results lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .contraction_packing import transpose_square
from .control_flow import counted_loop, index, offset, smaller

# finish(builder, batch, part, m, n, sums, valid): store results. Where they lie together along m, lane i is the result
# of row part * finish_rows + m + i and column n, else that of row m and column n + i, and part is 0.
Finish = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value, int], None]

Range = tuple[ir.Value, ir.Value]  # start and count


@dataclass(frozen=True)
class Finishing:
    """Where sums are, and what becomes of them.

    columns:     of the whole contraction
    sums:        the block's sums, rows `row_stride` apart; as many rows as a vector has lanes may be read behind them
    finish_rows: how many consecutive rows the results lie together for; 0 if they lie together along the columns
    square:      room for lanes x lanes elements, where results are turned so that vectors run along the rows
    """

    builder: ir.IRBuilder
    scalar: ir.Type
    bytes: int
    lanes: int
    columns: int
    sums: ir.Value
    row_stride: int
    finish_rows: int
    square: ir.Value
    finish: Finish

    def block(self, batch: ir.Value, m_range: Range, n_range: Range) -> None:
        """All results of a block."""
        if self.finish_rows:
            self._along_rows(batch, m_range, n_range)
        else:
            self._along_columns(batch, m_range, n_range)

    def _along_columns(self, batch: ir.Value, m_range: Range, n_range: Range) -> None:
        """Results lie together along n: each row's vectors as they are."""
        builder, lanes, vector = self.builder, self.lanes, ir.VectorType(self.scalar, self.lanes)

        def finish(row: ir.Value, at: ir.Value, valid: int) -> None:
            pointer = offset(builder, self.sums, self.scalar, (row, self.row_stride), (at, 1))
            sums = builder.load(pointer, typ=vector, align=lanes * self.bytes)
            m = builder.add(m_range[0], row, flags=("nsw",))
            n = builder.add(n_range[0], at, flags=("nsw",))
            self.finish(builder, batch, index(0), m, n, sums, valid)

        with counted_loop(builder, 0, m_range[1], name="finish.m") as row:
            self._whole_and_rest(n_range[1], self.columns, lambda at, valid: finish(row, at, valid))

    def _along_rows(self, batch: ir.Value, m_range: Range, n_range: Range) -> None:
        """Results lie together along m: squares of sums are turned, part by part of rows that lie together."""
        builder, lanes, stride, part_rows = self.builder, self.lanes, self.row_stride, self.finish_rows
        vector, size = ir.VectorType(self.scalar, lanes), lanes * self.bytes

        def finish(start: ir.Value, at: ir.Value, valid: int) -> None:
            part = builder.udiv(builder.add(m_range[0], start, flags=("nsw",)), index(part_rows))
            row = builder.add(start, at, flags=("nsw",))
            with counted_loop(builder, 0, n_range[1], lanes, name="finish.n") as j:
                first = offset(builder, self.sums, self.scalar, (row, stride), (j, 1))
                places = [offset(builder, first, self.scalar, (lane * stride, 1)) for lane in range(lanes)]
                sums = [builder.load(place, typ=vector, align=size) for place in places]
                for lane, turned in enumerate(transpose_square(builder, sums)):
                    builder.store(turned, offset(builder, self.square, self.scalar, (lane * lanes, 1)), align=size)
                columns = smaller(builder, builder.sub(n_range[1], j), lanes)
                with counted_loop(builder, 0, columns, name="finish.column") as column:
                    n = builder.add(builder.add(n_range[0], j, flags=("nsw",)), column, flags=("nsw",))
                    place = offset(builder, self.square, self.scalar, (column, lanes))
                    turned = builder.load(place, typ=vector, align=size)
                    self.finish(builder, batch, part, at, n, turned, valid)

        with counted_loop(builder, 0, m_range[1], part_rows, name="finish.part") as start:
            self._whole_and_rest(index(part_rows), part_rows, lambda at, valid: finish(start, at, valid))

    def _whole_and_rest(self, count: ir.Value, total: int, body: Callable[[ir.Value, int], None]) -> None:
        """`body(at, valid)` for the whole vectors of `count`, and once for the rest, if `total` leaves one."""
        builder, lanes = self.builder, self.lanes
        rest = total % lanes
        whole = builder.and_(count, index(-lanes)) if rest else count
        if total >= lanes:
            with counted_loop(builder, 0, whole, lanes, name="finish.whole") as at:
                body(at, lanes)
        if rest:
            with builder.if_then(builder.icmp_signed("<", whole, count)):
                body(whole, rest)
