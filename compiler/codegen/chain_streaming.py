"""The chain template where right operands are streamed: blocks of columns meet as many rows as a cache has room for.

    for chunk in begin..end, for b in the chunk's batch entries, for m0 in the chunk's rows step block_rows:
      for each pass:
        for n0 in the columns step the plan's:
          pack the products' right operands for these columns
          for each product:  tiles of (rows, columns) by the micro-kernel, into a block of scratch
          for each row:      vectors along the columns; what reductions carry waits in scratch for the next columns
          in the last pass:  for each sum, pack its right operands and add tiles of (rows, e) to what is in scratch
        for each row:        results of the reductions
      for each row:          its stores
      finish and store the sums

The loss of a language model is such a chain: rows of scores are as long as its vocabulary, and every block of rows
meets the whole embedding. Neither is ever whole in a cache, and the scores are never whole in memory.
"""

from __future__ import annotations

from llvmlite import ir

from ..schedule.loop_ir import ChainKernel, RowPass, Term
from .accumulators import Accumulator
from .chain import ChainFunction
from .chain_blocking import ChainPlan, Step, plan
from .control_flow import counted_loop, index, offset, smaller
from .locations import kernel_function, located
from .vector_target import VectorTarget


def emit(module: ir.Module, name: str, kernel: ChainKernel, target: VectorTarget) -> ChainPlan:
    """Add a chain's function to the module, whether its operands are streamed or not."""
    chosen = plan(kernel, target)
    function, builder = kernel_function(module, name)
    if chosen.chunks:
        form = StreamedFunction if chosen.is_streamed else ChainFunction
        form(chosen, target, function, builder).emit()
    builder.ret_void()
    return chosen


class StreamedFunction(ChainFunction):
    """Emits the loops of a chain over blocks of columns."""

    def _batch_entry(self, batch: ir.Value, first_row: ir.Value, last_row: ir.Value) -> None:
        with counted_loop(self.builder, first_row, last_row, self.plan.block_rows, name="block") as start:
            rows = smaller(self.builder, self.builder.sub(last_row, start), self.plan.block_rows)
            self._block(batch, start, rows)

    def _block(self, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        kernel, chosen = self.kernel, self.plan
        for product, step in zip(kernel.products, chosen.products, strict=True):
            self.contractions.pack_left(product, step, batch, start, rows)
        for steps in chosen.sums:
            self.sums.clear(steps[0], chosen.block_rows)
        passes = kernel.passes or (RowPass((), ()),)
        for number, each_pass in enumerate(passes):
            self._begin(each_pass, rows)
            # The last columns, too few for a vector, belong to the block before them: every block has whole vectors.
            whole = max(1, kernel.columns.extent - kernel.columns.extent % chosen.lanes)
            with counted_loop(self.builder, 0, whole, chosen.columns, name="columns") as low:
                high = self.builder.add(low, index(chosen.columns))
                is_last = self.builder.icmp_signed(">=", high, index(whole))
                high = self.builder.select(is_last, index(kernel.columns.extent), high)
                self.template.origin = low
                self._columns(each_pass, batch, start, rows, high)
                if number == len(passes) - 1:
                    self._add_to_sums(batch, rows, high)
                self.template.origin = index(0)
            self._end(each_pass, rows)
        self.rows.store(batch, start, rows)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            columns = (index(0), index(each.free.extent))
            with located(self.builder, each.origin):
                self.sums.finish(each, steps[0], batch, kernel.rows, start, rows, *columns)

    def _columns(
        self, each_pass: RowPass, batch: ir.Value, start: ir.Value, rows: ir.Value, high: ir.Value
    ) -> None:
        """The products and a pass on one block of columns."""
        low = self.template.origin
        self.contractions.pack_products(batch, self.builder.sub(high, low))
        for product, step in zip(self.kernel.products, self.plan.products, strict=True):
            with located(self.builder, product.origin):
                self.contractions.product(product, step, batch, start, rows, low, high)
        if not each_pass.reductions and not each_pass.keeps:
            return
        with counted_loop(self.builder, 0, rows, name="row") as row:
            emitter = self.rows.on_row(batch, start, row)
            accumulators = self.rows.accumulators(emitter, each_pass)
            places = [self._partial(accumulator, row) for accumulator in accumulators]
            carried = [self.builder.load(place, typ=kind, align=self.template.size) for place, kind in places]
            carried = self.rows.along_row(emitter, each_pass, accumulators, carried, low, high)
            for (place, _), value in zip(places, carried, strict=True):
                self.builder.store(value, place, align=self.template.size)

    # What reductions carry from one block of columns to the next

    def _partial(self, accumulator: Accumulator, row: ir.Value) -> tuple[ir.Value, ir.Type]:
        """Where it waits, and its type."""
        (start,) = accumulator.initial(self.plan.lanes if self.plan.lanes > 1 else 0)
        place = self.template.scratch(self.plan.partial[accumulator.reduction])
        return offset(self.builder, place, start.type, (row, 1)), start.type

    def _begin(self, each_pass: RowPass, rows: ir.Value) -> None:
        accumulators = self.rows.accumulators(self.template.emitter({}), each_pass)
        if accumulators:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                for accumulator in accumulators:
                    (value,) = accumulator.initial(self.plan.lanes if self.plan.lanes > 1 else 0)
                    place, _ = self._partial(accumulator, row)
                    self.builder.store(value, place, align=self.template.size)

    def _end(self, each_pass: RowPass, rows: ir.Value) -> None:
        accumulators = self.rows.accumulators(self.template.emitter({}), each_pass)
        if accumulators:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                for accumulator in accumulators:
                    place, kind = self._partial(accumulator, row)
                    value = self.builder.load(place, typ=kind, align=self.template.size)
                    self.rows.reduced_to(accumulator, value, row)
        self.rows.reduced += each_pass.reductions

    def _add_to_sums(self, batch: ir.Value, rows: ir.Value, high: ir.Value) -> None:
        """Add what a block of columns gives to the sums."""
        builder, low = self.builder, self.template.origin
        count = builder.sub(high, low)
        for each, steps in zip(self.kernel.sums, self.plan.sums, strict=True):
            self.contractions.pack_terms(each, steps, batch, self.kernel.columns, low, count)
            with located(builder, each.origin):
                for term, step in zip(each.terms, steps, strict=True):
                    self._add_term(term, step, batch, rows, count)

    def _add_term(self, term: Term, step: Step, batch: ir.Value, rows: ir.Value, count: ir.Value) -> None:
        builder, low = self.builder, self.template.origin
        block, result = self.sums.kept_block(term), self.template.scratch(step.tile_offset)
        right, base = self.contractions.right(step, batch, index(0)), low if step.tiles.direct_b else index(0)

        def tile(row: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            call = self.contractions.micro_kernel(step, size, columns, step.padded, accumulate=True)
            builder.call(call, [
                self.template.place(block, (row, self.plan.leading)),
                right(base, count, column),
                self.template.place(result, (row, step.padded), (column, 1)),
                count,
            ])  # fmt: skip

        sizes = self.contractions.row_sizes(step)
        self.contractions.tiles(step, rows, sizes, index(0), index(step.contraction.n), tile)
