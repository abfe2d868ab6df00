"""What of a forward pass to keep for its gradient under a budget of bytes.

If the least that has to be kept (`minimum_cut`) is within the budget, that is the answer. Else the forward pass is cut
into segments where few bytes cross from one to the next:

    given -> | segment 0 | -> crossing -> | segment 1 | -> crossing -> | segment 2 | -> results

The crossing values are kept, and what the gradient needs inside a segment is computed again from them, one segment
after the other from the last. Alive at once are then the crossing values and what is inside of one segment. The last
segments, as many as there is room for, are kept as they are.

Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174 (2016).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..ir import Graph, Node, topological
from .minimum_cut import minimum_cut

# Segments are tried up to this many.
MOST_SEGMENTS = 64


@dataclass(frozen=True)
class Choice:
    """The values to keep, about how many bytes are alive at once, and how many operations are done again."""

    kept: frozenset[Node]
    alive_bytes: int
    operations: int

    @property
    def kept_bytes(self) -> int:
        return sum(node.nbytes for node in self.kept)


def least_kept(members: Collection[Node], results: Sequence[Node], needed: Collection[Node]) -> frozenset[Node]:
    """The least that has to be kept of `members` for a gradient that needs `needed`, with no product done again."""
    order = _in_order(members, results)
    depending = _depending(order)
    return minimum_cut([node for node in order if node in depending], {node for node in needed if node in depending})


def choose(
    members: Collection[Node], given: Sequence[Node], results: Sequence[Node], least: frozenset[Node], budget: int
) -> Choice:
    """What to keep of `members`, of which the gradient needs `least`, so that at most `budget` bytes are alive.

    What is computed by rows or columns and never whole in memory, such as scores, counts for nothing.

    Of those choices the one that does the fewest operations again; if there is none, that with the fewest bytes alive,
    and of equals the one that keeps the fewest until then.
    """
    order = _in_order(members, results)
    from ..schedule.chains import computed_by_rows  # not needed by who only imports the package

    unstored = computed_by_rows(Graph(tuple(given), tuple(results)))
    everything = Choice(least, sum(node.nbytes for node in least if node not in unstored), 0)
    if everything.alive_bytes <= budget:
        return everything
    forward = _Forward.of(order, least, _depending(order), unstored)
    nothing = Choice(frozenset(), everything.alive_bytes, sum(node.op.flops(node) for node in order))
    choices = [nothing, *(forward.in_segments(count, budget) for count in range(2, MOST_SEGMENTS + 1))]
    fitting = [choice for choice in choices if choice.alive_bytes <= budget]
    if fitting:
        return min(fitting, key=lambda choice: (choice.operations, choice.alive_bytes))
    return min(choices, key=lambda choice: (choice.alive_bytes, choice.kept_bytes))


def _in_order(members: Collection[Node], results: Sequence[Node]) -> list[Node]:
    inside = frozenset(members)
    return [node for node in topological(results, stop=lambda n: n not in inside) if node in inside]


def _depending(order: Sequence[Node]) -> set[Node]:
    """The members that depend on something given; the others are made from constants alone."""
    inside, found = set(order), set[Node]()
    for node in order:
        if any(child in found or child not in inside for child in node.inputs):
            found.add(node)
    return found


@dataclass(frozen=True)
class _Forward:
    """A forward pass in order, and for each place between two of its nodes what crosses it.

    `weights[i]` are the bytes that have to be kept of the first i nodes, `crossing[i]` those that the others read.
    """

    order: list[Node]
    least: frozenset[Node]
    unstored: frozenset[Node]
    last_use: dict[Node, int]
    weights: list[int]
    crossing: list[int]

    @classmethod
    def of(
        cls, order: list[Node], least: frozenset[Node], counted: set[Node], unstored: frozenset[Node]
    ) -> _Forward:
        last_use: dict[Node, int] = {}
        for position, node in enumerate(order):
            last_use.update((child, position) for child in node.inputs if child in counted)
        changes = [0] * (len(order) + 1)
        for position, node in enumerate(order):
            if node in last_use:
                changes[position + 1] += node.nbytes
                changes[last_use[node] + 1] -= node.nbytes
        stored = least - unstored
        weights = accumulate((node.nbytes if node in stored else 0 for node in order), initial=0)
        return cls(order, least, unstored, last_use, list(weights), list(accumulate(changes)))

    def in_segments(self, count: int, budget: int) -> Choice:
        """What is kept with about so many segments; of the last ones, as many are kept whole as there is room."""
        cuts = self._cuts(count)
        crossing: set[Node] = set()
        for cut in cuts:
            crossing.update(n for n in self.order[:cut] if self.last_use.get(n, -1) >= cut)
        kept_bytes = sum(node.nbytes for node in crossing)
        bounds = [0, *cuts, len(self.order)]
        segments = [self.order[start:stop] for start, stop in pairwise(bounds)]
        stored = self.least - self.unstored
        inner = [sum(n.nbytes for n in segment if n in stored and n not in crossing) for segment in segments]
        # Those kept whole are alive at the end of the forward pass, and gone when one before them is computed again.
        whole = len(segments) - 1
        while whole and kept_bytes + sum(inner[whole - 1 :]) <= budget:
            whole -= 1
        again = [node for segment in segments[:whole] for node in segment if node not in crossing]
        kept = crossing | {node for segment in segments[whole:] for node in segment if node in self.least}
        alive = kept_bytes + max(sum(inner[whole:]), *inner[:whole], 0)
        return Choice(frozenset(kept), alive, sum(node.op.flops(node) for node in again))

    def _cuts(self, count: int) -> list[int]:
        """Places that divide what has to be kept about evenly, each the one where the least crosses around there."""
        total, cuts = self.weights[-1], [0]
        for number in range(1, count):
            low, high = (total * (2 * number + side) / (2 * count) for side in (-1, 1))
            first = max(cuts[-1] + 1, bisect_left(self.weights, low))
            places = range(first, min(len(self.order), bisect_right(self.weights, high)))
            if places:
                cuts.append(min(places, key=lambda i: (self.crossing[i], -i)))
        return cuts[1:]
