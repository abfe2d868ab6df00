"""Proofs about indices: their bounds where a guard holds, and whether they name every element once.

Both are first argued from the form of the index. What the form does not show is settled by trying every value of the
loop variables, if there are at most `LIMIT` of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from . import index as indexing
from .index import Atom, FloorDivision, FromData, Index, Remainder, Variable
from .loop_ir import Condition

LIMIT = 1 << 20
# Ways to take conditions out of an index are tried for at most this many conditions.
MOST_CONDITIONS = 8

Interval = tuple[int, int]
Base = Variable | FromData
Guard = tuple[Condition, ...]


def bases(indices: Iterable[Index]) -> tuple[Base, ...]:
    """The loop variables and numbers from data that the indices are made of, in order of appearance."""
    found: dict[Base, None] = {}

    def walk(index: Index) -> None:
        for atom, _ in index.terms:
            if isinstance(atom, (FloorDivision, Remainder)):
                walk(atom.index)
            else:
                found[atom] = None

    for index in indices:
        walk(index)
    return tuple(found)


# Bounds


def bounds(index: Index, guard: Guard = ()) -> Interval | None:
    """(low, high) around every value of the index where `guard` holds; None if it holds nowhere.

    low and high need not be reached.
    """
    known = _Known(guard)
    if any(_is_empty(known.condition(c)) for c in guard):
        return None
    return known.bounds(index, guard[:MOST_CONDITIONS])


def is_within(index: Index, size: int, guard: Guard = ()) -> bool:
    """Whether 0 <= index < size wherever the guard holds. False also if that cannot be shown."""
    found = bounds(index, guard)
    if found is None or (0 <= found[0] and found[1] < size):
        return True
    used = bases([index, *(c.index for c in guard)])
    if math.prod(base.extent for base in used) > LIMIT:
        return False
    found_values, holds = _tabulate(index, guard, used)
    return not np.any(holds & ((found_values < 0) | (found_values >= size)))


def _is_empty(interval: Interval) -> bool:
    return interval[0] > interval[1]


def _meet(a: Interval, b: Interval) -> Interval:
    return max(a[0], b[0]), min(a[1], b[1])


class _Known:
    """What conditions say about atoms: an interval for each atom that a condition is about alone."""

    def __init__(self, guard: Guard):
        self.atoms: dict[Atom, Interval] = {}
        for condition in guard:
            if len(condition.index.terms) == 1:
                ((atom, c),) = condition.index.terms
                low, high = condition.low - condition.index.constant, condition.high - 1 - condition.index.constant
                # low <= c * atom <= high, over the integers.
                own = (-(-low // c), high // c) if c > 0 else (-(-high // c), low // c)
                self.atoms[atom] = _meet(self.atoms.get(atom, own), own)

    def atom(self, atom: Atom) -> Interval:
        found = atom.bounds
        if isinstance(atom, (FloorDivision, Remainder)):
            low, high = self.plain(atom.index)
            if isinstance(atom, FloorDivision):
                found = _meet(found, (low // atom.divisor, high // atom.divisor))
            elif low // atom.divisor == high // atom.divisor:
                found = _meet(found, (low % atom.divisor, high % atom.divisor))
        return _meet(found, self.atoms.get(atom, found))

    def plain(self, index: Index) -> Interval:
        """Bounds from the bounds of the atoms, each by itself."""
        low = high = index.constant
        for atom, c in index.terms:
            a, b = self.atom(atom)
            low += c * (a if c > 0 else b)
            high += c * (b if c > 0 else a)
        return low, high

    def condition(self, condition: Condition) -> Interval:
        return _meet(self.plain(condition.index), (condition.low, condition.high - 1))

    def bounds(self, index: Index, guard: Guard) -> Interval:
        """Bounds where multiples of the guard's indices may be taken out of the index, each within its own bounds."""
        best = self.plain(index)
        for position, condition in enumerate(guard):
            own = dict(index.terms)
            ratios = {own[a] // c for a, c in condition.index.terms if a in own and own[a] % c == 0}
            for ratio in ratios:
                a, b = self.condition(condition)
                low, high = self.bounds(index - condition.index * ratio, guard[position + 1 :])
                best = _meet(best, (low + min(ratio * a, ratio * b), high + max(ratio * a, ratio * b)))
        return best


def _tabulate(index: Index, guard: Guard, used: Sequence[Base]) -> tuple[Any, Any]:
    """(index, whether the guard holds) for every value of the bases."""
    number = grid(used)
    shape = tuple(base.extent for base in used)
    holds: Any = np.ones(shape, dtype=np.bool_)
    for condition in guard:
        value = indexing.evaluate(condition.index, number)
        holds = holds & (condition.low <= value) & (value < condition.high)
    return np.broadcast_to(indexing.evaluate(index, number), shape), holds


def grid(used: Sequence[Base]) -> Callable[[Base], Any]:
    """Arrays that together run over every value of the bases: base i varies along axis i."""
    axes = {base: i for i, base in enumerate(used)}

    def number(base: Base) -> Any:
        return np.arange(base.extent).reshape([-1 if axes[base] == i else 1 for i in range(len(used))])

    return number


def values(index: Index, guard: Guard, over: Sequence[Variable]) -> Any:
    """The index where the guard holds, at all values of the variables; None if it depends on more or they are many."""
    if not set(bases([index, *(c.index for c in guard)])) <= set(over) or math.prod(v.extent for v in over) > LIMIT:
        return None
    found, holds = _tabulate(index, guard, over)
    return found[np.broadcast_to(holds, found.shape)]


# Naming every element once

# An index as a sum of weight * digit: (base, weight of the digit in the base) -> (extent, weight in the index).
Digits = dict[tuple[Base, int], tuple[int, int]]


class _NoDigitsError(Exception):
    """The index is not a sum of digits of its bases."""


def digits(index: Index, others: Iterable[Index] = ()) -> tuple[Digits, int] | None:
    """The index as a sum of independent digits of its bases, and its constant; None if it is not one.

    Bases are cut into digits where this index or one of the others divides them, so that their digits compare.
    """
    try:
        cuts: dict[Base, set[int]] = {}
        for each in (index, *others):
            for atom, _ in each.terms:
                _collect_cuts(atom, cuts)
        return _index_digits(index, {base: _digits_of(base, found) for base, found in cuts.items()})
    except _NoDigitsError:
        return None


def _collect_cuts(atom: Atom, cuts: dict[Base, set[int]]) -> tuple[Base, int]:
    """(base, unit): the atom is digits of the base from weight `unit` up."""
    if not isinstance(atom, (FloorDivision, Remainder)):
        cuts.setdefault(atom, {1})
        return atom, 1
    if len(atom.index.terms) != 1 or atom.index.constant or atom.index.terms[0][1] != 1:
        raise _NoDigitsError
    base, unit = _collect_cuts(atom.index.terms[0][0], cuts)
    cuts[base].add(unit * atom.divisor)
    return base, unit if isinstance(atom, Remainder) else unit * atom.divisor


def _digits_of(base: Base, cuts: set[int]) -> Digits:
    weights = [cut for cut in sorted(cuts) if cut < base.extent or cut == 1]
    tops = [*weights[1:], max(1, base.extent)]
    if any(top % weight for weight, top in zip(weights, tops, strict=True)):
        raise _NoDigitsError
    return {(base, weight): (top // weight, weight) for weight, top in zip(weights, tops, strict=True)}


def _index_digits(index: Index, of_base: dict[Base, Digits]) -> tuple[Digits, int]:
    total: Digits = {}
    for atom, c in index.terms:
        for digit, (extent, weight) in _atom_digits(atom, of_base).items():
            before = total[digit][1] if digit in total else 0
            total[digit] = extent, before + c * weight
    return {d: (extent, weight) for d, (extent, weight) in total.items() if extent > 1 and weight}, index.constant


def _atom_digits(atom: Atom, of_base: dict[Base, Digits]) -> Digits:
    if not isinstance(atom, (FloorDivision, Remainder)):
        return of_base[atom]
    inner, constant = _index_digits(atom.index, of_base)
    assert constant == 0
    high = {d: (n, w) for d, (n, w) in inner.items() if w % atom.divisor == 0}
    low = {d: (n, w) for d, (n, w) in inner.items() if w % atom.divisor}
    if sum((n - 1) * w for n, w in low.values()) >= atom.divisor:
        raise _NoDigitsError
    if isinstance(atom, Remainder):
        return low
    return {d: (n, w // atom.divisor) for d, (n, w) in high.items()}


def is_injective(index: Index, over: Iterable[Base]) -> bool:
    """Whether different values of the bases give different indices. False also if that cannot be shown."""
    wanted = {base for base in over if base.extent > 1}
    used = bases([index])
    if not wanted <= set(used):
        return False
    size = math.prod(base.extent for base in used)
    found = digits(index)
    if found is not None and math.prod(n for n, _ in found[0].values()) == size and _is_positional(found[0]):
        return True
    return size <= LIMIT and int(np.unique(_tabulate(index, (), used)[0]).size) == size


def _is_positional(own: Digits) -> bool:
    """Whether every digit weighs more than all lesser ones together."""
    reach = 0
    for extent, weight in sorted(((n, abs(w)) for n, w in own.values()), key=lambda each: each[1]):
        if weight <= reach:
            return False
        reach += weight * (extent - 1)
    return True


# Guards that cut a range


def without_padding(
    index: Index, guard: Guard, over: Sequence[Variable]
) -> tuple[Index, tuple[Variable, ...]] | None:
    """An index without a guard, over other variables, that takes the same values as often; None if none is found.

    A guard 0 <= r < n on a number r that names the values of its variables one after the other, such as the row
    size * block + row, is a loop over n in their place.
    """
    if not guard:
        return index, tuple(over)
    rows = guard[0].index
    inside = [v for v in over if v in rows.variables]
    count = math.prod(v.extent for v in inside)
    if len(guard) > 1 or guard[0].low != 0 or guard[0].high > count or not rows.terms:
        return None
    if rows.bounds != (0, count - 1) or not is_injective(rows, inside):
        return None
    atom, weight = rows.terms[0]
    stride = dict(index.terms).get(atom, 0) // weight
    rest = index - rows * stride
    if rest.variables & set(inside) or not stride:
        return None
    row = Variable("row of the guard", guard[0].high)
    return rest + indexing.of(row) * stride, (row, *(v for v in over if v not in inside))


def with_found_numbers(index: Index, guard: Guard) -> Index:
    """The index where the guard holds: a number from data between low and high, of which it says no more, counts on.

    From low <= number - start < high follows number = start + low + i for some i below high - low.
    """
    for position, condition in enumerate(guard):
        data = [atom for atom, weight in condition.index.terms if isinstance(atom, FromData) and weight == 1]
        weight = dict(index.terms).get(data[0], 0) if len(data) == 1 else 0
        if weight:
            found = indexing.of(Variable(f"number {position}", condition.high - condition.low)) + condition.low
            index = index - (condition.index - found) * weight
    return index


def is_positional(index: Index) -> bool:
    """Whether the index is a sum of digits each of which weighs more than all lesser ones together."""
    found = digits(index)
    return found is not None and _is_positional(found[0])
