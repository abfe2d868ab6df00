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
    rule = _Rule(program, kernels.__getitem__)
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for output in range(len(program.outputs)):
        for use in rule.uses.get(Place("output", output), ())[:1]:
            given = {place.position for place in use.call.places if place.kind == "input"}
            for number in sorted(given):
                if number not in taken and rule.may_alias(number, output):
                    found.append((number, output))
                    taken.add(number)
                    break
    return tuple(found)


def illegal_alias(program: Program, kernel: Callable[[int], Kernel]) -> tuple[int, int] | None:
    """The first of the program's aliases that is none; None if all are."""
    rule = _Rule(program, kernel)
    inputs: set[int] = set()
    outputs: set[int] = set()
    for given, output in program.aliases:
        if given in inputs or output in outputs or not rule.may_alias(given, output):
            return given, output
        inputs.add(given)
        outputs.add(output)
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


class _Rule:
    """What decides for each pair of a program. Kernels are looked at once, however many layers call them."""

    def __init__(self, program: Program, kernel: Callable[[int], Kernel]) -> None:
        self.program = program
        self.results = frozenset(program.results)
        self.uses: dict[Place, list[_Use]] = {}
        for launch, bundle in enumerate(program.bundles):
            for number, chain in enumerate(bundle):
                for position, call in enumerate(chain.calls):
                    for place in dict.fromkeys(call.places):
                        self.uses.setdefault(place, []).append(_Use(call, launch, number, position))

        @functools.cache
        def may_overwrite(number: int, read: int, written: int) -> bool:
            writing = kernel(number)
            return aliasing.may_overwrite(writing, writing.buffers[read], writing.buffers[written])

        self._may_overwrite = may_overwrite

    def may_alias(self, given: int, output: int) -> bool:
        """Whether this output may be written over this input."""
        read, written = Place("input", given), Place("output", output)
        types = self.program.inputs[given], self.program.outputs[output]
        if types[0] != types[1] or read in self.results or not types[0].nbytes:
            return False
        writer = next(iter(self.uses.get(written, ())), None)
        readers = self.uses.get(read, ())
        if writer is None or any(not use.precedes(writer) for use in readers if use.call is not writer.call):
            return False
        places = writer.call.places
        if places.count(read) != 1 or places.count(written) != 1:
            return False
        return self._may_overwrite(writer.call.kernel, places.index(read), places.index(written))
