"""Packs a computed operand of a contraction: loop IR values evaluated over a panel, vectors along one of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from ..ir.dtypes import DType
from ..schedule.index import Variable
from ..schedule.loop_ir import Value
from .arithmetic import I32, I64, constant, intrinsic, masked_store, register_type, splat, suffix
from .constants import integer, lane_mask, lane_order
from .contraction_packing import transpose_square
from .control_flow import POINTER, offset
from .emitter import Emitter
from .scopes import Lanes


@dataclass(frozen=True)
class Axis:
    """One direction of a panel: its loop variable from `start` on, `count` elements, `step` apart in it.

    `aligned`: start is a multiple of the number of lanes.
    """

    variable: Variable
    start: ir.Value
    count: ir.Value
    step: int
    aligned: bool = False


@dataclass(frozen=True)
class PanelWriter:
    """Writes `value` over two axes into a panel of `element`s."""

    emitter: Emitter
    element: DType
    value: Value
    lanes: int

    @property
    def builder(self) -> ir.IRBuilder:
        return self.emitter.builder

    def rows(self, panel: ir.Value, slow: Axis, fast: Axis) -> None:
        """One line along `fast` (vectors) after the other."""

        def line(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            with self.emitter.scope({slow.variable: self._at(slow, i)}):
                self._line(self._place(panel, slow, i), fast)
            return []

        self.emitter.loop(None, constant(I64, 0), slow.count, 1, [], line)

    def columns(self, panel: ir.Value, slow: Axis, fast: Axis) -> None:
        """One column of vectors after the other, down all of `slow`: what depends on `fast` only is computed once."""

        def vector(j: ir.Value, lanes: Lanes | None) -> None:
            with self.emitter.scope({fast.variable: self._at(fast, j)}, lanes):
                to_column = self._place(panel, fast, j)

                def down(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                    with self.emitter.scope({slow.variable: self._at(slow, i)}):
                        self._write(self._place(to_column, slow, i), fast.step, lanes)
                    return []

                self.emitter.loop(None, constant(I64, 0), slow.count, 1, [], down)

        self._vectors(fast, vector)

    def box(self, place: ir.Value, axes: Sequence[Axis]) -> None:
        """All of a box of any number of axes, vectors along the last one."""
        first, *rest = axes
        if not rest:
            self._line(place, first)
            return

        def slice_(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            with self.emitter.scope({first.variable: self._at(first, i)}):
                self.box(self._place(place, first, i), rest)
            return []

        self.emitter.loop(None, constant(I64, 0), first.count, 1, [], slice_)

    def _line(self, line: ir.Value, fast: Axis) -> None:
        def vector(i: ir.Value, lanes: Lanes | None) -> None:
            with self.emitter.scope({fast.variable: self._at(fast, i)}, lanes):
                self._write(self._place(line, fast, i), fast.step, lanes)

        self._vectors(fast, vector)

    def squares(self, panel: ir.Value, depth: Axis, columns: Axis) -> None:
        """Vectors along `depth`, lanes x lanes of them transposed in registers into vectors along `columns`."""
        self.turned(panel, [depth], columns)

    def turned(self, panel: ir.Value, axes: Sequence[Axis], columns: Axis) -> None:
        """As `box`, but vectors along the last of `axes` are transposed in registers into vectors along `columns`."""
        builder, lanes = self.builder, self.lanes
        last = builder.sub(builder.add(columns.start, columns.count), constant(I64, 1))

        def group(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            first = self._at(columns, j)
            places = []
            for lane in range(lanes):
                place = builder.add(first, constant(I64, lane), flags=("nsw",))
                # Past the right edge the last column is computed again; nobody reads it there.
                places.append(builder.select(builder.icmp_signed("<", place, last), place, last))
            self._turned_lines(self._place(panel, columns, j), axes, columns, places)
            return []

        self.emitter.loop(None, constant(I64, 0), columns.count, lanes, [], group)

    def _turned_lines(
        self, panel: ir.Value, axes: Sequence[Axis], columns: Axis, places: Sequence[ir.Value]
    ) -> None:
        """One group of columns, at these places."""
        first, *rest = axes
        if rest:

            def slice_(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                with self.emitter.scope({first.variable: self._at(first, i)}):
                    self._turned_lines(self._place(panel, first, i), rest, columns, places)
                return []

            self.emitter.loop(None, constant(I64, 0), first.count, 1, [], slice_)
            return

        def square(p: ir.Value, along_depth: Lanes | None) -> None:
            with self.emitter.scope({first.variable: self._at(first, p)}, along_depth):
                vectors = []
                for place in places:
                    with self.emitter.scope({columns.variable: place}):
                        vectors.append(self.emitter.spread(self.emitter.evaluate(self.value)))
                to_rows = self._place(panel, first, p)
                active = self.lanes if along_depth is None or along_depth.active is None else along_depth.active
                if along_depth is not None and isinstance(active, int):
                    self._store_square(to_rows, first, transpose_square(self.builder, vectors)[:active])
                else:
                    for lane, vector in enumerate(vectors):
                        place = offset(self.builder, to_rows, register_type(self.element), (lane, columns.step))
                        self._store(vector, place, first.step)

        self._vectors(first, square)

    def _store_square(self, to_rows: ir.Value, depth: Axis, rows: list[ir.Value]) -> None:
        for number, row in enumerate(rows):
            place = offset(self.builder, to_rows, register_type(self.element), (number * depth.step, 1))
            self.builder.store(row, place, align=self.element.itemsize)

    def _at(self, axis: Axis, i: ir.Value) -> ir.Value:
        return self.builder.add(axis.start, i, flags=("nsw",))

    def _place(self, base: ir.Value, axis: Axis, i: ir.Value) -> ir.Value:
        return offset(self.builder, base, register_type(self.element), (i, axis.step))

    def _vectors(self, axis: Axis, body: Callable[[ir.Value, Lanes | None], None]) -> None:
        """`body(i, lanes)` for whole vectors along the axis, then for the masked rest."""
        builder, count, lanes = self.builder, axis.count, self.lanes

        def run(start: ir.Value, stop: ir.Value, step: int, vector: Lanes | None) -> None:
            def each(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                body(i, vector)
                return []

            self.emitter.loop(None, start, stop, step, [], each)

        zero = constant(I64, 0)
        if lanes == 1:
            run(zero, count, 1, None)
            return
        whole = builder.and_(count, constant(I64, -lanes))
        vectors = Lanes(axis.variable, lanes, None, axis.aligned)
        self.emitter.when(builder.icmp_signed(">", whole, zero), lambda: run(zero, whole, lanes, vectors))
        if axis.aligned and axis.variable.extent % lanes == 0:
            return

        def rest() -> None:
            active: int | ir.Value = axis.variable.extent % lanes
            if not axis.aligned:
                numbers = lane_order(range(lanes))
                left = builder.trunc(builder.sub(count, whole), I32)
                active = builder.icmp_signed("<", numbers, splat(builder, left, lanes))
            body(whole, Lanes(axis.variable, lanes, active, axis.aligned))

        self.emitter.when(builder.icmp_signed("<", whole, count), rest)

    def _write(self, place: ir.Value, step: int, lanes: Lanes | None) -> None:
        value = self.emitter.evaluate(self.value)
        if lanes is None:
            self.builder.store(value, place)
        else:
            self._store(self.emitter.spread(value), place, step)

    def _store(self, value: ir.Value, place: ir.Value, step: int) -> None:
        """Store a vector with its lanes `step` elements apart; lanes that do not exist are left alone."""
        builder, size, count = self.builder, self.element.itemsize, self.lanes
        mask = self.emitter.active_mask()
        if step == 1 and mask is None:
            builder.store(value, place, align=size)
            return
        if mask is None:
            mask = lane_mask([1] * count)
        if step == 1:
            masked_store(builder, value, place, mask, size)
            return
        places = lane_order(i * step for i in range(count))
        pointers = builder.gep(place, [places], source_etype=register_type(self.element))
        pointers.type = ir.VectorType(POINTER, count)
        name = f"llvm.masked.scatter.{suffix(value.type)}.v{count}p0"
        intrinsic(builder, name, ir.VoidType(), [value, pointers, integer(32, size), mask])
