"""How layers and optimizers print: as the call that made them, one part a line where it is long."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from kaun.compiler.ir import source

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="Described")

_LINE = 100


class Described:
    """What prints as the call that made it: `linear(in_features=64, out_features=10)`.

    Without a remembered call, such as for a layer of one's own, it is the class and the names of its functions.
    """

    def __repr__(self) -> str:
        try:
            remembered = _calls.get(self)
        except TypeError:  # one's own, of functions that cannot be hashed
            remembered = None
        if remembered is None:
            functions = {name: value for name, value in self.__dict__.items() if callable(value)}
            return _call_text(type(self).__name__, (), functions)
        return _call_text(*remembered)


# Beside the objects and not in them, since a layer is a record of two functions and nothing else.
_calls: WeakKeyDictionary[Described, tuple[str, tuple[Any, ...], dict[str, Any]]] = WeakKeyDictionary()


_lines: WeakKeyDictionary[Described, tuple[str, int]] = WeakKeyDictionary()


def remember(made: D, name: str, *args: Any, **keywords: Any) -> D:
    """`made`, which from now on prints as this call and knows the line of it."""
    _calls[made] = (name, args, keywords)
    _lines[made] = source.line()
    return made


def made_at(made: Described) -> tuple[str, int] | None:
    """The file and line of the user's code that made it; None for one's own."""
    try:
        return _lines.get(made)
    except TypeError:  # of functions that cannot be hashed
        return None


def described(make: Callable[P, R]) -> Callable[P, R]:
    """`make`, whose results remember how they were made."""

    @functools.wraps(make)
    def remembering(*args: P.args, **keywords: P.kwargs) -> R:
        made = make(*args, **keywords)
        if isinstance(made, Described):
            remember(made, make.__name__, *args, **keywords)
        return made

    return remembering


def _call_text(name: str, args: Sequence[Any], keywords: dict[str, Any]) -> str:
    if len(args) == 1 and not keywords:
        return f"{name}({_text(args[0])})"
    parts = [_text(value) for value in args] + [f"{key}={_text(value)}" for key, value in keywords.items()]
    return block(f"{name}(", parts, ")")


def _text(value: Any) -> str:
    if isinstance(value, functools.partial):
        return _text(value.func)
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Described) for entry in value):
        return block("[", [_text(entry) for entry in value], "]")
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    return repr(value)


def block(start: str, parts: Sequence[str], end: str) -> str:
    """On one line if it is short, else one part a line."""
    line = start + ", ".join(parts) + end
    if len(line) <= _LINE and "\n" not in line:
        return line
    return f"{start}\n" + "".join(textwrap.indent(part, "  ") + ",\n" for part in parts) + end
