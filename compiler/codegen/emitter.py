"""Emits loop IR values as LLVM IR: scopes, loops, indices, loads and stores.

A scope is a place where some loop variables have a value. Every expression is emitted in the outermost scope that
binds all the variables it depends on, which is how invariant code leaves loops. For that, the block in front of a loop
is left open until the loop is finished.

One variable may be vectorised: it then stands for `lanes` consecutive values, and expressions that depend on it are
vectors. The tail of such a loop is emitted once more with a constant mask of active lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
from .arithmetic import (
    BIT,
    I32,
    I64,
    Arithmetic,
    both,
    constant,
    intrinsic,
    lanes_of,
    mask_flags,
    masked_store,
    memory_type,
    register_type,
    splat,
    suffix,
)
from .control_flow import POINTER
from .lanes import VectorLoop, lane_offsets, lane_step, lane_values
from .locations import located


@dataclass(eq=False)
class Scope:
    """Where some variables are bound; `block` is the end of the code emitted in it so far."""

    variables: frozenset[Variable]
    block: ir.Block | None = None
    memo: dict[Any, ir.Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Lanes:
    """The vectorised variable: how many values at once, and which of them exist.

    active: the number of lanes that exist, a vector of bits that says which, or None for all.
    aligned: whether lane 0 is always at a multiple of `count`.
    """

    variable: Variable
    count: int
    active: int | ir.Value | None = None
    aligned: bool = True

    @property
    def loop(self) -> VectorLoop:
        return VectorLoop(self.variable, self.count, self.aligned)


# A stretch of memory this many vectors long is loaded whole rather than gathered lane by lane.
_LONGEST_STRETCH = 4


# Conditions are equal by their contents.
ConditionKey = tuple[Index, int, int]


def condition_key(condition: Condition) -> ConditionKey:
    return condition.index, condition.low, condition.high


def _is_constant(value: ir.Value) -> bool:
    return isinstance(value, ir.Constant)


class Emitter:
    """Emits values for one kernel function."""

    def __init__(self, builder: ir.IRBuilder, arithmetic: Arithmetic, pointers: dict[Buffer, ir.Value]):
        self.builder = builder
        self.arithmetic = arithmetic
        self.pointers = pointers
        # The scopes expressions may be emitted in now, and all that are open.
        self.scopes: list[Scope] = [Scope(frozenset())]
        self._open: list[Scope] = list(self.scopes)
        self.bindings: dict[Variable, ir.Value] = {}
        self.lanes: Lanes | None = None
        self.reduced: dict[Reduction, ir.Value] = {}
        self.accumulator: ir.Value | None = None
        # Conditions that hold wherever code is emitted now, as a test around it has shown.
        self.assumed: frozenset[ConditionKey] = frozenset()
        # Values that need not be computed again: how to load them where they were kept.
        self.kept: dict[Value, Callable[[], ir.Value]] = {}

    def bind(self, variable: Variable, value: ir.Value) -> None:
        """Bind a variable for all that this emitter emits."""
        self.scopes[0].variables |= {variable}
        self.bindings[variable] = value

    # Scopes and loops

    @contextmanager
    def scope(self, bindings: dict[Variable, ir.Value], lanes: Lanes | None = None) -> Iterator[Scope]:
        """Bind variables for the code emitted inside; `lanes` says that one of them is vectorised."""
        self.scopes[-1].block = self.builder.block
        scope = Scope(frozenset(bindings))
        outer_lanes = self.lanes
        self.scopes.append(scope)
        self._open.append(scope)
        self.bindings.update(bindings)
        if lanes is not None:
            self.lanes = lanes
        try:
            yield scope
        finally:
            self.scopes.pop()
            self._open.remove(scope)
            self.lanes = outer_lanes

    @contextmanager
    def _at(self, scope: Scope) -> Iterator[None]:
        """Emit at the end of an enclosing scope's code."""
        here = self.builder.block
        target = here if scope is self.scopes[-1] else scope.block
        assert target is not None
        position = self.scopes.index(scope)
        inner, self.scopes = self.scopes[position + 1 :], self.scopes[: position + 1]
        self.builder.position_at_end(target)
        try:
            yield
        finally:
            self.scopes = self.scopes + inner
            if target is not here:
                scope.block = self.builder.block
                self.builder.position_at_end(here)

    def _advance(self, old: ir.Block, new: ir.Block) -> None:
        """The code that ended in block `old` now ends in `new`."""
        if old is not new:
            for scope in self._open:
                if scope.block is old:
                    scope.block = new

    def _home(self, variables: frozenset[Variable]) -> Scope:
        for scope in reversed(self.scopes):
            if scope.variables & variables:
                return scope
        return self.scopes[0]

    def loop(
        self,
        variable: Variable | None,
        start: ir.Value | int,
        stop: ir.Value | int,
        step: int,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
        lanes: Lanes | None = None,
    ) -> list[ir.Value]:
        """`for variable in range(start, stop, step)`, at least once; `body(counter, carried) -> carried`.

        Returns the carried values after the loop. A static single iteration makes no loop.
        """
        single = isinstance(start, int) and isinstance(stop, int) and stop - start <= step
        begin = ir.Constant(I64, start) if isinstance(start, int) else start
        limit = ir.Constant(I64, stop) if isinstance(stop, int) else stop
        if single:
            with self.scope({variable: begin} if variable else {}, lanes):
                return list(body(begin, list(carried)))
        builder = self.builder
        header = builder.function.append_basic_block("loop")
        after = builder.function.append_basic_block("after")
        with builder.goto_block(header):
            counter = builder.phi(I64)
            phis = [builder.phi(value.type) for value in carried]
        with self.scope({variable: counter} if variable else {}, lanes):
            builder.position_at_end(header)
            results = list(body(counter, list(phis)))
            following = builder.add(counter, ir.Constant(I64, step), flags=("nsw",))
            builder.cbranch(builder.icmp_signed("<", following, limit), header, after)
            latch = builder.block
        before = self._close(header, after)
        counter.add_incoming(begin, before)
        counter.add_incoming(following, latch)
        for phi, initial, result in zip(phis, carried, results, strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(result, latch)
        return results

    def _close(self, enter: ir.Block, after: ir.Block, condition: ir.Value | None = None) -> ir.Block:
        """End the open block in front of an inner construct: go to `enter` (or past it), continue in `after`."""
        before = self.scopes[-1].block
        assert before is not None
        self.builder.position_at_end(before)
        if condition is None:
            self.builder.branch(enter)
        else:
            self.builder.cbranch(condition, enter, after)
        self.builder.position_at_end(after)
        self._advance(before, after)
        return before

    def when(self, condition: ir.Value, body: Callable[[], object]) -> None:
        """`if condition: body()`; invariant code that the body needs is emitted in front of the test."""
        function = self.builder.function
        then, after = function.append_basic_block("then"), function.append_basic_block("after")
        with self.scope({}):
            self.builder.position_at_end(then)
            body()
            self.builder.branch(after)
        self._close(then, after, condition)

    def when_all(self, conditions: Sequence[Condition], body: Callable[[], object]) -> None:
        """`if all of them hold: body()`, where the body takes them for granted; they are the same in all lanes."""
        condition = self.guard(conditions)
        assert condition is not None
        before, self.assumed = self.assumed, self.assumed | set(map(condition_key, conditions))
        self.when(condition, body)
        self.assumed = before

    # Lanes

    def _varies(self, variables: frozenset[Variable]) -> bool:
        return self.lanes is not None and self.lanes.variable in variables

    def spread(self, value: ir.Value) -> ir.Value:
        """The value in all lanes (itself if it is a vector or nothing is vectorised)."""
        if self.lanes is None or lanes_of(value):
            return value
        return splat(self.builder, value, self.lanes.count)

    def active_mask(self) -> ir.Value | None:
        """The lanes that exist, None for all."""
        if self.lanes is None or self.lanes.active is None:
            return None
        if not isinstance(self.lanes.active, int):
            return self.lanes.active
        flags = [int(i < self.lanes.active) for i in range(self.lanes.count)]
        return ir.Constant(ir.VectorType(BIT, self.lanes.count), flags)

    # Indices

    def lane_step(self, index: Index) -> int | None:
        """By how much the index grows from lane to lane, None if that is not one number."""
        return 0 if self.lanes is None else lane_step(index, self.lanes.loop)

    def index(self, index: Index) -> ir.Value:
        """The index as an i64, at lane 0 of the vectorised variable."""
        if index.is_constant:
            return ir.Constant(I64, index.constant)
        key = ("index", index, self.lanes.variable if self._varies(index.variables) and self.lanes else None)
        home = self._home(index.variables)
        found = home.memo.get(key)
        if found is not None:
            return found
        depth = self.scopes.index(home)
        own: list[tuple[indexing.Atom, int]] = []
        outside: list[tuple[indexing.Atom, int]] = []
        for term in index.terms:
            inner = self.scopes.index(self._home(term[0].variables)) >= depth
            (own if inner else outside).append(term)
        with self._at(home):
            total = self.index(Index(tuple(outside), index.constant)) if outside or index.constant else None
            for atom, coefficient in own:
                part = self._atom(atom)
                if coefficient != 1:
                    part = self.builder.mul(part, ir.Constant(I64, coefficient), flags=("nsw",))
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
                value = self.builder.extract_element(value, ir.Constant(I32, 0))
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
        return self._remembered(key, index.variables, lambda: self._new_vector_index(index, scalar))

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
                flags = [int(condition.low <= value < condition.high) for value in known]
                return ir.Constant(ir.VectorType(BIT, self.lanes.count), flags)
        if self._varies(condition.index.variables) and self.lane_step(condition.index) != 0:
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

    def _conditions(self, conditions: Sequence[Condition]) -> tuple[ir.Value | None, ir.Value | None]:
        """The conditions that are the same in all lanes together as an i1, and the others as a mask; None for none."""
        same: ir.Value | None = None
        differing: ir.Value | None = None
        for condition in conditions:
            if condition_key(condition) in self.assumed:
                continue
            key = ("condition", *condition_key(condition))
            value = self._remembered(key, condition.index.variables, partial(self.condition, condition))
            if lanes_of(value):
                differing = value if differing is None else both(self.builder, differing, value)
            else:
                same = value if same is None else self.builder.and_(same, value)
        return same, differing

    def guard(self, conditions: Sequence[Condition]) -> ir.Value | None:
        """All the conditions together, None if there are none."""
        same, differing = self._conditions(conditions)
        if same is None or differing is None:
            return same if differing is None else differing
        return both(self.builder, self.spread(same), differing)

    # Values

    def _remembered(self, key: Any, variables: frozenset[Variable], emit: Callable[[], ir.Value]) -> ir.Value:
        home = self._home(variables)
        found = home.memo.get(key)
        if found is None:
            with self._at(home):
                found = emit()
            home.memo[key] = found
        return found

    def evaluate(self, value: Value) -> ir.Value:
        """The value in registers: a vector if it depends on the vectorised variable, else a scalar."""
        if isinstance(value, Accumulator):
            assert self.accumulator is not None
            return self.accumulator
        if isinstance(value, Reduced):
            return self.reduced[value.reduction]
        return self._remembered(value, value.variables, lambda: self._emit_on_its_line(value))

    def _emit_on_its_line(self, value: Value) -> ir.Value:
        with located(self.builder, value.origin):
            return self._emit(value)

    def _emit(self, value: Value) -> ir.Value:
        if value in self.kept:
            return self.kept[value]()
        if isinstance(value, Literal):
            return constant(register_type(value.dtype), value.value)
        if isinstance(value, Load):
            return self._load(value)
        if isinstance(value, IndexValue):
            return self._index_value(value)
        if isinstance(value, Guarded):
            return self._guarded(value)
        assert isinstance(value, Apply)
        arguments = [self.evaluate(a) for a in value.arguments]
        if any(lanes_of(a) for a in arguments) or self._varies(value.variables):
            arguments = [self.spread(a) for a in arguments]
        before = self.builder.block
        result = self.arithmetic.apply(value.name, arguments, value.dtype, value.argument_dtype)
        # sin and cos open blocks of their own.
        self._advance(before, self.builder.block)
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

    def _readable(self, pointer: ir.Value, kind: ir.VectorType, allowed: ir.Value | None) -> ir.Value:
        """`pointer`, or where a vector may not be read a pointer to zeros.

        A splat of `allowed` as the mask of the load would mean the same, but LLVM 22 turns some of those into
        loads that always touch memory (as the memory operand of a shuffle, or where half of the mask is off).
        """
        if allowed is None:
            return pointer
        name = f"zeros.{suffix(kind)}"
        zeros = self.builder.module.globals.get(name)
        if zeros is None:
            zeros = ir.GlobalVariable(self.builder.module, kind, name)
            zeros.linkage, zeros.global_constant, zeros.initializer = "internal", True, ir.Constant(kind, None)
        return self.builder.select(allowed, pointer, zeros)

    def _load(self, load: Load) -> ir.Value:
        element = memory_type(load.buffer.dtype)
        step = self.lane_step(load.index)
        if step == 0:
            raw = self._scalar_load(load, element, self.guard(load.guard))
        elif step == 1:
            raw = self._contiguous_load(load, element)
        else:
            shuffled = self._shuffled_load(load, element)
            raw = shuffled if shuffled is not None else self._gathered_load(load, element)
        return self.arithmetic.from_memory(raw, load.buffer.dtype)

    def _scalar_load(self, load: Load, element: ir.Type, guard: ir.Value | None) -> ir.Value:
        """One element for all lanes; a guard that does not hold reads a safe place instead."""
        place = self.index(load.index)
        if guard is not None:
            zero = ir.Constant(I64, 0)
            if lanes_of(guard):
                # Some lanes may be inside: the place is either right for them or clamped and not used.
                place = self.builder.select(self.builder.icmp_signed("<", place, zero), zero, place)
                top = ir.Constant(I64, load.buffer.size - 1)
                place = self.builder.select(self.builder.icmp_signed(">", place, top), top, place)
            else:
                place = self.builder.select(guard, place, zero)
        pointer = self.builder.gep(self.pointers[load.buffer], [place], inbounds=True, source_etype=element)
        return self.builder.load(pointer, typ=element, align=load.buffer.dtype.itemsize)

    def _mask(self, guard: ir.Value | None) -> ir.Value | None:
        """The lanes that may touch memory, None for all."""
        active = self.active_mask()
        if guard is None:
            return active
        guard = self.spread(guard)
        return guard if active is None else both(self.builder, guard, active)

    def _contiguous_load(self, load: Load, element: ir.Type) -> ir.Value:
        assert self.lanes is not None
        kind = ir.VectorType(element, self.lanes.count)
        allowed, guard = self._conditions(load.guard)
        pointer = self._readable(self.address(load.buffer, load.index, not load.guard), kind, allowed)
        mask = self._mask(guard)
        align = load.buffer.dtype.itemsize
        if mask is None:
            return self.builder.load(pointer, typ=kind, align=align)
        arguments = [pointer, ir.Constant(I32, align), mask, ir.Constant(kind, None)]
        return intrinsic(self.builder, f"llvm.masked.load.{suffix(kind)}.p0", kind, arguments)

    def _shuffled_load(self, load: Load, element: ir.Type) -> ir.Value | None:
        """Lanes at known distances from lane 0: the stretch they lie in is loaded whole, then shuffled into place.

        None where the stretch is too long, or where which lanes may be read is known only at run time.
        """
        assert self.lanes is not None
        offsets = lane_offsets(load.index, self.lanes.loop)
        allowed, guard = self._conditions(load.guard)
        mask = self._mask(guard)
        if offsets is None or not (mask is None or _is_constant(mask)):
            return None
        first, span = min(offsets), max(offsets) - min(offsets) + 1
        if span > _LONGEST_STRETCH * self.lanes.count:
            return None
        readable = [True] * self.lanes.count if mask is None else mask_flags(mask)
        if not any(readable):
            return ir.Constant(ir.VectorType(element, self.lanes.count), None)
        wide = 1 << (span - 1).bit_length()
        touched = [0] * wide
        for offset, flag in zip(offsets, readable, strict=True):
            touched[offset - first] |= int(flag)
        stretch_mask = ir.Constant(ir.VectorType(BIT, wide), touched)
        kind = ir.VectorType(element, wide)
        pointer = self.builder.gep(
            self.address(load.buffer, load.index, not load.guard), [ir.Constant(I64, first)], source_etype=element
        )
        pointer = self._readable(pointer, kind, allowed)
        arguments = [pointer, ir.Constant(I32, load.buffer.dtype.itemsize), stretch_mask, ir.Constant(kind, None)]
        stretch = intrinsic(self.builder, f"llvm.masked.load.{suffix(kind)}.p0", kind, arguments)
        order = ir.Constant(ir.VectorType(I32, self.lanes.count), [offset - first for offset in offsets])
        return self.builder.shuffle_vector(stretch, ir.Constant(kind, ir.Undefined), order)

    def _gathered_load(self, load: Load, element: ir.Type) -> ir.Value:
        assert self.lanes is not None
        count = self.lanes.count
        kind = ir.VectorType(element, count)
        places = self.index_lanes(load.index)
        pointers = self.builder.gep(self.pointers[load.buffer], [places], source_etype=element)
        pointers.type = ir.VectorType(POINTER, count)
        mask = self._mask(self.guard(load.guard))
        if mask is None:
            mask = ir.Constant(ir.VectorType(BIT, count), [1] * count)
        arguments = [pointers, ir.Constant(I32, load.buffer.dtype.itemsize), mask, ir.Constant(kind, None)]
        return intrinsic(self.builder, f"llvm.masked.gather.{suffix(kind)}.v{count}p0", kind, arguments)

    def store(self, store: Store) -> None:
        """Emit a store at the builder's position."""
        with located(self.builder, store.origin):
            self._store(store)

    def _store(self, store: Store) -> None:
        value = self.evaluate(store.value)
        varies = self._varies(store.index.variables)
        if store.accumulate:
            held = self._load(Load(store.buffer.dtype.compute, store.buffer, store.index, store.guard))
            if varies:
                value, held = self.spread(value), self.spread(held)
            value = self.arithmetic.apply("add", [held, value], store.buffer.dtype, store.buffer.dtype)
        if varies:
            value = self.spread(value)
        raw = self.arithmetic.to_memory(value, store.buffer.dtype)
        guard = self.guard(store.guard)
        align = store.buffer.dtype.itemsize
        if not lanes_of(raw):
            address = self.address(store.buffer, store.index, guard is None)
            if guard is None:
                self.builder.store(raw, address, align=align)
                return
            before = self.builder.block
            with self.builder.if_then(guard):
                self.builder.store(raw, address, align=align)
            self._advance(before, self.builder.block)
            return
        self._vector_store(store, raw, self._mask(guard), align)

    def _vector_store(self, store: Store, raw: ir.Value, mask: ir.Value | None, align: int) -> None:
        assert self.lanes is not None
        count = self.lanes.count
        kind = raw.type
        if self.lane_step(store.index) == 1:
            pointer = self.address(store.buffer, store.index)
            if mask is None:
                self.builder.store(raw, pointer, align=align)
                return
            masked_store(self.builder, raw, pointer, mask, align)
            return
        if self._shuffled_store(store, raw, mask, align):
            return
        places = self.index_lanes(store.index)
        pointers = self.builder.gep(self.pointers[store.buffer], [places], source_etype=memory_type(store.buffer.dtype))
        pointers.type = ir.VectorType(POINTER, count)
        if mask is None:
            mask = ir.Constant(ir.VectorType(BIT, count), [1] * count)
        arguments = [raw, pointers, ir.Constant(I32, align), mask]
        intrinsic(self.builder, f"llvm.masked.scatter.{suffix(kind)}.v{count}p0", ir.VoidType(), arguments)

    def _shuffled_store(self, store: Store, raw: ir.Value, mask: ir.Value | None, align: int) -> bool:
        """Store lanes at known, different distances as one masked stretch of memory; False if that does not apply."""
        assert self.lanes is not None
        count = self.lanes.count
        offsets = lane_offsets(store.index, self.lanes.loop)
        if offsets is None or not (mask is None or _is_constant(mask)):
            return False
        written = [True] * count if mask is None else mask_flags(mask)
        used = [offset for offset, allowed in zip(offsets, written, strict=True) if allowed]
        if not used:
            return True
        first, span = min(used), max(used) - min(used) + 1
        if len(set(used)) != len(used) or span > 2 * count:
            return False
        wide = 1 << (span - 1).bit_length()
        source = {offset - first: lane for lane, (offset, w) in enumerate(zip(offsets, written, strict=True)) if w}
        order = ir.Constant(ir.VectorType(I32, wide), [source.get(i, 0) for i in range(wide)])
        stretch = self.builder.shuffle_vector(raw, ir.Constant(raw.type, ir.Undefined), order)
        element = memory_type(store.buffer.dtype)
        pointer = self.builder.gep(
            self.address(store.buffer, store.index), [ir.Constant(I64, first)], source_etype=element
        )
        stretch_mask = ir.Constant(ir.VectorType(BIT, wide), [int(i in source) for i in range(wide)])
        masked_store(self.builder, stretch, pointer, stretch_mask, align)
        return True
