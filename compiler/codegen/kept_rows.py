"""Which values a loop kernel keeps: those that a pass computes at some cost and a later pass of the same row needs.

A softmax sums exp(x - max) in one pass and divides it in the next. Rather than computed twice it is written to
scratch memory of the thread, one row of it, and read back from the nearest cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ..ir import dtypes
from ..schedule.collapse import all_values, pass_roots
from ..schedule.index import Variable
from ..schedule.loop_ir import Apply, Pass, Value

# Rough costs in nanoseconds: of one simple operation on one vector or scalar, and of a mathematical function.
SIMPLE, FUNCTION = 0.3, 4.0
FUNCTIONS = frozenset(
    {"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "atan", "pow", "div", "rem", "random_bits"}
)
# Writing a value and reading it back costs about as much as this many simple operations.
_WORTH_KEEPING = 8
_ALIGNMENT = 64


@dataclass(frozen=True)
class KeptRow:
    """A value kept from pass number `first`, for all values of `variables`, `offset` bytes into the scratch memory."""

    value: Value
    variables: tuple[Variable, ...]
    first: int
    offset: int


@dataclass
class RowValues:
    """What the passes compute when the kept values are kept: `computed[i]` are the values of pass i, operands first."""

    kept: list[KeptRow] = field(default_factory=list)
    computed: list[list[Value]] = field(default_factory=list)
    scratch_bytes: int = 0


def row_values(passes: Sequence[Pass], copies: int, padding: int, capacity: int) -> RowValues:
    """The values to keep, in at most `capacity` bytes.

    copies: how many rows one iteration of the outer loops works on at once; padding: elements beyond the end of a row
    that vectors reach.
    """
    result = RowValues()
    origins: dict[tuple[Value, tuple[Variable, ...]], int] = {}
    kept: set[Value] = set()

    def keep(value: Value, loops: tuple[Variable, ...]) -> bool:
        first = origins.get((value, loops))
        if value in kept:
            return True
        if not loops or first is None or not _worth_keeping(value, loops, kept):
            return False
        elements = copies * math.prod(v.extent for v in loops) + padding
        size = -(-elements * value.dtype.compute.itemsize // _ALIGNMENT) * _ALIGNMENT
        if result.scratch_bytes + size > capacity:
            return False
        kept.add(value)
        result.kept.append(KeptRow(value, loops, first, result.scratch_bytes))
        result.scratch_bytes += size
        return True

    for number, each in enumerate(passes):
        values = all_values(pass_roots(each), partial(keep, loops=each.variables))
        result.computed.append(values)
        for value in values:
            origins.setdefault((value, each.variables), number)
    return result


def _worth_keeping(value: Value, loops: tuple[Variable, ...], kept: set[Value]) -> bool:
    if not set(loops) <= value.variables or value.dtype is dtypes.bool_:
        return False
    inside = [v for v in all_values([value], kept.__contains__) if v.variables & set(loops)]
    cost = sum(FUNCTION / SIMPLE if isinstance(v, Apply) and v.name in FUNCTIONS else 1 for v in inside)
    return cost >= _WORTH_KEEPING
