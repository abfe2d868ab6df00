"""Runs a program while each thread notes which kernel it works on from when to when.

The kernels are the program's own; only the entry is another one, `codegen/traced_entry.py`, compiled when a profile is
first asked for. A program that nobody profiles holds nothing of it.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from kaun.runtime import threads
from kaun.runtime.buffers import Buffer
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.program import Executable
from kaun.runtime.target import Target

__all__ = ["Event", "Layout", "Run", "Tracer", "clock_seconds", "without_kernels"]

# CLOCK_MONOTONIC; on Linux it is what `time.perf_counter_ns` reads.
_CLOCK = 6 if platform.system() == "Darwin" else 1

# Reads the clock so many times.
_READ = """
declare i32 @clock_gettime(i32, ptr)

define void @NAME(i64 %times) {
entry:
  %time = alloca [2 x i64]
  br label %again
again:
  %number = phi i64 [ 0, %entry ], [ %next, %again ]
  %status = call i32 @clock_gettime(i32 $CLOCK, ptr %time)
  %next = add i64 %number, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %again, label %done
done:
  ret void
}
""".replace("$CLOCK", str(_CLOCK))

# The entry of a program without kernels.
_NOTHING = """
define void @NAME(ptr %arguments, ptr %kernels, ptr %pool, ptr %workspace) {
  ret void
}
"""
_READS, _TRIES = 1000, 15


def clock_seconds(target: Target) -> float:
    """What one look at the clock takes, which a noted run does twice for each event and once for each launch."""
    read = ctypes.CFUNCTYPE(None, ctypes.c_int64)(_compiled("kaun_read_clock_", _READ, target))
    read(_READS)
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        read(_READS)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / _READS


def without_kernels(record: array[int], target: Target) -> array[int]:
    """A record like this one, of a program that does nothing: what `Executable.start` takes for it is the call."""
    return array("Q", (_compiled("kaun_no_kernels_", _NOTHING, target), *record[1:]))


def _compiled(prefix: str, text: str, target: Target) -> int:
    symbol = prefix + hashlib.sha256(text.encode()).hexdigest()[:16]
    (address,) = compile_kernels([KernelRequest(symbol, text, lambda: text.replace("@NAME", f"@{symbol}"))], target)
    return address


@dataclass(frozen=True)
class Event:
    """A part of a kernel call that one worker did; 0 is the thread that called. Nanoseconds of the monotonic clock."""

    call: int
    worker: int
    begin: int
    end: int


@dataclass(frozen=True)
class Run:
    """One run: `stamps[i]` is when launch i began, `stamps[i + 1]` when it was over; events in no order."""

    stamps: tuple[int, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Layout:
    """What a traced entry writes: `worker_words` 8-byte words for each worker, `event_words` an event."""

    worker_words: int
    event_words: int
    scratch_stride: int


class Tracer:
    """Runs an executable with notes.

    emit(name, number of the clock): LLVM IR of the traced entry; layout: what it writes.
    """

    def __init__(
        self,
        executable: Executable,
        target: Target,
        emit: Callable[[str, int], str],
        layout: Layout,
    ):
        self._executable, self._program = executable, executable.program
        self._pool = threads.pool()
        self._layout = layout
        text = f"traced for {self._pool.threads} threads, clock {_CLOCK}\n{self._program.entry.text}"
        symbol = "kaun_traced_" + hashlib.sha256(text.encode()).hexdigest()[:24]
        request = KernelRequest(symbol, text, lambda: emit(symbol, _CLOCK), level=0)
        (self._entry,) = compile_kernels([request], target)
        count = 1 + len(self._program.bundles) + self._pool.threads * self._layout.worker_words
        self._notes = Buffer(8 * count)
        size = self._program.arena_bytes + self._pool.threads * self._layout.scratch_stride
        self._workspace = Buffer(max(1, size))

    @property
    def threads(self) -> int:
        """How many threads run the program."""
        return self._pool.threads

    def run(self, arguments: Sequence[int]) -> Run:
        """One run on inputs and then outputs at these addresses; see `Executable.record` for which may be equal."""
        self.start(self.record(arguments))
        return self.noted()

    def record(self, arguments: Sequence[int]) -> array[int]:
        """What `start` takes, as `Executable.record`."""
        table = self._executable.table_address
        words = (self._entry, table, self._pool.address, self._workspace.address, 0, *arguments, self._notes.address)
        return array("Q", words)

    def start(self, record: array[int]) -> None:
        """Run the program once, as `Executable.start`."""
        self._words()[...] = 0
        self._pool.run(record.buffer_info()[0])

    def noted(self) -> Run:
        """What was noted in the last run."""
        notes, launches = self._words(), len(self._program.bundles)
        return Run(tuple(notes[: launches + 1].tolist()), tuple(self._events(notes[launches + 1 :])))

    def _words(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self._notes.view(np.int64, (self._notes.nbytes // 8,))

    def _events(self, words: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[Event]:
        events = []
        for worker, own in enumerate(words.reshape(self._pool.threads, self._layout.worker_words)):
            width = self._layout.event_words
            rows = own[1 : 1 + width * int(own[0])].reshape(-1, width).tolist()
            events += [Event(call, worker, begin, end) for call, begin, end in rows]
        return events
