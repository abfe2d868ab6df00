"""The graph as text: print and parse.

    graph(%0: float32[2, 3] "x") {
      %1 = constant(value=2.0, dtype=float32, shape=(2, 3)) : float32[2, 3]
      %2 = mul(%0, %1) : float32[2, 3]  @ "model.py":12 "0.linear" forward
      return %2
    }

Printing numbers nodes in topological order, so equal graphs print equally; `key` leaves out sources and names.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from . import dtypes, ops
from .dtypes import DType
from .graph import Graph, Node
from .source import UNKNOWN, Source, inherit


def format_value(value: Any) -> str:
    """An attribute as text; floats print so that they parse back to the same bits."""
    if isinstance(value, DType):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, tuple):
        inner = ", ".join(map(format_value, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def format_type(node: Node) -> str:
    return f"{node.dtype.name}[{', '.join(map(str, node.shape))}]"


def _format(graph: Graph, with_sources: bool) -> str:
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    names = graph.input_names or ("",) * len(graph.inputs)
    header = ", ".join(
        f"%{numbers[node]}: {format_type(node)}" + (f" {_quote(name)}" if name and with_sources else "")
        for node, name in zip(graph.inputs, names, strict=True)
    )
    lines = [f"graph({header}) {{"]
    for node in graph.nodes[len(graph.inputs) :]:
        operands = [f"%{numbers[child]}" for child in node.inputs]
        operands += [f"{name}={format_value(value)}" for name, value in node.attributes.items()]
        line = f"  %{numbers[node]} = {node.op.name}({', '.join(operands)}) : {format_type(node)}"
        if with_sources and node.source is not UNKNOWN and node.source.file:
            s = node.source
            line += f"  @ {_quote(s.file)}:{s.line} {_quote(s.path)} {s.phase}"
        lines.append(line)
    lines.append(f"  return {', '.join(f'%{numbers[node]}' for node in graph.outputs)}")
    lines.append("}")
    return "\n".join(lines) + "\n"


def visible(text: str) -> str:
    """The text with escapes in place of what does not print: newlines, control characters, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _quote(text: str) -> str:
    return '"' + visible(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _unquote(text: str) -> str:
    return str(ast.literal_eval(text))


def print_graph(graph: Graph) -> str:
    """The graph as text, with sources."""
    return _format(graph, with_sources=True)


def key(graph: Graph) -> str:
    """Text that is equal for structurally equal graphs, wherever they came from."""
    return _format(graph, with_sources=False)


_STRING = r'"(?:[^"\\]|\\.)*"'
_TYPE = r"(\w+)\[([\d, ]*)\]"
_NODE = re.compile(rf"^%(\d+) = (\w+)\((.*)\) : {_TYPE}(?:  @ ({_STRING}):(\d+) ({_STRING}) (\w+))?$")
_INPUT = re.compile(rf"%(\d+): {_TYPE}(?: ({_STRING}))?")


def _parse_shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _parse_value(text: str) -> Any:
    if text in dtypes.BY_NAME:
        return dtypes.BY_NAME[text]
    if text in ("inf", "-inf", "nan"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"text.parse_graph: {text[:40]!r} is no value of an attribute: {error}") from None


def _split_arguments(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def parse_graph(text: str) -> Graph:
    """The graph that `print_graph` printed. ValueError names the line that does not parse or does not type-check."""
    lines = [line.strip() for line in text.strip().splitlines()]
    header = re.match(r"^graph\((.*)\) \{$", lines[0]) if lines else None
    if header is None or lines[-1] != "}":
        raise ValueError("text.parse_graph: expected 'graph(...) {' on the first line and '}' on the last")
    nodes: dict[str, Node] = {}
    inputs, names = [], []
    for position, match in enumerate(_INPUT.finditer(header.group(1))):
        number, dtype, shape, name = match.groups()
        if dtype not in dtypes.BY_NAME:
            raise ValueError(f"text.parse_graph: %{number} is of the unknown dtype {dtype!r}")
        node = ops.input_(identity=("parsed", position), dtype=dtypes.of(dtype), shape=_parse_shape(shape))
        nodes[number] = node
        inputs.append(node)
        names.append(_unquote(name) if name else "")
    outputs: tuple[Node, ...] | None = None
    for line in lines[1:-1]:
        if line.startswith("return"):
            outputs = _parse_outputs(line, nodes)
            continue
        definition = _NODE.match(line)
        if definition is None:
            raise ValueError(f"text.parse_graph: cannot parse line {line!r}")
        nodes[definition.group(1)] = _parse_node(line, definition, nodes)
    if outputs is None:
        raise ValueError("text.parse_graph: no return line")
    return Graph(tuple(inputs), outputs, tuple(names) if any(names) else ())


def _parse_outputs(line: str, nodes: dict[str, Node]) -> tuple[Node, ...]:
    numbers = [part.strip()[1:] for part in line.removeprefix("return").split(",") if part.strip()]
    for number in numbers:
        if number not in nodes:
            raise ValueError(f"text.parse_graph: %{number} is not defined in line {line!r}")
    return tuple(nodes[number] for number in numbers)


def _parse_node(line: str, match: re.Match[str], nodes: dict[str, Node]) -> Node:
    _, name, arguments, dtype, shape, file, number, path, phase = match.groups()
    if name not in ops.TABLE:
        raise ValueError(f"text.parse_graph: unknown op {name!r} in line {line!r}")
    operands, attributes = [], {}
    for argument in _split_arguments(arguments):
        if argument.startswith("%"):
            if argument[1:] not in nodes:
                raise ValueError(f"text.parse_graph: {argument} is used before it is defined in line {line!r}")
            operands.append(nodes[argument[1:]])
        else:
            attribute, equals, value = argument.partition("=")
            if not equals:
                raise ValueError(f"text.parse_graph: got {argument!r}, expected name=value in line {line!r}")
            attributes[attribute] = _parse_value(value)
    source = Source(_unquote(file), int(number), _unquote(path), phase) if file else UNKNOWN
    with inherit(source):
        try:
            node = ops.TABLE[name](*operands, **attributes)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"text.parse_graph: {error} in line {line!r}") from error
    if node.dtype.name != dtype or node.shape != _parse_shape(shape):
        raise ValueError(f"text.parse_graph: line {line!r} has type {format_type(node)}")
    return node
