"""Where a node came from: the user's file and line, the layer path, and the phase of the step."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True, slots=True)
class Source:
    """A place in the user's program. `path` is the layer path ("0.left"), `phase` "forward", "backward" or "update"."""

    file: str
    line: int
    path: str = ""
    phase: str = "forward"

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.line}"
        return f"{where} [{self.path}]" if self.path else where


UNKNOWN = Source("", 0)

# Frames under these folders belong to the library, not to the user.
_library_folders: list[str] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep]
_is_library: dict[CodeType, bool] = {}

_override: ContextVar[Source | None] = ContextVar("source_override", default=None)
_layer_path: ContextVar[str] = ContextVar("layer_path", default="")
_phase: ContextVar[str] = ContextVar("phase", default="forward")


def add_library_folder(folder: str) -> None:
    """Treat code under `folder` as part of the library when looking for the user's line."""
    _library_folders.append(os.path.abspath(folder) + os.sep)
    _is_library.clear()


def current() -> Source:
    """The place the user's code is at now, or the place being inherited inside `inherit`."""
    override = _override.get()
    if override is not None:
        return override
    frame = sys._getframe(1)
    while True:
        code = frame.f_code
        library = _is_library.get(code)
        if library is None:
            name = os.path.abspath(code.co_filename)
            library = name.startswith(tuple(_library_folders))
            _is_library[code] = library
        if not library or frame.f_back is None:
            return Source(code.co_filename, frame.f_lineno, _layer_path.get(), _phase.get())
        frame = frame.f_back


def layer_path() -> str:
    """The dotted path of the layer being applied, "" at the top."""
    return _layer_path.get()


@contextmanager
def layer(name: str) -> Iterator[None]:
    """Nodes made inside carry `name` appended to the layer path."""
    outer = _layer_path.get()
    token = _layer_path.set(f"{outer}.{name}" if outer else name)
    try:
        yield
    finally:
        _layer_path.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Nodes made inside carry the phase `name` ("forward", "backward" or "update")."""
    token = _phase.set(name)
    try:
        yield
    finally:
        _phase.reset(token)


@contextmanager
def inherit(source: Source) -> Iterator[None]:
    """Nodes made inside come from `source`: for passes and gradient rules, which derive nodes from older ones."""
    token = _override.set(source)
    try:
        yield
    finally:
        _override.reset(token)
