"""A loop kernel as an LLVM function.

    void kernel(ptr buffers, i64 begin, i64 end, ptr scratch)
      for unit in begin * units_per_chunk .. end * units_per_chunk:     a unit: one outer iteration, or
          decode the outer variables from unit                          a block of the last outer variable
          for each pass: loops, vectors along one variable

What is vectorised (`Plan`): the innermost loop of each pass, or the last outer variable, whichever reads and writes
memory in longer runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from ..schedule import index as indexing
from ..schedule.collapse import all_values, collapse, pass_roots
from ..schedule.index import FromData, Index, Variable
from ..schedule.loop_ir import Apply, Buffer, Condition, Literal, Load, LoopKernel, Pass, Value
from .accumulators import Accumulator
from .arithmetic import BYTE, I32, I64, Arithmetic, constant, register_type, widened
from .control_flow import POINTER
from .emitter import Emitter, condition_key
from .kept_rows import FUNCTION, FUNCTIONS, SIMPLE, KeptRow, row_values
from .lanes import VectorLoop, lane_offsets
from .locations import kernel_function, located
from .scopes import Lanes
from .vector_target import VectorTarget

# Loops are written out up to so many operations in all, of which a mathematical function counts as several.
_MOST_UNROLLED, _FUNCTION_SIZE = 64, 16
# A pass with so many times fewer iterations than another does not matter.
_RARELY = 8
# Rows of a table are asked for this many units before they are read, if they are this many bytes long.
_ROWS_AHEAD, _SHORTEST_ROW, _LONGEST_ROW, _LINE_BYTES = 4, 128, 4096, 64
# A chunk should be worth waking a thread for; more chunks than this balance nothing.
_CHUNK_NANOSECONDS, _MOST_CHUNKS = 20_000.0, 64
# What one core moves to and from the caches beyond its own, or memory.
_BYTES_PER_NANOSECOND = 40.0


@dataclass(frozen=True)
class Plan:
    """How a loop kernel is run. `vector` is the outer variable that is vectorised (None: each pass's last variable).

    `lanes` are those of each pass, alike if an outer variable is vectorised. `nanoseconds` estimates what all units
    cost. `kept`: what passes leave to later ones in the scratch memory.
    """

    vector: Variable | None
    lanes: tuple[int, ...]
    block: int
    units: int
    units_per_chunk: int
    nanoseconds: float
    kept: tuple[KeptRow, ...] = ()
    scratch_bytes: int = 0

    @property
    def chunks(self) -> int:
        return -(-self.units // self.units_per_chunk)


def plan(kernel: LoopKernel, target: VectorTarget) -> Plan:
    """The plan with the least estimated cost; it depends on the kernel and the target only."""
    width = max(1, target.vector_bits // (8 * _element_bytes(kernel)))
    capacity = target.l2_bytes // 2
    options = [_Option(kernel, None, width, capacity)]
    if kernel.outer:
        options.append(_Option(kernel, kernel.outer[-1], width, capacity))
    best = min(options, key=lambda option: option.cost)
    outer = [v.extent for v in kernel.outer]
    if best.vector is None:
        units, block = math.prod(outer), 0
    else:
        rows = math.prod(outer[:-1])
        vectors = -(-best.vector.extent // best.lanes[0])
        wanted = max(1, min(vectors, -(-_MOST_CHUNKS // max(1, rows))))
        block = -(-vectors // wanted) * best.lanes[0]
        units = rows * -(-best.vector.extent // block)
    nanoseconds = max(best.cost, _streamed_bytes(kernel) / _BYTES_PER_NANOSECOND)
    chunks = max(1, min(_MOST_CHUNKS, units, math.ceil(nanoseconds / _CHUNK_NANOSECONDS)))
    if chunks > 1:
        # Threads come in twos and fours: three chunks would leave one of two threads waiting.
        chunks = min(units, -(-chunks // 4) * 4)
    per_chunk, values = max(1, -(-units // chunks)), best.values
    kept, scratch_bytes = tuple(values.kept), values.scratch_bytes
    return Plan(best.vector, best.lanes, block, units, per_chunk, nanoseconds, kept, scratch_bytes)


def _element_bytes(kernel: LoopKernel) -> int:
    """The size lanes are counted in: 8 if all arithmetic is on 8-byte types, else 4."""
    sizes = {b.dtype.compute.itemsize for b in kernel.buffers}
    return 8 if sizes == {8} else 4


def _streamed_bytes(kernel: LoopKernel) -> int:
    """The size of the buffers, but for those of which data says what part is used."""
    found: dict[Buffer, None] = {}
    for each in kernel.passes:
        loads = [(v.buffer, v.index) for v in all_values(pass_roots(each)) if isinstance(v, Load)]
        for buffer, index in (*loads, *((store.buffer, store.index) for store in each.stores)):
            if not index.has_data:
                found[buffer] = None
    return sum(buffer.size * buffer.dtype.itemsize for buffer in found)


class _Option:
    """One choice of the vectorised variable, and what it costs."""

    def __init__(self, kernel: LoopKernel, vector: Variable | None, width: int, capacity: int):
        self.vector = vector
        passes = kernel.passes
        computed = row_values(passes, 1, 0, capacity).computed
        self.lanes: tuple[int, ...]
        if vector is not None:
            self.lanes = (_lanes(vector.extent, _usual_operations(passes, computed), width),) * len(passes)
        else:
            self.lanes = tuple(_lanes_along(p, len(values), width) for p, values in zip(passes, computed, strict=True))
        copies, padding = (1, max(self.lanes)) if vector is None else (self.lanes[0], 0)
        self.values = row_values(passes, copies, padding, capacity)
        outer = math.prod(v.extent for v in kernel.outer)
        self.cost = sum(map(partial(self._pass_cost, outer=outer), passes, self.lanes, self.values.computed))

    def _pass_cost(self, each: Pass, lanes: int, computed: Sequence[Value], outer: int) -> float:
        iterations: float = outer * math.prod(v.extent for v in each.variables)
        variable = self.vector or (each.variables[-1] if each.variables else None)
        lanes = lanes if variable is not None else 1
        extent = variable.extent if variable is not None else 1
        iterations *= min((_share(store.guard) for store in each.stores if not each.reductions), default=1.0)
        vectors = iterations * (-(-extent // lanes) * lanes / extent) / lanes
        cost = 0.0
        for value in computed:
            varies = variable in value.variables
            times = vectors if varies else vectors / max(1, extent / lanes)
            if isinstance(value, Apply):
                cost += times * (FUNCTION if value.name in FUNCTIONS else SIMPLE) * max(1, lanes / 16)
            if isinstance(value, Load):
                cost += self._access(value.index, variable, lanes, times)
        for store in each.stores:
            cost += self._access(store.index, variable, lanes, vectors)
        return cost + vectors * SIMPLE

    def _access(self, index: Index, variable: Variable | None, lanes: int, times: float) -> float:
        if variable is None or lanes == 1:
            return times * SIMPLE
        offsets = lane_offsets(index, VectorLoop(variable, lanes))
        span = lanes * 4 + 1 if offsets is None else max(offsets) - min(offsets) + 1
        if span > lanes * 4:
            return times * SIMPLE * lanes * 2.0
        return times * SIMPLE * max(1, span / 16)


def _lanes(extent: int, operations: int, width: int) -> int:
    """How many elements are worked on at once: several vectors if there is little to do for each."""
    unroll = 4 if operations <= 12 else 2 if operations <= 30 else 1
    lanes = 1 << (min(width * unroll, extent) - 1).bit_length() if extent > 1 else 1
    return max(width, lanes // 2) if width < lanes and extent < 2 * lanes else lanes


def _lanes_along(each: Pass, operations: int, width: int) -> int:
    """The lanes of the pass's last loop: one if two of them might add to the same element."""
    if not each.variables:
        return 1
    lanes = _lanes(each.variables[-1].extent, operations, width)
    loop = VectorLoop(each.variables[-1], lanes)
    for store in each.stores:
        offsets = lane_offsets(store.index, loop) if store.accumulate else range(lanes)
        if offsets is None or len(set(offsets)) < lanes:
            return 1
    return lanes


def _usual_operations(passes: Sequence[Pass], computed: Sequence[Sequence[Value]]) -> int:
    """How many values the passes compute in which the kernel spends its time."""
    iterations = [math.prod(v.extent for v in each.variables) for each in passes]
    often = [n * _RARELY >= max(iterations) for n in iterations]
    return sum(len(values) for values, counts in zip(computed, often, strict=True) if counts)


def _is_unrolled(each: Pass, variables: Sequence[Variable]) -> bool:
    """Whether loops are so short, and do so little, that they are written out: windows of pooling, say."""
    values = [v for v in all_values(pass_roots(each)) if not isinstance(v, Literal)]
    work = sum(_FUNCTION_SIZE if isinstance(v, Apply) and v.name in FUNCTIONS else 1 for v in values)
    return max(1, work + len(each.reductions)) * math.prod(v.extent for v in variables) <= _MOST_UNROLLED


def _share(guard: Sequence[Condition]) -> float:
    """The share of iterations in which a number from data can be expected to pass the guard."""
    share = 1.0
    for condition in guard:
        extents = [atom.extent for atom, _ in condition.index.terms if isinstance(atom, FromData)]
        if extents:
            share *= min(1.0, (condition.high - condition.low) / max(extents))
    return share


def emit(module: ir.Module, name: str, kernel: LoopKernel, target: VectorTarget) -> Plan:
    """Add the kernel's function to the module. The kernel must not be empty: no extent is zero."""
    kernel = collapse(kernel)
    chosen = plan(kernel, target)
    function, builder = kernel_function(module, name)
    pointers = load_pointers(builder, function.args[0], kernel.buffers)
    emitter = Emitter(builder, Arithmetic(builder, target.has_fma, target.has_f16c), pointers)
    _Function(kernel, chosen, emitter, function.args[3]).emit(function)
    builder.ret_void()
    return chosen


def load_pointers(builder: ir.IRBuilder, buffers: ir.Value, declared: Sequence[Buffer]) -> dict[Buffer, ir.Value]:
    """The address of every buffer of a kernel, from the array of pointers it is called with."""
    pointers = {}
    for buffer in declared:
        slot = builder.gep(buffers, [constant(I64, buffer.position)], source_etype=POINTER)
        pointers[buffer] = builder.load(slot, typ=POINTER, name=f"buffer{buffer.position}")
    return pointers


def _gathered_rows(kernel: LoopKernel, vector: Variable) -> list[Load]:
    """The loads of rows whose numbers are read from data, each row along `vector` and of a length worth asking for."""
    rows: dict[tuple[Buffer, Index], Load] = {}
    for each in kernel.passes:
        for value in all_values(pass_roots(each)):
            if not isinstance(value, Load) or value.guard or not value.index.has_data:
                continue
            numbers = [atom for atom, _ in value.index.terms if isinstance(atom, FromData)]
            steps = dict(value.index.terms)
            along = steps.get(vector) == 1 and not any(vector in number.variables for number in numbers)
            outer_only = value.index.variables <= frozenset(kernel.outer)
            if along and outer_only and len(numbers) == 1 and not any(_is_guarded(n.value) for n in numbers):
                nbytes = vector.extent * value.buffer.dtype.itemsize
                if _SHORTEST_ROW <= nbytes <= _LONGEST_ROW:
                    rows.setdefault((value.buffer, value.index), value)
    return list(rows.values())


def _is_guarded(number: Value) -> bool:
    """Whether what is read to compute the number must not be read everywhere."""
    return any(isinstance(value, Load) and value.guard for value in all_values([number]))


class _Function:
    """Emits the loops of one kernel."""

    def __init__(self, kernel: LoopKernel, chosen: Plan, emitter: Emitter, scratch: ir.Value):
        self.kernel, self.plan, self.emitter, self.scratch = kernel, chosen, emitter, scratch
        self.builder = emitter.builder
        # Of the pass that is being emitted.
        self.lanes = 1

    def emit(self, function: ir.Function) -> None:
        per_chunk, units = self.plan.units_per_chunk, self.plan.units
        if units == 1:
            self._unit(constant(I64, 0))
            return
        begin = self.builder.mul(function.args[1], constant(I64, per_chunk), flags=("nsw",))
        end = self.builder.mul(function.args[2], constant(I64, per_chunk), flags=("nsw",))
        last = constant(I64, units)
        end = self.builder.select(self.builder.icmp_signed("<", end, last), end, last)

        def unit(counter: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            self._unit(counter)
            return []

        self.emitter.loop(None, begin, end, 1, [], unit)

    def _unit(self, unit: ir.Value) -> None:
        vector = self.plan.vector
        outer = [v for v in self.kernel.outer if v is not vector]
        blocks = 1 if vector is None else -(-vector.extent // self.plan.block)
        rest, block = unit, constant(I64, 0)
        if blocks > 1:
            block = self.builder.urem(unit, constant(I64, blocks))
            rest = self.builder.udiv(unit, constant(I64, blocks))
        elif vector is not None:
            self._fetch_rows_ahead(unit, outer, vector)
        with self.emitter.scope(self._decoded(rest, outer)):
            if vector is None:
                self._passes()
            else:
                self._vector_block(vector, block, blocks)

    def _decoded(self, number: ir.Value, outer: Sequence[Variable]) -> dict[Variable, ir.Value]:
        """The outer variables at the unit (or row of blocks) of this number."""
        bindings = {}
        for position, variable in enumerate(reversed(outer)):
            first = position == len(outer) - 1
            bindings[variable] = number if first else self.builder.urem(number, constant(I64, variable.extent))
            if not first:
                number = self.builder.udiv(number, constant(I64, variable.extent))
        return bindings

    def _fetch_rows_ahead(self, unit: ir.Value, outer: Sequence[Variable], vector: Variable) -> None:
        """Ask for the rows that a later unit gathers: the processor foresees the next line of a row, not the next row.

        A prefetch touches nothing, and the row's number is read from where the later unit will read it.
        """
        rows = _gathered_rows(self.kernel, vector)
        if not rows:
            return
        later = self.builder.add(unit, constant(I64, _ROWS_AHEAD), flags=("nsw",))
        last = constant(I64, self.plan.units - 1)
        later = self.builder.select(self.builder.icmp_signed("<", later, last), later, last)
        signature = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        name = "llvm.prefetch.p0"
        found = self.builder.module.globals.get(name)
        prefetch = found if found is not None else ir.Function(self.builder.module, signature, name)
        with self.emitter.scope({**self._decoded(later, outer), vector: constant(I64, 0)}):
            for load in rows:
                row = self.emitter.address(load.buffer, load.index)
                nbytes = vector.extent * load.buffer.dtype.itemsize
                for at in range(0, nbytes, _LINE_BYTES):
                    line = self.builder.gep(row, [constant(I64, at)], source_etype=ir.IntType(8))
                    self.builder.call(prefetch, [line, *(constant(I32, n) for n in (0, 3, 1))])

    def _vector_block(self, vector: Variable, block: ir.Value, blocks: int) -> None:
        lanes, extent = self.plan.lanes[0], vector.extent
        whole = extent - extent % lanes
        tail = extent - whole

        def body(counter: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            self._passes()
            return []

        if blocks == 1:
            if whole:
                self.emitter.loop(vector, 0, whole, lanes, [], body, self._lanes(vector))
            if tail:
                self.emitter.loop(vector, whole, whole + 1, 1, [], body, self._lanes(vector, tail))
            return
        start = self.builder.mul(block, constant(I64, self.plan.block), flags=("nsw",))
        stop = self.builder.add(start, constant(I64, self.plan.block), flags=("nsw",))
        limit = constant(I64, whole)
        inside = self.builder.icmp_signed("<", stop, limit)
        stop = self.builder.select(inside, stop, limit)
        always = whole > (blocks - 1) * self.plan.block

        def main() -> None:
            self.emitter.loop(vector, start, stop, lanes, [], body, self._lanes(vector))

        if always:
            main()
        else:
            self.emitter.when(self.builder.icmp_signed("<", start, limit), main)
        if tail:
            is_last = self.builder.icmp_signed("==", block, constant(I64, blocks - 1))

            def rest() -> None:
                self.emitter.loop(vector, whole, whole + 1, 1, [], body, self._lanes(vector, tail))

            self.emitter.when(is_last, rest)

    def _lanes(self, variable: Variable, active: int | None = None) -> Lanes | None:
        return Lanes(variable, self.plan.lanes[0], active) if self.plan.lanes[0] > 1 else None

    def _passes(self) -> None:
        self.emitter.kept.clear()
        for number, each in enumerate(self.kernel.passes):
            self.lanes = self.plan.lanes[number]
            self._pass(each, [row for row in self.plan.kept if row.first == number])

    def _pass(self, each: Pass, kept: list[KeptRow]) -> None:
        inner = self.plan.vector is None and bool(each.variables) and self.lanes > 1
        accumulators = [Accumulator(r, self.emitter, each.variables, inner) for r in each.reductions]
        lanes = self.lanes if inner or self.emitter.lanes is not None else 0
        carried = [value for a in accumulators for value in a.initial(lanes)]
        finished = self._loops(each, list(each.variables), carried, accumulators, inner, kept)
        for accumulator in accumulators:
            values, finished = finished[: accumulator.width], finished[accumulator.width :]
            self.emitter.reduced[accumulator.reduction] = accumulator.finish(values)
        self.emitter.kept.update({row.value: partial(self._kept, row) for row in kept})

    def _place(self, row: KeptRow) -> tuple[ir.Value, ir.Type]:
        """Where the row's element for the current place of the loops is (or a vector of them), and its type."""
        element = register_type(row.value.dtype)
        place = indexing.flatten(tuple(map(indexing.of, row.variables)), tuple(v.extent for v in row.variables))
        if self.plan.vector is not None:
            place = place * self.lanes
        start = self.builder.gep(self.scratch, [constant(I64, row.offset)], inbounds=True, source_etype=BYTE)
        pointer = self.builder.gep(start, [self.emitter.index(place)], inbounds=True, source_etype=element)
        return pointer, widened(element, self.lanes if self.emitter.lanes is not None else 0)

    def _keep(self, row: KeptRow) -> None:
        """Every lane is written, those beyond the end of the row too: nobody reads them."""
        pointer, _ = self._place(row)
        value = self.emitter.spread(self.emitter.evaluate(row.value))
        with located(self.builder, row.value.origin):
            self.builder.store(value, pointer, align=row.value.dtype.compute.itemsize)

    def _kept(self, row: KeptRow) -> ir.Value:
        pointer, kind = self._place(row)
        return self.builder.load(pointer, typ=kind, align=row.value.dtype.compute.itemsize)

    def _loops(
        self,
        each: Pass,
        variables: list[Variable],
        carried: list[ir.Value],
        accumulators: list[Accumulator],
        inner: bool,
        kept: list[KeptRow],
    ) -> list[ir.Value]:
        if not variables:
            return self._body(each, carried, accumulators, kept)
        conditions = self._skipped_by(each, variables)
        if conditions:
            self.emitter.when_all(
                conditions, partial(self._loops, each, variables, carried, accumulators, inner, kept)
            )
            return []
        variable, rest = variables[0], variables[1:]

        def body(counter: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            return self._loops(each, rest, values, accumulators, inner, kept)

        if not inner and _is_unrolled(each, variables):
            for place in range(variable.extent):
                with self.emitter.scope({variable: constant(I64, place)}):
                    carried = body(constant(I64, place), carried)
            return carried
        if rest or not inner:
            return self.emitter.loop(variable, 0, variable.extent, 1, carried, body)
        lanes = self.lanes
        whole = variable.extent - variable.extent % lanes
        if whole:
            carried = self.emitter.loop(variable, 0, whole, lanes, carried, body, Lanes(variable, lanes))
        tail = variable.extent - whole
        if tail:
            carried = self.emitter.loop(variable, whole, whole + 1, 1, carried, body, Lanes(variable, lanes, tail))
        return carried

    def _skipped_by(self, each: Pass, variables: list[Variable]) -> list[Condition]:
        """Conditions known before the remaining loops begin without which these would do nothing."""
        if not each.stores or each.reductions:
            return []
        shared = dict.fromkeys(map(condition_key, each.stores[0].guard))
        for store in each.stores[1:]:
            found = set(map(condition_key, store.guard))
            shared = {key: None for key in shared if key in found}
        return [
            Condition(*key)
            for key in shared
            if key not in self.emitter.assumed and not key[0].variables & {*variables, self.plan.vector}
        ]

    def _body(
        self, each: Pass, carried: list[ir.Value], accumulators: list[Accumulator], kept: list[KeptRow]
    ) -> list[ir.Value]:
        result: list[ir.Value] = []
        for accumulator in accumulators:
            values, carried = carried[: accumulator.width], carried[accumulator.width :]
            result.extend(accumulator.step(values))
        for store in each.stores:
            self.emitter.store(store)
        for row in kept:
            self._keep(row)
        return result
