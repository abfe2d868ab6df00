"""How tools tell what went wrong: in one line, or for a mistake in the user's code with the user's lines alone."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from kaun.compiler.ir import source

# What a shell reports for arguments that make no sense, as argparse does for wrong options.
_REFUSED = 2
# And for a program ended by Ctrl-C.
INTERRUPTED = 130

# Between the tools and what they run.
_TOOLS = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Where compiling begins: what takes a graph from stage to stage, and what runs the passes.
_COMPILER = os.path.dirname(os.path.dirname(os.path.abspath(source.__file__)))
_COMPILERS = (os.path.join(_COMPILER, "pipeline.py"), os.path.join(_COMPILER, "passes", "__init__.py"))
_IMPORTS = (importlib.__file__, "<frozen importlib")


class UserCodeError(Exception):
    """The code that a tool was pointed to raised an error, which is the cause of this one. It prints for the user."""


@contextmanager
def code_of(name: str) -> Iterator[None]:
    """Around what runs the code called `name`: what it raises becomes a `UserCodeError`."""
    try:
        yield
    except (Exception, SystemExit) as error:  # one that ends the program would end the tool as if all were well
        raise UserCodeError(f"{name} failed:\n{told(error)}") from error


def told(error: BaseException) -> str:
    """The error as Python prints it, with the frames of the user's code alone, and where its layer was made.

    What was raised while a graph was compiled is no mistake of the user's: from there on all frames are shown.
    """
    whole = traceback.TracebackException.from_exception(error)
    inside = next((number for number, frame in enumerate(whole.stack) if _compiles(frame.filename)), len(whole.stack))
    shown = [frame for frame in whole.stack[:inside] if not _is_machinery(frame.filename)] + whole.stack[inside:]
    frames = traceback.StackSummary.from_list(shown).format()
    return "".join([*frames, *whole.format_exception_only()]).rstrip("\n")


def _compiles(file: str) -> bool:
    return os.path.normpath(file) in _COMPILERS


def _is_machinery(file: str) -> bool:
    # What lies in folders among the tools, such as models that are measured, may be looked at as a user's code is.
    is_tool = os.path.dirname(file) + os.sep == _TOOLS
    return is_tool or file.startswith(_IMPORTS) or source.is_library(file)


def refuse(prog: str, error: object) -> NoReturn:
    """End the tool with this message and no more; how its options are used is for those who got them wrong."""
    print(f"{prog}: {reason(error)}", file=sys.stderr)
    raise SystemExit(_REFUSED)


def reason(error: object) -> str:
    """What an error says, for people: one of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read {error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
