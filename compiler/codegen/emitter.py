"""Emits loop IR values as LLVM IR: indices, conditions and values, each in the scope that `scopes.py` finds for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from llvmlite import ir

from ..ir import dtypes
from ..schedule import index as indexing
from ..schedule.index import FloorDivision, FromData, Index, Remainder, Variable
from ..schedule.loop_ir import (
    Accumulator,
    Apply,
    Buffer,
    Condition,
    Guarded,
    IndexValue,
    Literal,
    Load,
    Reduced,
    Reduction,
    Store,
    Value,
)
from . import memory_access
from .arithmetic import BIT, I32, I64, Arithmetic, both, constant, lanes_of, memory_type, register_type, splat
from .constants import integer, lane_mask
from .lanes import lane_offsets, lane_values
from .locations import located
from .scopes import Scopes

# Conditions are equal by their contents.
ConditionKey = tuple[Index, int, int]


def condition_key(condition: Condition) -> ConditionKey:
    return condition.index, condition.low, condition.high


class Emitter(Scopes):
    """Emits values for one kernel function."""

    def __init__(self, builder: ir.IRBuilder, arithmetic: Arithmetic, pointers: dict[Buffer, ir.Value]):
        super().__init__(builder)
        self.arithmetic = arithmetic
        self.pointers = pointers
        self.reduced: dict[Reduction, ir.Value] = {}
        self.accumulator: ir.Value | None = None
        # Conditions that hold wherever code is emitted now, as a test around it has shown.
        self.assumed: frozenset[ConditionKey] = frozenset()
        # Values that need not be computed again: how to load them where they were kept.
        self.kept: dict[Value, Callable[[], ir.Value]] = {}

    # Indices

    def index(self, index: Index) -> ir.Value:
        """The index as an i64, at lane 0 of the vectorised variable."""
        if index.is_constant:
            return integer(64, index.constant)
        key = ("index", index, self.lanes.variable if self.varies(index.variables) and self.lanes else None)
        home = self.home(index.variables)
        found = home.memo.get(key)
        if found is not None:
            return found
        depth = self.scopes.index(home)
        own: list[tuple[indexing.Atom, int]] = []
        outside: list[tuple[indexing.Atom, int]] = []
        for term in index.terms:
            inner = self.scopes.index(self.home(term[0].variables)) >= depth
            (own if inner else outside).append(term)
        with self.at(home):
            total = self.index(Index(tuple(outside), index.constant)) if outside or index.constant else None
            for atom, coefficient in own:
                part = self._atom(atom)
                if coefficient != 1:
                    part = self.builder.mul(part, integer(64, coefficient), flags=("nsw",))
                total = part if total is None else self.builder.add(total, part, flags=("nsw",))
            assert total is not None
            home.memo[key] = total
        return total

    def _atom(self, atom: indexing.Atom) -> ir.Value:
        if isinstance(atom, Variable):
            return self.bindings[atom]
        if isinstance(atom, FromData):
            value = self.evaluate(atom.value)
            if lanes_of(value):
                value = self.builder.extract_element(value, integer(32, 0))
            return self._clamped(value, atom)
        return self._divide(self.index(atom.index), atom)

    def _clamped(self, value: ir.Value, atom: FromData) -> ir.Value:
        """An index read from data, brought into [0, extent) as i64."""
        dtype = atom.value.dtype
        lanes = lanes_of(value)
        wide = self.arithmetic.cast(value, dtype, dtypes.int64 if dtype.kind == "signed" else dtypes.uint64)
        top = constant(I64, atom.extent - 1, lanes)
        if dtype.kind == "signed":
            zero = constant(I64, 0, lanes)
            wide = self.builder.select(self.builder.icmp_signed("<", wide, zero), zero, wide)
        return self.builder.select(self.builder.icmp_unsigned(">", wide, top), top, wide)

    def _divide(self, value: ir.Value, atom: FloorDivision | Remainder) -> ir.Value:
        lanes = lanes_of(value)
        scalar = value.type.element if lanes else value.type
        low, _ = atom.index.bounds
        shift = -(low // atom.divisor) if low < 0 else 0
        if shift:
            value = self.builder.add(value, constant(scalar, shift * atom.divisor, lanes))
        divisor = constant(scalar, atom.divisor, lanes)
        if isinstance(atom, Remainder):
            return self.builder.urem(value, divisor)
        result = self.builder.udiv(value, divisor)
        return self.builder.sub(result, constant(scalar, shift, lanes)) if shift else result

    def index_lanes(self, index: Index) -> ir.Value:
        """The index in every lane, as a vector of i32 where it fits and i64 where not."""
        assert self.lanes is not None
        wide = not self._fits_32_bits(index)
        return self._vector_index(index, I64 if wide else I32)

    def _fits_32_bits(self, index: Index) -> bool:
        low, high = index.bounds
        if not (-(2**30) < low and high < 2**30):
            return False
        return all(
            self._fits_32_bits(atom.index) for atom, _ in index.terms if isinstance(atom, (FloorDivision, Remainder))
        )

    def _vector_index(self, index: Index, scalar: ir.Type) -> ir.Value:
        assert self.lanes is not None
        key = ("lanes", index, scalar)
        return self.remembered(key, index.variables, lambda: self._new_vector_index(index, scalar))

    def _new_vector_index(self, index: Index, scalar: ir.Type) -> ir.Value:
        assert self.lanes is not None
        count = self.lanes.count
        offsets = lane_offsets(index, self.lanes.loop)
        if offsets is not None:
            base = self.index(index)
            base = splat(self.builder, self.builder.trunc(base, scalar) if scalar != I64 else base, count)
            lanes = ir.Constant(ir.VectorType(scalar, count), list(offsets))
            return self.builder.add(base, lanes) if any(offsets) else base
        total: ir.Value = constant(scalar, index.constant, count)
        for atom, coefficient in index.terms:
            part = self._vector_atom(atom, scalar)
            if coefficient != 1:
                part = self.builder.mul(part, constant(scalar, coefficient, count))
            total = self.builder.add(total, part)
        return total

    def _vector_atom(self, atom: indexing.Atom, scalar: ir.Type) -> ir.Value:
        assert self.lanes is not None
        if lane_offsets(indexing.of(atom), self.lanes.loop) is not None:
            return self._vector_index(indexing.of(atom), scalar)
        if isinstance(atom, FromData):
            value = self._clamped(self.spread(self.evaluate(atom.value)), atom)
            kind = ir.VectorType(scalar, self.lanes.count)
            return self.builder.trunc(value, kind) if scalar != I64 else value
        assert not isinstance(atom, Variable)
        return self._divide(self._vector_index(atom.index, scalar), atom)

    # Conditions

    def condition(self, condition: Condition) -> ir.Value:
        """i1, or a vector of them if the condition differs between lanes."""
        low, high = condition.index.bounds
        if self.lanes is not None:
            known = lane_values(condition.index, self.lanes.loop)
            if known is not None:
                return lane_mask(condition.low <= value < condition.high for value in known)
        if self.varies(condition.index.variables) and self.lane_step(condition.index) != 0:
            value = self.index_lanes(condition.index)
            scalar, lanes = value.type.element, value.type.count
        else:
            value, scalar, lanes = self.index(condition.index), I64, 0
        result = None
        if low < condition.low:
            result = self.builder.icmp_signed(">=", value, constant(scalar, condition.low, lanes))
        if high >= condition.high:
            below = self.builder.icmp_signed("<", value, constant(scalar, condition.high, lanes))
            result = below if result is None else self.builder.and_(result, below)
        return result if result is not None else constant(BIT, 1, lanes)

    def conditions_by_lanes(self, conditions: Sequence[Condition]) -> tuple[ir.Value | None, ir.Value | None]:
        """The conditions that are the same in all lanes together as an i1, and the others as a mask; None for none."""
        same: ir.Value | None = None
        differing: ir.Value | None = None
        for condition in conditions:
            if condition_key(condition) in self.assumed:
                continue
            key = ("condition", *condition_key(condition))
            value = self.remembered(key, condition.index.variables, partial(self.condition, condition))
            if lanes_of(value):
                differing = value if differing is None else both(self.builder, differing, value)
            else:
                same = value if same is None else self.builder.and_(same, value)
        return same, differing

    def guard(self, conditions: Sequence[Condition]) -> ir.Value | None:
        """All the conditions together, None if there are none."""
        same, differing = self.conditions_by_lanes(conditions)
        if same is None or differing is None:
            return same if differing is None else differing
        return both(self.builder, self.spread(same), differing)

    def when_all(self, conditions: Sequence[Condition], body: Callable[[], object]) -> None:
        """`if all of them hold: body()`, where the body takes them for granted; they are the same in all lanes."""
        condition = self.guard(conditions)
        assert condition is not None
        before, self.assumed = self.assumed, self.assumed | set(map(condition_key, conditions))
        self.when(condition, body)
        self.assumed = before

    # Values

    def evaluate(self, value: Value) -> ir.Value:
        """The value in registers: a vector if it depends on the vectorised variable, else a scalar."""
        if isinstance(value, Accumulator):
            assert self.accumulator is not None
            return self.accumulator
        if isinstance(value, Reduced):
            return self.reduced[value.reduction]
        return self.remembered(value, value.variables, lambda: self._emit_on_its_line(value))

    def _emit_on_its_line(self, value: Value) -> ir.Value:
        with located(self.builder, value.origin):
            return self._emit(value)

    def _emit(self, value: Value) -> ir.Value:
        if value in self.kept:
            return self.kept[value]()
        if isinstance(value, Literal):
            return constant(register_type(value.dtype), value.value)
        if isinstance(value, Load):
            return memory_access.load(self, value)
        if isinstance(value, IndexValue):
            return self._index_value(value)
        if isinstance(value, Guarded):
            return self._guarded(value)
        assert isinstance(value, Apply)
        arguments = [self.evaluate(a) for a in value.arguments]
        if any(lanes_of(a) for a in arguments) or self.varies(value.variables):
            arguments = [self.spread(a) for a in arguments]
        before = self.builder.block
        result = self.arithmetic.apply(value.name, arguments, value.dtype, value.argument_dtype)
        # sin and cos open blocks of their own.
        self.advance(before, self.builder.block)
        return result

    def _reads_zero_outside(self, value: Guarded) -> bool:
        """Whether the load inside already gives the zero wanted outside, as a masked load of one vector does.

        A shuffled load does not: a lane outside may share its place in memory with one inside.
        """
        inside, outside = value.inside, value.outside
        if not (isinstance(inside, Load) and isinstance(outside, Literal) and repr(outside.value) in ("0.0", "0")):
            return False
        return set(value.conditions) <= set(inside.guard) and self.lane_step(inside.index) == 1

    def _guarded(self, value: Guarded) -> ir.Value:
        if self._reads_zero_outside(value):
            return self.evaluate(value.inside)
        condition = self.guard(value.conditions)
        inside, outside = self.evaluate(value.inside), self.evaluate(value.outside)
        assert condition is not None
        if any(lanes_of(v) for v in (condition, inside, outside)):
            inside, outside = self.spread(inside), self.spread(outside)
            if not lanes_of(condition):
                condition = splat(self.builder, condition, lanes_of(inside))
        return self.builder.select(condition, inside, outside)

    def _index_value(self, value: IndexValue) -> ir.Value:
        step = self.lane_step(value.index)
        if step == 0:
            number = self.index(value.index)
            return self.arithmetic.cast(number, dtypes.int64, value.dtype)
        number = self.index_lanes(value.index)
        source = dtypes.int64 if number.type.element == I64 else dtypes.int32
        return self.arithmetic.cast(number, source, value.dtype)

    # Memory

    def address(self, buffer: Buffer, index: Index, inbounds: bool = True) -> ir.Value:
        """Pointer to the element at lane 0; `inbounds`: it is one."""
        element = memory_type(buffer.dtype)
        return self.builder.gep(self.pointers[buffer], [self.index(index)], inbounds=inbounds, source_etype=element)

    def store(self, store: Store) -> None:
        """Emit a store at the builder's position."""
        with located(self.builder, store.origin):
            memory_access.store(self, store)
