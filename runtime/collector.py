"""Holds Python's garbage collector back while a program is compiled: what a compiler makes is much, and in use.

Every time the objects of a process have grown by a quarter the collector looks at all of them. While a deep network is
compiled this takes as long as emitting its kernels does, and finds next to nothing. Afterwards everything that was made
meanwhile would be young, and be looked at twice on the way to becoming old: it is counted as old at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

__all__ = ["held_back"]

_lock = threading.Lock()
_holders: set[object] = set()
_was_enabled = [False]  # before the first of the holders


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """No automatic collection until the last of those who ask for this, in whichever threads, is done.

    A collector that is off stays off.
    """
    holder = object()
    try:
        with _lock:
            if not _holders:
                _was_enabled[0] = gc.isenabled()
            _holders.add(holder)
            gc.disable()
        yield
    finally:
        with _lock:
            _holders.discard(holder)
            if not _holders and _was_enabled[0]:
                _make_all_old()
                gc.enable()


def _make_all_old() -> None:
    """Move all objects to the oldest generation, without looking at any."""
    if gc.get_freeze_count() == 0:  # else this would undo what somebody has frozen
        gc.freeze()
        gc.unfreeze()


def _after_fork() -> None:
    """The threads that hold it back do not exist in a child."""
    global _lock
    _lock = threading.Lock()
    if _holders:
        _holders.clear()
        if _was_enabled[0]:
            gc.enable()


os.register_at_fork(after_in_child=_after_fork)
