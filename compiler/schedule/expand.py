"""Expansion: from a node and an index to the scalar expression that computes that element.

Movement ops become index arithmetic here, so nothing is moved. Expansion stops at nodes that have memory (`Load`), at
reductions (`Reduced`) and at the contraction a kernel is built around (`Accumulator`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..ir import dtypes, ops
from ..ir.graph import Node
from . import index as indexing
from .index import ZERO, FromData, Index, Variable
from .loop_ir import (
    Accumulator,
    Apply,
    Buffer,
    Condition,
    Guarded,
    IndexValue,
    Literal,
    Load,
    Reduced,
    Reduction,
    Value,
)

Indices = tuple[Index, ...]
Guard = tuple[Condition, ...]


class Illegal(Exception):
    """These nodes cannot share a kernel; says why."""


def nontrivial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The extents other than 1."""
    return tuple(extent for extent in shape if extent != 1)


def spread(shape: tuple[int, ...], variables: tuple[Variable, ...]) -> Indices:
    """An index tuple for `shape`: one variable for each extent other than 1, in order, and 0 elsewhere."""
    remaining = iter(variables)
    return tuple(ZERO if extent == 1 else indexing.of(next(remaining)) for extent in shape)


def narrow(conditions: list[Condition]) -> Guard | None:
    """The conditions that are not always true; None if one is never true."""
    kept = []
    for condition in conditions:
        low, high = condition.index.bounds
        if low >= condition.low and high < condition.high:
            continue
        if high < condition.low or low >= condition.high:
            return None
        kept.append(condition)
    return tuple(kept)


def _reshaped(indices: Indices, shape: tuple[int, ...], child: tuple[int, ...]) -> Indices:
    """The place in an array of shape `child` that is row-major the same as `indices` in one of `shape`.

    The axes fall into the smallest runs with equal products, each by itself: an axis that stays is not touched.
    """
    if 0 in shape:
        return (ZERO,) * len(child)
    here = [(index, extent) for index, extent in zip(indices, shape, strict=True) if extent != 1]
    there = nontrivial(child)
    found: list[Index] = []
    start = 0
    while len(found) < len(there):
        stop, last = start + 1, len(found) + 1
        outside, inside = here[start][1], there[len(found)]
        while outside != inside:
            if outside < inside:
                outside, stop = outside * here[stop][1], stop + 1
            else:
                inside, last = inside * there[last], last + 1
        position = indexing.flatten([index for index, _ in here[start:stop]], [n for _, n in here[start:stop]])
        found += indexing.unflatten(position, there[len(found) : last])
        start = stop
    kept = iter(found)
    return tuple(ZERO if extent == 1 else next(kept) for extent in child)


def moves_only(node: Node) -> bool:
    """Whether every element of the node is an element of its input, found by index arithmetic alone."""
    return node.op.kind == "movement" and node.op not in (ops.pad, ops.concat)


def moved(node: Node, indices: Indices) -> Indices:
    """Where in its input the element of a node that only moves is found."""
    child, attributes, op = node.inputs[0], node.attributes, node.op
    if op is ops.reshape:
        return _reshaped(indices, node.shape, child.shape)
    if op is ops.again:
        return indices
    if op is ops.permute:
        positions = {axis: i for i, axis in enumerate(attributes["axes"])}
        return tuple(indices[positions[a]] for a in range(child.rank))
    if op is ops.broadcast:
        return tuple(ZERO if n == 1 else i for i, n in zip(indices, child.shape, strict=True))
    if op is ops.slice_:
        starts_and_steps = zip(indices, attributes["starts"], attributes["steps"], strict=True)
        return tuple(i * step + start for i, start, step in starts_and_steps)
    if op is ops.flip:
        return tuple(
            i * -1 + (n - 1) if a in attributes["axes"] else i
            for a, (i, n) in enumerate(zip(indices, child.shape, strict=True))
        )
    if op is ops.window:
        inside = list(indices[: child.rank])
        for position, axis in enumerate(attributes["axes"]):
            offset = indices[child.rank + position] * attributes["dilations"][position]
            inside[axis] = inside[axis] * attributes["strides"][position] + offset
        return tuple(inside)
    raise Illegal(f"unknown movement op {op.name}")


_COMPARISONS = (ops.le, ops.lt, ops.eq, ops.ne)
_HALF_RANGE = 1 << 30


def _on_indices(node: Node, arguments: tuple[Value, ...]) -> Value | None:
    """Indices moved by constants, which are indices, and comparisons of indices, for which 32 bits are enough."""
    found = [_as_index(value) for value in arguments]
    if not found or all(isinstance(value, Literal) for value in arguments):
        return None
    known = [index for index in found if index is not None and -_HALF_RANGE < min(index.bounds) <= max(index.bounds)
             < _HALF_RANGE]  # fmt: skip
    if len(known) != len(arguments):
        return None
    if node.op in _COMPARISONS:
        numbers = tuple(
            IndexValue(dtypes.int32, index, origin=value.origin) for index, value in zip(known, arguments, strict=True)
        )
        return Apply(node.dtype, node.op.name, numbers, dtypes.int32, origin=node)
    if node.op in (ops.add, ops.sub):
        moved = known[0] + known[1] if node.op is ops.add else known[0] - known[1]
        low, high = dtypes.value_bounds(node.dtype)
        if low <= moved.bounds[0] and moved.bounds[1] <= high:
            return IndexValue(node.dtype, moved, origin=node)
    return None


def _as_index(value: Value) -> Index | None:
    """A signed or unsigned integer as an index, if it is one or a constant."""
    if isinstance(value, IndexValue) and value.dtype.is_integer and not value.index.has_data:
        return value.index
    if isinstance(value, Literal) and value.dtype.is_integer:
        return indexing.constant(int(value.value))
    return None


@dataclass
class Expander:
    """Expands nodes for one kernel.

    `has_memory(node)`: the node is stored by another kernel or given from outside. `anchor`: a contraction whose
    accumulator stands for it. `on_reduction(node, indices)` is told of every reduction reached (to check or find out
    where it must be evaluated). `members`: nodes whose demands are recorded in `demands`.
    """

    has_memory: Callable[[Node], bool]
    members: frozenset[Node] = frozenset()
    anchor: Node | None = None
    anchor_variables: tuple[Variable, ...] = ()
    on_reduction: Callable[[Node, Indices], None] = lambda node, indices: None
    outer: tuple[Variable, ...] = ()
    buffers: dict[Node, Buffer] = field(default_factory=dict)
    demands: dict[Node, list[tuple[Indices, Guard]]] = field(default_factory=dict)
    reductions: dict[Node, Reduction] = field(default_factory=dict)
    inner: dict[tuple[int, ...], tuple[Variable, ...]] = field(default_factory=dict)
    anchor_demands: list[Indices] = field(default_factory=list)
    _memo: dict[tuple[Node, Indices, Guard], Value] = field(default_factory=dict)

    def beside(self, anchor: Node, variables: tuple[Variable, ...]) -> Expander:
        """An expander for what depends on another node whose accumulator stands for it; all else they share."""
        return replace(self, anchor=anchor, anchor_variables=variables, anchor_demands=[])

    def buffer(self, node: Node) -> Buffer:
        """The kernel argument that holds `node`."""
        if node not in self.buffers:
            self.buffers[node] = Buffer(len(self.buffers), node.dtype, node.size, node)
        return self.buffers[node]

    def inner_variables(self, extents: tuple[int, ...]) -> tuple[Variable, ...]:
        """Variables for loops over `extents` inside the outer loops; the same for equal extents, so loops can merge."""
        if extents not in self.inner:
            group = len(self.inner)
            self.inner[extents] = tuple(Variable(f"r{group}_{i}", n) for i, n in enumerate(extents))
        return self.inner[extents]

    def counts(self) -> dict[Node, int]:
        """How often each node has been expanded at a different place."""
        result: dict[Node, int] = {}
        for node, _, _ in self._memo:
            result[node] = result.get(node, 0) + 1
        return result

    def expand(self, node: Node, indices: Indices, guard: Guard = ()) -> Value:
        """The value of `node` at `indices`, needed only where `guard` holds."""
        key = (node, indices, guard)
        found = self._memo.get(key)
        if found is None:
            if node in self.members:
                self.demands.setdefault(node, []).append((indices, guard))
            found = self._expand(node, indices, guard)
            self._memo[key] = found
        return found

    def _expand(self, node: Node, indices: Indices, guard: Guard) -> Value:
        if node not in self.members and self.has_memory(node):
            place = indexing.flatten(indices, node.shape)
            return Load(node.dtype.compute, self.buffer(node), place, guard, origin=node)
        if node is self.anchor:
            self.anchor_demands.append(indices)
            return Accumulator(node.dtype.compute, self.anchor_variables, origin=node)
        kind = node.op.kind
        if kind == "movement":
            return self._movement(node, indices, guard)
        if kind in ("unary", "binary", "select", "convert"):
            arguments = tuple(self.expand(child, indices, guard) for child in node.inputs)
            of_indices = _on_indices(node, arguments)
            if of_indices is not None:
                return of_indices
            return Apply(node.dtype, node.op.name, arguments, node.inputs[-1].dtype, origin=node)
        if kind == "reduce":
            return self._reduce(node, indices)
        return self._leaf(node, indices, guard)

    def _leaf(self, node: Node, indices: Indices, guard: Guard) -> Value:
        op = node.op
        if op is ops.constant:
            return Literal(node.dtype.compute, node.attributes["value"], origin=node)
        if op is ops.iota:
            return IndexValue(node.dtype.compute, indices[node.attributes["axis"]], origin=node)
        if op is ops.random_bits:
            key, counter = node.inputs
            words = [self.expand(key, (indexing.constant(i),), ()) for i in (0, 1)]
            position = IndexValue(dtypes.int64, indexing.flatten(indices, node.shape), origin=node)
            arguments = (*words, self.expand(counter, (), ()), position)
            return Apply(dtypes.uint32, "random_bits", arguments, dtypes.uint32, origin=node)
        if op is ops.gather:
            operand, places = node.inputs
            value = self.expand(places, indices[: places.rank], guard)
            row = indexing.of(FromData(value, operand.shape[0])) if operand.shape[0] > 1 else ZERO
            return self.expand(operand, (row, *indices[places.rank :]), guard)
        raise Illegal(f"{op.name} needs a kernel of its own")

    def _reduce(self, node: Node, indices: Indices) -> Value:
        if node not in self.members:
            raise Illegal(f"{node.op.name} is not part of this kernel")
        self.on_reduction(node, indices)
        if node not in self.reductions:
            operand = node.inputs[0]
            axes = node.attributes["axes"] if "axes" in node.attributes else (node.attributes["axis"],)
            extents = nontrivial(tuple(operand.shape[a] for a in axes))
            variables = iter(self.inner_variables(extents))
            remaining = iter(indices)
            inside = tuple(
                (ZERO if n == 1 else indexing.of(next(variables))) if a in axes else next(remaining)
                for a, n in enumerate(operand.shape)
            )
            value = self.expand(operand, inside)
            position = None
            if node.op.name.startswith("arg"):
                position = IndexValue(dtypes.int64, inside[axes[0]], origin=node)
            self.reductions[node] = Reduction(node.op.name, node.dtype.compute, value, position, origin=node)
        return Reduced(node.dtype.compute, self.reductions[node], self.outer, origin=node)

    def _movement(self, node: Node, indices: Indices, guard: Guard) -> Value:
        if node.op is ops.pad:
            return self._pad(node, indices, guard)
        if node.op is ops.concat:
            return self._concat(node, indices, guard)
        return self.expand(node.inputs[0], moved(node, indices), guard)

    def _pad(self, node: Node, indices: Indices, guard: Guard) -> Value:
        child = node.inputs[0]
        conditions: list[Condition] = []
        moved: list[Index] = []
        low, interior = node.attributes["low"], node.attributes["interior"]
        for index, extent, before, gap in zip(indices, child.shape, low, interior, strict=True):
            shifted = index + -before
            if gap:
                conditions.append(Condition(shifted, 0, (extent - 1) * (gap + 1) + 1))
                conditions.append(Condition(shifted % (gap + 1), 0, 1))
                shifted = shifted // (gap + 1)
            else:
                conditions.append(Condition(shifted, 0, extent))
            moved.append(shifted)
        outside = Literal(node.dtype.compute, node.attributes["value"], origin=node)
        return self._guarded(node, child, tuple(moved), conditions, guard, outside)

    def _concat(self, node: Node, indices: Indices, guard: Guard) -> Value:
        axis = node.attributes["axis"]
        parts = []
        start = 0
        for child in node.inputs:
            extent = child.shape[axis]
            if extent:
                parts.append((child, start, extent))
                start += extent
        child, offset, _ = parts[-1]
        result = None
        for child, offset, extent in reversed(parts):
            place = indices[axis] + -offset
            moved = tuple(place if a == axis else i for a, i in enumerate(indices))
            moved = tuple(ZERO if n == 1 else i for i, n in zip(moved, child.shape, strict=True))
            result = self._guarded(node, child, moved, [Condition(place, 0, extent)], guard, result)
        assert result is not None
        return result

    def _guarded(
        self, node: Node, child: Node, moved: Indices, conditions: list[Condition], guard: Guard, outside: Value | None
    ) -> Value:
        """The child's value where the conditions hold and another outside, as the node asks for."""
        needed = narrow(conditions)
        if needed is None:
            # Nothing of the child is reached here; `outside` is None only for the last part of a concatenation,
            # which is then not reached either.
            return outside if outside is not None else Literal(child.dtype.compute, 0, origin=node)
        inside_guard = guard + tuple(c for c in needed if c not in guard)
        inside = self.expand(child, moved, inside_guard)
        if not needed or outside is None:
            return inside
        return Guarded(child.dtype.compute, needed, inside, outside, origin=node)
