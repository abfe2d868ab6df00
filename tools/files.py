"""The files that tools write: what was written, its size and purpose, or in one line why it could not be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class OutputError(Exception):
    """Something could not be written; the message tells what, and why."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what writes this file: an OSError becomes an `OutputError` that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def wrote(path: str | os.PathLike[str], purpose: str, *, is_result: bool = False) -> None:
    """Tell people that this file was written, and what to do with it.

    is_result: the tool was run for this file alone, so programs that read our output are given its name.
    """
    if is_result and not sys.stdout.isatty():
        print(os.fspath(path))
        return
    text = f"Wrote {os.fspath(path)} ({size_in_words(os.path.getsize(path))}): {purpose}"
    print(text, file=sys.stdout if is_result else sys.stderr)


def size_in_words(count: int) -> str:
    """The size for people: "512 bytes", "1.5 MiB"."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
