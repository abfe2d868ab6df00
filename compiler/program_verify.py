"""The verifier of programs: whether each call finds what it reads, and calls side by side leave each other alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .ir import dtypes
from .ir.verify import VerificationError
from .program import Bundle, Call, Chain, Place, Program
from .program_aliases import illegal_alias
from .program_text import buffer_types
from .schedule.aliasing import may_overwrite
from .schedule.loop_ir import Kernel
from .schedule.memory import ALIGNMENT
from .schedule.parse import parse_kernel

# Bytes [start, end) of the arena, an input or an output.
_Region = tuple[str, int, int, int]


def verify_program(program: Program) -> None:
    """Raise VerificationError unless the program keeps every rule.

    - A chain of one call falls into 1 to as many pieces as the call has chunks; of several calls each has one chunk.
    - Inputs are not written. Every output is written by one call.
    - What a call reads of outputs and arena was written as a whole by one call before it, in an earlier launch or in
      its chain, and not written over since.
    - What a chain writes, no other chain of its launch reads or writes.
    - What a call writes overlaps nothing else that it writes, and of what it reads only arrays that it reads element by
      element, each before it writes the one in its place.
    - Arena places start on cache lines.
    - An output that may be written over an input is written by the last call to read it, element by element.

    That places lie inside of what they are in, and have the types of the kernels' buffers, is checked by the parser.
    """
    _Verifier(program).run()


class _Verifier:
    def __init__(self, program: Program):
        self.program = program
        self.types = [buffer_types(module.text) for module in program.kernels]
        self.written: set[_Region] = set()
        self.kernels: dict[int, Kernel] = {}

    def run(self) -> None:
        for bundle in self.program.bundles:
            self._bundle(bundle)
        written = {number for kind, number, _, _ in self.written if kind == "output"}
        for position, array in enumerate(self.program.outputs):
            if array.nbytes and position not in written:
                raise VerificationError(f"program: output {position} is not written")
        wrong = illegal_alias(self.program, lambda number: parse_kernel(self.program.kernels[number].text))
        if wrong is not None:
            raise VerificationError(f"program: output {wrong[1]} cannot be written over input {wrong[0]}")

    def _bundle(self, bundle: Bundle) -> None:
        before = set(self.written)
        reads: list[tuple[int, _Region]] = []
        writes: list[tuple[int, _Region]] = []
        for number, chain in enumerate(bundle):
            self._shape(chain)
            known = set(before)
            for call in chain.calls:
                for region, is_written in self._regions(call):
                    if not is_written:
                        reads.append((number, region))
                        if region[0] != "input" and region not in known:
                            raise VerificationError(f"program: kernel {call.kernel} reads {region} before its time")
                for position, (region, is_written) in enumerate(self._regions(call)):
                    if is_written:
                        self._may_write(call, position, region)
                        writes.append((number, region))
                        known = {other for other in known if not _overlap(other, region)} | {region}
                        self.written = {other for other in self.written if not _overlap(other, region)}
        for number, region in writes:
            for other, touched in [*reads, *writes]:
                if other != number and _overlap(region, touched):
                    raise VerificationError(f"program: chains {number} and {other} of a launch meet in {region}")
        self.written |= set(_surviving(region for _, region in writes))

    def _shape(self, chain: Chain) -> None:
        if len(chain.calls) == 1:
            legal = 1 <= chain.pieces <= chain.calls[0].chunks
        else:
            legal = chain.pieces == 1 <= len(chain.calls) and all(call.chunks == 1 for call in chain.calls)
        if not legal:
            raise VerificationError(f"program: a chain of {len(chain.calls)} calls in {chain.pieces} pieces")

    def _may_write(self, call: Call, position: int, region: _Region) -> None:
        for other, (touched, is_written) in enumerate(self._regions(call)):
            if other == position or not _overlap(region, touched):
                continue
            if is_written or region != touched or not self._may_overwrite(call.kernel, other, position):
                raise VerificationError(f"program: kernel {call.kernel} writes {region} and reads or writes {touched}")
        if region[0] == "input":
            raise VerificationError(f"program: kernel {call.kernel} writes an input")
        if region[0] == "output" and any(_overlap(region, other) for other in self.written):
            raise VerificationError(f"program: output {region[1]} is written twice")

    def _may_overwrite(self, number: int, read: int, written: int) -> bool:
        if number not in self.kernels:
            self.kernels[number] = parse_kernel(self.program.kernels[number].text)
        kernel = self.kernels[number]
        return may_overwrite(kernel, kernel.buffers[read], kernel.buffers[written])

    def _regions(self, call: Call) -> Iterator[tuple[_Region, bool]]:
        for place, (dtype, size, is_written) in zip(call.places, self.types[call.kernel], strict=True):
            yield _region(place, size * dtypes.of(dtype).itemsize), is_written


def _region(place: Place, nbytes: int) -> _Region:
    if place.kind != "arena":
        return place.kind, place.position, 0, nbytes
    if place.position % ALIGNMENT:
        raise VerificationError(f"program: arena {place.position} is not the start of a cache line")
    return "arena", 0, place.position, place.position + nbytes


def _overlap(one: _Region, other: _Region) -> bool:
    return one[:2] == other[:2] and one[2] < other[3] and other[2] < one[3]


def _surviving(regions: Iterable[_Region]) -> list[_Region]:
    """The regions of which no later one writes a byte."""
    kept: list[_Region] = []
    for region in regions:
        kept = [other for other in kept if not _overlap(other, region)]
        kept.append(region)
    return kept
