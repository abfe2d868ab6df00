"""A contraction kernel as an LLVM function: the template, with operands and epilogue computed from loop IR.

An operand that is just an array in memory is given to the template with its strides. Any other (a transposed window, a
mask, a cast, an activation) is computed while its panel is packed. The epilogue is evaluated on vectors of finished
sums and stored straight to where the results belong.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ..schedule.collapse import all_values, summed_origin
from ..schedule.index import Variable
from ..schedule.loop_ir import Buffer, ContractionKernel, Load, Store, Value
from . import contraction as template
from .arithmetic import I32, I64, Arithmetic, constant, memory_type, register_type
from .contraction import Blocking, Contraction, Memory, Operand, Packed
from .control_flow import offset
from .emitter import Emitter
from .lanes import VectorLoop, lane_step
from .locations import kernel_function, located
from .loops import load_pointers
from .panels import Axis, PanelWriter
from .scopes import Lanes
from .vector_target import VectorTarget


@dataclass(frozen=True)
class _Plain:
    """An operand in memory: the load it is, and by how much its index grows along (batch, first, second)."""

    load: Load
    steps: tuple[int, int, int]


def plan(kernel: ContractionKernel, target: VectorTarget) -> tuple[Contraction, Blocking]:
    """What the template is asked for, and how it will do it."""
    assert kernel.image is None
    left = _operand(kernel, kernel.left, (kernel.rows, kernel.depth), target)
    right = _operand(kernel, kernel.right, (kernel.depth, kernel.columns), target)
    computed = left.strides is None or right.strides is None
    contraction = Contraction(
        kernel.batch.extent, kernel.rows.extent, kernel.columns.extent, kernel.depth.extent, kernel.element.name,
        left, right, target.lanes(kernel.element.name) if computed else 1, bool(kernel.column_stores),
    )  # fmt: skip
    return contraction, template.plan(contraction, target)


def _plain(kernel: ContractionKernel, value: Value, axes: tuple[Variable, Variable]) -> _Plain | None:
    """The operand as an array in memory, if it is one of the element type with constant strides."""
    if not isinstance(value, Load) or value.guard or value.buffer.dtype is not kernel.element:
        return None
    coefficients = dict(value.index.terms)
    names = (kernel.batch, *axes)
    if any(atom not in names for atom in coefficients):
        return None
    # A variable that can only be 0 does not occur in indices; any stride will do for it.
    return _Plain(value, tuple(coefficients.get(v, 0) for v in names))  # type: ignore[arg-type]


def _operand(kernel: ContractionKernel, value: Value, axes: tuple[Variable, Variable], target: VectorTarget) -> Operand:
    plain = _plain(kernel, value, axes)
    if plain is not None:
        first, second = plain.steps[1:]
        return Operand((first, 1 if axes[1].extent == 1 else second))
    lanes = target.lanes(kernel.element.name)
    runs = [0, 0]
    for inner in all_values([value]):
        if isinstance(inner, Load):
            for position, axis in enumerate(axes):
                runs[position] += lane_step(inner.index, VectorLoop(axis, lanes, True)) == 1
    return Operand(None, 0 if runs[0] > runs[1] else 1)


def emit(module: ir.Module, name: str, kernel: ContractionKernel, target: VectorTarget) -> Blocking:
    """Add the kernel's function to the module."""
    contraction, blocking = plan(kernel, target)
    function, builder, pointers = start_kernel(module, name, kernel)
    right = right_operand(kernel, target)
    operands = Callbacks(kernel, right, blocking, target, builder, pointers)
    finish_columns = operands.finish_columns if kernel.column_stores else None
    with located(builder, kernel.origin):
        template.emit(
            function, builder, contraction, blocking, target, operands.left(), operands.right(), operands.finish,
            finish_columns, summed_origin(kernel.column_stores),
        )  # fmt: skip
    builder.ret_void()
    return blocking


def right_operand(kernel: ContractionKernel, target: VectorTarget) -> Operand:
    """How the template gets B(b, k, n)."""
    return _operand(kernel, kernel.right, (kernel.depth, kernel.columns), target)


def start_kernel(
    module: ir.Module, name: str, kernel: ContractionKernel
) -> tuple[ir.Function, ir.IRBuilder, dict[Buffer, ir.Value]]:
    """The kernel's function, a builder in its entry block, and the pointers to its buffers."""
    function, builder = kernel_function(module, name)
    return function, builder, load_pointers(builder, function.args[0], kernel.buffers)


class Callbacks:
    """What the template calls back: sources of the operands and the epilogue."""

    def __init__(
        self,
        kernel: ContractionKernel,
        right: Operand,
        blocking: Blocking,
        target: VectorTarget,
        builder: ir.IRBuilder,
        pointers: dict[Buffer, ir.Value],
    ):
        self.kernel, self.right_operand, self.blocking, self.target = kernel, right, blocking, target
        self.pointers = pointers
        # What depends on no loop is computed once, here in the entry block, and known to all later emitters.
        entry = self._emitter(builder, {})
        stores = (*kernel.stores, *kernel.column_stores)
        for value in all_values([kernel.left, kernel.right, *(s.value for s in stores)]):
            if not value.variables:
                entry.evaluate(value)
                for index in value.indices:
                    entry.index(index)
        for store in stores:
            if not store.index.variables:
                entry.index(store.index)
        self.known = entry.scopes[0].memo

    def _emitter(self, builder: ir.IRBuilder, known: dict[object, ir.Value]) -> Emitter:
        emitter = Emitter(builder, Arithmetic(builder, self.target.has_fma, self.target.has_f16c), self.pointers)
        emitter.scopes[0].memo.update(known)
        return emitter

    def left(self) -> Memory | Packed:
        """Where the template gets A(b, m, k) from."""
        plain = _plain(self.kernel, self.kernel.left, (self.kernel.rows, self.kernel.depth))
        return self._memory(plain) if plain is not None else Packed(self._pack_left, self.kernel.left.origin)

    def right(self) -> Memory | Packed:
        """Where the template gets B(b, k, n) from."""
        plain = _plain(self.kernel, self.kernel.right, (self.kernel.depth, self.kernel.columns))
        return self._memory(plain) if plain is not None else Packed(self._pack_right, self.kernel.right.origin)

    def _memory(self, plain: _Plain) -> Memory:
        buffer, start = plain.load.buffer, plain.load.index.constant

        def pointer(builder: ir.IRBuilder, batch: ir.Value) -> ir.Value:
            element = memory_type(buffer.dtype)
            return offset(builder, self.pointers[buffer], element, (batch, plain.steps[0]), (start, 1))

        return Memory(pointer, plain.load.origin)

    def finish(
        self, builder: ir.IRBuilder, batch: ir.Value, m: ir.Value, n: ir.Value, sums: ir.Value, valid: int
    ) -> None:
        """Evaluate the stores on one vector of finished sums."""
        kernel = self.kernel
        self.store({kernel.batch: batch, kernel.rows: m, kernel.columns: n}, kernel.columns, builder, sums, valid)

    def finish_columns(self, builder: ir.IRBuilder, batch: ir.Value, n: ir.Value, sums: ir.Value, valid: int) -> None:
        """Evaluate the stores of the column sums on one vector of them."""
        kernel = self.kernel
        bindings = {kernel.batch: batch, kernel.columns: n}
        self.store(bindings, kernel.columns, builder, sums, valid, kernel.column_stores)

    def store(
        self,
        bindings: dict[Variable, ir.Value],
        along: Variable,
        builder: ir.IRBuilder,
        sums: ir.Value,
        valid: int,
        stores: tuple[Store, ...] | None = None,
    ) -> None:
        """Evaluate the stores, those of the contraction or others, on a vector of sums along a bound variable."""
        count = self.blocking.lanes
        emitter = self._emitter(builder, self.known)
        lanes = None
        if count == 1:
            sums = builder.extract_element(sums, ir.Constant(I32, 0))
        else:
            lanes = Lanes(along, count, valid if valid < count else None)
        emitter.accumulator = sums
        with emitter.scope(bindings, lanes):
            for store in self.kernel.stores if stores is None else stores:
                emitter.store(store)

    def _pack_left(
        self, builder: ir.IRBuilder, destination: ir.Value, batch: ir.Value, row: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        """Panel of A: element (i, p) goes to destination[i * a_panel[0] + p * a_panel[1]]."""
        kernel, (row_step, depth_step) = self.kernel, self.blocking.a_panel
        # Blocks of rows start at multiples of mc.
        whole_vectors = self.blocking.a_block and (
            self.blocking.mc % self.lanes == 0 or self.blocking.mc >= kernel.rows.extent
        )
        in_rows = Axis(kernel.rows, row, rows, row_step, aligned=whole_vectors)
        in_depth = Axis(kernel.depth, column, columns, depth_step, aligned=True)
        slow, fast = (in_rows, in_depth) if depth_step == 1 else (in_depth, in_rows)
        PanelWriter(self.bound(builder, batch), kernel.element, kernel.left, self.lanes).rows(destination, slow, fast)

    def _pack_right(
        self, builder: ir.IRBuilder, destination: ir.Value, batch: ir.Value, row: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        self.pack_right(self.bound(builder, batch), destination, (row, rows), (column, columns))

    def pack_right(
        self,
        emitter: Emitter,
        destination: ir.Value,
        depth: tuple[ir.Value, ir.Value],
        across: tuple[ir.Value, ir.Value],
        aligned: bool = True,
    ) -> None:
        """Panels of B: element (p, j) goes to destination[(j // nr) * rows * nr + p * nr + j % nr].

        `depth` and `across`: start and count of the part's k and n. `aligned`: k starts at a multiple of the lanes.
        """
        kernel, nr, builder = self.kernel, self.blocking.nr, emitter.builder
        (row, rows), (column, columns) = depth, across
        writer = PanelWriter(emitter, kernel.element, kernel.right, self.lanes)

        def panel(start: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            to_panel = offset(builder, destination, register_type(kernel.element), (builder.mul(start, rows), 1))
            left = builder.sub(columns, start)
            count = builder.select(builder.icmp_signed("<", left, constant(I64, nr)), left, constant(I64, nr))
            in_depth = Axis(kernel.depth, row, rows, nr, aligned)
            in_columns = Axis(kernel.columns, builder.add(column, start), count, 1, aligned=True)
            if self.right_operand.fastest == 0 and self.blocking.lanes == self.lanes > 1:
                writer.squares(to_panel, in_depth, in_columns)
            else:
                writer.columns(to_panel, in_depth, in_columns)
            return []

        emitter.loop(None, constant(I64, 0), columns, nr, [], panel)

    @property
    def lanes(self) -> int:
        return self.target.lanes(self.kernel.element.name)

    def bound(self, builder: ir.IRBuilder, batch: ir.Value) -> Emitter:
        """An emitter at the builder's position that knows the batch entry."""
        emitter = self._emitter(builder, self.known)
        emitter.bind(self.kernel.batch, batch)
        return emitter
