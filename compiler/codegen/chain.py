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

What stands inside the loops is in files of its own: chain_columns (the range), chain_contractions (products, packing),
chain_rows (passes), chain_sums. Where operands are streamed, the loops are those of chain_streaming.
"""

from __future__ import annotations

from llvmlite import ir

from .chain_blocking import ChainPlan
from .chain_columns import live_columns, whole_tiles
from .chain_contractions import Contractions
from .chain_rows import Rows
from .chain_sums import Sums
from .chain_template import ChainTemplate
from .control_flow import counted_loop, index, smaller
from .locations import located
from .vector_target import VectorTarget


class ChainFunction:
    """Emits the loops of one chain."""

    def __init__(self, chosen: ChainPlan, target: VectorTarget, function: ir.Function, builder: ir.IRBuilder):
        self.kernel, self.plan, self.builder = chosen.kernel, chosen, builder
        self.template = ChainTemplate(chosen, target, function, builder)
        self.contractions = Contractions(self.template)
        self.sums = Sums(self.template, self.contractions)
        self.rows = Rows(self.template)

    def emit(self) -> None:
        builder, kernel, chosen = self.builder, self.kernel, self.plan
        parts = -(-kernel.rows.extent // chosen.rows)
        _, begin, end, _ = self.template.function.args
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
        self.contractions.pack_products(batch, kernel.columns.extent)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            if each.over_rows:
                self.sums.clear(steps[0], kernel.columns.extent)
            else:
                self.contractions.pack_terms(each, steps, batch, kernel.columns, index(0), index(kernel.columns.extent))
        with counted_loop(builder, first_row, last_row, chosen.block_rows, name="block") as start:
            rows = smaller(builder, builder.sub(last_row, start), chosen.block_rows)
            self._block(batch, start, rows)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            if each.over_rows:
                with located(builder, each.origin):
                    self.sums.finish(
                        each, steps[0], batch, kernel.columns, index(0), index(kernel.columns.extent), index(0),
                        index(each.free.extent),
                    )  # fmt: skip

    def _block(self, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """One block of rows, from the products to the sums."""
        kernel, chosen = self.kernel, self.plan
        low, high = live_columns(self.builder, kernel, start, rows)
        nr = chosen.products[0].tiles.nr
        first, last = whole_tiles(self.builder, kernel, low, high, nr)
        for product, step in zip(kernel.products, chosen.products, strict=True):
            self.contractions.pack_left(product, step, batch, start, rows)
            with located(self.builder, product.origin):
                self.contractions.product(product, step, batch, start, rows, first, last)
        # Pass by pass: rows do not wait for one another, as the passes over one row do.
        for each_pass in kernel.passes:
            with counted_loop(self.builder, 0, rows, name="row") as row:
                emitter = self.rows.on_row(batch, start, row)
                self.rows.take(emitter, each_pass, row, first, last)
            self.rows.reduced += each_pass.reductions
        self.rows.store(batch, start, rows)
        for each, steps in zip(kernel.sums, chosen.sums, strict=True):
            with located(self.builder, each.origin):
                if each.over_rows:
                    self.sums.over_rows(each, steps, batch, start, rows, first, last)
                else:
                    self.sums.over_columns(each, steps, batch, start, rows, low, high)
