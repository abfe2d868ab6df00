"""A contraction kernel as an LLVM function: the template, with operands and epilogue computed from loop IR.

An operand that is just an array in memory is given to the template with its strides. Any other (a transposed window, a
mask, a cast, an activation) is computed while its panel is packed. The epilogue is evaluated on vectors of finished
sums and stored straight to where the results belong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llvmlite import ir

from ..ir.dtypes import DType
from ..schedule.collapse import all_values
from ..schedule.index import Variable
from ..schedule.loop_ir import Buffer, ContractionKernel, Load, Value
from . import contraction as template
from .arithmetic import BIT, I32, I64, Arithmetic, constant, intrinsic, memory_type, register_type, splat, suffix
from .contraction import Blocking, Contraction, Memory, Operand, Packed
from .control_flow import POINTER, offset
from .emitter import Emitter, Lanes
from .lanes import VectorLoop, lane_step
from .loops import load_pointers
from .vector_target import VectorTarget


@dataclass(frozen=True)
class _Plain:
    """An operand in memory: the load it is, and by how much its index grows along (batch, first, second)."""

    load: Load
    steps: tuple[int, int, int]


def plan(kernel: ContractionKernel, target: VectorTarget) -> tuple[Contraction, Blocking]:
    """What the template is asked for, and how it will do it."""
    left = _operand(kernel, kernel.left, (kernel.rows, kernel.depth), target)
    right = _operand(kernel, kernel.right, (kernel.depth, kernel.columns), target)
    contraction = Contraction(
        kernel.batch.extent, kernel.rows.extent, kernel.columns.extent, kernel.depth.extent, kernel.element.name, left, right
    )
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
                runs[position] += lane_step(inner.index, VectorLoop(axis, lanes, axis is kernel.columns)) == 1
    return Operand(None, 0 if runs[0] > runs[1] else 1)


def emit(module: ir.Module, name: str, kernel: ContractionKernel, target: VectorTarget) -> Blocking:
    """Add the kernel's function to the module."""
    contraction, blocking = plan(kernel, target)
    signature = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, POINTER])
    function = ir.Function(module, signature, name)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    operands = _Callbacks(kernel, contraction, blocking, target, builder, load_pointers(builder, function.args[0], kernel.buffers))
    template.emit(
        function, builder, contraction, blocking, target, operands.left(), operands.right(), operands.finish
    )
    builder.ret_void()
    return blocking


class _Callbacks:
    """What the template calls back: sources of the operands and the epilogue."""

    def __init__(
        self,
        kernel: ContractionKernel,
        contraction: Contraction,
        blocking: Blocking,
        target: VectorTarget,
        builder: ir.IRBuilder,
        pointers: dict[Buffer, ir.Value],
    ):
        self.kernel, self.contraction, self.blocking, self.target = kernel, contraction, blocking, target
        self.pointers = pointers
        # What depends on no loop is computed once, here in the entry block, and known to all later emitters.
        entry = self._emitter(builder, {})
        for value in all_values([kernel.left, kernel.right, *(s.value for s in kernel.stores)]):
            if not value.variables:
                entry.evaluate(value)
                for index in value.indices:
                    entry.index(index)
        for store in kernel.stores:
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
        return self._memory(plain) if plain is not None else Packed(self._pack_left)

    def right(self) -> Memory | Packed:
        """Where the template gets B(b, k, n) from."""
        plain = _plain(self.kernel, self.kernel.right, (self.kernel.depth, self.kernel.columns))
        return self._memory(plain) if plain is not None else Packed(self._pack_right)

    def _memory(self, plain: _Plain) -> Memory:
        buffer, start = plain.load.buffer, plain.load.index.constant

        def pointer(builder: ir.IRBuilder, batch: ir.Value) -> ir.Value:
            return offset(builder, self.pointers[buffer], memory_type(buffer.dtype), (batch, plain.steps[0]), (start, 1))

        return Memory(pointer)

    def finish(self, builder: ir.IRBuilder, batch: ir.Value, m: ir.Value, n: ir.Value, sums: ir.Value, valid: int) -> None:
        """Evaluate the stores on one vector of finished sums."""
        kernel, count = self.kernel, self.blocking.lanes
        emitter = self._emitter(builder, self.known)
        lanes = None
        if count == 1:
            sums = builder.extract_element(sums, ir.Constant(I32, 0))
        else:
            lanes = Lanes(kernel.columns, count, valid if valid < count else None)
        emitter.accumulator = sums
        with emitter.scope({kernel.batch: batch, kernel.rows: m, kernel.columns: n}, lanes):
            for store in kernel.stores:
                emitter.store(store)

    def _pack_left(
        self, builder: ir.IRBuilder, destination: ir.Value, batch: ir.Value, row: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        """Panel of A: element (i, p) goes to destination[i * a_panel[0] + p * a_panel[1]]."""
        kernel, (row_step, depth_step) = self.kernel, self.blocking.a_panel
        first = _Axis(kernel.rows, row, rows, lambda i: (i, row_step))
        second = _Axis(kernel.depth, column, columns, lambda p: (p, depth_step))
        slow, fast = (first, second) if depth_step == 1 else (second, first)
        self._copy(builder, destination, batch, kernel.left, slow, fast, 1)

    def _pack_right(
        self, builder: ir.IRBuilder, destination: ir.Value, batch: ir.Value, row: ir.Value, rows: ir.Value,
        column: ir.Value, columns: ir.Value,
    ) -> None:  # fmt: skip
        """Panels of B: element (p, j) goes to destination[(j // nr) * rows * nr + p * nr + j % nr]."""
        kernel, nr = self.kernel, self.blocking.nr
        emitter = self._emitter(builder, self.known)
        vectors_along_depth = self.contraction.b.fastest == 0

        def panel(start: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            to_panel = offset(builder, destination, register_type(kernel.element), (builder.mul(start, rows), 1))
            left = builder.sub(columns, start)
            count = builder.select(builder.icmp_signed("<", left, constant(I64, nr)), left, constant(I64, nr))
            along_depth = _Axis(kernel.depth, row, rows, lambda p: (p, nr))
            along_columns = _Axis(kernel.columns, builder.add(column, start), count, lambda j: (j, 1))
            if vectors_along_depth:
                self._copy(builder, to_panel, batch, kernel.right, along_columns, along_depth, nr)
            else:
                self._copy(builder, to_panel, batch, kernel.right, along_depth, replace(along_columns, whole=nr), 1)
            return []

        emitter.loop(None, constant(I64, 0), columns, nr, [], panel)

    def _copy(
        self, builder: ir.IRBuilder, destination: ir.Value, batch: ir.Value, value: Value, slow: _Axis, fast: _Axis,
        fast_step: int,
    ) -> None:  # fmt: skip
        """Evaluate `value` over slow x fast, vectors along fast, and write it to the panel."""
        emitter = self._emitter(builder, self.known)
        lanes = self.target.lanes(self.kernel.element.name)

        def row(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            base = offset(builder, destination, register_type(self.kernel.element), slow.place(i))
            writer = _Writer(emitter, self.kernel.element, base, fast, fast_step, value)
            with emitter.scope({slow.variable: builder.add(slow.start, i)}):
                writer.write(lanes)
            return []

        with emitter.scope({self.kernel.batch: batch}):
            emitter.loop(None, constant(I64, 0), slow.count, 1, [], row)


@dataclass(frozen=True)
class _Axis:
    """One direction of a panel: its variable, where it starts, how many elements, and their place in the panel.

    `whole`: the panel has room for this many elements in this direction, so edges may be written in whole vectors.
    """

    variable: Variable
    start: ir.Value
    count: ir.Value
    place: Callable[[ir.Value], tuple[ir.Value, int]]
    whole: int = 0


@dataclass(frozen=True)
class _Writer:
    """Writes one line of a panel."""

    emitter: Emitter
    element: DType
    base: ir.Value
    axis: _Axis
    step: int
    value: Value

    def write(self, lanes: int) -> None:
        """All elements along the axis: whole vectors, then one with a mask."""
        builder, count = self.emitter.builder, self.axis.count
        if lanes == 1:
            self._loop(constant(I64, 0), count, 1, None)
            return
        whole = builder.and_(count, constant(I64, -lanes))
        zero = constant(I64, 0)
        vectors = Lanes(self.axis.variable, lanes, None, aligned=False)
        self.emitter.when(builder.icmp_signed(">", whole, zero), lambda: self._loop(zero, whole, lanes, vectors))
        self.emitter.when(builder.icmp_signed("<", whole, count), lambda: self._tail(whole, lanes))

    def _loop(self, start: ir.Value, stop: ir.Value, step: int, lanes: Lanes | None) -> None:
        def body(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            self._one(i, lanes)
            return []

        self.emitter.loop(None, start, stop, step, [], body)

    def _tail(self, whole: ir.Value, lanes: int) -> None:
        builder = self.emitter.builder
        left = builder.sub(self.axis.count, whole)
        numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        mask = builder.icmp_signed("<", numbers, splat(builder, builder.trunc(left, I32), lanes))
        self._one(whole, Lanes(self.axis.variable, lanes, mask, aligned=False))

    def _one(self, i: ir.Value, lanes: Lanes | None) -> None:
        emitter, builder = self.emitter, self.emitter.builder
        scalar = register_type(self.element)
        with emitter.scope({self.axis.variable: builder.add(self.axis.start, i)}, lanes):
            value = emitter.evaluate(self.value)
            place, step = self.axis.place(i)
            pointer = offset(builder, self.base, scalar, (place, step))
            if lanes is None:
                builder.store(value, pointer)
                return
            value = emitter.spread(value)
            self._vector(value, pointer, lanes)

    def _vector(self, value: ir.Value, pointer: ir.Value, lanes: Lanes) -> None:

        builder, size = self.emitter.builder, self.element.itemsize
        mask = self.emitter.active_mask()
        align = ir.Constant(I32, size)
        if self.step == 1:
            if mask is None:
                builder.store(value, pointer, align=size)
            else:
                arguments = [value, pointer, align, mask]
                intrinsic(builder, f"llvm.masked.store.{suffix(value.type)}.p0", ir.VoidType(), arguments)
            return
        if mask is None:
            mask = ir.Constant(ir.VectorType(BIT, lanes.count), [1] * lanes.count)
        places = ir.Constant(ir.VectorType(I32, lanes.count), [j * self.step for j in range(lanes.count)])
        pointers = builder.gep(pointer, [places], source_etype=register_type(self.element))
        pointers.type = ir.VectorType(POINTER, lanes.count)
        arguments = [value, pointers, align, mask]
        name = f"llvm.masked.scatter.{suffix(value.type)}.v{lanes.count}p0"
        intrinsic(builder, name, ir.VoidType(), arguments)


