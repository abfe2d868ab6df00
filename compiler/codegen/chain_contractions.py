"""The contractions of a chain: packs their operands and multiplies tiles, products into blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from ..schedule.index import Variable
from ..schedule.loop_ir import ChainSum, Product, Value
from .chain_blocking import Step
from .chain_template import ChainTemplate
from .contraction_packing import pack_memory_b
from .control_flow import counted_loop, index, smaller
from .locations import located
from .micro_kernel import MicroKernel, emit_micro_kernel
from .panels import Axis, PanelWriter


class Contractions:
    """Emits the contractions; equal micro-kernels are functions that all of them call."""

    def __init__(self, template: ChainTemplate):
        self.template, self.builder = template, template.builder
        self.kernel, self.plan = template.kernel, template.plan
        self.micro_kernels: dict[MicroKernel, ir.Function] = {}

    def pack_products(self, batch: ir.Value, columns: ir.Value | int) -> None:
        """Pack so many columns of the products' right operands, from the one that blocks begin with."""
        for product, step in zip(self.kernel.products, self.plan.products, strict=True):
            axes, rows = (product.depth, self.kernel.columns), (index(0), index(step.contraction.k))
            self._pack_right(step, product.right, axes, batch, rows, (self.template.origin, index(columns)))

    def pack_terms(
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
        destination = self.template.scratch(step.right_offset)
        (start, count), (from_column, columns) = k_range, n_range
        if step.right is not None:
            with located(self.builder, value.origin):
                source = self.template.memory(step.right, batch)
                pack_memory_b(self.builder, step.contraction, step.tiles, source, destination, k_range, n_range)
            return
        emitter = self.template.emitter({self.kernel.batch: batch})
        nr, lanes = step.tiles.nr, self.template.target.lanes(self.kernel.element.name)
        writer = PanelWriter(emitter, self.kernel.element, value, lanes)
        in_depth = Axis(axes[0], start, count, nr)
        squares = step.contraction.b.fastest == 0 and step.tiles.lanes == lanes > 1

        def panel(at: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            to_panel = self.template.place(destination, (self.builder.mul(at, count), 1))
            width = smaller(self.builder, self.builder.sub(columns, at), nr)
            in_columns = Axis(axes[1], self.builder.add(from_column, at), width, 1, aligned=True)
            (writer.squares if squares else writer.columns)(to_panel, in_depth, in_columns)
            return []

        with located(self.builder, value.origin):
            emitter.loop(None, 0, columns, nr, [], panel)

    def right(
        self, step: Step, batch: ir.Value, first_column: ir.Value
    ) -> Callable[[ir.Value, ir.Value, ir.Value], ir.Value]:
        """right(k, count, column): the address of a tile's right operand, of which `count` rows are packed."""
        if step.tiles.direct_b:
            assert step.right is not None
            base, stride = self.template.memory(step.right, batch), step.right.strides[0]
            return lambda k, count, column: self.template.place(base, (k, stride), (column, 1))
        panels, nr = self.template.scratch(step.right_offset), step.tiles.nr
        return lambda k, count, column: self.template.place(
            panels, (self.builder.mul(self.builder.sub(column, first_column), count), 1), (k, nr),
        )  # fmt: skip

    def pack_left(self, product: Product, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value) -> None:
        """Write down the left operand of a block of rows if it is computed."""
        if step.left is None and step.contraction.k:
            strides = step.contraction.a.strides or (0, 0)
            element = self.kernel.element
            emitter = self.template.emitter({self.kernel.batch: batch})
            writer = PanelWriter(emitter, element, product.left, self.template.target.lanes(element.name))
            in_depth = Axis(product.depth, index(0), index(step.contraction.k), 1, aligned=True)
            in_rows = Axis(self.kernel.rows, start, rows, strides[0])
            with located(self.builder, product.left.origin):
                writer.rows(self.template.scratch(step.left_offset), in_rows, in_depth)

    def product(
        self, product: Product, step: Step, batch: ir.Value, start: ir.Value, rows: ir.Value, first: ir.Value,
        last: ir.Value,
    ) -> None:  # fmt: skip
        """A product's rows of the block, and its columns [first, last)."""
        builder = self.builder
        block = self.template.block(product)
        depth = index(step.contraction.k)
        strides = step.contraction.a.strides or (0, 0)
        if step.left is not None:
            left = self.template.place(self.template.memory(step.left, batch), (start, strides[0]))
        else:
            left = self.template.scratch(step.left_offset)
        right, origin = self.right(step, batch, self.template.origin), self.template.origin

        def tile(row: ir.Value, size: int, column: ir.Value, columns: int) -> None:
            call = self.micro_kernel(step, size, columns, self.plan.leading, accumulate=False)
            builder.call(call, [
                self.template.place(left, (row, strides[0])),
                right(index(0), depth, column),
                self.template.place(block, (row, self.plan.leading), (builder.sub(column, origin), 1)),
                depth,
            ])  # fmt: skip

        self.tiles(step, rows, self.row_sizes(step), first, last, tile)

    def row_sizes(self, step: Step) -> list[int]:
        """The smaller tiles that end a block of rows."""
        block, total, mr = self.plan.block_rows, self.kernel.rows.extent, step.tiles.mr
        return sorted({size for size in (block % mr, total % block % mr) if size})

    def tiles(
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

    def micro_kernel(self, step: Step, rows: int, columns: int, tile_stride: int, accumulate: bool) -> ir.Function:
        """The micro-kernel for a tile of this many rows and columns."""
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
            has_fma=self.template.target.has_fma,
        )
        if kernel not in self.micro_kernels:
            name = f"{self.template.function.name}.tile{len(self.micro_kernels)}"
            self.micro_kernels[kernel] = emit_micro_kernel(
                self.template.function.module, name, kernel, self.template.target.attributes
            )
        return self.micro_kernels[kernel]
