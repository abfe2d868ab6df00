"""Lowering a contraction with the members that finish it: which operand becomes rows, which becomes columns, and how.

Three forms of one contraction are possible. Operands that are arrays in memory, or expressions that are packed, are
indexed by (b, m, k) and (b, k, n). A window of an image repeats few elements many times: where it pays, it becomes the
rows as an `Image`, which is read in place instead of being packed element by element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ir.graph import Node, topological
from . import index as indexing
from .column_sums import may_sum_columns, summed_place
from .expand import Expander, Illegal, Indices, moved, moves_only, nontrivial, spread
from .index import Index, Variable
from .loop_ir import Condition, ContractionKernel, Guarded, Image, Kernel, Literal, Load, Store, Value
from .placing import Lowered, Side, epilogue_place, require_bijection

# What packing one vector costs, if its elements lie together, near one another or far apart, and what finishing one
# does, counted in vector multiply-adds. They choose the form only.
_PACKING, _COLLECTING, _GATHERING, _FINISHING = 8, 16, 50, 6
_ABOUT_THE_SAME = 1.1


def lower_contraction(
    node: Node, members: Sequence[Node], outputs: Sequence[Node], has_memory: Callable[[Node], bool], lanes: int
) -> Lowered:
    """An image becomes the rows where that pays. Else vectors run along the columns without any rearrangement, so the
    side whose free axes the result has last becomes the columns.
    """
    build = _Contract(node, members, outputs, has_memory, lanes)
    swapped = build.image_side()
    if swapped is not None:
        return build.lower_image(swapped)
    try:
        lowered = build.lower(swapped=False)
    except _SumOfRows:
        lowered = build.lower(swapped=True)
        if _is_better_swapped(lowered.kernel):
            raise
        return lowered
    return build.lower(swapped=True) if _is_better_swapped(lowered.kernel) else lowered


class _SumOfRows(Illegal):
    """A reduction sums the operand whose free axes are the rows."""


def _is_better_swapped(kernel: Kernel) -> bool:
    """Whether what are rows of the kernel would better be columns."""
    assert isinstance(kernel, ContractionKernel)
    if kernel.rows.extent == 1:
        return False
    strides = dict(kernel.stores[0].index.terms) if kernel.stores else {}
    return kernel.columns.extent == 1 or (strides.get(kernel.columns) != 1 and strides.get(kernel.rows) == 1)


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
        self.sums = [m for m in members if m.op.kind == "reduce" and may_sum_columns(node, m, has_memory)]

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

    def image_side(self) -> bool | None:
        """Which operand becomes the rows as an image: the right one (True), the left one (False), or none (None)."""
        node = self.node
        lhs, rhs = Side.of(node, 0), Side.of(node, 1)
        depth = math.prod(lhs.extents(lhs.contract))
        rows, columns = (math.prod(side.extents(side.free)) for side in (lhs, rhs))
        images = (self._image_at(lhs), self._image_at(rhs))
        packing = [_PACKING if image is None else self._packing(*image) for image in images]
        # Every form sums rows * depth * columns products. What is computed is packed once for all rows or columns.
        plain, forms = rows * columns * depth, []
        for here, there, extent, other in ((0, 1, rows, columns), (1, 0, columns, rows)):
            image = images[here]
            if image is None:
                continue
            plain += packing[here] * depth * extent
            whole = -(-other // self.lanes) * self.lanes
            cost = extent * whole * (depth + _FINISHING) + packing[there] * depth * other
            forms.append((cost, (lhs, rhs)[here].node.size // image[0].size, here == 1))
        least = min((cost for cost, _, _ in forms), default=plain)
        if least >= plain:
            return None
        # Of those that cost about the same, the image that shows its elements most often.
        near = [(-shown, cost, best) for cost, shown, best in forms if cost <= least * _ABOUT_THE_SAME]
        return min(near)[2]

    def _packing(self, node: Node, places: Indices) -> int:
        """What packing a vector of an operand costs that shows elements of `node` at `places`."""
        position = indexing.flatten(places, node.shape)
        return min(self._packing_along(position, v) for v in position.variables if v.name != "b")

    def _packing_along(self, position: Index, variable: Variable) -> int:
        """The same by vectors along one variable."""

        def at(number: int) -> int:
            return int(indexing.evaluate(position, lambda other: number if other == variable else 0))

        first = [at(number) for number in range(min(self.lanes, variable.extent))]
        if all(place - first[0] == number for number, place in enumerate(first)):
            return _PACKING
        return _COLLECTING if max(first) - min(first) < 2 * self.lanes else _GATHERING

    def _image_at(self, side: Side) -> tuple[Node, Indices] | None:
        """The node that the operand moves elements of, and where the operand's element (b, m, k) is found in it.

        None if the operand is that node as it lies in memory, or where it does not lie apart in b, m and k.
        """
        node, named = side.node, (side.batch, side.free, side.contract)
        batch, rows, depth = (
            indexing.unflatten(indexing.of(Variable(name, math.prod(side.extents(axes)))), side.extents(axes))
            for name, axes in zip(("b", "m", "k"), named, strict=True)
        )
        if node.size == 0 or not self.node.dtype.compute.is_float:
            return None
        indices = side.indices(batch, depth, rows)
        while moves_only(node) and not self.has_memory(node):
            node, indices = node.inputs[0], moved(node, indices)
        if node.op.kind == "leaf" and not self.has_memory(node):
            return None
        position = indexing.flatten(indices, node.shape)
        lies_plainly = self.has_memory(node) and all(isinstance(atom, Variable) for atom, _ in position.terms)
        if lies_plainly or node.size == 1:
            return None
        if any(place.has_data or len(atom.variables) != 1 for place in indices for atom, _ in place.terms):
            return None
        return node, indices

    def lower_image(self, swapped: bool) -> Lowered:
        """The kernel whose rows are an image: of the right operand if `swapped`."""
        return self._lower(swapped, False, False, as_image=True)

    def _lower(self, swapped: bool, pad_columns: bool, pad_depth: bool, as_image: bool = False) -> Lowered:
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
        found, image = self._image_at(left) if as_image else None, None
        if found is None:
            value_left = expander.expand(left.node, left.indices(in_batch, in_depth, in_rows), on_depth)
        else:
            shown, places = found
            axes = tuple(Variable(f"x{i}", extent) for i, extent in enumerate(nontrivial(shown.shape)))
            value_left = expander.expand(shown, spread(shown.shape, axes))
            image = Image(axes, tuple(place for place, n in zip(places, shown.shape, strict=True) if n != 1))
        value_right = expander.expand(right.node, right.indices(in_batch, in_depth, in_columns), on_columns + on_depth)
        if on_depth:
            zero = Literal(node.dtype.compute, 0, origin=node)
            value_left = Guarded(node.dtype.compute, on_depth, value_left, zero, origin=node)
            value_right = Guarded(node.dtype.compute, on_depth, value_right, zero, origin=node)
        if expander.anchor_demands or expander.demands.keys() - {node}:
            raise Illegal("an operand of the contraction is made by the same kernel")
        padding = (padded_columns[-1], column_extents[-1]) if column_extents else (1, 1)
        finishing = {summed: [o for o in self.outputs if self._reaches(o, summed)] for summed in self.sums}
        elsewhere = {output for outputs in finishing.values() for output in outputs}
        own_outputs = [output for output in self.outputs if output not in elsewhere]
        if not all(self._reaches(output, node) for output in own_outputs):
            raise Illegal("a member that does not depend on the contraction")
        stores = self._finish(expander, own_outputs, own, variables, on_columns, padding)
        column_stores: list[Store] = []
        for summed, outputs in finishing.items():
            if found is not None and found[0].size != left.node.size:
                raise Illegal("a sum of columns beside a contraction of windows")
            indices = right.indices(in_batch, in_depth, in_columns)
            place = summed_place(summed, right, indices, (batch, columns), depth, self.has_memory)
            if place is None:
                raise _SumOfRows("a sum of the operand whose axes are the rows of the contraction")
            beside = expander.beside(summed, (batch, columns))
            column_stores += self._finish(beside, outputs, place, (batch, columns), on_columns, padding)
        kernel = ContractionKernel(
            tuple(expander.buffers.values()), batch, rows, columns, depth, value_left, value_right,
            node.dtype.compute, tuple(stores), image, tuple(column_stores), origin=node,
        )  # fmt: skip
        return Lowered(kernel, expander.counts())

    def _reaches(self, output: Node, summed: Node) -> bool:
        """Whether the kernel computes `output` from `summed`."""
        inside = set(self.members)
        return summed in topological([output], stop=lambda n: n not in inside and self.has_memory(n))

    def _finish(
        self,
        expander: Expander,
        outputs: Sequence[Node],
        own: Indices,
        loops: tuple[Variable, ...],
        guard: tuple[Condition, ...],
        padding: tuple[int, int],
    ) -> list[Store]:
        """The stores of what is computed from the expander's anchor, whose element at `own` the loops compute."""
        anchor, stores = expander.anchor, []
        assert anchor is not None
        inside, available = frozenset(self.members), frozenset(v for v in loops if v.extent != 1)
        for output in outputs:
            place = own if output is anchor else epilogue_place(output, anchor, own, inside, self.has_memory)
            require_bijection(place, output, available, padding)
            value = expander.expand(output, place, guard)
            index = indexing.flatten(place, output.shape)
            stores.append(Store(expander.buffer(output), index, value, guard=guard, origin=output))
        if any(demand != own for demand in expander.anchor_demands):
            raise Illegal(f"the result of {anchor.op.name} is needed at another place")
        return stores


def _inside(indices: Indices, extents: tuple[int, ...], padded: tuple[int, ...]) -> tuple[Condition, ...]:
    """The condition that holds where a padded axis is really there."""
    return (Condition(indices[-1], 0, extents[-1]),) if extents != padded else ()


def _is_computed(value: Value) -> bool:
    """Whether an operand is more than an array with constant strides."""
    if not isinstance(value, Load) or value.guard:
        return True
    return any(not isinstance(atom, Variable) for atom, _ in value.index.terms)
