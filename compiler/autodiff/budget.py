"""What of a forward pass to keep for its gradient under a budget of bytes.

If the least that has to be kept (`minimum_cut`) is within the budget, that is the answer. Else the forward pass is cut
where few bytes cross from what is before to what is after. What crosses is kept; for the part before the cut the
gradient comes later, and all that it needs there is computed again:

    given -> | computed again, later | -> crossing -> | kept, or cut again | -> results

A part that is computed again is whole, or cut in the same way: what crosses inside of it is then kept on the way, and
its own first part computed once more. Alive at once are what crosses at the cuts that the gradient has not come to and
what has to be kept of one part. Cuts side by side cost one more forward pass, a cut in what is computed again another
one of that part; `_Cutter` finds the cheapest cuts for a number of bytes.

Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174 (2016). Griewank and Walther, Algorithm
799: revolve (2000): its schedules for steps of one size are found here for parts of any.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from ..ir import Graph, Node, ops, topological
from ..ir.computed import cached_property
from .minimum_cut import minimum_cut

# Cuts are looked for in so many places.
MOST_PLACES = 32
# Where no budget of so few bytes can be met, the least bytes are those for which at most so many forward passes are
# made again.
MOST_AGAIN = 2.0
# How close to the least bytes is close enough, and into how many steps bytes are divided in search of the cuts.
CLOSE, STEPS = 0.02, 64


@dataclass(frozen=True)
class Choice:
    """The values to keep, about how many bytes are alive at once, and how many operations are done again.

    `levels[0]` are kept from the forward pass; those of the next level are computed again from them, where the gradient
    needs them, and kept until then, and so on. Each level includes the ones before it.
    """

    levels: tuple[frozenset[Node], ...]
    alive_bytes: int
    operations: int

    @property
    def kept(self) -> frozenset[Node]:
        return self.levels[0]


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

    Of those choices the one that does the fewest operations again; if there is none, the one with about the fewest
    bytes alive of those that do not make more than `MOST_AGAIN` forward passes again.
    """
    order = _in_order(members, results)
    from ..schedule.chains import computed_by_rows  # not needed by who only imports the package

    unstored = computed_by_rows(Graph(tuple(given), tuple(results)))
    wanted = least | _read_by_rows(least & unstored, unstored, set(order))
    everything = Choice((wanted,), sum(node.nbytes for node in least if node not in unstored), 0)
    if everything.alive_bytes <= budget:
        return everything
    forward = _Forward(order, least, wanted, _depending(order), unstored)
    best = forward.cut(budget)
    if best is None:
        # Until the gradient comes to it, nothing is kept: what else is alive meanwhile is not known here.
        best = Choice((frozenset(), wanted), everything.alive_bytes, forward.operations)
        low, high = max(budget, forward.parts.smallest[0][-1]), everything.alive_bytes
        while high - low > CLOSE * high:
            middle = (low + high) // 2
            found = forward.cut(middle)
            if found is None or found.operations > MOST_AGAIN * forward.operations:
                low = middle
            else:
                best, high = found, middle
    return best


def _in_order(members: Collection[Node], results: Sequence[Node]) -> list[Node]:
    inside = frozenset(members)
    return [node for node in topological(results, stop=lambda n: n not in inside) if node in inside]


def _read_by_rows(wanted: Collection[Node], unstored: Collection[Node], members: Collection[Node]) -> frozenset[Node]:
    """The members in memory that what is computed by rows is computed from each time.

    Whatever else the gradient needs them for reads those too, and not copies of them.
    """
    found: set[Node] = set()
    seen: set[Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in seen or node not in members:
            continue
        seen.add(node)
        if node in unstored or (node.op.kind == "movement" and node.op is not ops.concat):
            stack.extend(node.inputs)
        else:
            found.add(node)
    return frozenset(found)


def _depending(order: Sequence[Node]) -> set[Node]:
    """The members that depend on something given; the others are made from constants alone."""
    inside, found = set(order), set[Node]()
    for node in order:
        if any(child in found or child not in inside for child in node.inputs):
            found.add(node)
    return found


@dataclass(frozen=True)
class _Forward:
    """A forward pass in order, the `least` of it that has to be kept, and what of it depends on anything given.

    `wanted` is the least with what is better kept than made from it again, and counts for nothing beside it.
    """

    order: list[Node]
    least: frozenset[Node]
    wanted: frozenset[Node]
    depending: set[Node]
    unstored: frozenset[Node]

    @cached_property
    def operations(self) -> int:
        """Of the pass, without those that are done by rows wherever they are needed."""
        return sum(node.op.flops(node) for node in self.order if node not in self.unstored)

    @cached_property
    def last_use(self) -> dict[Node, int]:
        """The position of the last node that reads it."""
        found: dict[Node, int] = {}
        for position, node in enumerate(self.order):
            found.update((child, position) for child in node.inputs if child in self.depending)
        return found

    @cached_property
    def places(self) -> list[int]:
        """The start, the end, and between them places to cut at: where less crosses than around there.

        They divide what has to be kept about evenly.
        """
        changes = [0] * (len(self.order) + 1)
        for position, node in enumerate(self.order):
            if node in self.last_use:
                changes[position + 1] += node.nbytes
                changes[self.last_use[node] + 1] -= node.nbytes
        crossing = list(accumulate(changes))
        weights = list(accumulate((self.stored(node) for node in self.order), initial=0))
        found = [0]
        for number in range(1, MOST_PLACES):
            low, high = (weights[-1] * (2 * number + side) / (2 * MOST_PLACES) for side in (-1, 1))
            first = max(found[-1] + 1, bisect_left(weights, low))
            around = range(first, min(len(self.order), bisect_right(weights, high)))
            if around:
                found.append(min(around, key=lambda i: (crossing[i], -i)))
        flat = [(value, list(places)) for value, places in groupby(found[1:], key=crossing.__getitem__)]
        values = [value for value, _ in flat]
        lower = [
            places
            for number, (value, places) in enumerate(flat)
            if not 0 < number < len(flat) - 1 or value <= max(values[number - 1], values[number + 1])
        ]
        return [0, *(place for places in lower for place in places), len(self.order)]

    def stored(self, node: Node) -> int:
        """The bytes that a node takes among what has to be kept."""
        return node.nbytes if node in self.least and node not in self.unstored else 0

    @cached_property
    def parts(self) -> Parts:
        """What lies between the places, in numbers."""
        places = self.places
        count = len(places)
        # For each node the first one at or after it that has to be kept and that it is needed for.
        serves = [len(self.order)] * len(self.order)
        numbers = {node: position for position, node in enumerate(self.order)}
        for position in range(len(self.order) - 1, -1, -1):
            node = self.order[position]
            serves[position] = position if node in self.least else serves[position]
            for child in node.inputs:
                if child in numbers:
                    serves[numbers[child]] = min(serves[numbers[child]], serves[position])
        flops = [node.op.flops(node) for node in self.order]
        before = [list(accumulate(map(self.stored, self.order), initial=0)), list(accumulate(flops, initial=0))]
        kept, whole = ([[sums[j] - sums[i] for j in places] for i in places] for sums in before)
        passing, least = ([[0] * count for _ in places] for _ in range(2))
        for j, stop in enumerate(places):
            made = [(numbers[node], node.nbytes) for node in self.crossing(stop)]
            done = [flops[k] if serves[k] < stop else 0 for k in range(stop)]
            from_here = list(accumulate(reversed(done), initial=0))[::-1]
            for i, start in enumerate(places[:j]):
                passing[i][j] = sum(nbytes for position, nbytes in made if position >= start)
                least[i][j] = from_here[start]
        return Parts(kept, passing, least, whole, smallest(kept))

    def crossing(self, place: int) -> list[Node]:
        """What is computed before the place and read after it."""
        return [node for node in self.order[:place] if self.last_use.get(node, -1) >= place]

    def cut(self, budget: int) -> Choice | None:
        """The cheapest cuts for which at most `budget` bytes are alive; None if there are none."""
        cutter = _Cutter(self.parts, max(1, budget // STEPS))
        found = cutter.kept(0, budget)
        if found is None:
            return None
        kept: dict[int, set[Node]] = {}
        alive = self._collect(found, 0, kept)
        own = [frozenset(kept.get(level, ())) for level in range(max(kept) + 1)]
        return Choice(tuple(accumulate(own, lambda one, other: one | other)), alive, found.operations)

    def _collect(self, part: _Part, level: int, kept: dict[int, set[Node]]) -> int:
        """Note what is kept of a part on which level; the most bytes that are alive for it."""
        start, stop = self.places[part.start], self.places[part.stop]
        own = kept.setdefault(level, set())
        if part.place is None or part.before is None or part.after is None:
            own.update(node for node in self.order[start:stop] if node in self.wanted)
            return self.parts.kept[part.start][part.stop]
        place = self.places[part.place]
        own.update(node for node in self.crossing(place))
        after = self._collect(part.after, level, kept) + self.parts.passing[part.start][part.place]
        return max(after, self._collect(part.before, level + 1, kept))


@dataclass(frozen=True)
class Parts:
    """Of the part from place i to place j: the bytes that have to be kept, those that cross at j and are made in it,
    the operations that what has to be kept takes, and all of it, and the bytes without which no cuts will do."""

    kept: list[list[int]]
    passing: list[list[int]]
    least: list[list[int]]
    whole: list[list[int]]
    smallest: list[list[int]]


def smallest(kept: Sequence[Sequence[int]]) -> list[list[int]]:
    """The most that has to be kept of one piece of a part, if it is cut wherever it can be."""
    found = [[0] * len(kept) for _ in kept]
    for i in range(len(kept)):
        for j in range(i + 1, len(kept)):
            found[i][j] = max(found[i][j - 1], kept[j - 1][j])
    return found


@dataclass(frozen=True)
class _Part:
    """What is done with a part: it is kept as it is, or cut at a place."""

    start: int
    stop: int
    operations: int
    place: int | None = None
    before: _Part | None = None
    after: _Part | None = None


def cheapest_again(parts: Parts, budget: int) -> int | None:
    """The fewest operations that compute all parts again, from the last to the first, within so many bytes."""
    found = _Cutter(parts, 1).again(0, len(parts.kept) - 1, budget)
    return None if found is None else found.operations


@dataclass
class _Cutter:
    """Finds the cheapest cuts: dynamic programming over parts and the bytes that there are for them.

    Bytes that cross are rounded up to whole steps, so that few different numbers occur.
    """

    parts: Parts
    step: int
    _kept: dict[tuple[int, int], _Part | None] = field(default_factory=dict)
    _again: dict[tuple[int, int, int], _Part | None] = field(default_factory=dict)

    def kept(self, start: int, budget: int) -> _Part | None:
        """For the part from here to the end, which the forward pass has just computed: nothing of it is done again
        but what is before a cut."""
        stop = len(self.parts.kept) - 1
        if budget < self.parts.smallest[start][stop]:
            return None
        key = (start, budget)
        if key not in self._kept:
            found = _Part(start, stop, 0) if self.parts.kept[start][stop] <= budget else None
            for place in range(start + 1, stop) if found is None else ():
                after = self._after(start, place, budget)
                rest = self.kept(place, after)
                first = None if rest is None else self.again(start, place, budget)
                if first is not None and rest is not None:
                    operations = first.operations + rest.operations
                    if found is None or operations < found.operations:
                        found = _Part(start, stop, operations, place, first, rest)
            self._kept[key] = found
        return self._kept[key]

    def again(self, start: int, stop: int, budget: int) -> _Part | None:
        """For a part that is computed again from what crosses at its start."""
        if budget < self.parts.smallest[start][stop]:
            return None
        key = (start, stop, budget)
        if key not in self._again:
            whole = self.parts.kept[start][stop] <= budget
            found = _Part(start, stop, self.parts.least[start][stop]) if whole else None
            for place in range(start + 1, stop) if found is None else ():
                after = self._after(start, place, budget)
                rest = self.again(place, stop, after)
                first = None if rest is None else self.again(start, place, budget)
                if first is not None and rest is not None:
                    operations = self.parts.whole[start][place] + first.operations + rest.operations
                    if found is None or operations < found.operations:
                        found = _Part(start, stop, operations, place, first, rest)
            self._again[key] = found
        return self._again[key]

    def _after(self, start: int, place: int, budget: int) -> int:
        """What is left of the bytes for the part after a cut."""
        return budget - -(-self.parts.passing[start][place] // self.step) * self.step
