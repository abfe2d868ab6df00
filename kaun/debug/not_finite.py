"""Finds the first op that made NaN or infinity: the interpreter runs a graph and looks at every value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kaun.compiler.ir import Graph, Node
from kaun.compiler.ir.interpreter import evaluate
from kaun.debug.faults import describe
from kaun.debug.reach import reached, reaching
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
    count: how many elements of how many; index: the first of them; ranges: of the op's inputs; became: the op that made
    NaN of the infinity that an input held.
    """

    what: str
    node: Node
    name: str
    count: int
    index: tuple[int, ...]
    ranges: tuple[Range, ...]
    reproducer: Reproducer
    became: Node | None = None

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
            told = f"{self.what} was there already: the input `{self.name}` held it; {share}"
            return told + (f"\n    NaN was made of it by {describe(self.became)}" if self.became is not None else "")
        lines = [f"the first op that made {self.what} is {describe(self.node)}; {share}"]
        return "\n    ".join([*lines, *map(str, self.ranges)])

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True)
class AllFinite:
    """What looking for NaN and infinity gives where nothing made any. False as a condition.

    programs: how many were looked at; meant: a result that is infinite because the program has infinity written in it.
    """

    programs: int
    meant: Node | None = None

    def __bool__(self) -> Literal[False]:
        return False

    def __str__(self) -> str:
        if not self.programs:
            return "no program ran, so nothing was looked at"
        if self.meant is not None:
            return (
                f"nothing made NaN or infinity, but infinity that is written in the program, as in a mask, reaches the "
                f"result {describe(self.meant)}"
            )
        return f"nothing is NaN or infinite: {self.programs} program{'s' if self.programs != 1 else ''} looked at"

    def __repr__(self) -> str:
        return f"<{self}>"


def find_not_finite(graph: Graph, arrays: Sequence[Array]) -> NotFinite | None:
    """Where the NaN or infinity in the graph's outputs came from; None if there is none in them.

    Elements are followed back from the outputs, those that are NaN if there are any, from each to the NaN that it was
    made of, or else to the infinity. So what no output shows is not blamed, and infinity that is there on purpose, as
    in a mask, only where NaN was made of it. Inputs that held NaN come first, then the op that the program wrote first
    of those that made NaN or infinity of finite numbers, then inputs that held infinity, then constants that do.
    """
    values: dict[Node, Array] = dict(zip(graph.inputs, map(np.asarray, arrays), strict=True))
    evaluate(graph, arrays, observe=values.__setitem__)
    looked_for = _any_nan(values[node] for node in graph.outputs if node.dtype.is_float)
    bad: dict[Node, Array] = {}
    for node in graph.outputs:
        if node.dtype.is_float:
            bad[node] = np.isnan(_wide(values[node])) if looked_for else ~_finite(values[node])
    given = dict(zip(graph.inputs, graph.input_names or ("",) * len(graph.inputs), strict=True))
    found: list[_Culprit] = []
    for node in reversed(graph.nodes):
        if node in bad and bad[node].any() and (node in given or node.inputs):
            found += [_Culprit(node, bad[node], 0)] if node in given else _followed(node, bad, values)
    if not found:
        return None
    culprit = min(found, key=lambda each: each.order(values, given))
    node, (what, where) = culprit.node, culprit.seen(values)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))
    name = (given[node] or f"input {graph.inputs.index(node)}") if node in given else ""
    ranges = () if node in given else tuple(_range(child, values[child], given) for child in node.inputs)
    followed = [each.node for each in found if each.of_infinity] if name and what == "infinity" else []
    became = min(followed, key=lambda each: each.serial) if followed else None
    kept = Reproducer(Graph(graph.inputs, (node,), graph.input_names), tuple(map(np.asarray, arrays)))
    return NotFinite(what, node, name, int(np.count_nonzero(where)), index, ranges, kept, became)


def infinite_result(graph: Graph, arrays: Sequence[Array]) -> Node | None:
    """The first output that is not finite; None if all are."""
    results = evaluate(graph, arrays)
    floats = (pair for pair in zip(graph.outputs, results, strict=True) if pair[0].dtype.is_float)
    return next((node for node, value in floats if not _finite(value).all()), None)


@dataclass(frozen=True, eq=False)
class _Culprit:
    """A node, its elements that are bad and were not before it, and how many of those are NaN made of infinity."""

    node: Node
    made: Array
    of_infinity: int

    def seen(self, values: dict[Node, Array]) -> tuple[str, Array]:
        """What it made, NaN before infinity, and where."""
        nan = self.made & np.isnan(_wide(values[self.node]))
        return ("NaN", nan) if nan.any() else ("infinity", self.made)

    def order(self, values: dict[Node, Array], given: dict[Node, str]) -> tuple[int, int]:
        """The least of culprits is the one to name."""
        if self.node in given:
            return (0 if self.seen(values)[0] == "NaN" else 2), self.node.serial
        return (3 if self.of_infinity == np.count_nonzero(self.made) else 1), self.node.serial


def _followed(node: Node, bad: dict[Node, Array], values: dict[Node, Array]) -> list[_Culprit]:
    """The node if it made what is bad in it; what it was given goes into `bad`."""
    here = bad[node]
    from_nan, from_infinity = np.zeros(node.shape, np.bool_), np.zeros(node.shape, np.bool_)
    floats = [(i, child, _wide(values[child])) for i, child in enumerate(node.inputs) if child.dtype.is_float]
    for position, _, value in floats:
        if not np.isfinite(value).all():
            from_nan |= reached(node, position, np.isnan(value), values)
            from_infinity |= reached(node, position, np.isinf(value), values)
    nan = here & np.isnan(_wide(values[node]))
    for position, child, value in floats:
        if not np.isfinite(value).all():
            handed = reaching(node, position, nan & from_nan, values) & np.isnan(value)
            handed |= reaching(node, position, here & ~(nan & from_nan), values) & ~np.isfinite(value)
            bad[child] = bad[child] | handed if child in bad else handed
    made = (nan & ~from_nan) | (here & ~nan & ~from_nan & ~from_infinity)
    return [_Culprit(node, made, int(np.count_nonzero(made & from_infinity)))] if made.any() else []


def _wide(value: Array) -> Array:
    return value.astype(np.float64)


def _finite(value: Array) -> Array:
    return np.asarray(np.isfinite(_wide(value)))


def _any_nan(values: Iterable[Array]) -> bool:
    return any(np.isnan(_wide(value)).any() for value in values)


def _range(node: Node, value: Array, given: dict[Node, str]) -> Range:
    name = f"`{given[node]}`" if given.get(node) else f"`{node.op.name}`"
    where = "" if node in given or not node.source.path else f" in layer `{node.source.path}`"
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
    return Range(f"{name} {node.dtype}{list(node.shape)}{where}", low, high, wide.size - finite.size)
