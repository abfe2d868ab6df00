"""Finds the first op that made NaN or infinity: the interpreter runs a graph and looks at every value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kaun.compiler.ir import Graph, Node, ops
from kaun.compiler.ir.interpreter import evaluate
from kaun.debug.faults import describe
from kaun.debug.reproducer import Array, Reproducer


@dataclass(frozen=True)
class Range:
    """What an input of an op holds: its name or op, its type, its least and largest finite number."""

    name: str
    low: float
    high: float
    not_finite: int

    def __str__(self) -> str:
        ends = f"from {self.low:.6g} to {self.high:.6g}" if self.low <= self.high else "nothing finite"
        return f"{self.name}: {ends}" + (f", and {self.not_finite:,} NaN or infinite" if self.not_finite else "")


@dataclass(frozen=True, eq=False)
class NotFinite:
    """The first op that made NaN or infinity of numbers that were not, or an input that held it.

    what: "NaN" or "infinity"; node: the op, which knows its layer path and the user's line (`node.source`);
    count: how many elements of how many; index: the first of them; ranges: of the op's inputs.
    """

    what: str
    node: Node
    name: str
    count: int
    index: tuple[int, ...]
    ranges: tuple[Range, ...]
    reproducer: Reproducer

    @property
    def layer(self) -> str:
        """The path of the layer that the op is in."""
        return self.node.source.path

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file that computes the op from the program's inputs, for `kaun run`."""
        return self.reproducer.save(path)

    def __str__(self) -> str:
        place = f", the first at {list(self.index)}" if self.index else ""
        kind = "NaN" if self.what == "NaN" else "infinite"
        share = f"{self.count:,} of {self.node.size:,} elements are {kind}{place}"
        if self.name:
            return f"{self.what} was there already: the input `{self.name}` held it; {share}"
        lines = [f"the first op that made {self.what} is {describe(self.node)}; {share}"]
        return "\n    ".join([*lines, *map(str, self.ranges)])

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True)
class AllFinite:
    """What looking for NaN and infinity gives where there is none. False as a condition.

    programs: how many were looked at.
    """

    programs: int

    def __bool__(self) -> Literal[False]:
        return False

    def __str__(self) -> str:
        if not self.programs:
            return "no program ran, so nothing was looked at"
        return f"nothing is NaN or infinite: {self.programs} program{'s' if self.programs != 1 else ''} looked at"

    def __repr__(self) -> str:
        return f"<{self}>"


def find_not_finite(graph: Graph, arrays: Sequence[Array]) -> NotFinite | None:
    """Where the NaN or infinity in the graph's outputs came from; None if there is none in them.

    Infinity that is there on purpose, such as in a mask, makes nobody a culprit who only hands it on, and neither does
    what no output depends on. Of several ops, the one the program wrote first.
    """
    values: dict[Node, Array] = dict(zip(graph.inputs, map(np.asarray, arrays), strict=True))
    evaluate(graph, arrays, observe=values.__setitem__)
    broken = {node for node, value in values.items() if node.dtype.is_float and not _finite(value).all()}
    given = dict(zip(graph.inputs, graph.input_names or ("",) * len(graph.inputs), strict=True))
    reached: set[Node] = set()
    stack = [node for node in graph.outputs if node in broken]
    culprits = []
    while stack:
        node = stack.pop()
        if node in reached:
            continue
        reached.add(node)
        what = _made(node, values, node in given)
        if what:
            culprits.append((node.serial, node, what))
        if node not in given:
            stack += [child for child in _used(node, values) if child in broken]
    if not culprits:
        return None
    # An input that held it comes before everything made of it.
    _, node, what = min(culprits, key=lambda each: (each[1] not in given, each[0]))
    value = values[node].astype(np.float64)
    bad = np.isnan(value) if what == "NaN" else np.isinf(value)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    name = (given[node] or f"input {graph.inputs.index(node)}") if node in given else ""
    ranges = () if node in given else tuple(_range(child, values[child], given) for child in node.inputs)
    kept = Reproducer(Graph(graph.inputs, (node,), graph.input_names), tuple(map(np.asarray, arrays)))
    return NotFinite(what, node, name, int(np.count_nonzero(bad)), index, ranges, kept)


def _finite(value: Array) -> Array:
    return np.asarray(np.isfinite(value.astype(np.float64)))


def _made(node: Node, values: dict[Node, Array], is_given: bool) -> str:
    """"NaN" or "infinity" if the node made it, or held it as an input; "" if it came from what the node reads."""
    value = values[node].astype(np.float64)
    has_nan = bool(np.isnan(value).any())
    if is_given:
        return "NaN" if has_nan else "infinity" if np.isinf(value).any() else ""
    if not node.inputs:
        return ""  # a constant is meant
    read = [values[child].astype(np.float64) for child in _used(node, values) if child.dtype.is_float]
    if has_nan:
        return "" if any(np.isnan(array).any() for array in read) else "NaN"
    return "" if any(not np.isfinite(array).all() for array in read) else "infinity"


def _used(node: Node, values: dict[Node, Array]) -> list[Node]:
    """The inputs that show in the node's value where that is not finite."""
    if node.op is not ops.where:
        return list(node.inputs)
    condition, chosen, other = node.inputs
    bad = ~_finite(values[node])
    holds = values[condition].astype(bool)
    return [child for child, shows in ((chosen, holds), (other, ~holds)) if (bad & shows).any()]


def _range(node: Node, value: Array, given: dict[Node, str]) -> Range:
    name = f"`{given[node]}`" if given.get(node) else f"`{node.op.name}`"
    where = "" if node in given or not node.source.path else f" in layer `{node.source.path}`"
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
    return Range(f"{name} {node.dtype}{list(node.shape)}{where}", low, high, wide.size - finite.size)
