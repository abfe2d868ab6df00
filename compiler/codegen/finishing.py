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

_LINE = 64
_LONGEST_STRIP = 512  # rows


def strip_rows(finish_rows: int, lanes: int) -> int:
    """How many rows are turned before they are finished: what lies together, unless that is too much for a cache."""
    return min(finish_rows, max(lanes, _LONGEST_STRIP))


def turned_stride(finish_rows: int, lanes: int, size: int) -> int:
    """Distance of two columns of results that were turned: whole vectors, an odd number of cache lines."""
    line = max(lanes, _LINE // size)
    lines = -(-strip_rows(finish_rows, lanes) // line)
    return (lines + (lines % 2 == 0)) * line


def turned_bytes(finish_rows: int, lanes: int, size: int) -> int:
    """The room that results need where they are turned."""
    return lanes * turned_stride(finish_rows, lanes, size) * size if finish_rows else 0


@dataclass(frozen=True)
class Finishing:
    """Where sums are, and what becomes of them.

    columns:     of the whole contraction
    sums:        the block's sums, rows `row_stride` apart; as many rows as a vector has lanes may be read behind them
    finish_rows: how many consecutive rows the results lie together for; 0 if they lie together along the columns
    turned:      room for `turned_bytes`, where results are turned so that vectors run along the rows
    """

    builder: ir.IRBuilder
    scalar: ir.Type
    bytes: int
    lanes: int
    columns: int
    sums: ir.Value
    row_stride: int
    finish_rows: int
    turned: ir.Value
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
        """Results lie together along m: squares of sums are turned, and finished as long as they lie together.

        for part, strip of it, group of columns:
          turn the group's sums of the strip, square by square
          for each column of the group: all of its strip
        """
        builder, rows = self.builder, strip_rows(self.finish_rows, self.lanes)
        with counted_loop(builder, 0, m_range[1], self.finish_rows, name="finish.part") as first:
            part = builder.udiv(builder.add(m_range[0], first, flags=("nsw",)), index(self.finish_rows))
            with counted_loop(builder, 0, self.finish_rows, rows, name="finish.strip") as strip:
                count = index(rows)
                if self.finish_rows % rows:
                    count = smaller(builder, builder.sub(index(self.finish_rows), strip), rows)
                row = builder.add(first, strip, flags=("nsw",))
                with counted_loop(builder, 0, n_range[1], self.lanes, name="finish.n") as j:
                    self._turn(row, count, j)
                    columns = smaller(builder, builder.sub(n_range[1], j), self.lanes)
                    with counted_loop(builder, 0, columns, name="finish.column") as column:
                        n = builder.add(builder.add(n_range[0], j, flags=("nsw",)), column, flags=("nsw",))
                        self._finish_strip(batch, part, (strip, count), column, n)

    def _turn(self, row: ir.Value, count: ir.Value, column: ir.Value) -> None:
        """Squares of sums from this row and column on, turned: turned[column][row]."""
        builder, lanes, stride = self.builder, self.lanes, self.row_stride
        vector, size = ir.VectorType(self.scalar, lanes), lanes * self.bytes
        with counted_loop(builder, 0, count, lanes, name="turn") as at:
            first = offset(builder, self.sums, self.scalar, (builder.add(row, at, flags=("nsw",)), stride), (column, 1))
            places = [offset(builder, first, self.scalar, (lane * stride, 1)) for lane in range(lanes)]
            square = [builder.load(place, typ=vector, align=size) for place in places]
            for lane, turned in enumerate(transpose_square(builder, square)):
                place = offset(builder, self.turned, self.scalar, (at, 1), (lane * self._turned_stride, 1))
                builder.store(turned, place, align=size)

    @property
    def _turned_stride(self) -> int:
        return turned_stride(self.finish_rows, self.lanes, self.bytes)

    def _finish_strip(
        self, batch: ir.Value, part: ir.Value, strip: Range, column: ir.Value, n: ir.Value
    ) -> None:
        """What was turned of one column."""
        builder, lanes = self.builder, self.lanes
        vector, size = ir.VectorType(self.scalar, lanes), lanes * self.bytes

        def finish(at: ir.Value, valid: int) -> None:
            place = offset(builder, self.turned, self.scalar, (column, self._turned_stride), (at, 1))
            sums = builder.load(place, typ=vector, align=size)
            self.finish(builder, batch, part, builder.add(strip[0], at, flags=("nsw",)), n, sums, valid)

        self._whole_and_rest(strip[1], self.finish_rows, finish)

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
