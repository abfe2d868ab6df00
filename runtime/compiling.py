"""What differs in a process while it compiles a program: the garbage collector waits, and threads take short turns.

Every time the objects of a process have grown by a quarter the collector looks at all of them. While a deep network is
compiled this takes as long as emitting its kernels does, and finds next to nothing. Afterwards everything that was made
meanwhile would be young, and be looked at twice on the way to becoming old: it is counted as old at once.

Threads that drive LLVM come back to Python for some forty short calls a kernel. For each they wait until the thread
that emits the next kernel has had its turn with the interpreter's lock, by default five milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["compiling"]

_TURN_SECONDS = 0.0005
_HALF_OF_A_MICROSECOND = 5e-7  # Python cuts turns to whole ones


@dataclass(frozen=True)
class _Before:
    """How the process was before the first of those who compile."""

    collector_enabled: bool
    turn_seconds: float

    @staticmethod
    def now() -> _Before:
        return _Before(gc.isenabled(), sys.getswitchinterval())

    def restore(self) -> None:
        sys.setswitchinterval(self.turn_seconds + _HALF_OF_A_MICROSECOND)
        if self.collector_enabled:
            gc.enable()


_lock = threading.Lock()
_compiling: set[object] = set()
_before = [_Before.now()]


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """No automatic collection, and short turns, until the last of those who compile, in whichever threads, is done.

    A collector that is off stays off, and shorter turns stay as they are.
    """
    one = object()
    try:
        with _lock:
            if not _compiling:
                _before[0] = _Before.now()
            _compiling.add(one)
            gc.disable()
            if _before[0].turn_seconds > _TURN_SECONDS:
                sys.setswitchinterval(_TURN_SECONDS)
        yield
    finally:
        with _lock:
            _compiling.discard(one)
            if not _compiling:
                _make_all_old()
                _before[0].restore()


def _make_all_old() -> None:
    """Move all objects to the oldest generation, without looking at any."""
    if gc.get_freeze_count() == 0:  # else this would undo what somebody has frozen
        gc.freeze()
        gc.unfreeze()


def _after_fork() -> None:
    """The threads that compile do not exist in a child."""
    global _lock
    _lock = threading.Lock()
    if _compiling:
        _compiling.clear()
        _before[0].restore()


os.register_at_fork(after_in_child=_after_fork)
