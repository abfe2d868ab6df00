"""One stage's graph in a form that other programs read, by way of networkx."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html import escape
from typing import Any

import networkx as nx
from kaun.compiler.ir import Graph
from kaun.compiler.ir.text import format_type, format_value, visible

__all__ = ["FORMATS", "as_networkx"]


def as_networkx(graph: Graph) -> nx.MultiDiGraph:
    """The graph with its nodes numbered as in its text, and an edge for each input of a node.

    Nodes have the attributes label, op, dtype, shape (text), path, phase, file and line, edges `position` and `type`.
    Names have escapes for what does not print, which not every format can hold.
    """
    made = nx.MultiDiGraph()
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    names = dict(zip(graph.inputs, graph.input_names or ("",) * len(graph.inputs), strict=True))
    outputs = set(graph.outputs)
    for node, number in numbers.items():
        given = node in names
        made.add_node(
            number,
            label=visible(names[node] or f"input {number}") if given else node.op.name,
            op="input" if given else node.op.name,
            attributes="" if given else ", ".join(f"{k}={format_value(v)}" for k, v in node.attributes.items()),
            dtype=node.dtype.name,
            shape=str(list(node.shape)),
            path=visible(node.source.path),
            phase=node.source.phase,
            file=visible(node.source.file),
            line=node.source.line,
            output=node in outputs,
        )
        for position, child in enumerate(() if given else node.inputs):
            made.add_edge(numbers[child], number, position=position, type=format_type(child))
    return made


def _dot(graph: nx.MultiDiGraph) -> str:
    """Graphviz' language; https://graphviz.org/doc/info/lang.html."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    lines = ["digraph {", "  node [shape=box, style=rounded, fontname=\"sans-serif\"];"]
    for number, about in graph.nodes(data=True):
        label = quoted(f"{about['label']}\n{about['dtype']}{about['shape']}")
        lines.append(f"  {number} [label={label}, color={quoted(_COLOURS[about['phase']])}];")
    lines += [f"  {a} -> {b} [label={quoted(about['type'])}];" for a, b, about in graph.edges(data=True)]
    return "\n".join([*lines, "}", ""])


def _graphml(graph: nx.MultiDiGraph) -> str:
    buffer = io.BytesIO()
    nx.write_graphml(graph, buffer)
    return buffer.getvalue().decode()


def _json(graph: nx.MultiDiGraph) -> str:
    return json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n"


_COLOURS = {"forward": "#3f74b8", "backward": "#c4702b", "update": "#3f8b5c"}
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 150, 34, 166, 74


def _svg(graph: nx.MultiDiGraph) -> str:
    """A drawing by layers: each node below all its inputs, beside the nodes that are as far from the graph's inputs."""
    places: dict[Any, tuple[float, float]] = {}
    for depth, generation in enumerate(nx.topological_generations(graph)):
        # In the order of the middle of their inputs, so that lines cross less.
        middle = {n: sum(places[p][0] for p in graph.predecessors(n)) / max(1, graph.in_degree(n)) for n in generation}
        for column, number in enumerate(sorted(generation, key=lambda n: (middle[n], n))):
            places[number] = (10.0 + column * _ACROSS, 10.0 + depth * _DOWN)
    width = 10 + _ACROSS + max((x for x, _ in places.values()), default=0)
    height = 10 + _DOWN + max((y for _, y in places.values()), default=0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for a, b, about in graph.edges(data=True):
        (x1, y1), (x2, y2) = places[a], places[b]
        start, end = (x1 + _WIDTH / 2, y1 + _HEIGHT), (x2 + _WIDTH / 2, y2)
        bend = (start[1] + end[1]) / 2
        lines.append(
            f'<path d="M{start[0]:g} {start[1]:g}C{start[0]:g} {bend:g} {end[0]:g} {bend:g} {end[0]:g} {end[1]:g}" '
            f'fill="none" stroke="#9aa5ad"><title>{escape(about["type"])}</title></path>'
        )
    for number, about in graph.nodes(data=True):
        x, y = places[number]
        where = f"{about['file']}:{about['line']} {about['path']}"
        lines += [
            f'<g><title>%{number} {escape(about["attributes"])} {escape(where)}</title>',
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#fff" '
            f'stroke="{_COLOURS[about["phase"]]}"/>',
            f'<text x="{x + 8:g}" y="{y + 14:g}">{escape(about["label"][-24:])}</text>',
            f'<text x="{x + 8:g}" y="{y + 28:g}" fill="#69747c">{escape(about["dtype"] + about["shape"])}</text></g>',
        ]
    return "\n".join([*lines, "</svg>", ""])


FORMATS: dict[str, Callable[[nx.MultiDiGraph], str]] = {"dot": _dot, "graphml": _graphml, "json": _json, "svg": _svg}
"""The text of a graph in each format but the page."""
