"""Lowering: from a set of nodes that share a kernel to the kernel's loop IR, or a reason why they cannot share one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ir import ops
from ..ir.graph import Node
from . import index as indexing
from .expand import Expander, Illegal, Indices, nontrivial, spread
from .index import ZERO, Index, Variable
from .loop_ir import LoopKernel, Pass, Reduced, Reduction, Store, Value
from .lower_contraction import lower_contraction
from .placing import Lowered, fresh, place_from, require_bijection, solve
from .scatters import lower_scatter

__all__ = ["MOST_PARTS", "Lowered", "lower"]

# A concatenation of more parts than this is written part by part; of fewer it is a choice inside an expression.
MOST_PARTS = 4


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
        return Lowered(*lower_scatter(scatters[0], has_memory))
    if contractions:
        return lower_contraction(contractions[0], members, outputs, has_memory, lanes)
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
        return Store(self.expander.buffer(node), indexing.flatten(place, node.shape), value, origin=node)


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
        store = Store(buffer, indexing.flatten(moved, node.shape), value, origin=node)
        if extent:
            passes.append(Pass((along,) if extent != 1 else (), (), (store,)))
        start += extent
    kernel = LoopKernel(tuple(expander.buffers.values()), outer, tuple(passes))
    return Lowered(kernel, expander.counts())
