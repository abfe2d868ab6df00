"""Lowering: from a set of nodes that share a kernel to the kernel's loop IR, or a reason why they cannot share one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir import dtypes, ops
from ..ir.graph import Node
from . import index as indexing
from .expand import Expander, Illegal, Indices, nontrivial, spread
from .index import ZERO, FromData, Index, Variable
from .loop_ir import (
    Apply,
    Condition,
    ContractionKernel,
    Guarded,
    Kernel,
    Literal,
    Load,
    LoopKernel,
    Pass,
    Reduced,
    Reduction,
    Store,
    Value,
)
from .placing import Side, epilogue_place, fresh, place_from, require_bijection, solve

# A concatenation of more parts than this is written part by part; of fewer it is a choice inside an expression.
MOST_PARTS = 4


@dataclass(frozen=True)
class Lowered:
    """A kernel, and how often each node inside it is computed at a different place (1: never recomputed)."""

    kernel: Kernel
    counts: dict[Node, int]


def lower(
    members: Sequence[Node], outputs: Sequence[Node], has_memory: Callable[[Node], bool], lanes: int = 1
) -> Lowered:
    """The kernel that computes `members` together and stores `outputs` (a subset of them, in that order).

    `has_memory(node)`: the node can be loaded because the caller or another kernel stored it. `lanes`: how many
    elements the target's vectors hold, so that contractions can give rows of windows a multiple of it. Raises Illegal.
    """
    contractions = [m for m in members if m.op is ops.dot_general]
    scatters = [m for m in members if m.op is ops.scatter_add]
    if len(contractions) + len(scatters) > 1:
        raise Illegal("two contractions or scatters")
    joins = [m for m in members if m.op is ops.concat]
    if any(len(m.inputs) > MOST_PARTS for m in joins):
        if len(members) > 1:
            raise Illegal("a concatenation of many parts has a kernel of its own")
        return _lower_concat(joins[0], has_memory)
    if scatters:
        if len(members) > 1:
            raise Illegal("a scatter_add has a kernel of its own")
        return _lower_scatter(scatters[0], has_memory)
    if contractions:
        return _lower_contraction(contractions[0], members, outputs, has_memory, lanes)
    return _Loops(members, outputs, has_memory).lower()


# Loop kernels


class _Loops:
    """Lowers members without a contraction to outer loops and passes."""

    def __init__(self, members: Sequence[Node], outputs: Sequence[Node], has_memory: Callable[[Node], bool]):
        self.members, self.outputs, self.has_memory = members, outputs, has_memory
        self.reducing = [m for m in members if m.op.kind == "reduce"]
        first = self.reducing[0] if self.reducing else members[0]
        self.outer_extents = nontrivial(first.shape)
        self.outer = tuple(Variable(f"o{i}", n) for i, n in enumerate(self.outer_extents))
        self.places: dict[Node, Indices] = {}
        self.expander = Expander(has_memory, frozenset(members), on_reduction=self._check_reduction, outer=self.outer)

    def _check_reduction(self, node: Node, indices: Indices) -> None:
        if self.places[node] != indices:
            raise Illegal(f"{node.op.name} is needed at another place than where it is computed")

    def lower(self) -> Lowered:
        self._place_rows()
        self._place_full()
        stores = [self._store(node) for node in self.outputs]
        passes = _arrange(list(self.expander.reductions.values()), stores, self.expander, self.outer)
        buffers = tuple(self.expander.buffers.values())
        return Lowered(LoopKernel(buffers, self.outer, passes), self.expander.counts())

    def _place_rows(self) -> None:
        """Members of the outer shape are evaluated once per outer iteration."""
        for node in self.members:
            if nontrivial(node.shape) == self.outer_extents:
                self.places[node] = spread(node.shape, self.outer)
            elif node.op.kind == "reduce":
                raise Illegal("reductions to different shapes")
        for node in self.reducing:
            self.expander.expand(node, self.places[node])

    def _place_full(self) -> None:
        """The other members are evaluated in loops inside, where reductions need them or where they need reductions."""
        unplaced = [m for m in self.members if m not in self.places]
        if unplaced and not self.reducing:
            raise Illegal("elementwise members of different shapes")
        for node in unplaced:
            if node not in self.outputs:
                continue
            place = self._demanded_place(node) or self._probed_place(node)
            available = frozenset(self.outer)
            for variables in self.expander.inner.values():
                available |= frozenset(variables)
            require_bijection(place, node, available)
            if not frozenset(self.outer) <= frozenset(v for i in place for v in i.variables):
                raise Illegal("a member that does not depend on every outer loop")
            self.places[node] = place

    def _demanded_place(self, node: Node) -> Indices | None:
        for place, guard in self.expander.demands.get(node, ()):
            plain = all(i == ZERO or i.single_variable() is not None for i in place)
            if plain and not guard and math.prod(v.extent for i in place for v in i.variables) == node.size:
                return place
        return None

    def _probed_place(self, node: Node) -> Indices:
        variables = fresh(node, "x")
        equations: list[tuple[Index, Index]] = []

        def note(reduction: Node, indices: Indices) -> None:
            equations.extend(zip(indices, self.places[reduction], strict=True))

        probe = Expander(self.has_memory, frozenset(self.members), on_reduction=note, outer=self.outer)
        probe.expand(node, spread(node.shape, variables))
        if not equations:
            raise Illegal("nothing ties a member to the reductions")
        solution = solve([e for e in equations if not e[0].is_constant or not e[1].is_constant], variables)
        free = tuple(v for v in variables if v not in solution)
        inner = self.expander.inner_variables(tuple(v.extent for v in free))
        solution.update({v: indexing.of(w) for v, w in zip(free, inner, strict=True)})
        return place_from(variables, node, solution)

    def _store(self, node: Node) -> Store:
        place = self.places[node]
        value = self.expander.expand(node, place)
        return Store(self.expander.buffer(node), indexing.flatten(place, node.shape), value)


def _arrange(
    reductions: list[Reduction], stores: list[Store], expander: Expander, outer: tuple[Variable, ...]
) -> tuple[Pass, ...]:
    """Group reductions and stores into as few passes as their dependencies allow."""
    levels: dict[Value, int] = {}

    def level(root: Value) -> int:
        stack = [root]
        while stack:
            value = stack[-1]
            if value in levels:
                stack.pop()
                continue
            below = [value.reduction.value] if isinstance(value, Reduced) else list(value.operands)
            missing = [v for v in below if v not in levels]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            deepest = max((levels[v] for v in below), default=0)
            levels[value] = deepest + 1 if isinstance(value, Reduced) else deepest
        return levels[root]

    loops = {v: group for group in expander.inner.values() for v in group}

    def nest(value_variables: frozenset[Variable]) -> tuple[Variable, ...]:
        inside = value_variables - frozenset(outer)
        groups = {loops[v] for v in inside}
        if len(groups) > 1:
            raise Illegal("a store in two loop nests at once")
        # Loops that the store does not depend on would only repeat it.
        return tuple(v for group in groups for v in group if v in inside)

    passes: dict[tuple[int, tuple[Variable, ...]], tuple[list[Reduction], list[Store]]] = {}
    variables_of = {id(r): v for r, v in _reduction_loops(expander)}
    for reduction in reductions:
        key = (level(reduction.value), variables_of[id(reduction)])
        passes.setdefault(key, ([], []))[0].append(reduction)
    for store in stores:
        depth = level(store.value)
        variables = nest(store.index.variables | store.value.variables)
        joinable = [k for k in passes if k[0] >= depth and k[1] == variables]
        key = min(joinable, default=(depth, variables), key=lambda k: k[0])
        passes.setdefault(key, ([], []))[1].append(store)
    ordered = sorted(passes, key=lambda k: (k[0], not passes[k][0]))
    return tuple(Pass(key[1], tuple(passes[key][0]), tuple(passes[key][1])) for key in ordered)


def _reduction_loops(expander: Expander) -> list[tuple[Reduction, tuple[Variable, ...]]]:
    result = []
    for node, reduction in expander.reductions.items():
        axes = node.attributes["axes"] if "axes" in node.attributes else (node.attributes["axis"],)
        extents = nontrivial(tuple(node.inputs[0].shape[a] for a in axes))
        result.append((reduction, expander.inner_variables(extents)))
    return result


# Scatters


def _lower_scatter(node: Node, has_memory: Callable[[Node], bool]) -> Lowered:
    """Zero the result, then add the updates row by row in order; the axes of a row are parallel."""
    indices, updates = node.inputs
    rest = updates.shape[indices.rank :]
    outer = tuple(Variable(f"o{i}", n) for i, n in enumerate(nontrivial(rest)))
    row = Variable("r0_0", node.shape[0])
    expander = Expander(has_memory, outer=outer)
    columns = spread(rest, outer)
    clear_index = indexing.flatten((indexing.of(row), *columns), node.shape)
    extents = nontrivial(indices.shape)
    places = tuple(Variable(f"r1_{i}", n) for i, n in enumerate(extents))
    position = spread(indices.shape, places)
    target = expander.expand(indices, position)
    update = expander.expand(updates, (*position, *columns))
    bounds = [Literal(indices.dtype, 0), Literal(indices.dtype, node.shape[0])]
    inside = Apply(dtypes.bool_, "le", (bounds[0], target), indices.dtype)
    if node.shape[0] <= dtypes.value_bounds(indices.dtype)[1]:
        below = Apply(dtypes.bool_, "lt", (target, bounds[1]), indices.dtype)
        inside = Apply(dtypes.bool_, "and", (inside, below), dtypes.bool_)
    kept = Apply(updates.dtype, "where", (inside, update, Literal(updates.dtype, 0)), updates.dtype)
    where = indexing.of(FromData(target, node.shape[0])) if node.shape[0] > 1 else ZERO
    buffer = expander.buffer(node)
    zero = Store(buffer, clear_index, Literal(node.dtype, 0))
    add = Store(buffer, indexing.flatten((where, *columns), node.shape), kept, accumulate=True)
    clear = Pass((row,) if row.extent != 1 else (), (), (zero,))
    passes = (clear, Pass(places, (), (add,)))
    return Lowered(LoopKernel(tuple(expander.buffers.values()), outer, passes), expander.counts())


# Concatenations


def _lower_concat(node: Node, has_memory: Callable[[Node], bool]) -> Lowered:
    """Each part is written to its place in a pass of its own; the other axes are parallel."""
    axis = node.attributes["axis"]
    rest = tuple(1 if a == axis else n for a, n in enumerate(node.shape))
    outer = tuple(Variable(f"o{i}", n) for i, n in enumerate(nontrivial(rest)))
    expander = Expander(has_memory, outer=outer)
    around = spread(rest, outer)
    buffer = expander.buffer(node)
    passes, start = [], 0
    for number, part in enumerate(node.inputs):
        extent = part.shape[axis]
        along = Variable(f"r{number}_0", extent)
        place = tuple(indexing.of(along) if a == axis else i for a, i in enumerate(around))
        value = expander.expand(part, place)
        moved = tuple(i + start if a == axis else i for a, i in enumerate(place))
        store = Store(buffer, indexing.flatten(moved, node.shape), value)
        if extent:
            passes.append(Pass((along,) if extent != 1 else (), (), (store,)))
        start += extent
    kernel = LoopKernel(tuple(expander.buffers.values()), outer, tuple(passes))
    return Lowered(kernel, expander.counts())


# Contractions


def _lower_contraction(
    node: Node, members: Sequence[Node], outputs: Sequence[Node], has_memory: Callable[[Node], bool], lanes: int
) -> Lowered:
    """Vectors run along the columns, so the side whose free axes the result has last becomes the columns."""
    build = _Contract(node, members, outputs, has_memory, lanes)
    lowered = build.lower(swapped=False)
    kernel = lowered.kernel
    assert isinstance(kernel, ContractionKernel)
    strides = dict(kernel.stores[0].index.terms) if kernel.stores else {}
    if kernel.columns.extent == 1 or (strides.get(kernel.columns) != 1 and strides.get(kernel.rows) == 1):
        if kernel.rows.extent > 1:
            return build.lower(swapped=True)
    return lowered


def _padded(extents: tuple[int, ...], lanes: int) -> tuple[int, ...]:
    """The extents with the last one rounded up so that vectors do not cross rows, where that adds at most a quarter."""
    if len(nontrivial(extents)) < 2 or extents[-1] == 1:
        return extents
    last = extents[-1]
    better = 1 << (last - 1).bit_length() if last < lanes else -(-last // lanes) * lanes
    return (*extents[:-1], better) if last < better <= last * 1.25 else extents


class _Contract:
    """Lowers one contraction with the members that finish it.

    An operand that is not a plain array (a window of an image) is easier to read row by row: with `lanes`, the last
    axis of the columns, or of the depth, is padded to whole vectors. Places that are not there are guarded.
    """

    def __init__(
        self,
        node: Node,
        members: Sequence[Node],
        outputs: Sequence[Node],
        has_memory: Callable[[Node], bool],
        lanes: int,
    ):
        self.node, self.members, self.outputs = node, members, outputs
        self.has_memory, self.lanes = has_memory, lanes

    def lower(self, swapped: bool) -> Lowered:
        plain = self._lower(swapped, False, False)
        kernel = plain.kernel
        assert isinstance(kernel, ContractionKernel)
        if self.lanes == 1 or not _is_computed(kernel.right):
            return plain
        for pad_columns, pad_depth in ((True, True), (True, False), (False, True)):
            try:
                return self._lower(swapped, pad_columns, pad_depth)
            except Illegal:
                continue
        return plain

    def _lower(self, swapped: bool, pad_columns: bool, pad_depth: bool) -> Lowered:
        node = self.node
        lhs, rhs = Side.of(node, 0), Side.of(node, 1)
        left, right = (rhs, lhs) if swapped else (lhs, rhs)
        column_extents, depth_extents = right.extents(right.free), lhs.extents(lhs.contract)
        padded_columns = _padded(column_extents, self.lanes) if pad_columns else column_extents
        padded_depth = _padded(depth_extents, self.lanes) if pad_depth else depth_extents
        batch = Variable("b", math.prod(lhs.extents(lhs.batch)))
        rows = Variable("m", math.prod(left.extents(left.free)))
        columns = Variable("n", math.prod(padded_columns))
        depth = Variable("k", math.prod(padded_depth))
        in_batch = indexing.unflatten(indexing.of(batch), lhs.extents(lhs.batch))
        in_depth = indexing.unflatten(indexing.of(depth), padded_depth)
        in_rows = indexing.unflatten(indexing.of(rows), left.extents(left.free))
        in_columns = indexing.unflatten(indexing.of(columns), padded_columns)
        own = (*in_batch, *in_columns, *in_rows) if swapped else (*in_batch, *in_rows, *in_columns)
        on_columns = _inside(in_columns, column_extents, padded_columns)
        on_depth = _inside(in_depth, depth_extents, padded_depth)

        variables = (batch, rows, columns)
        inside = frozenset(self.members)
        expander = Expander(self.has_memory, inside, anchor=node, anchor_variables=variables)
        value_left = expander.expand(left.node, left.indices(in_batch, in_depth, in_rows), on_depth)
        value_right = expander.expand(right.node, right.indices(in_batch, in_depth, in_columns), on_columns + on_depth)
        if on_depth:
            zero = Literal(node.dtype.compute, 0)
            value_left = Guarded(node.dtype.compute, on_depth, value_left, zero)
            value_right = Guarded(node.dtype.compute, on_depth, value_right, zero)
        if expander.anchor_demands or expander.demands.keys() - {node}:
            raise Illegal("an operand of the contraction is made by the same kernel")
        everywhere = frozenset(v for v in variables if v.extent != 1)
        padding = (padded_columns[-1], column_extents[-1]) if column_extents else (1, 1)
        stores = []
        for output in self.outputs:
            place = own if output is node else epilogue_place(output, node, own, inside, self.has_memory)
            require_bijection(place, output, everywhere, padding)
            value = expander.expand(output, place, on_columns)
            index = indexing.flatten(place, output.shape)
            stores.append(Store(expander.buffer(output), index, value, guard=on_columns))
        if any(demand != own for demand in expander.anchor_demands):
            raise Illegal("the contraction's result is needed at another place")
        kernel = ContractionKernel(
            tuple(expander.buffers.values()), batch, rows, columns, depth, value_left, value_right,
            node.dtype.compute, tuple(stores),
        )  # fmt: skip
        return Lowered(kernel, expander.counts())


def _inside(indices: Indices, extents: tuple[int, ...], padded: tuple[int, ...]) -> tuple[Condition, ...]:
    """The condition that holds where a padded axis is really there."""
    return (Condition(indices[-1], 0, extents[-1]),) if extents != padded else ()


def _is_computed(value: Value) -> bool:
    """Whether an operand is more than an array with constant strides."""
    if not isinstance(value, Load) or value.guard:
        return True
    return any(not isinstance(atom, Variable) for atom, _ in value.index.terms)
