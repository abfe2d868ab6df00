"""An entry that notes when each launch and each piece of a kernel begins and ends, for a profile.

    void entry(ptr arguments, ptr kernels, ptr pool, ptr workspace)

It does what the program's own entry does, kernel for kernel and chunk for chunk, so results have the same bits. After
the addresses of inputs and outputs, `arguments` has that of 8-byte words to write to:

    the time before the first launch, and after each
    for each worker: how many events it noted | for each event: call, begin, end

Times are nanoseconds of the monotonic clock, calls numbers in `Program.calls`. Every loop runs through `noted`, which
is `pieces` with a look at the clock around each kernel. What it needs lies before its table:

    number of the first call | address of the workers' words | words a worker has | scratch | its stride
"""

from __future__ import annotations

from ..program import Bundle, Chain, Program
from .entry import WORDS, Entry, pieces_function
from .kernels import with_attributes
from .vector_target import VectorTarget

# The words of an event, and those before a table.
EVENT_WORDS = 3
_BEFORE = 5

# A worker knows its number by its scratch, so everyone has some.
_LEAST_SCRATCH = 64

_CLOCK = """\
declare i32 @clock_gettime(i32, ptr)

define internal i64 @now() {
entry:
  %time = alloca [2 x i64]
  %status = call i32 @clock_gettime(i32 $CLOCK, ptr %time)
  %seconds = load i64, ptr %time
  %rest.p = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %rest.p
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %rest
  ret i64 %sum
}

"""

# What a worker writes to, by its scratch.
_WORDS_OF_THE_WORKER = """\
  %call.p = getelementptr i64, ptr %table, i64 -5
  %workers.p = getelementptr i64, ptr %table, i64 -4
  %size.p = getelementptr i64, ptr %table, i64 -3
  %base.p = getelementptr i64, ptr %table, i64 -2
  %stride.p = getelementptr i64, ptr %table, i64 -1
  %first.call = load i64, ptr %call.p
  %workers = load ptr, ptr %workers.p
  %size = load i64, ptr %size.p
  %base = load i64, ptr %base.p
  %stride = load i64, ptr %stride.p
  %own = ptrtoint ptr %scratch to i64
  %offset = sub i64 %own, %base
  %worker = udiv i64 %offset, %stride
  %words.before = mul i64 %worker, %size
  %notes = getelementptr i64, ptr %workers, i64 %words.before
"""

_LOOK_AT_THE_CLOCK = """\
  %started = call i64 @now()
"""

_NOTE = """\
  %ended = call i64 @now()
  %count = load i64, ptr %notes
  %counted = add i64 %count, 1
  store i64 %counted, ptr %notes
  %place = mul i64 %count, $EVENT
  %event.0 = getelementptr i64, ptr %notes, i64 %place
  %event.p = getelementptr i64, ptr %event.0, i64 1
  %begin.p = getelementptr i64, ptr %event.0, i64 2
  %end.p = getelementptr i64, ptr %event.0, i64 3
  %event = add i64 %first.call, %number
  store i64 %event, ptr %event.p
  store i64 %started, ptr %begin.p
  store i64 %ended, ptr %end.p
""".replace("$EVENT", str(EVENT_WORDS))


def scratch_stride(program: Program) -> int:
    """Bytes of scratch that each thread needs for a noted run."""
    return max(program.scratch_bytes, _LEAST_SCRATCH)


def worker_words(program: Program) -> int:
    """Words that one worker may write: its count, and an event for each piece it may be alone to claim."""
    pieces = sum(chain.pieces for bundle in _launches(program) for chain in bundle)
    return 1 + EVENT_WORDS * (pieces + len(program.calls))


def emit_traced_entry(program: Program, name: str, target: VectorTarget, clock: int) -> str:
    """LLVM IR text of a module that defines the entry `name`; see the top of this file.

    clock: the number of the system's monotonic clock.
    """
    body = "\n".join(_TracedEntry(program).lines)
    noted = pieces_function("noted", first=_WORDS_OF_THE_WORKER, before=_LOOK_AT_THE_CLOCK, after=_NOTE)
    header = f'define void @"{name}"(ptr %arguments, ptr %kernels, ptr %pool, ptr %workspace) {{'
    clock_text = _CLOCK.replace("$CLOCK", str(clock))
    return with_attributes(f"{clock_text}{noted}{header}\nentry:\n{body}\n  ret void\n}}\n", target)


def _launches(program: Program) -> list[Bundle]:
    """Every loop by itself: calls that a chain runs one after another are launches of their own here."""
    alone = [call for bundle in program.bundles if len(bundle) == 1 for call in bundle[0].calls]
    together = [bundle for bundle in program.bundles if len(bundle) > 1]
    flat = [tuple(Chain((call,), chain.pieces) for chain in bundle for call in chain.calls) for bundle in together]
    return [*((Chain((call,), call.chunks),) for call in alone), *flat]


class _TracedEntry(Entry):
    """The lines of the body."""

    def __init__(self, program: Program):
        self._call = 0
        super().__init__(program, None)

    def launches(self) -> None:
        program = self.program
        largest = max((sum(len(chain.calls) for chain in bundle) for bundle in program.bundles), default=1)
        notes = self.load("notes", "%arguments", len(program.inputs) + len(program.outputs))
        self.line(f"%room = alloca i64, i64 {_BEFORE + 1 + WORDS * largest}")
        self.line(f"%table = getelementptr i64, ptr %room, i64 {_BEFORE}")
        self.line(f"%workers = getelementptr i64, ptr {notes}, i64 {1 + len(program.bundles)}")
        self.write("ptr", "%workers", self.word(-4))
        self.write("i64", worker_words(program), self.word(-3))
        self.write("ptr", "%scratch", self.word(-2))
        self.write("i64", scratch_stride(program), self.word(-1))
        self.stamp(0)
        for number, bundle in enumerate(program.bundles, 1):
            if len(bundle) == 1:
                for call in bundle[0].calls:
                    self.noted((Chain((call,), call.chunks),))
            else:
                self.noted(bundle)
            self.stamp(number)

    def noted(self, bundle: Bundle) -> None:
        """Run calls as one loop, noting."""
        self.write("i64", self._call, self.word(-5))
        self._call += sum(len(chain.calls) for chain in bundle)
        self.table(bundle)
        self.share("@noted", "%table", sum(chain.pieces for chain in bundle))

    def stamp(self, number: int) -> None:
        self.line(f"%time{number} = call i64 @now()")
        self.write("i64", f"%time{number}", self.once(f"stamp{number}", f"getelementptr i64, ptr %notes, i64 {number}"))

    @property
    def stride(self) -> int:
        return scratch_stride(self.program)
