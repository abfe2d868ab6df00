"""Which outputs of a program may be written over one of its inputs: a training step's new weights over the old ones.

The call that writes the output must be the last to read the input, and its kernel must read each element only where it
stores the one in its place (see `schedule/aliasing.py`). Calls in other chains of its launch run at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .program import Call, Place, Program
from .schedule import aliasing
from .schedule.loop_ir import Kernel


def find_aliases(program: Program, kernels: Sequence[Kernel]) -> tuple[tuple[int, int], ...]:
    """Pairs (input, output) that may have one address, all at once; `kernels` are those of the program's table.

    Of several inputs that an output could take, the first: states come in the order in which they are given back.
    """
    uses, may_overwrite = _uses(program), _overwriting(kernels.__getitem__)
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for output in range(len(program.outputs)):
        for use in uses.get(Place("output", output), ())[:1]:
            given = dict.fromkeys(place.position for place in use.call.places if place.kind == "input")
            for number in sorted(given.keys() - taken):
                if _may_alias(program, uses, number, output, may_overwrite):
                    found.append((number, output))
                    taken.add(number)
                    break
    return tuple(found)


def illegal_alias(program: Program, kernel: Callable[[int], Kernel]) -> tuple[int, int] | None:
    """The first of the program's aliases that is none; None if all are."""
    uses, may_overwrite = _uses(program), _overwriting(kernel)
    for number, pair in enumerate(program.aliases):
        others = program.aliases[:number]
        if any(pair[0] == given or pair[1] == output for given, output in others):
            return pair
        if not _may_alias(program, uses, *pair, may_overwrite):
            return pair
    return None


@dataclass(frozen=True)
class _Use:
    """A call that reads or writes an array, and when it runs."""

    call: Call
    launch: int
    chain: int
    position: int

    def precedes(self, other: _Use) -> bool:
        if self.launch != other.launch:
            return self.launch < other.launch
        return self.chain == other.chain and self.position < other.position


def _uses(program: Program) -> dict[Place, list[_Use]]:
    uses: dict[Place, list[_Use]] = {}
    for launch, bundle in enumerate(program.bundles):
        for number, chain in enumerate(bundle):
            for position, call in enumerate(chain.calls):
                for place in dict.fromkeys(call.places):
                    uses.setdefault(place, []).append(_Use(call, launch, number, position))
    return uses


def _overwriting(kernel: Callable[[int], Kernel]) -> Callable[[int, int, int], bool]:
    """Whether a kernel may write one of its buffers over another, by numbers: found out once for equal layers."""

    @functools.cache
    def may_overwrite(number: int, read: int, written: int) -> bool:
        writing = kernel(number)
        return aliasing.may_overwrite(writing, writing.buffers[read], writing.buffers[written])

    return may_overwrite


def _may_alias(
    program: Program, uses: dict[Place, list[_Use]], given: int, output: int,
    may_overwrite: Callable[[int, int, int], bool],
) -> bool:  # fmt: skip
    read, written = Place("input", given), Place("output", output)
    types = program.inputs[given], program.outputs[output]
    if types[0] != types[1] or read in program.results or not types[0].nbytes:
        return False
    writer = next(iter(uses.get(written, ())), None)
    if writer is None or any(not use.precedes(writer) for use in uses.get(read, ()) if use.call is not writer.call):
        return False
    places = writer.call.places
    if places.count(read) != 1 or places.count(written) != 1:
        return False
    return may_overwrite(writer.call.kernel, places.index(read), places.index(written))
