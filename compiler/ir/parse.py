"""The text of a graph back into the graph. Nothing in it is trusted: errors tell line, column and what is wrong.

    text.parse_graph: line 3, column 8: unknown op 'mull'
      %2 = mull(%0, %1) : float32[2, 3]
           ^
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from . import dtypes, ops
from .dtypes import DType
from .graph import Graph, Node
from .source import UNKNOWN, Source, inherit
from .text import format_type

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"%([0-9]{1,9})")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_EXTENTS = re.compile(r"\[([0-9, ]*)\]")
_LINE_NUMBER = re.compile(r"[0-9]{1,9}")
_NUMBERS = re.compile(r"[-+0-9.e(), ]*")
_NAMED = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "True": True, "False": False, "None": None}
_PHASES = ("forward", "backward", "update")
# Of a line in an error; what may lie on either side of the place that is wrong.
_SHOWN = 60
# Inputs of texts are told apart by the text and their place in it: nodes of two texts that are equal otherwise come
# from lines of their own.
_texts = itertools.count()
# Longest text of one attribute, and most digits of an extent.
_LONGEST_VALUE, _MOST_DIGITS = 1 << 20, 20


class _Line:
    """A line and how far it has been read."""

    def __init__(self, text: str, number: int):
        self.text, self.number, self.at = text, number, len(text) - len(text.lstrip())

    def error(self, reason: str, at: int | None = None) -> ValueError:
        """An error that shows the place: where reading has come to, if it is no other."""
        at = self.at if at is None else at
        start = max(0, at - _SHOWN)
        shown = "".join(c if c.isprintable() else "?" for c in self.text[start : at + _SHOWN])
        return ValueError(
            f"text.parse_graph: line {self.number}, column {at + 1}: {reason}\n{shown}\n{' ' * (at - start)}^"
        )

    def has(self, word: str) -> bool:
        """Whether the word comes next; it is passed if it does."""
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def expect(self, word: str) -> None:
        if not self.has(word):
            raise self.error(f"expected {word.strip()!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.error(f"expected {what}")
        self.at = found.end()
        return found

    def end(self) -> None:
        if self.text[self.at :].strip():
            raise self.error("expected the end of the line")


def parse_graph(text: str) -> Graph:
    """The graph that `print_graph` printed. ValueError names the line that does not parse or does not type-check."""
    lines = [_Line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0] if lines else _Line("", 1)
    if not first.has("graph("):
        raise first.error("expected 'graph(...) {'")
    reader = _Reader()
    reader.header(first)
    for line in lines[1:]:
        reader.line(line)
    last = lines[-1]
    if reader.outputs is None:
        raise last.error("the text ends with no return line")
    if not reader.closed:
        raise last.error("expected '}' on the last line", len(last.text))
    return Graph(tuple(reader.inputs), reader.outputs, tuple(reader.names) if any(reader.names) else ())


class _Reader:
    """What has been read of a graph."""

    def __init__(self) -> None:
        self.number = next(_texts)
        self.nodes: dict[str, Node] = {}
        self.inputs: list[Node] = []
        self.names: list[str] = []
        self.outputs: tuple[Node, ...] | None = None
        self.closed = False

    def header(self, line: _Line) -> None:
        while not line.has(")"):
            if self.inputs:
                line.expect(", ")
            number = self._new_number(line)
            line.expect(": ")
            start = line.at
            dtype, shape = _type(line)
            identity = ("parsed", self.number, len(self.inputs))
            make = partial(ops.input_, identity=identity, dtype=dtype, shape=shape)
            self.inputs.append(_made(line, start, make))
            self.nodes[number] = self.inputs[-1]
            self.names.append(_string(line) if line.has(" ") else "")
        line.expect(" {")
        line.end()

    def line(self, line: _Line) -> None:
        if self.closed:
            raise line.error("expected nothing after '}'")
        if line.has("}"):
            self.closed = True
        elif self.outputs is not None:
            raise line.error("expected '}' after the return line")
        elif line.has("return"):
            self.outputs = self._returned(line)
        else:
            self._definition(line)
        line.end()

    def _new_number(self, line: _Line) -> str:
        start = line.at
        number = line.match(_NUMBER, "%0 or another number of a node").group(1)
        if number in self.nodes:
            raise line.error(f"%{number} is defined twice", start)
        return number

    def _known(self, line: _Line) -> Node:
        start = line.at
        number = line.match(_NUMBER, "%0 or another number of a node").group(1)
        if number not in self.nodes:
            raise line.error(f"%{number} is used before it is defined", start)
        return self.nodes[number]

    def _returned(self, line: _Line) -> tuple[Node, ...]:
        found: list[Node] = []
        while line.text[line.at :].strip():
            line.expect(", " if found else " ")
            found.append(self._known(line))
        return tuple(found)

    def _definition(self, line: _Line) -> None:
        number = self._new_number(line)
        line.expect(" = ")
        start = line.at
        name = line.match(_WORD, "an op").group()
        if name not in ops.TABLE or ops.TABLE[name] is ops.input_:
            raise line.error(f"unknown op {name!r}" if name != "input" else "inputs belong in the first line", start)
        line.expect("(")
        operands, attributes = self._arguments(line)
        line.expect(" : ")
        typed = line.at
        dtype, shape = _type(line)
        source = _source(line) if line.has("  @ ") else UNKNOWN
        with inherit(source):
            node = _made(line, start, partial(ops.TABLE[name], *operands, **attributes))
        if (node.dtype, node.shape) != (dtype, shape):
            raise line.error(f"this node has type {format_type(node)}", typed)
        self.nodes[number] = node

    def _arguments(self, line: _Line) -> tuple[list[Node], dict[str, Any]]:
        operands: list[Node] = []
        attributes: dict[str, Any] = {}
        while not line.has(")"):
            if operands or attributes:
                line.expect(", ")
            if line.text.startswith("%", line.at):
                operands.append(self._known(line))
                continue
            start = line.at
            attribute = line.match(_WORD, "%, name=value or ')'").group()
            if attribute in attributes:
                raise line.error(f"{attribute} is given twice", start)
            line.expect("=")
            attributes[attribute] = _value(line, attribute)
        return operands, attributes


def _made(line: _Line, start: int, make: Callable[[], Node]) -> Node:
    """The node; what is wrong with it is told of this place."""
    try:
        node = make()
        _check_number(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise line.error(str(error), start) from error
    return node


def _type(line: _Line) -> tuple[DType, tuple[int, ...]]:
    start = line.at
    dtype = line.match(_WORD, "a type such as float32[2, 3]").group()
    if dtype not in dtypes.BY_NAME:
        raise line.error(f"unknown dtype {dtype!r}", start)
    start = line.at
    parts = [part.strip() for part in line.match(_EXTENTS, "a shape such as [2, 3]").group(1).split(",")]
    parts = [] if parts == [""] else parts
    if any(not part.isdigit() or len(part) > _MOST_DIGITS for part in parts):
        raise line.error("expected a shape such as [2, 3]", start)
    return dtypes.of(dtype), tuple(map(int, parts))


def _string(line: _Line) -> str:
    start = line.at
    quoted = line.match(_STRING, "a text in double quotes").group()
    try:
        return str(ast.literal_eval(quoted))
    except (SyntaxError, ValueError):
        raise line.error("this is no text in double quotes", start) from None


def _source(line: _Line) -> Source:
    file = _string(line)
    line.expect(":")
    number = int(line.match(_LINE_NUMBER, "a line number").group())
    line.expect(" ")
    path = _string(line)
    line.expect(" ")
    start = line.at
    phase = line.match(_WORD, "a phase").group()
    if phase not in _PHASES:
        raise line.error(f"unknown phase {phase!r}, expected one of {', '.join(_PHASES)}", start)
    return Source(file, number, path, phase)


def _value(line: _Line, attribute: str) -> Any:
    """The value of an attribute, of the kind that attributes of this name have."""
    start = line.at
    text = _up_to_comma(line)
    if text in dtypes.BY_NAME and attribute == "dtype":
        return dtypes.BY_NAME[text]
    value: Any
    if text in _NAMED:
        value = _NAMED[text]
    else:
        try:
            value = ast.literal_eval(text) if _NUMBERS.fullmatch(text) else None
        except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
            value = None
        if value is None:
            raise line.error(f"{_short(text)} is no value of an attribute", start)
    if attribute == "value":
        fits = isinstance(value, (bool, int, float))
    else:
        fits = attribute != "dtype" and (_is_whole(value) or (attribute == "budget" and value is None))
    if not fits:
        raise line.error(f"{_short(text)} cannot be the {attribute} of anything", start)
    return value


def _up_to_comma(line: _Line) -> str:
    """What comes before the next comma or the closing bracket that stands in no brackets itself."""
    start, depth, text = line.at, 0, line.text
    for at in range(start, min(len(text), start + _LONGEST_VALUE)):
        c = text[at]
        if depth == 0 and c in ",)":
            line.at = at
            return text[start:at]
        depth += (c in "([{") - (c in ")]}")
    raise line.error("expected a value and ')'")


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, or a tuple of such or of such tuples."""
    if isinstance(value, tuple):
        return all(_is_whole(part) for part in value)
    return type(value) is int


def _check_number(node: Node) -> None:
    """ValueError for the number of a constant or of a pad that its type does not have."""
    if "value" not in node.attributes or node.dtype.is_float:
        return
    value = node.attributes["value"]
    lowest, highest = (False, True) if node.dtype is dtypes.bool_ else dtypes.value_bounds(node.dtype)
    whole = isinstance(value, bool) if node.dtype is dtypes.bool_ else type(value) is int
    if not whole or not lowest <= value <= highest:
        raise ValueError(f"{node.op.name}: {value!r} is no {node.dtype}")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
