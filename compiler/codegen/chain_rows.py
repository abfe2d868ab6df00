"""The passes of a chain over the rows of a block: vectors along the columns, and what reductions make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from ..schedule.loop_ir import Reduction, RowPass
from .accumulators import Accumulator
from .arithmetic import BIT, register_type
from .chain_template import ChainEmitter, ChainTemplate
from .control_flow import counted_loop, index, offset, smaller
from .locations import located
from .scopes import Lanes


class Rows:
    """Emits the passes, and the stores of rows."""

    def __init__(self, template: ChainTemplate):
        self.template, self.builder = template, template.builder
        self.kernel, self.plan = template.kernel, template.plan
        # The reductions whose results are there.
        self.reduced: list[Reduction] = []

    def store(self, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """The stores of each row."""
        if self.kernel.stores:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                emitter = self.on_row(batch, start, row)
                for store in self.kernel.stores:
                    emitter.store(store)

    def on_row(self, batch: ir.Value, start: ir.Value, row: ir.Value) -> ChainEmitter:
        """An emitter that knows a row of the block, and what earlier passes made of it."""
        kernel, chosen = self.kernel, self.plan
        m = self.builder.add(start, row, flags=("nsw",))
        emitter = self.template.emitter({kernel.batch: batch, kernel.rows: m})
        for block, number in chosen.blocks.items():
            to_block = self.template.scratch(chosen.offsets[number])
            emitter.row_of[block] = self.template.place(to_block, (row, chosen.leading))
        for reduction in self.reduced:
            place, kind = self._result(reduction, row)
            value = self.builder.load(place, typ=kind)
            emitter.reduced[reduction] = self.builder.trunc(value, BIT) if reduction.dtype.kind == "bool" else value
        return emitter

    def _result(self, reduction: Reduction, row: ir.Value) -> tuple[ir.Value, ir.Type]:
        """Where the result of a reduction over a row is kept."""
        kind = register_type(reduction.dtype)
        kind = ir.IntType(8) if kind == BIT else kind
        return offset(self.builder, self.template.scratch(self.plan.results[reduction]), kind, (row, 1)), kind

    def take(self, emitter: ChainEmitter, each: RowPass, row: ir.Value, first: ir.Value, last: ir.Value) -> None:
        """Take a pass over the columns [first, last) of a row, and write down what it makes."""
        accumulators = self.accumulators(emitter, each)
        lanes = self.plan.lanes
        carried = [value for a in accumulators for value in a.initial(lanes if lanes > 1 else 0)]
        carried = self.along_row(emitter, each, accumulators, carried, first, last)
        for accumulator, value in zip(accumulators, carried, strict=True):
            self.reduced_to(accumulator, value, row)

    def accumulators(self, emitter: ChainEmitter, each: RowPass) -> list[Accumulator]:
        return [Accumulator(r, emitter, (self.kernel.columns,), True) for r in each.reductions]

    def reduced_to(self, accumulator: Accumulator, value: ir.Value, row: ir.Value) -> None:
        """Write down the result of a reduction over a row."""
        with located(self.builder, accumulator.reduction.origin):
            place, kind = self._result(accumulator.reduction, row)
            result = accumulator.finish([value])
            self.builder.store(self.builder.zext(result, kind) if result.type == BIT else result, place)

    def along_row(
        self, emitter: ChainEmitter, each: RowPass, accumulators: Sequence[Accumulator], carried: list[ir.Value],
        first: ir.Value, last: ir.Value,
    ) -> list[ir.Value]:  # fmt: skip
        """A pass over the columns [first, last) of a row; what its reductions then carry."""
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
        self, emitter: ChainEmitter, last: ir.Value, whole: int, carried: list[ir.Value],
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
