"""Arranges what a chain computes on each row into passes, and decides what passes keep for later ones.

A reduction is computed in the first pass that comes after those of the reductions it needs. What a pass has computed
and a later one needs again is kept in scratch if computing it again would cost more than writing it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..ir.dtypes import DType
from .collapse import all_values
from .expand import Illegal
from .index import Variable
from .loop_ir import (
    Accumulator,
    Apply,
    ChainKernel,
    Guarded,
    Keep,
    Kept,
    Load,
    ProductAt,
    Reduced,
    Reduction,
    RowPass,
    Term,
    Value,
)

# A value that takes this many simple operations is kept rather than computed again in a later pass.
WORTH_KEEPING = 4
_COSTS = {"div": 8, "rem": 8, "sqrt": 8, "random_bits": 80, "pow": 40, "cast": 1}
_FUNCTION_COST = 12
_FUNCTIONS = frozenset({"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "atan"})


@dataclass(frozen=True)
class Arranged:
    """The passes, what is kept of each value in `lefts`, and the reductions that stand for the original ones."""

    passes: tuple[RowPass, ...]
    lefts: tuple[ProductAt | Kept, ...]
    reductions: dict[Reduction, Reduction]


def arrange(
    reductions: Sequence[Reduction], lefts: Sequence[Value], at: tuple[Variable, Variable, Variable], element: DType
) -> Arranged:
    """The passes that compute the reductions and keep `lefts`, at (batch, rows, columns) = `at`. Raises Illegal.

    `element`: the type of the products; scratch holds what is as wide, and bools.
    """
    for value in all_values([*(r.value for r in reductions), *lefts]):
        if isinstance(value, Accumulator):
            raise Illegal("a chain goes on with one of its own sums")
        if any(index.has_data for index in value.indices):
            raise Illegal("a chain that looks up rows by what it computes")
    build = _Passes(at, element)
    for reduction in reductions:
        build.need(reduction.value)
    for left in lefts:
        build.need(left)
    return build.arranged(reductions, lefts)


@dataclass
class _Passes:
    """`first`: the pass in which a value is first evaluated; `kept`: the values that later passes read from scratch."""

    at: tuple[Variable, Variable, Variable]
    element: DType
    levels: dict[Value, int] = field(default_factory=dict)
    costs: dict[Value, int] = field(default_factory=dict)
    needed: dict[int, dict[Value, None]] = field(default_factory=dict)
    kept: dict[Value, Keep] = field(default_factory=dict)
    first: dict[Value, int] = field(default_factory=dict)
    new_reductions: dict[Reduction, Reduction] = field(default_factory=dict)
    rebuilt: dict[tuple[Value, int], Value] = field(default_factory=dict)

    def need(self, root: Value) -> None:
        """Note that the value is evaluated, in the earliest pass possible."""
        for value in all_values([root]):
            self._measure(value)
        self.needed.setdefault(self.levels[root], {})[root] = None

    def _measure(self, value: Value) -> None:
        if value in self.levels:
            return
        if isinstance(value, Reduced):
            self.need(value.reduction.value)
            self.levels[value] = self.levels[value.reduction.value] + 1
        else:
            self.levels[value] = max((self.levels[o] for o in value.operands), default=0)
        own = 1 if isinstance(value, (Load, Guarded)) else 0
        if isinstance(value, Apply):
            own = _FUNCTION_COST if value.name in _FUNCTIONS else _COSTS.get(value.name, 1)
        # Where operands are shared this counts them twice; beyond the threshold it does not matter.
        self.costs[value] = min(1000, own + sum(self.costs[o] for o in value.operands))

    def arranged(self, reductions: Sequence[Reduction], lefts: Sequence[Value]) -> Arranged:
        for number in sorted(self.needed):
            for root in self.needed[number]:
                self._find_repeated(root, number)
        final: dict[Value, int] = {}
        for left in lefts:
            if not isinstance(left, ProductAt):
                self.kept.setdefault(left, Keep(left))
                final[left] = self.levels[left]
        last = max(self.needed, default=-1)
        by_level: dict[int, list[Reduction]] = {}
        for reduction in reductions:
            by_level.setdefault(self.levels[reduction.value], []).append(reduction)
        passes = []
        keeps: dict[Value, Keep] = {}
        for number in range(last + 1):
            own = []
            for old in by_level.get(number, []):
                new = replace(old, value=self._rebuild(old.value, number))
                own.append((old, new))
            kept = [v for v in self.kept if self._kept_in(v) == number]
            new_keeps = {v: Keep(self._rebuild(v, number)) for v in kept}
            self.new_reductions.update(own)
            self.kept.update(new_keeps)
            keeps.update(new_keeps)
            if own or kept:
                passes.append(RowPass(tuple(new for _, new in own), tuple(new_keeps.values())))
        finished = tuple(
            left if isinstance(left, ProductAt) else Kept(left.dtype, keeps[left], self.at, origin=left.origin)
            for left in lefts
        )
        return Arranged(tuple(passes), finished, self.new_reductions)

    def _kept_in(self, value: Value) -> int:
        return self.first.get(value, self.levels[value])

    def _find_repeated(self, root: Value, number: int) -> None:
        """Keep what this pass needs and an earlier one has computed."""
        stack = [root]
        while stack:
            value = stack.pop()
            before = self.first.setdefault(value, number)
            if isinstance(value, (ProductAt, Reduced)) or self.at[2] not in value.variables:
                continue
            if before < number and self.costs[value] >= WORTH_KEEPING and self._fits(value.dtype.compute):
                self.kept.setdefault(value, Keep(value))
                continue
            stack.extend(value.operands)

    def _fits(self, dtype: DType) -> bool:
        return dtype.kind == "bool" or dtype.bits == self.element.bits

    def _rebuild(self, value: Value, number: int) -> Value:
        """The value as pass `number` computes it: from what earlier passes kept."""
        key = (value, number)
        if key not in self.rebuilt:
            self.rebuilt[key] = self._new(value, number)
        return self.rebuilt[key]

    def _new(self, value: Value, number: int) -> Value:
        if value in self.kept and self._kept_in(value) < number:
            return Kept(value.dtype, self.kept[value], self.at, origin=value.origin)
        if isinstance(value, Reduced):
            return replace(value, reduction=self.new_reductions[value.reduction])
        if isinstance(value, Apply):
            arguments = tuple(self._rebuild(a, number) for a in value.arguments)
            if arguments == value.arguments:
                return value
            return replace(value, arguments=arguments)
        if isinstance(value, Guarded):
            inside, outside = self._rebuild(value.inside, number), self._rebuild(value.outside, number)
            if inside is value.inside and outside is value.outside:
                return value
            return replace(value, inside=inside, outside=outside)
        return value


def with_reductions(value: Value, reductions: dict[Reduction, Reduction]) -> Value:
    """A value of a row with the results of the reductions that stand for the original ones."""
    return _Inlined(reductions).value(value)


def without_keeps(kernel: ChainKernel) -> ChainKernel:
    """The chain with passes that compute again, from the products, what they would read of earlier ones.

    What sums need is kept by the last pass, so that no pass needs whole rows of another.
    """
    inlined = _Inlined({})
    passes = []
    for each in kernel.passes:
        new = [replace(old, value=inlined.value(old.value)) for old in each.reductions]
        inlined.reductions.update(zip(each.reductions, new, strict=True))
        passes.append(RowPass(tuple(new), ()))
    kept: dict[Keep, Keep] = {}
    sums = []
    for one in kernel.sums:
        terms = []
        for term in one.terms:
            left = term.left
            if isinstance(left, Kept):
                keep = kept.setdefault(left.keep, Keep(inlined.value(left.keep.value)))
                left = replace(left, keep=keep)
            terms.append(Term(left, term.right))
        sums.append(replace(one, terms=tuple(terms)))
    if passes:
        passes[-1] = RowPass(passes[-1].reductions, tuple(kept.values()))
    stores = tuple(replace(store, value=inlined.value(store.value)) for store in kernel.stores)
    needed = tuple(each for each in passes if each.reductions or each.keeps)
    return replace(kernel, passes=needed, stores=stores, sums=tuple(sums))


class _Inlined:
    """Values with what is kept of them written out, and with new reductions in place of old ones."""

    def __init__(self, reductions: dict[Reduction, Reduction]) -> None:
        self.reductions = reductions
        self._values: dict[Value, Value] = {}

    def value(self, value: Value) -> Value:
        if value not in self._values:
            self._values[value] = self._new(value)
        return self._values[value]

    def _new(self, value: Value) -> Value:
        if isinstance(value, Kept):
            return self.value(value.keep.value)
        if isinstance(value, Reduced):
            return replace(value, reduction=self.reductions[value.reduction])
        if isinstance(value, Apply):
            arguments = tuple(self.value(argument) for argument in value.arguments)
            return replace(value, arguments=arguments)
        if isinstance(value, Guarded):
            return replace(value, inside=self.value(value.inside), outside=self.value(value.outside))
        return value
