"""The memory plan: where in the arena each intermediate lives, so that values not alive together share space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A value of `nbytes` that is written by step `first` and last read by step `last`."""

    nbytes: int
    first: int
    last: int


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a whole number of cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan_arena(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """(offset of each value, bytes of the arena).

    Biggest first, each at the lowest offset where it meets no value alive at the same time: Pisarchyk and Lee,
    Efficient memory management for deep neural net inference (2020), greedy by size.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for number in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].nbytes, i)):
        own = lifetimes[number]
        neighbours = sorted(
            (offsets[other], aligned(lifetimes[other].nbytes))
            for other in placed
            if lifetimes[other].first <= own.last and own.first <= lifetimes[other].last
        )
        offset = 0
        for start, size in neighbours:
            if offset + aligned(own.nbytes) <= start:
                break
            offset = max(offset, start + size)
        offsets[number] = offset
        placed.append(number)
        total = max(total, offset + aligned(own.nbytes))
    return offsets, total


def peak_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes alive at one step: no plan can need less."""
    steps = range(max((life.last for life in lifetimes), default=-1) + 1)
    return max((sum(aligned(v.nbytes) for v in lifetimes if v.first <= s <= v.last) for s in steps), default=0)
