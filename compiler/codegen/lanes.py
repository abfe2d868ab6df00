"""What is known at compile time about an index inside a vector: how it differs from lane to lane.

The vectorised variable is v = base + lane, where base is a multiple of the number of lanes if the loop is aligned.
From that, `lane_offsets` finds for many indices (strides, reversals, divisions and remainders that reshapes leave) the
exact distance of every lane from lane 0, so that a few wide loads and a shuffle can replace a gather.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..schedule.index import Atom, FloorDivision, FromData, Index, Remainder, Variable


@dataclass(frozen=True)
class VectorLoop:
    """A vectorised variable: `lanes` values at once, lane 0 at a multiple of `lanes` if `aligned`."""

    variable: Variable
    lanes: int
    aligned: bool = True


@lru_cache(maxsize=100_000)
def lane_offsets(index: Index, loop: VectorLoop) -> tuple[int, ...] | None:
    """By how much the index in each lane differs from lane 0; None if that is not the same in every iteration."""
    if loop.variable not in index.variables:
        return (0,) * loop.lanes
    total = [0] * loop.lanes
    for atom, coefficient in index.terms:
        part = _atom_offsets(atom, loop)
        if part is None:
            return None
        total = [a + b * coefficient for a, b in zip(total, part, strict=True)]
    return tuple(total)


def lane_step(index: Index, loop: VectorLoop) -> int | None:
    """The one number by which the index grows from each lane to the next, None if there is none."""
    offsets = lane_offsets(index, loop)
    if offsets is None:
        return None
    step = offsets[1] if len(offsets) > 1 else 0
    return step if all(offset == i * step for i, offset in enumerate(offsets)) else None


def lane_values(index: Index, loop: VectorLoop) -> tuple[int, ...] | None:
    """The index itself in each lane, where it is the same in every iteration."""
    offsets = lane_offsets(index, loop)
    if offsets is None:
        return None
    modulus, residue = _residue(index, loop)
    return tuple(residue + offset for offset in offsets) if modulus == 0 else None


def _atom_offsets(atom: Atom, loop: VectorLoop) -> tuple[int, ...] | None:
    if loop.variable not in atom.variables:
        return (0,) * loop.lanes
    if isinstance(atom, Variable):
        return tuple(range(loop.lanes))
    if isinstance(atom, FromData):
        return None
    inner = lane_offsets(atom.index, loop)
    if inner is None:
        return None
    modulus, residue = _residue(atom.index, loop)
    divisor = atom.divisor
    step = math.gcd(modulus, divisor)
    # What lane 0 may be of the divisor. A quotient never falls as that grows: between equal ends it is the same.
    least = residue % step
    quotients = [(least + offset) // divisor for offset in inner]
    if quotients != [(divisor - step + least + offset) // divisor for offset in inner]:
        return None
    if isinstance(atom, FloorDivision):
        return tuple(quotients)
    return tuple(offset - divisor * quotient for offset, quotient in zip(inner, quotients, strict=True))


def _residue(index: Index, loop: VectorLoop) -> tuple[int, int]:
    """(m, r): at lane 0 the index is r modulo m, whatever the loops are at; exactly r if m is 0."""
    modulus, residue = 0, index.constant
    for atom, coefficient in index.terms:
        m, r = _atom_residue(atom, loop)
        modulus = math.gcd(modulus, m * coefficient)
        residue += r * coefficient
    return modulus, residue % modulus if modulus else residue


def _atom_residue(atom: Atom, loop: VectorLoop) -> tuple[int, int]:
    if isinstance(atom, Variable):
        return (loop.lanes, 0) if atom == loop.variable and loop.aligned else (1, 0)
    if isinstance(atom, FromData):
        return 1, 0
    modulus, residue = _residue(atom.index, loop)
    if isinstance(atom, Remainder):
        if modulus % atom.divisor == 0:
            return 0, residue % atom.divisor
        step = math.gcd(modulus, atom.divisor)
        return step, residue % step
    if modulus % atom.divisor == 0:
        return modulus // atom.divisor, residue // atom.divisor
    return 1, 0
