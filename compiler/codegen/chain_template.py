"""What the parts of a chain's code share: where everything is in memory, and emitters that know it."""

from __future__ import annotations

from llvmlite import ir

from ..schedule.collapse import all_values, roots_of
from ..schedule.index import Variable
from ..schedule.loop_ir import Buffer, Keep, Kept, Product, ProductAt, Reduced, Value
from .arithmetic import BIT, I32, Arithmetic, lanes_of, memory_type, register_type, widened
from .chain_blocking import ChainPlan, Memory
from .control_flow import index, offset
from .emitter import Emitter
from .loops import load_pointers
from .vector_target import VectorTarget


class ChainEmitter(Emitter):
    """An emitter that reads products and kept values from the current row of their blocks."""

    def __init__(
        self, builder: ir.IRBuilder, arithmetic: Arithmetic, pointers: dict[Buffer, ir.Value], columns: Variable
    ):
        super().__init__(builder, arithmetic, pointers)
        self.columns = columns
        self.row_of: dict[Product | Keep, ir.Value] = {}
        # The column that blocks begin with.
        self.origin: ir.Value = index(0)
        self.element: ir.Type = I32
        self.align = 1

    def _emit(self, value: Value) -> ir.Value:
        if isinstance(value, ProductAt):
            return self.read(value.product, value)
        if isinstance(value, Kept):
            return self.read(value.keep, value)
        return super()._emit(value)

    def _count(self) -> int:
        return self.lanes.count if self.lanes is not None else 0

    def _place(self, block: Product | Keep) -> ir.Value:
        column = self.builder.sub(self.bindings[self.columns], self.origin, flags=("nsw",))
        return offset(self.builder, self.row_of[block], self.element, (column, 1))

    def read(self, block: Product | Keep, value: Value) -> ir.Value:
        kind = register_type(value.dtype.compute)
        raw_kind = ir.IntType(_bits(self.element)) if kind == BIT else kind
        raw = self.builder.load(self._place(block), typ=widened(raw_kind, self._count()), align=self.align)
        return self.builder.trunc(raw, widened(BIT, self._count())) if kind == BIT else raw

    def keep(self, block: Keep, value: ir.Value) -> None:
        """Write down a value of the current vector of columns; bools take the room of an element."""
        if self.lanes is not None:
            value = self.spread(value)
        scalar = value.type.element if lanes_of(value) else value.type
        if scalar == BIT:
            value = self.builder.zext(value, widened(ir.IntType(_bits(self.element)), lanes_of(value)))
        self.builder.store(value, self._place(block), align=self.align)


def _bits(element: ir.Type) -> int:
    return element.width if isinstance(element, ir.IntType) else 32 if isinstance(element, ir.FloatType) else 64


class ChainTemplate:
    """A chain's kernel and plan, its operands and its scratch memory."""

    def __init__(self, chosen: ChainPlan, target: VectorTarget, function: ir.Function, builder: ir.IRBuilder):
        kernel = chosen.kernel
        self.kernel, self.plan, self.target = kernel, chosen, target
        self.function, self.builder = function, builder
        self.scalar = register_type(kernel.element)
        self.size = kernel.element.itemsize
        self.pointers = load_pointers(builder, function.args[0], kernel.buffers)
        # The column that blocks of scratch and packed operands begin with.
        self.origin: ir.Value = index(0)
        # What depends on no loop is computed once, here in the entry block, and known to all later emitters.
        self.known: dict[object, ir.Value] = {}
        entry = self.emitter({})
        for value in all_values(roots_of(kernel)):
            if not value.variables and not isinstance(value, (ProductAt, Kept, Reduced)):
                entry.evaluate(value)
                for each in value.indices:
                    entry.index(each)
        self.known = dict(entry.scopes[0].memo)

    def emitter(self, bound: dict[Variable, ir.Value]) -> ChainEmitter:
        """An emitter at the builder's position that knows some variables."""
        arithmetic = Arithmetic(self.builder, self.target.has_fma, self.target.has_f16c)
        emitter = ChainEmitter(self.builder, arithmetic, self.pointers, self.kernel.columns)
        emitter.element, emitter.align = self.scalar, self.size * self.plan.products[0].tiles.lanes
        emitter.origin = self.origin
        emitter.scopes[0].memo.update(self.known)
        for variable, value in bound.items():
            emitter.bind(variable, value)
        return emitter

    def scratch(self, nbytes: int) -> ir.Value:
        """The place in scratch memory so many bytes behind its start."""
        return offset(self.builder, self.function.args[3], ir.IntType(8), (nbytes, 1))

    def place(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return offset(self.builder, base, self.scalar, *terms)

    def block(self, block: Product | Keep) -> ir.Value:
        """Where the block of rows of a product or a kept value is."""
        return self.scratch(self.plan.offsets[self.plan.blocks[block]])

    def memory(self, memory: Memory, batch: ir.Value) -> ir.Value:
        """The address of an operand's element (0, 0)."""
        emitter = self.emitter({self.kernel.batch: batch})
        element = memory_type(memory.load.buffer.dtype)
        return offset(self.builder, self.pointers[memory.load.buffer], element, (emitter.index(memory.base), 1))
