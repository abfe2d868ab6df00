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
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..ir import Node, ops, source, substitute, topological
from ..ir.graph import intern
from .budget import choose, least_kept

Rule = Callable[[Node, Node], Sequence[Node | None]]

_stand_ins = itertools.count()


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
    budget: int | None = None
    outer: Region | None = None
    copies: dict[Node, Node] = field(default_factory=dict)
    reads: dict[Node, Node] = field(default_factory=dict)

    def contributions(self, node: Node, cotangent: Node, rule: Rule) -> list[Node | None]:
        """What a member's gradient rule gives for its inputs, with copies in place of whatever of them it uses.

        The rule sees stand-ins, so that nothing is copied that it makes no use of.
        """
        stand_ins = {c: _stand_in(c) for c in node.inputs if c.inputs or c.op is ops.input_}
        seen = intern(node.op, tuple(stand_ins.get(c, c) for c in node.inputs), node.attributes)
        given = rule(seen, cotangent)
        made = [each for each in given if each is not None]
        oldest = min((each.serial for each in (*stand_ins.values(), seen)), default=0)
        reached = set(topological(made, stop=lambda n: n is seen or n.serial < oldest))
        copies = {s: self._copy(child, cotangent) for child, s in stand_ins.items() if s in reached}
        if seen in reached and stand_ins:
            copies[seen] = self._copy(node, cotangent)
        resolved = iter(substitute(made, copies) if copies else made)
        return [None if each is None else next(resolved) for each in given]

    def spares_gradient(self, node: Node) -> bool:
        """Whether the gradient of a gather's table is more than the budget, and a product gives it at a fair price.

        That is, if there are no more rows than each is wide: it is then no more work than one more dense layer.
        """
        if self.budget is None or node.op is not ops.gather or node.size == 0:
            return False
        table, indices = node.inputs
        return table.nbytes > self.budget and indices.size <= table.size // table.shape[0]

    def _value(self, node: Node, cotangent: Node) -> Node:
        """A given or kept value, or its copy where an outer region does not keep it."""
        outer = self.outer
        return outer._copy(node, cotangent) if outer is not None and node in outer.members else node

    def _copy(self, node: Node, cotangent: Node) -> Node:
        order = topological([node], stop=lambda n: n in self.copies or self._is_there(n))
        for member in order:
            if member not in self.copies:
                there = self._is_there(member)
                make = self._value if there else self._computed_again
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


def _stand_in(node: Node) -> Node:
    """A new input of the node's type."""
    return ops.input_(identity=("stand-in", next(_stand_ins)), dtype=node.dtype, shape=node.shape)


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
        levels: tuple[frozenset[Node], ...] = (frozenset(),)
        if budget is not None:
            needed = _needed(results, members, [n for n in given if n in active], gradients)
            least = least_kept(members, results, needed)
            levels = _kept(members, given, results, least, budget)
        region = Region(tuple(marks), results, members, levels[0], budget)
        for inside in made:
            if inside.outer is None and not members.isdisjoint(inside.marks):
                inside.outer = region
        made.append(region)
        for kept in levels[1:]:
            # What is computed again of a part is what is kept on this level until the gradient needs it; the rest
            # follows from it, as it would if all of that were kept from the forward pass.
            region = Region((), results, members, kept, budget, region)
        for node in members:
            innermost.setdefault(node, region)
    return innermost


def _kept(
    members: frozenset[Node], given: Sequence[Node], results: Sequence[Node], least: frozenset[Node], budget: int
) -> tuple[frozenset[Node], ...]:
    choice = choose(members, given, results, least, budget)
    if choice.alive_bytes > budget:
        warnings.warn(
            f"kn.remat: a budget of {budget:,} bytes cannot be met; {choice.alive_bytes:,} is the least that was found",
            stacklevel=2,
        )
    return choice.levels


def _needed(
    results: Sequence[Node], members: frozenset[Node], given: Sequence[Node], gradients: Gradients
) -> set[Node]:
    """The members that the gradient of a region reads if all of them are kept."""
    outputs = [node for node in results if node.dtype.is_float]
    cotangents = [ops.input_(identity=("cotangent", i), dtype=n.dtype, shape=n.shape) for i, n in enumerate(outputs)]
    made = gradients(outputs, cotangents, given)
    return {node for node in topological(made, stop=members.__contains__) if node in members}
