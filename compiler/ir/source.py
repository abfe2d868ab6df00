"""Where a node came from: the user's file and line, the layer path, and the phase of the step."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import NamedTuple


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


class _Origin(NamedTuple):
    """The line that made the layer being applied, and the frame that applies it."""

    file: str
    line: int
    frame: FrameType


_origin: ContextVar[_Origin | None] = ContextVar("layer_origin", default=None)


def add_library_folder(folder: str) -> None:
    """Treat code under `folder` as part of the library when looking for the user's line."""
    _library_folders.append(os.path.abspath(folder) + os.sep)
    _is_library.clear()


def is_library(file: str) -> bool:
    """Whether the code in a file belongs to the library."""
    return os.path.abspath(file).startswith(tuple(_library_folders))


def current() -> Source:
    """The place the user's code is at now, or the place being inherited inside `inherit`.

    For a layer of the library that is the line that made the layer: the user's code that applies it, a training step
    perhaps, would say nothing.
    """
    override = _override.get()
    if override is not None:
        return override
    frame = sys._getframe(1)
    origin = _origin.get()
    while True:
        code = frame.f_code
        library = _is_library.get(code)
        if library is None:
            library = _is_library[code] = is_library(code.co_filename)
        if origin is not None and frame is origin.frame:
            return Source(origin.file, origin.line, _layer_path.get(), _phase.get())
        if not library or frame.f_back is None:
            return Source(code.co_filename, frame.f_lineno, _layer_path.get(), _phase.get())
        frame = frame.f_back


def layer_path() -> str:
    """The dotted path of the layer being applied, "" at the top."""
    return _layer_path.get()


def line() -> tuple[str, int]:
    """The file and line of the user's code now."""
    here = current()
    return here.file, here.line


@contextmanager
def layer(name: str, made_at: tuple[str, int] | None = None) -> Iterator[None]:
    """Nodes made inside carry `name`, if it is not empty, appended to the layer path.

    made_at: the file and line that made the layer, see `current`; None for a layer of the user's own.
    """
    outer = _layer_path.get()
    path = _layer_path.set(f"{outer}.{name}" if outer and name else outer or name)
    # Around this function are `contextmanager` and then the frame whose `with` it is.
    origin = _origin.set(None if made_at is None else _Origin(*made_at, sys._getframe(2)))
    try:
        yield
    except Exception as error:
        _tell_origin(error, made_at)
        raise
    finally:
        _origin.reset(origin)
        _layer_path.reset(path)


_MADE_AT = " was made at "


def _tell_origin(error: Exception, made_at: tuple[str, int] | None) -> None:
    """Note the line that made the layer which the error's message names, once."""
    path, message = _layer_path.get(), str(error)
    # At the top there is no path to name.
    is_named = message.endswith(f"(in layer {path})") if path else message.startswith("layer.")
    if made_at is None or not is_named or any(_MADE_AT in note for note in getattr(error, "__notes__", ())):
        return
    error.add_note(f"{f'layer {path}' if path else 'the layer'}{_MADE_AT}{made_at[0]}:{made_at[1]}")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Nodes made inside carry the phase `name` ("forward", "backward" or "update")."""
    token = _phase.set(name)
    try:
        yield
    finally:
        _phase.reset(token)


class inherit:
    """Nodes made inside come from `source`: for passes and gradient rules, which derive nodes from older ones.

    As a class, since it is entered for every node.
    """

    __slots__ = ("_source", "_token")

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._token = _override.set(self._source)

    def __exit__(self, *problem: object) -> None:
        _override.reset(self._token)
