"""Reductions in registers: what a loop carries for a sum, an extremum or the place of one, and how lanes combine."""

from __future__ import annotations

from llvmlite import ir

from ..ir import dtypes
from ..ir.dtypes import DType
from ..schedule.index import Index, Variable
from ..schedule.loop_ir import IndexValue, Reduction
from .arithmetic import I32, I64, constant, lanes_of, register_type, widened
from .constants import lane_order
from .emitter import Emitter
from .locations import located


class Accumulator:
    """How one reduction is carried through its loops: one value, or value and position for argmax and argmin.

    variables: the loops, outermost first; across_lanes: whether the last of them is vectorised.
    """

    def __init__(self, reduction: Reduction, emitter: Emitter, variables: tuple[Variable, ...], across_lanes: bool):
        self.reduction, self.emitter = reduction, emitter
        self.arithmetic, self.builder = emitter.arithmetic, emitter.builder
        self.dtype: DType = reduction.value.dtype.compute
        self.positioned = reduction.position is not None
        names = {"reduce_sum": "add", "reduce_max": "maximum", "argmax": "maximum"}
        self.name = names.get(reduction.combine, "minimum")
        self.across_lanes = across_lanes
        position = reduction.position
        index = position.index if isinstance(position, IndexValue) else None
        narrow = index is not None and 0 <= index.bounds[0] and index.bounds[1] < 2**31
        self.position_type = I32 if narrow else I64
        # Then an equal element is never an earlier one.
        self.in_order = index is not None and not across_lanes and _counts_up(index, variables)

    @property
    def width(self) -> int:
        return 2 if self.positioned else 1

    def initial(self, lanes: int) -> list[ir.Value]:
        """What the loops start from; argmax starts at position -1, which any element beats, or at the first."""
        lowest, highest = dtypes.value_bounds(self.dtype)
        identity = {"add": 0, "maximum": lowest, "minimum": highest}[self.name]
        start = constant(register_type(self.dtype), identity, lanes)
        return [start, constant(self.position_type, 0 if self.in_order else -1, lanes)] if self.positioned else [start]

    def step(self, carried: list[ir.Value]) -> list[ir.Value]:
        """Take in the element at the current place of the loops."""
        with located(self.builder, self.reduction.origin):
            return self._step(carried)

    def _step(self, carried: list[ir.Value]) -> list[ir.Value]:
        value = self.emitter.evaluate(self.reduction.value)
        if lanes_of(carried[0]):
            value = self.emitter.spread(value)
        new = [value]
        if self.positioned:
            assert self.reduction.position is not None
            position = self.emitter.evaluate(self.reduction.position)
            if self.position_type is I32:
                position = self.builder.trunc(position, widened(I32, lanes_of(position)))
            new.append(self.emitter.spread(position) if lanes_of(carried[0]) else position)
        combined = self._combine(carried, new)
        active = self.emitter.active_mask()
        if active is None or not lanes_of(carried[0]):
            return combined
        return [self.builder.select(active, a, b) for a, b in zip(combined, carried, strict=True)]

    def _combine(self, old: list[ir.Value], new: list[ir.Value]) -> list[ir.Value]:
        if not self.positioned:
            if self.name == "add" and self.dtype.is_float:
                return [self.builder.fadd(old[0], new[0], flags=("contract", "reassoc"))]
            return [self.arithmetic.apply(self.name, [old[0], new[0]], self.dtype, self.dtype)]
        better = self._better(old, new)
        return [self.builder.select(better, b, a) for a, b in zip(old, new, strict=True)]

    def _better(self, old: list[ir.Value], new: list[ir.Value]) -> ir.Value:
        """Whether the new element wins: it is beyond the old one, or equal and earlier; NaN is beyond everything."""
        b = self.builder
        if self.in_order and self.dtype.is_float:
            beyond = b.fcmp_unordered(">" if self.name == "maximum" else "<", new[0], old[0])
            return b.and_(beyond, b.fcmp_ordered("ord", old[0], old[0]))
        x, y = (new[0], old[0]) if self.name == "maximum" else (old[0], new[0])
        beyond = self.arithmetic.compare("lt", y, x, self.dtype)
        if self.in_order:
            return beyond
        equal = self.arithmetic.compare("eq", x, y, self.dtype)
        if self.dtype.is_float:
            old_nan, new_nan = (b.fcmp_unordered("uno", v[0], v[0]) for v in (old, new))
            beyond = b.or_(beyond, b.and_(new_nan, b.not_(old_nan)))
            equal = b.or_(equal, b.and_(new_nan, old_nan))
        # As unsigned numbers, position -1 (no element yet) comes after every other.
        earlier = b.icmp_unsigned("<", new[1], old[1])
        return b.or_(beyond, b.and_(equal, earlier))

    def finish(self, values: list[ir.Value]) -> ir.Value:
        """The result: after the loops, the lanes are combined by halving."""
        with located(self.builder, self.reduction.origin):
            return self._finish(values)

    def _finish(self, values: list[ir.Value]) -> ir.Value:
        lanes = lanes_of(values[0])
        while self.across_lanes and lanes > 1:
            lanes //= 2
            low = lane_order(range(lanes))
            high = lane_order(range(lanes, 2 * lanes))
            halves = [
                [self.builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask) for v in values]
                for mask in (low, high)
            ]
            values = self._combine(*halves)
        if self.across_lanes and lanes_of(values[0]):
            values = [self.builder.extract_element(v, constant(I32, 0)) for v in values]
        if not self.positioned:
            return values[0]
        position = values[1]
        return self.builder.zext(position, widened(I64, lanes_of(position))) if self.position_type is I32 else position


def _counts_up(index: Index, variables: tuple[Variable, ...]) -> bool:
    """Whether the loops visit the index in rising order, from 0."""
    coefficients, reach = dict(index.terms), 0
    if index.constant or not set(coefficients) <= set(variables):
        return False
    for variable in reversed(variables):
        coefficient = coefficients.get(variable, 0)
        if variable.extent > 1 and coefficient <= reach:
            return False
        reach += coefficient * (variable.extent - 1)
    return True
