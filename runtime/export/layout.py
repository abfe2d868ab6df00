"""Where everything lies that an exported function touches: the leaves of the state, what callers give, the workspace.

    state                       each leaf at a multiple of 64 bytes
    workspace                   header: the thread pool, if there can be threads; its first word is null if none run
                                staging: what a step may not write yet, because something of the old state is still read
                                arena: the program's intermediates
                                scratch of the first thread, of the second, ...

A step writes a result where it belongs: over the old value where the program's aliases allow it. Otherwise it goes to
staging and is copied when the program is done. A result that is an input handed through is copied then too, from where
it was; values that such a copy would overwrite before they are read wait in staging.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from kaun.compiler.program import Place
from kaun.runtime.artifact import Artifact, Function, Leaf
from kaun.runtime.export import names
from kaun.runtime.pool_module import pool_bytes

ALIGNMENT = 64

# What the functions of an artifact are called in C.
_VERBS = {"step": "run", "call": "run", "predict": "predict", "evaluate": "evaluate"}


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Slot:
    """A leaf of the state: `offset` bytes from its start."""

    leaf: Leaf
    identifier: str
    offset: int


@dataclass(frozen=True)
class StateLayout:
    """The state: its leaves one after the other. Empty for a function without a state."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, leaves: Sequence[Leaf]) -> StateLayout:
        """The layout of a state of these leaves."""
        slots, offset = [], 0
        for leaf, identifier in zip(leaves, names.identifiers(leaf.name for leaf in leaves), strict=True):
            slots.append(Slot(leaf, identifier, offset))
            offset += aligned(leaf.nbytes)
        return cls(tuple(slots))

    @property
    def nbytes(self) -> int:
        return aligned(self.slots[-1].offset + self.slots[-1].leaf.nbytes) if self.slots else 0

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that differ where two states are laid out differently."""
        text = "\n".join(f"{slot.offset} {slot.leaf!r}" for slot in self.slots)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Where:
    """A place that a function knows the address of.

    kind: "state" or "staging", at byte `position`; "input" or "output" of the caller, or "constant", by number.
    """

    kind: str
    position: int


@dataclass(frozen=True)
class Copy:
    """What is done after the program, in order."""

    source: Where
    destination: Where
    nbytes: int


@dataclass(frozen=True)
class Entry:
    """An exported function: its program, what its caller gives and gets, and where the program finds it all.

    arguments: for each input and then each computed output of the program; constants are those of the layout.
    """

    verb: str
    function: Function
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    arguments: tuple[Where, ...]
    copies: tuple[Copy, ...]
    staging_bytes: int
    writes_state: bool

    @cached_property
    def names(self) -> list[str]:
        """An identifier for each input and then each output, all different."""
        return names.identifiers(leaf.name for leaf in (*self.inputs, *self.outputs))

    @property
    def input_names(self) -> list[str]:
        return self.names[: len(self.inputs)]

    @property
    def output_names(self) -> list[str]:
        return self.names[len(self.inputs) :]


@dataclass(frozen=True, eq=False)
class Layout:
    """An artifact as C sees it; the top of this file explains it.

    name: of the files; `kaun_NAME_` begins every symbol.
    most_threads: 1 for code without threads.
    """

    artifact: Artifact
    name: str
    most_threads: int
    state: StateLayout
    entries: tuple[Entry, ...]

    @property
    def prefix(self) -> str:
        return f"kaun_{self.name}"

    @property
    def header_bytes(self) -> int:
        """The first bytes of the workspace, which must be zero before it is first used."""
        return aligned(pool_bytes(self.most_threads)) if self.most_threads > 1 else 0

    @property
    def scratch_bytes(self) -> int:
        """Of the workspace, for each thread."""
        return max((entry.function.program.scratch_bytes for entry in self.entries), default=0)

    @property
    def shared_bytes(self) -> int:
        """Of the workspace, whatever the number of threads."""
        needs = [aligned(entry.staging_bytes) + aligned(entry.function.program.arena_bytes) for entry in self.entries]
        return self.header_bytes + max(needs, default=0)

    def workspace_bytes(self, threads: int) -> int:
        """The size of the workspace; never zero, so that there is something to allocate."""
        return max(ALIGNMENT, self.shared_bytes + threads * aligned(self.scratch_bytes))

    @cached_property
    def constants(self) -> list[bytes]:
        """The bytes of the constants of all functions, equal ones once."""
        return _distinct_constants([entry.function for entry in self.entries])


def constants_of(function: Function) -> list[bytes]:
    """The bytes of the function's constants, in order."""
    return [array.tobytes() for array in function.constants]


def _distinct_constants(functions: Sequence[Function]) -> list[bytes]:
    return list(dict.fromkeys(data for function in functions for data in constants_of(function)))


def lay_out(artifact: Artifact, name: str, most_threads: int) -> Layout:
    """Where everything of the artifact lies. States come from files and constants, not from initialisers."""
    state = StateLayout.of(artifact.state)
    functions = [function for function in artifact.functions if function.name in _VERBS]
    constants = _distinct_constants(functions)
    entries = tuple(_entry(function, state.slots, constants) for function in functions)
    return Layout(artifact, name, most_threads, state, entries)


def _entry(function: Function, slots: Sequence[Slot], constants: Sequence[bytes]) -> Entry:
    """How C calls a function of the artifact."""
    verb = _VERBS[function.name]
    places = {slot.leaf.name: Where("state", slot.offset) for slot in slots}
    inputs = tuple(leaf for leaf in function.arguments if leaf.name not in places)
    # Only a step gives back a state: what `predict` calls "output" is its caller's, whatever leaves are called.
    written = places if function.name == "step" else {}
    outputs = tuple(leaf for leaf in function.outputs if leaf.name not in written)
    sources = [places.get(leaf.name) or Where("input", inputs.index(leaf)) for leaf in function.arguments]
    sources += [Where("constant", constants.index(data)) for data in constants_of(function)]
    destinations = [written.get(leaf.name) or Where("output", outputs.index(leaf)) for leaf in function.outputs]
    results = _Results(function, sources, destinations)
    return Entry(
        verb,
        function,
        inputs,
        outputs,
        (*sources, *results.computed),
        tuple(results.copies()),
        results.staging,
        bool(written),
    )


class _Results:
    """Where the program writes what it computes, and what is copied from there."""

    def __init__(self, function: Function, sources: Sequence[Where], destinations: Sequence[Where]):
        self.program, self.sources = function.program, sources
        self.staging = 0
        self.wanted: dict[Place, list[Where]] = {}
        for place, destination in zip(function.program.results, destinations, strict=True):
            self.wanted.setdefault(place, []).append(destination)
        self.computed = [self.place(number) for number in range(len(function.program.outputs))]

    def place(self, number: int) -> Where:
        """Where the program writes its output of that number."""
        read = {source for source in self.sources if source.kind == "state"}
        over = {self.sources[given] for given, output in self.program.aliases if output == number}
        for destination in self.wanted.get(Place("output", number), ()):
            if destination.kind == "output" or destination not in read or destination in over:
                return destination
        return self.stage(self.program.outputs[number].nbytes)

    def stage(self, nbytes: int) -> Where:
        where = Where("staging", self.staging)
        self.staging += aligned(nbytes)
        return where

    def copies(self) -> Iterator[Copy]:
        """The copies after the program. What they read is not overwritten before."""
        pending = []
        for place, destinations in self.wanted.items():
            if place.kind == "output":
                source, nbytes = self.computed[place.position], self.program.outputs[place.position].nbytes
            else:
                source, nbytes = self.sources[place.position], self.program.inputs[place.position].nbytes
            pending += [Copy(source, to, nbytes) for to in destinations if to != source and nbytes]
        overwritten = {copy.destination for copy in pending}
        saved: dict[Where, Where] = {}
        for copy in pending:
            if copy.source in overwritten and copy.source not in saved:
                saved[copy.source] = self.stage(copy.nbytes)
                yield Copy(copy.source, saved[copy.source], copy.nbytes)
        yield from (Copy(saved.get(copy.source, copy.source), copy.destination, copy.nbytes) for copy in pending)
