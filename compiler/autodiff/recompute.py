"""Recomputation: values that the gradient needs are computed again instead of being kept since the forward pass.

A node `remat(y, *given)` marks a region: the nodes between `given` and y. Gradient rules of nodes in a region are not
handed the nodes themselves but copies, computed from the region's given values (and from the few it keeps, if it has
a budget) read through `again`, which makes them other nodes and says that they wait for the cotangent. Random bits are
a function of a key and a counter, so a copy draws the same ones.

Chen et al., Training deep nets with sublinear memory cost (2016); `jax.checkpoint` orders what it computes again with
barriers in the same way.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..ir import Node, ops, source, substitute, topological
from ..ir.graph import intern
from .budget import choose


@dataclass(eq=False)
class Region:
    """Nodes that are computed again: `members` are between `given` and `results`; those in `kept` are not.

    `marks` are the `remat` nodes of the region, `outer` is the region that it lies in. Copies are made when they are
    first asked for, so that they wait for the cotangent that first needs them.
    """

    marks: tuple[Node, ...]
    results: tuple[Node, ...]
    members: frozenset[Node]
    kept: frozenset[Node] = frozenset()
    outer: Region | None = None
    copies: dict[Node, Node] = field(default_factory=dict)
    reads: dict[Node, Node] = field(default_factory=dict)

    def used(self, node: Node, cotangent: Node) -> Node:
        """A member as its gradient rule gets to see it: on copies of its inputs."""
        if node not in self.kept:
            return self._copy(node, cotangent)
        for child in node.inputs:
            self._copy(child, cotangent)
        return self._computed_again(node, cotangent)

    def value(self, node: Node, cotangent: Node) -> Node:
        """A given or kept value, or its copy where an outer region does not keep it."""
        outer = self.outer
        return outer._copy(node, cotangent) if outer is not None and node in outer.members else node

    def _copy(self, node: Node, cotangent: Node) -> Node:
        order = topological([node], stop=lambda n: n in self.copies or self._is_there(n))
        for member in order:
            if member not in self.copies:
                there = self._is_there(member)
                make = self.value if there else self._computed_again
                self.copies[member] = make(member, cotangent)
        return self.copies[node]

    def _is_there(self, node: Node) -> bool:
        return node not in self.members or node in self.kept

    def _computed_again(self, node: Node, cotangent: Node) -> Node:
        """The node on copies of its inputs, and never the node itself if it depends on a given value.

        Values that are there are read through `again`; the graph's inputs only where nothing else tells the two apart.
        """
        if node.op is ops.remat:
            return self.copies[node.inputs[0]]
        there = [child for child in node.inputs if self._is_there(child)]
        unlike = any(self.copies[child] is not child for child in node.inputs)
        read = [child for child in there if child.op is not ops.input_] or ([] if unlike else there[:1])
        with source.inherit(dataclasses.replace(node.source, phase="backward")):
            inputs = [self._read(c, cotangent) if c in read else self.copies[c] for c in node.inputs]
            return intern(node.op, tuple(inputs), node.attributes)

    def _read(self, node: Node, cotangent: Node) -> Node:
        """A value that is there, for computing something again: after the cotangent and the region's results."""
        if node not in self.reads:
            waits = dict.fromkeys((cotangent, *self.results))
            self.reads[node] = ops.again(self.copies[node], *waits, number=0)
        return self.reads[node]


def with_kept(contributions: Sequence[Node | None], copy: Node, kept: Node) -> list[Node | None]:
    """What a rule made of the copy of a node, with the node's own kept value in place of the copy."""
    made = iter(substitute([node for node in contributions if node is not None], {copy: kept}))
    return [None if node is None else next(made) for node in contributions]


Gradients = Callable[[Sequence[Node], Sequence[Node], Sequence[Node]], list[Node]]


def regions(order: Iterable[Node], active: set[Node], gradients: Gradients) -> dict[Node, Region]:
    """The innermost region of every node of a graph that is in one; `order` is topological.

    `gradients` is how gradients are taken, to find out what those of a region with a budget need.
    """
    marked: dict[tuple[tuple[Node, ...], int | None], list[Node]] = {}
    for node in order:
        if node.op is ops.remat:
            marked.setdefault((node.inputs[1:], node.attributes["budget"]), []).append(node)
    innermost: dict[Node, Region] = {}
    made: list[Region] = []
    for (given, budget), marks in marked.items():
        results = tuple(dict.fromkeys(mark.inputs[0] for mark in marks))
        members = frozenset(topological(results, stop=set(given).__contains__)) - set(given)
        kept: frozenset[Node] = frozenset()
        if budget is not None:
            needed = _needed(results, members, [n for n in given if n in active], gradients)
            kept = _kept(members, results, needed, budget)
        region = Region(tuple(marks), results, members, kept)
        for inside in made:
            if inside.outer is None and not members.isdisjoint(inside.marks):
                inside.outer = region
        made.append(region)
        for node in members:
            innermost.setdefault(node, region)
    return innermost


def _kept(members: frozenset[Node], results: Sequence[Node], needed: set[Node], budget: int) -> frozenset[Node]:
    choice = choose(members, results, needed, budget)
    if choice.alive_bytes > budget:
        warnings.warn(
            f"kn.remat: a budget of {budget:,} bytes cannot be met; {choice.alive_bytes:,} is the least that was found",
            stacklevel=2,
        )
    return choice.kept


def _needed(
    results: Sequence[Node], members: frozenset[Node], given: Sequence[Node], gradients: Gradients
) -> set[Node]:
    """The members that the gradient of a region reads if all of them are kept."""
    outputs = [node for node in results if node.dtype.is_float]
    cotangents = [ops.input_(identity=("cotangent", i), dtype=n.dtype, shape=n.shape) for i, n in enumerate(outputs)]
    made = gradients(outputs, cotangents, given)
    return {node for node in topological(made, stop=members.__contains__) if node in members}
