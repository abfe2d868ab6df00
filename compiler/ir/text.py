"""The graph as text, which `parse.py` reads back.

    graph(%0: float32[2, 3] "x") {
      %1 = constant(value=2.0, dtype=float32, shape=(2, 3)) : float32[2, 3]
      %2 = mul(%0, %1) : float32[2, 3]  @ "model.py":12 "0.linear" forward
      return %2
    }

Printing numbers nodes in topological order, so equal graphs print equally; `key` leaves out sources and names.
"""

from __future__ import annotations

import math
from typing import Any

from .dtypes import DType
from .graph import Graph, Node
from .source import UNKNOWN


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
        if with_sources and node.source != UNKNOWN:
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


def print_graph(graph: Graph) -> str:
    """The graph as text, with sources."""
    return _format(graph, with_sources=True)


def key(graph: Graph) -> str:
    """Text that is equal for structurally equal graphs, wherever they came from."""
    return _format(graph, with_sources=False)
