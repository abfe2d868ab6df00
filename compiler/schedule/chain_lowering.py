"""Lowers members that share a product nobody stores to a chain: products, passes over rows, sums of what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..ir import ops
from ..ir.graph import Node
from . import index as indexing
from .chain_passes import arrange, with_reductions
from .collapse import all_values
from .dead_places import live_conditions
from .expand import Expander, Guard, Illegal, Indices, spread
from .index import Index, Variable
from .loop_ir import (
    Accumulator,
    ChainKernel,
    ChainSum,
    Literal,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    Store,
    Term,
    Value,
)
from .lowering import Lowered
from .placing import Side, fresh, place_from, require_bijection, solve


def reached_products(roots: Iterable[Node], inside: frozenset[Node], has_memory: Callable[[Node], bool]) -> list[Node]:
    """The contractions outside of `inside` that computing the roots needs and nobody stores, in a fixed order."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or (node not in inside and has_memory(node)):
            continue
        seen.add(node)
        if node.op is ops.dot_general and node not in inside:
            found[node] = None
        else:
            stack.extend(reversed(node.inputs))
    return list(found)


def lower_chain(
    members: Sequence[Node], outputs: Sequence[Node], products: Sequence[Node], has_memory: Callable[[Node], bool]
) -> Lowered:
    """The chain that computes `members` and stores `outputs`; nobody stores the `products` it needs. Raises Illegal.

    Which axes are rows follows from what is reduced. Where nothing is, they are those that spare sums over the rows.
    """
    found: list[Lowered] = []
    # In words: an exception holds the frames that it went through, and this one would hold the exception.
    reasons: list[str] = []
    for swapped in (False, True):
        try:
            found.append(_Chain(members, outputs, products, has_memory, swapped).lower())
        except Illegal as reason:
            reasons.append(str(reason))
    if not found:
        raise Illegal(reasons[0])
    return min(found, key=lambda lowered: sum(s.over_rows for s in _chain_of(lowered).sums))


def _chain_of(lowered: Lowered) -> ChainKernel:
    assert isinstance(lowered.kernel, ChainKernel)
    return lowered.kernel


class _Untied(Illegal):
    """Nothing says yet where a member has to be evaluated."""


@dataclass
class _Probe(Expander):
    """Finds out at which indices a node needs the products, sums and reductions that it is made from."""

    stops: frozenset[Node] = frozenset()
    found: list[tuple[Node, Indices]] = field(default_factory=list)

    def _expand(self, node: Node, indices: Indices, guard: Guard) -> Value:
        if node in self.stops:
            self.found.append((node, indices))
            return Literal(node.dtype.compute, 0)
        return super()._expand(node, indices, guard)


@dataclass
class _ChainExpander(Expander):
    """Stops at products, sums and reductions, which have their `places`. `values` are what stands for them."""

    places: dict[Node, Indices] = field(default_factory=dict)
    values: dict[Node, Value] = field(default_factory=dict)
    products: frozenset[Node] = frozenset()
    stops: frozenset[Node] = frozenset()
    make_product: Callable[[Node, Indices], ProductAt] | None = None

    def _expand(self, node: Node, indices: Indices, guard: Guard) -> Value:
        if node in self.products and node not in self.values:
            assert self.make_product is not None
            self.values[node] = self.make_product(node, indices)
            self.places.setdefault(node, indices)
        if node in self.values:
            if guard or self.places[node] != indices:
                raise Illegal(f"{node.op.name} is needed at another place than where it is computed")
            return self.values[node]
        return super()._expand(node, indices, guard)

    def _reduce(self, node: Node, indices: Indices) -> Value:
        raise (_Untied if node in self.stops else Illegal)(f"{node.op.name} is not part of this chain")

    def counts(self) -> dict[Node, int]:
        """How often each node that the chain itself computes is expanded at a different place."""
        return {n: c for n, c in super().counts().items() if n in self.members or not self.has_memory(n)}

    def expansions(self) -> dict[Node, list[tuple[Indices, Value]]]:
        """Node -> where it was expanded, and to what."""
        result: dict[Node, list[tuple[Indices, Value]]] = {}
        for (node, indices, _), value in self._memo.items():
            result.setdefault(node, []).append((indices, value))
        return result


@dataclass(frozen=True)
class _Term:
    """A term of a sum on its way: what will be kept is still a value."""

    left_node: Node
    left: Value
    right: Value


@dataclass(frozen=True)
class _Sum:
    node: Node
    over_rows: bool
    free: Variable
    terms: tuple[_Term, ...]


class _Chain:
    """Lowers one set of members, with rows and columns as the first product has them or the other way round."""

    def __init__(
        self,
        members: Sequence[Node],
        outputs: Sequence[Node],
        products: Sequence[Node],
        has_memory: Callable[[Node], bool],
        swapped: bool,
    ):
        self.members, self.outputs, self.has_memory = members, outputs, has_memory
        self.inside = frozenset(members)
        self.products = products
        first = products[0]
        self.element = first.dtype.compute
        lhs, rhs = Side.of(first, 0), Side.of(first, 1)
        own_rows, own_columns = (rhs, lhs) if swapped else (lhs, rhs)
        self.batch = Variable("b", math.prod(lhs.extents(lhs.batch)))
        self.rows = Variable("m", math.prod(own_rows.extents(own_rows.free)))
        self.columns = Variable("n", math.prod(own_columns.extents(own_columns.free)))
        self.at = (self.batch, self.rows, self.columns)
        self.stops = frozenset((*products, *(m for m in members if m.op is ops.dot_general or m.op.kind == "reduce")))
        self.expander = _ChainExpander(
            has_memory, self.inside, products=frozenset(products), stops=self.stops, make_product=self._product
        )
        across = (self.columns, self.rows) if swapped else (self.rows, self.columns)
        self.expander.places[first] = (
            *indexing.unflatten(indexing.of(self.batch), lhs.extents(lhs.batch)),
            *indexing.unflatten(indexing.of(across[0]), lhs.extents(lhs.free)),
            *indexing.unflatten(indexing.of(across[1]), rhs.extents(rhs.free)),
        )
        self.depths = 0

    def lower(self) -> Lowered:
        reductions, sums = self._placed()
        reducing = [m for m in self.members if m.op.kind == "reduce"]
        row_stores, sum_stores = self._stores(sums)
        terms = [term for s in sums for term in s.terms]
        arranged = arrange(reductions, [term.left for term in terms], self.at, self.element)
        lefts = iter(arranged.lefts)
        finished = tuple(
            ChainSum(
                s.over_rows, s.free, tuple(Term(next(lefts), term.right) for term in s.terms),
                tuple(sum_stores[s.node]), origin=s.node,
            )
            for s in sums
        )
        values = list(self.expander.values.values())
        live = live_conditions(
            {node: node.inputs[0] for node in reducing}, [term.left_node for term in terms],
            self.expander.expansions(),
            self.rows, self.columns,
        )  # fmt: skip
        kernel = ChainKernel(
            tuple(self.expander.buffers.values()), self.batch, self.rows, self.columns, self.element, live,
            tuple(v.product for v in values if isinstance(v, ProductAt)), arranged.passes,
            tuple(replace(s, value=with_reductions(s.value, arranged.reductions)) for s in row_stores),
            finished,
        )  # fmt: skip
        return Lowered(kernel, self.expander.counts())

    def _placed(self) -> tuple[list[Reduction], list[_Sum]]:
        """The reductions and sums among the members. Where some are evaluated says where others are."""
        reductions: list[Reduction] = []
        sums: list[_Sum] = []
        waiting = [m for m in self.members if m in self.stops]
        while waiting:
            later = []
            for node in waiting:
                try:
                    if node.op.kind == "reduce":
                        reductions.append(self._reduction(node))
                    else:
                        sums.append(self._sum(node, len(sums)))
                except _Untied:
                    later.append(node)
            if len(later) == len(waiting):
                raise Illegal("nothing ties a member to the chain")
            waiting = later
        return reductions, sums

    def _require_only(self, indices: Iterable[Index], variable: Variable) -> None:
        if not _only(indices, variable):
            raise Illegal("axes that are not the rows or columns of the chain")

    def _solved(self, node: Node, among: Callable[[Node], bool] = lambda stop: True) -> Indices:
        """Where a node is evaluated so that it needs one of the things it is made from where that has its place."""
        variables = fresh(node, "x")
        probe = _Probe(self.has_memory, self.inside, stops=self.stops)
        probe.expand(node, spread(node.shape, variables))
        for stop, demand in probe.found:
            place = self.expander.places.get(stop)
            if place is not None and among(stop):
                return place_from(variables, node, solve(list(zip(demand, place, strict=True)), variables))
        raise _Untied("nothing ties a member to the chain")

    def _big_place(self, node: Node) -> Indices:
        """Where a node with an element for each place of the products is evaluated at (b, m, n)."""
        place = self._solved(node, self.expander.products.__contains__)
        require_bijection(place, node, frozenset(v for v in self.at if v.extent != 1))
        return place

    # What the chain computes

    def _product(self, node: Node, indices: Indices) -> ProductAt:
        """The product whose element at (b, m, n) is the node's at these indices."""
        lhs, rhs = Side.of(node, 0), Side.of(node, 1)
        in_batch, rest = indices[: len(lhs.batch)], indices[len(lhs.batch) :]
        in_left, in_right = rest[: len(lhs.free)], rest[len(lhs.free) :]
        self._require_only(in_batch, self.batch)
        left, right = (lhs, in_left), (rhs, in_right)
        if not _only(in_left, self.rows):
            left, right = right, left
        self._require_only(left[1], self.rows)
        self._require_only(right[1], self.columns)
        extents = lhs.extents(lhs.contract)
        depth = Variable(f"k{self.depths}", math.prod(extents))
        self.depths += 1
        in_depth = indexing.unflatten(indexing.of(depth), extents)
        values = []
        for (side, place), across in ((left, self.rows), (right, self.columns)):
            value = self.expander.expand(side.node, side.indices(in_batch, in_depth, place))
            self._require_outside(value, (self.batch, across, depth))
            values.append(value)
        return ProductAt(self.element, Product(depth, *values, origin=node), self.at, origin=node)

    def _require_outside(self, value: Value, variables: tuple[Variable, ...]) -> None:
        """Illegal unless an operand of a contraction comes from outside of the chain."""
        if value.dtype.compute is not self.element or not value.variables <= set(variables):
            raise Illegal("an operand of another type or with other axes")
        if any(isinstance(v, (ProductAt, Reduced, Accumulator)) for v in all_values([value])):
            raise Illegal("an operand that the chain itself computes")

    def _reduction(self, node: Node) -> Reduction:
        (operand,) = node.inputs
        if "axes" not in node.attributes:
            raise Illegal("a chain finds no positions of extrema")
        axes = node.attributes["axes"]
        place = self._big_place(operand)
        self._require_only([place[a] for a in axes], self.columns)
        rest = tuple(i for a, i in enumerate(place) if a not in axes)
        if any(self.columns in i.variables for i in rest):
            raise Illegal("a reduction over a part of the columns")
        value = self.expander.expand(operand, place)
        reduction = Reduction(node.op.name, node.dtype.compute, value, origin=node)
        self.expander.places[node] = rest
        self.expander.values[node] = Reduced(node.dtype.compute, reduction, (self.batch, self.rows), origin=node)
        return reduction

    def _sum(self, node: Node, number: int) -> _Sum:
        pieces = [(Side.of(piece, 0), Side.of(piece, 1)) for piece in pieces_of(node)]
        first, side = self._computed_side(pieces)
        left, right = pieces[first][side], pieces[first][1 - side]
        place = self._big_place(left.node)
        in_batch, in_contract, in_free = (
            tuple(place[a] for a in axes) for axes in (left.batch, left.contract, left.free)
        )
        over_rows = not _only(in_contract, self.columns)
        over, across = (self.rows, self.columns) if over_rows else (self.columns, self.rows)
        for indices, variable in ((in_batch, self.batch), (in_contract, over), (in_free, across)):
            self._require_only(indices, variable)
        free = Variable(f"e{number}", math.prod(right.extents(right.free)))
        in_right = indexing.unflatten(indexing.of(free), right.extents(right.free))
        terms = []
        for piece in pieces:
            if piece[side].node.shape != left.node.shape:
                raise Illegal("terms of a sum over different lengths")
            value = self.expander.expand(piece[side].node, place)
            if value.dtype.compute is not self.element:
                raise Illegal("a sum of another type than the products")
            outside = piece[1 - side]
            other = self.expander.expand(outside.node, outside.indices(in_batch, in_contract, in_right))
            self._require_outside(other, (self.batch, over, free))
            terms.append(_Term(piece[side].node, value, other))
        own = (*in_batch, *in_free, *in_right) if side == 0 else (*in_batch, *in_right, *in_free)
        self.expander.places[node] = own
        self.expander.values[node] = Accumulator(self.element, (self.batch, across, free), origin=node)
        return _Sum(node, over_rows, free, tuple(terms))

    def _computed_side(self, pieces: Sequence[tuple[Side, Side]]) -> tuple[int, int]:
        """(number of a piece, number of a side) of an operand that the chain computes; the other sides are given."""
        found = [
            (number, side)
            for number, piece in enumerate(pieces)
            for side in (0, 1)
            if reached_products([piece[side].node], self.inside, self.has_memory)
        ]
        if len({side for _, side in found}) != 1:
            raise Illegal("a contraction that is not a sum of what the chain computes")
        return found[0]

    # What it stores

    def _stores(self, sums: Sequence[_Sum]) -> tuple[list[Store], dict[Node, list[Store]]]:
        """(stores of each row, stores of each sum)."""
        on_rows: list[Store] = []
        on_sums: dict[Node, list[Store]] = {s.node: [] for s in sums}
        for output in self.outputs:
            place = self.expander.places.get(output) or self._solved(output)
            value = self.expander.expand(output, place)
            parts = all_values([value])
            if any(isinstance(v, ProductAt) for v in parts):
                raise Illegal("an output as big as the products")
            used = {s.node for s in sums if self.expander.values[s.node] in parts}
            if len(used) > 1 or (used and any(isinstance(v, Reduced) for v in parts)):
                raise Illegal("an output of several parts of a chain")
            store = Store(self.expander.buffer(output), indexing.flatten(place, output.shape), value, origin=output)
            if used:
                (node,) = used
                accumulator = self.expander.values[node]
                assert isinstance(accumulator, Accumulator)
                on_sums[node].append(store)
                over = accumulator.at
            else:
                on_rows.append(store)
                over = (self.batch, self.rows)
            require_bijection(place, output, frozenset(v for v in over if v.extent != 1))
            if not value.variables <= set(over):
                raise Illegal("an output that depends on more than its place")
        if any(not stores for stores in on_sums.values()):
            raise Illegal("a sum that nobody stores")
        return on_rows, on_sums


def pieces_of(node: Node) -> list[Node]:
    """The contractions whose sum a contraction is: one for each piece of operands that are laid end to end along it."""
    axes = [node.attributes["lhs_contract"], node.attributes["rhs_contract"]]
    if any(child.op is not ops.concat or len(own) != 1 for child, own in zip(node.inputs, axes, strict=True)):
        return [node]
    along = [child.attributes["axis"] for child in node.inputs]
    extents = [[part.shape[axis] for part in child.inputs] for child, axis in zip(node.inputs, along, strict=True)]
    if [(axis,) for axis in along] != axes or extents[0] != extents[1]:
        return [node]
    return [ops.dot_general(*parts, **node.attributes) for parts in zip(*(c.inputs for c in node.inputs), strict=True)]


def _only(indices: Iterable[Index], variable: Variable) -> bool:
    return all(index.variables <= {variable} for index in indices)
