"""What a tool is doing now, in a line of the terminal that is written over; nothing where nobody watches."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from kaun.runtime import activity

# Back to the start of the line, and erase it.
_CLEAR = "\r\x1b[K"


class _Line:
    """The last line of a terminal. Threads may show things at the same time."""

    def __init__(self, terminal: TextIO):
        self._terminal = terminal
        self._lock = threading.RLock()
        self._shown = False
        self._unfinished = False

    def show(self, text: str) -> None:
        """Have it say this."""
        with self._lock:
            start = "\n" if self._unfinished else _CLEAR
            self._terminal.write(start + _cut(text, self._terminal))
            self._terminal.flush()
            self._shown, self._unfinished = True, False

    def clear(self) -> None:
        """Have it empty."""
        with self._lock:
            if self._shown:
                self._terminal.write(_CLEAR)
                self._terminal.flush()
                self._shown = False

    def pass_on(self, text: str, stream: TextIO) -> int:
        """Write what somebody else has to say to a stream that is seen on the same terminal."""
        with self._lock:
            self.clear()
            written = stream.write(text)
            stream.flush()
            if text:
                self._unfinished = not text.endswith("\n")
            return written


class _Beside:
    """A stream whose text does not mix with the line."""

    def __init__(self, stream: TextIO, line: _Line):
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.pass_on(text, self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def shown(doing: str) -> Iterator[None]:
    """Inside, a line of the terminal says what is being done: `doing` first, then what `activity.now` tells.

    What is printed meanwhile stands above it. Nothing is shown if standard error is no terminal.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    line = _Line(sys.stderr)
    streams = sys.stdout, sys.stderr
    if sys.stdout.isatty():
        sys.stdout = _Beside(sys.stdout, line)
    sys.stderr = _Beside(sys.stderr, line)
    try:
        with activity.listening(line.show):
            line.show(doing)
            yield
    finally:
        sys.stdout, sys.stderr = streams
        line.clear()


def _cut(text: str, terminal: TextIO) -> str:
    """The text as far as it fits into one line."""
    try:
        columns = os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    room = (columns or 80) - 1
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 1]}…"
