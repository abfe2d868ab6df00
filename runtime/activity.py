"""What takes its time now, told to whoever shows it, as tools do. Nobody else listens, which costs a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["listening", "now"]

Listener = Callable[[str], object]

_listeners: list[Listener] = []


def now(doing: str) -> None:
    """Tell everybody who listens what begins now, as in "compiling kernel 3 of 20". From any thread."""
    if _listeners:
        for listener in tuple(_listeners):
            listener(doing)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener` is told what is being done, also by other threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
