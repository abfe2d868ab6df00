"""The entry function of a program: one native function that runs all its kernels.

    void entry(ptr arguments, ptr kernels, ptr pool, ptr workspace)

For each launch it writes the addresses of the buffers into an array on its stack. A chain by itself it calls: a kernel
of one chunk directly, one of several through the pool, whose first word is the address of

    void parallel_for(ptr pool, ptr kernel, ptr buffers, i64 chunks, ptr scratch, i64 scratch_stride)

Several chains are one parallel loop over their pieces. The pool runs `pieces` as its kernel, on a table of words of 64
bits, whatever the size of an address, that says whose they are; the array holds the buffers of all calls:

    number of calls
    for each call: kernel | its buffers | first piece | number of pieces | number of chunks

    void pieces(ptr table, i64 begin, i64 end, ptr scratch)
      for each call in the table:
          [low, high) = the part of its pieces that lies in [begin, end), counted from its first
          if low < high: kernel(buffers, low * chunks / pieces, high * chunks / pieces, scratch)

Calls of one chain have the same single piece, so that one thread runs them in order. Kernels are reached through a
table of addresses, so the code holds none and can be cached.

In an object that holds the kernels too, the entry calls them by their symbols, and `pool` may be null: then every loop
runs on the caller's thread, as a pool does it that has no other.

    void entry(ptr arguments, ptr pool, ptr workspace)
"""

from __future__ import annotations

from collections.abc import Sequence

from ..program import Bundle, Call, Place, Program
from .kernels import with_attributes
from .vector_target import VectorTarget

# Words of one call in the table.
WORDS = 5

_PIECES = """\
define internal void @$NAME(ptr %table, i64 %begin, i64 %end, ptr %scratch) {
entry:
$FIRST  %calls = load i64, ptr %table
  br label %loop
loop:
  %number = phi i64 [ 0, %entry ], [ %next, %after ]
  %more = icmp slt i64 %number, %calls
  br i1 %more, label %look, label %done
look:
  %words = mul i64 %number, $WORDS
  %kernel.at = add i64 %words, 1
  %buffers.at = add i64 %words, 2
  %first.at = add i64 %words, 3
  %pieces.at = add i64 %words, 4
  %chunks.at = add i64 %words, 5
  %kernel.p = getelementptr i64, ptr %table, i64 %kernel.at
  %buffers.p = getelementptr i64, ptr %table, i64 %buffers.at
  %first.p = getelementptr i64, ptr %table, i64 %first.at
  %pieces.p = getelementptr i64, ptr %table, i64 %pieces.at
  %chunks.p = getelementptr i64, ptr %table, i64 %chunks.at
  %kernel = load ptr, ptr %kernel.p
  %buffers = load ptr, ptr %buffers.p
  %first = load i64, ptr %first.p
  %pieces = load i64, ptr %pieces.p
  %chunks = load i64, ptr %chunks.p
  %from = sub i64 %begin, %first
  %to = sub i64 %end, %first
  %before = icmp slt i64 %from, 0
  %low = select i1 %before, i64 0, i64 %from
  %beyond = icmp sgt i64 %to, %pieces
  %high = select i1 %beyond, i64 %pieces, i64 %to
  %some = icmp slt i64 %low, %high
  br i1 %some, label %run, label %after
run:
  %low.chunks = mul i64 %low, %chunks
  %low.chunk = udiv i64 %low.chunks, %pieces
  %high.chunks = mul i64 %high, %chunks
  %high.chunk = udiv i64 %high.chunks, %pieces
$BEFORE  call void %kernel(ptr %buffers, i64 %low.chunk, i64 %high.chunk, ptr %scratch)
$AFTER  br label %after
after:
  %next = add i64 %number, 1
  br label %loop
done:
  ret void
}

"""


def pieces_function(name: str = "pieces", *, first: str = "", before: str = "", after: str = "") -> str:
    """LLVM IR of `pieces`, see the top of this file; lines of more IR at its beginning, and around each kernel.

    They see %table and %scratch, and around a kernel its %number in the table.
    """
    text = _PIECES
    for place, given in (("NAME", name), ("FIRST", first), ("BEFORE", before), ("AFTER", after), ("WORDS", str(WORDS))):
        text = text.replace(f"${place}", given)
    return text


# A parallel loop of an entry that may be given no pool. With one thread, the pool does the same.
_SHARE = """\
define internal void @share(ptr %pool, ptr %kernel, ptr %buffers, i64 %chunks, ptr %scratch, i64 %stride) {
entry:
  %none = icmp eq ptr %pool, null
  br i1 %none, label %alone, label %together
together:
  %parallel_for = load ptr, ptr %pool
  call void %parallel_for(ptr %pool, ptr %kernel, ptr %buffers, i64 %chunks, ptr %scratch, i64 %stride)
  ret void
alone:
  %own = icmp sge i64 %stride, 8
  br i1 %own, label %clear, label %run
clear:
  store i64 0, ptr %scratch
  br label %run
run:
  call void %kernel(ptr %buffers, i64 0, i64 %chunks, ptr %scratch)
  ret void
}

"""


def emit_entry(program: Program, name: str, target: VectorTarget, symbols: Sequence[str] | None = None) -> str:
    """LLVM IR text of a module that defines the program's entry function.

    symbols: the names of the program's kernels, for an entry that calls them so, see the top of this file.

    Written as text: it is long for a deep network, and nothing but one line after the other.
    """
    entry = Entry(program, symbols)
    parts = [pieces_function()] if any(len(bundle) > 1 for bundle in program.bundles) else []
    if symbols is None:
        parts.append(f'define void @"{name}"(ptr %arguments, ptr %kernels, ptr %pool, ptr %workspace) {{')
    else:
        used = dict.fromkeys(symbols[call.kernel] for call in program.calls)
        parts += [f'declare void @"{symbol}"(ptr, i64, i64, ptr)\n' for symbol in used]
        parts += [_SHARE] if entry.shares else []
        parts.append(f'define void @"{name}"(ptr %arguments, ptr %pool, ptr %workspace) {{')
    body = "\n".join(entry.lines)
    return with_attributes(f"{''.join(parts)}\nentry:\n{body}\n  ret void\n}}\n", target)


class Entry:
    """The lines of the entry function's body."""

    def __init__(self, program: Program, symbols: Sequence[str] | None):
        self.program = program
        self.symbols = symbols
        self.lines: list[str] = []
        self.known: set[str] = set()
        self.shares = False
        self.line(f"%scratch = getelementptr i8, ptr %workspace, i64 {program.arena_bytes}")
        self.line(f"%slots = alloca ptr, i64 {max((_slots(bundle) for bundle in program.bundles), default=1)}")
        self.launches()

    def launches(self) -> None:
        """The program's launches, one after the other."""
        tables = [1 + WORDS * _count(bundle) for bundle in self.program.bundles if len(bundle) > 1]
        if tables:
            self.line(f"%table = alloca i64, i64 {max(tables)}")
        for bundle in self.program.bundles:
            if len(bundle) == 1:
                self.chain(bundle[0].calls)
            else:
                self.table(bundle)
                self.share("@pieces", "%table", sum(chain.pieces for chain in bundle))

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def chain(self, calls: Sequence[Call]) -> None:
        """Calls one after another, by themselves."""
        for call in calls:
            self.buffers(0, call)
            if call.chunks > 1:
                self.share(self.kernel(call), "%slots", call.chunks)
            else:
                self.line(f"call void {self.kernel(call)}(ptr %slots, i64 0, i64 1, ptr %scratch)")

    def share(self, kernel: str, buffers: str, chunks: int) -> None:
        """Run a kernel on the threads of the pool."""
        self.shares = True
        share = "@share" if self.symbols is not None else self.load("parallel_for", "%pool", 0)
        arguments = f"ptr %pool, ptr {kernel}, ptr {buffers}, i64 {chunks}, ptr %scratch, i64 {self.stride}"
        self.line(f"call void {share}({arguments})")

    @property
    def stride(self) -> int:
        """Bytes between the scratch of one thread and that of the next."""
        return self.program.scratch_bytes

    def table(self, bundle: Bundle) -> None:
        """Write the table of a bundle; see the top of this file."""
        calls = [(chain, call) for chain in bundle for call in chain.calls]
        self.write("i64", len(calls), self.word(0))
        first, at, buffers = 0, 1, 0
        for chain in bundle:
            for call in chain.calls:
                self.write("ptr", self.kernel(call), self.word(at))
                self.write("ptr", self.slot(buffers), self.word(at + 1))
                for position, number in enumerate((first, chain.pieces, call.chunks), at + 2):
                    self.write("i64", number, self.word(position))
                self.buffers(buffers, call)
                at, buffers = at + WORDS, buffers + len(call.places)
            first += chain.pieces

    def buffers(self, start: int, call: Call) -> None:
        for position, place in enumerate(call.places, start):
            self.write("ptr", self.address(place), self.slot(position))

    def write(self, kind: str, value: object, where: str) -> None:
        self.line(f"store {kind} {value}, ptr {where}")

    # Values that are made once, where they are first needed.

    def slot(self, position: int) -> str:
        return self.once(f"slot{position}", f"getelementptr ptr, ptr %slots, i64 {position}")

    def word(self, position: int) -> str:
        return self.once(f"word{position}", f"getelementptr i64, ptr %table, i64 {position}")

    def kernel(self, call: Call) -> str:
        if self.symbols is not None:
            return f'@"{self.symbols[call.kernel]}"'
        return self.load(f"kernel{call.kernel}", "%kernels", call.kernel)

    def address(self, place: Place) -> str:
        name = f"{place.kind}{place.position}"
        if place.kind == "arena":
            return self.once(name, f"getelementptr i8, ptr %workspace, i64 {place.position}")
        offset = len(self.program.inputs) if place.kind == "output" else 0
        return self.load(name, "%arguments", offset + place.position)

    def load(self, name: str, base: str, position: int) -> str:
        where = self.once(f"{name}.p", f"getelementptr ptr, ptr {base}, i64 {position}")
        return self.once(name, f"load ptr, ptr {where}")

    def once(self, name: str, instruction: str) -> str:
        if name not in self.known:
            self.known.add(name)
            self.line(f"%{name} = {instruction}")
        return f"%{name}"


def _count(bundle: Bundle) -> int:
    return sum(len(chain.calls) for chain in bundle)


def _slots(bundle: Bundle) -> int:
    """How many addresses of buffers the launch of a bundle has on the stack at a time."""
    counts = [len(call.places) for chain in bundle for call in chain.calls]
    return max(1, sum(counts) if len(bundle) > 1 else max(counts))
