"""Where the members of a kernel are evaluated: places found by solving for what the kernel's loops demand of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.graph import Node
from . import index as indexing
from .expand import Expander, Illegal, Indices, nontrivial, spread
from .index import ZERO, FloorDivision, FromData, Index, Remainder, Variable
from .loop_ir import Kernel


@dataclass(frozen=True)
class Lowered:
    """A kernel, and how often each node inside it is computed at a different place (1: never recomputed)."""

    kernel: Kernel
    counts: dict[Node, int]


def solve(equations: list[tuple[Index, Index]], unknowns: Sequence[Variable]) -> dict[Variable, Index]:
    """Indices for some of the unknowns so that left(unknowns) == right for every equation, or Illegal.

    Handles what reshapes and permutations make of indices: a side is one variable, a mixed-radix number of several
    variables, or a digit of one. Equations are verified after solving.
    """
    solution: dict[Variable, Index] = {}
    digits: dict[Variable, dict[int, Index]] = {}
    for left, right in equations:
        for atom, coefficient in left.terms:
            if isinstance(atom, Variable):
                digit = right // coefficient
                bigger = [c for _, c in left.terms if c > coefficient]
                if bigger:
                    digit = digit % atom.extent
                solution.setdefault(atom, digit)
                continue
            divisor = 1
            inner: Index = Index(((atom, 1),))
            if isinstance(atom, Remainder):
                inner = atom.index
            if len(inner.terms) == 1 and isinstance(inner.terms[0][0], FloorDivision):
                division = inner.terms[0][0]
                divisor, inner = division.divisor, division.index
            variable = inner.single_variable()
            if variable is None or coefficient != 1:
                raise Illegal("an index that cannot be inverted")
            digits.setdefault(variable, {})[divisor] = right
    for variable, parts in digits.items():
        total = ZERO
        for divisor, part in parts.items():
            total = total + part * divisor
        solution.setdefault(variable, total)
    if any(v not in unknowns for v in solution):
        raise Illegal("an index depends on a loop that is not the member's own")

    def no_data(atom: FromData) -> Index:
        raise Illegal("an index read from data")

    for left, right in equations:
        if indexing.substitute(left, solution, no_data) != right:
            raise Illegal("indices do not line up")
    return solution


def place_from(variables: Sequence[Variable], node: Node, solution: dict[Variable, Index]) -> Indices:
    remaining = iter(variables)
    place = []
    for extent in node.shape:
        variable = None if extent == 1 else next(remaining)
        place.append(ZERO if variable is None else solution.get(variable, indexing.of(variable)))
    return tuple(place)


def require_bijection(
    place: Indices, node: Node, available: frozenset[Variable], padding: tuple[int, int] = (1, 1)
) -> None:
    """Illegal unless the place visits every element of `node` exactly once.

    `padding`: how many places there are for how many elements.
    """
    used: frozenset[Variable] = frozenset()
    for index in place:
        used |= index.variables
    if not used <= available:
        raise Illegal("a place that uses loops of another nest")
    if math.prod(v.extent for v in used) * padding[1] != node.size * padding[0]:
        raise Illegal("a place that does not visit every element once")


def fresh(node: Node, prefix: str) -> tuple[Variable, ...]:
    return tuple(Variable(f"{prefix}{i}", n) for i, n in enumerate(nontrivial(node.shape)))


@dataclass(frozen=True)
class Side:
    """One operand of a contraction and the roles of its axes."""

    node: Node
    batch: Sequence[int]
    contract: Sequence[int]
    free: Sequence[int]

    @staticmethod
    def of(contraction: Node, position: int) -> Side:
        """The left (0) or right (1) operand of a dot_general."""
        node, name = contraction.inputs[position], ("lhs", "rhs")[position]
        batch = contraction.attributes[f"{name}_batch"]
        contract = contraction.attributes[f"{name}_contract"]
        return Side(node, batch, contract, tuple(a for a in range(node.rank) if a not in batch and a not in contract))

    def extents(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.node.shape[a] for a in axes)

    def indices(self, batch: Indices, depth: Indices, free: Indices) -> Indices:
        places = dict(zip((*self.batch, *self.contract, *self.free), (*batch, *depth, *free), strict=True))
        return tuple(places[a] for a in range(self.node.rank))


def epilogue_place(
    output: Node, anchor: Node, own: Indices, members: frozenset[Node], has_memory: Callable[[Node], bool]
) -> Indices:
    variables = fresh(output, "x")

    def refuse(reduction: Node, indices: Indices) -> None:
        raise Illegal("a reduction in the epilogue of a contraction")

    probe = Expander(has_memory, members, anchor=anchor, on_reduction=refuse)
    probe.expand(output, spread(output.shape, variables))
    if not probe.anchor_demands:
        raise Illegal("a member that does not depend on the contraction")
    demand = probe.anchor_demands[0]
    solution = solve(list(zip(demand, own, strict=True)), variables)
    return place_from(variables, output, solution)
