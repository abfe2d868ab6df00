"""Which columns of a chain are live for a block of rows: the rest is never computed."""

from __future__ import annotations

from llvmlite import ir

from ..schedule.index import Atom, Remainder, Variable
from ..schedule.loop_ir import ChainKernel, Condition
from .control_flow import index, smaller


def live_columns(
    builder: ir.IRBuilder, kernel: ChainKernel, start: ir.Value, rows: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The columns from the first to behind the last that is live for one of the rows; at least one."""
    extent = kernel.columns.extent
    low, high = index(0), index(extent)
    last_row = builder.sub(builder.add(start, rows), index(1))
    for condition in kernel.live:
        least, most = _bounds(builder, kernel, condition, start, last_row)
        if least is not None:
            low = _larger(builder, low, least)
        if most is not None:
            high = smaller(builder, high, builder.add(most, index(1)))
    if kernel.live:
        low = smaller(builder, low, extent - 1)
        high = _larger(builder, high, builder.add(low, index(1)))
    return low, high


def _bounds(
    builder: ir.IRBuilder, kernel: ChainKernel, condition: Condition, first_row: ir.Value, last_row: ir.Value
) -> tuple[ir.Value | None, ir.Value | None]:
    """(smallest, largest) column for which the condition can hold for one of the rows, None for any.

    With the condition low <= c * column + rest < high, c being 1 or -1 and the rest about the row.
    """
    c = dict(condition.index.terms)[kernel.columns]
    lesser = greater = index(condition.index.constant)
    for atom, step in condition.index.terms:
        if atom != kernel.columns:
            least_and_most = _atom_range(builder, kernel.rows, atom, first_row, last_row)
            ends = [builder.mul(end, index(step)) for end in least_and_most]
            low, high = ends if step > 0 else ends[::-1]
            lesser, greater = builder.add(lesser, low), builder.add(greater, high)
    bottom, top = condition.index.bounds
    by_low = by_high = None
    if c == 1:
        if bottom < condition.low:
            by_low = builder.sub(index(condition.low), greater)
        if top >= condition.high:
            by_high = builder.sub(index(condition.high - 1), lesser)
        return by_low, by_high
    if bottom < condition.low:
        by_high = builder.sub(greater, index(condition.low))
    if top >= condition.high:
        by_low = builder.sub(lesser, index(condition.high - 1))
    return by_low, by_high


def _atom_range(
    builder: ir.IRBuilder, rows: Variable, atom: Atom, first_row: ir.Value, last_row: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """(smallest, largest) value of what depends on the row alone."""
    low, high = atom.bounds
    if atom == rows:
        return first_row, last_row
    if isinstance(atom, Remainder) and atom.index.single_variable() == rows:
        divisor = index(atom.divisor)
        together = builder.icmp_signed("==", builder.udiv(first_row, divisor), builder.udiv(last_row, divisor))
        return (
            builder.select(together, builder.urem(first_row, divisor), index(low)),
            builder.select(together, builder.urem(last_row, divisor), index(high)),
        )
    return index(low), index(high)


def whole_tiles(
    builder: ir.IRBuilder, kernel: ChainKernel, low: ir.Value, high: ir.Value, nr: int
) -> tuple[ir.Value, ir.Value]:
    """The range widened to whole tiles; it holds a whole tile if there is one, so that vector loops run."""
    extent = kernel.columns.extent
    if not kernel.live:
        return low, high
    tiles = max(1, extent // nr)
    first = builder.mul(smaller(builder, builder.udiv(low, index(nr)), tiles - 1), index(nr))
    last = builder.mul(builder.udiv(builder.add(high, index(nr - 1)), index(nr)), index(nr))
    return first, smaller(builder, last, extent)


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed(">", a, b), a, b)
