"""Dead places of a chain: where a mask makes what is computed irrelevant, so that it need not be computed.

A mask that compares two indices (`column <= row`, or a window) may decide, through `where`, that a place of the chain
counts for nothing: every reduction over it takes in its neutral element there, and every sum adds zero. Whether that is
so is found by evaluating the graph under the assumption that the comparison is false, as far as constants carry. One
step is not arithmetic on constants: exp(x - max(x)) is zero where x is a constant near the lowest number of its type,
if each row has a place where the mask holds and what is there is above that constant. Products of data are, scaled or
shifted by constants; numbers that were masked before, or that have data added to them which may be a mask, need not be.

Two things differ from evaluating the whole graph, and only where numbers overflow. What a mask hides is not computed,
so an infinity or NaN there does no harm, where 0 * infinity would be NaN. And a row whose products are all lower than
the constant itself does not go on to weigh what it cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ..ir import ops
from ..ir.graph import Node
from . import index as indexing
from .expand import Indices
from .index import FromData, Index, Variable
from .loop_ir import Apply, ChainKernel, Condition, IndexValue, Value

# A constant this near to the lowest number of its type is one that masks.
MASKING_SHARE = 0.25

# What takes ordinary numbers to ordinary numbers.
_ORDINARY = (ops.reshape, ops.permute, ops.broadcast, ops.cast, ops.add, ops.sub, ops.mul, ops.neg, ops.tanh)

Expansions = Mapping[Node, Sequence[tuple[Indices, Value]]]


def live_conditions(
    reductions: Mapping[Node, Node], lefts: Sequence[Node], expansions: Expansions, rows: Variable, columns: Variable
) -> tuple[Condition, ...]:
    """The conditions outside of which a place of the chain takes no part.

    `reductions`: what is reduced over the columns, and of what; `lefts`: what the sums are of.
    """
    found: dict[tuple[Index, int], Condition] = {}
    for mask, places in expansions.items():
        if mask.op not in (ops.le, ops.lt) or len(places) != 1:
            continue
        condition = _compared(places[0][1], rows, columns)
        if condition is None:
            continue
        dead = _Dead(mask, condition, expansions, (rows, columns))
        if all(dead.is_neutral(node.op.name, operand) for node, operand in reductions.items()) and all(
            dead.value(left) == 0 for left in lefts
        ):
            found[condition.index, condition.low] = condition
    return tuple(found.values())


def live_places(kernel: ChainKernel) -> int:
    """At how many pairs of a row and a column all conditions of `kernel.live` hold; those that ask for data count as if
    they did."""
    rows, columns = np.arange(kernel.rows.extent), kernel.columns
    first, behind = np.zeros_like(rows), np.full_like(rows, columns.extent)
    for condition in kernel.live:
        if condition.index.has_data:
            continue
        # low <= sign * column + rest < high, with the rest of each row.
        sign = dict(condition.index.terms)[columns]
        rest = indexing.evaluate(condition.index, lambda base: 0 if base == columns else rows)
        ends = sign * (condition.low - rest), sign * (condition.high - 1 - rest)
        first, behind = np.maximum(first, min(ends, key=np.sum)), np.minimum(behind, max(ends, key=np.sum) + 1)
    return int(np.maximum(behind - first, 0).sum())


def _compared(value: Value, rows: Variable, columns: Variable) -> Condition | None:
    """A comparison of two indices as a condition, if it is about the row and, with step 1, about the column."""
    if not isinstance(value, Apply) or not all(isinstance(a, IndexValue) for a in value.arguments):
        return None
    left, right = (a.index for a in value.arguments if isinstance(a, IndexValue))
    difference = right - left
    if not is_by_column(difference, rows, columns):
        return None
    low = 0 if value.name == "le" else 1
    return Condition(difference, low, difference.bounds[1] + 1) if difference.bounds[1] >= low else None


def is_by_column(index: Index, rows: Variable, columns: Variable) -> bool:
    """Whether the index is the column or its negative, plus something about the row."""
    rest = [atom for atom, _ in index.terms if atom != columns]
    return abs(dict(index.terms).get(columns, 0)) == 1 and all(atom.variables <= {rows} for atom in rest)


class _Dead:
    """What nodes are where the mask does not hold: a constant, or None for anything."""

    def __init__(
        self, mask: Node, condition: Condition, expansions: Expansions, axes: tuple[Variable, Variable]
    ):
        self.condition, self.expansions, self.axes = condition, expansions, axes
        self.mask = mask
        self.known: dict[Node, Any] = {mask: np.False_}

    def is_neutral(self, reduction: str, operand: Node) -> bool:
        value = self.value(operand)
        if value is None:
            return False
        return bool(value == 0 if reduction == "reduce_sum" else reduction == "reduce_max" and _masks(value, operand))

    def value(self, node: Node) -> Any:
        if node not in self.known:
            self.known[node] = None  # for what is not looked into
            if node in self.expansions:
                self.known[node] = self._evaluate(node)
        return self.known[node]

    def _evaluate(self, node: Node) -> Any:
        op = node.op
        if op is ops.constant:
            return node.dtype.numpy.type(node.attributes["value"])
        if op in (ops.reshape, ops.permute, ops.broadcast):
            return self.value(node.inputs[0])
        if not op.is_elementwise:
            return None
        values = [self.value(child) for child in node.inputs]
        if op is ops.where and values[0] is not None:
            return values[1] if values[0] else values[2]
        if op is ops.where:
            return values[1] if values[1] is not None and values[1] == values[2] else None
        if op is ops.and_ and any(v is not None and not v for v in values) and node.dtype.kind == "bool":
            return np.False_
        if op is ops.exp and self._is_far_below_maximum(node.inputs[0]):
            return node.dtype.numpy.type(0)
        if op is ops.mul and any(v is not None and v == 0 for v in values):
            return node.dtype.numpy.type(0)
        if op is ops.div and values[0] is not None and values[0] == 0:
            return node.dtype.numpy.type(0)
        if any(v is None for v in values):
            return None
        with np.errstate(all="ignore"):
            return np.asarray(op.meaning(*(np.asarray(v) for v in values), **node.attributes))[()]

    def _is_far_below_maximum(self, node: Node) -> bool:
        """Whether the node is x - max(x), x a masking constant here, and each row has a place where the mask holds."""
        if node.op is not ops.sub:
            return False
        masked, maximum = node.inputs[0], _unmoved(node.inputs[1])
        value = self.value(masked)
        if value is None or not _masks(value, masked):
            return False
        if maximum.op is not ops.reduce_max or maximum.inputs[0] is not masked:
            return False
        masked = _uncast(masked)
        if masked.op is not ops.where or _unmoved(masked.inputs[0]) is not self.mask:
            return False
        return _is_ordinary(masked.inputs[1]) and self._every_row_sees(maximum)

    def _every_row_sees(self, maximum: Node) -> bool:
        """Whether for each place of a row maximum there is one along what it reduces where the condition holds."""
        for indices, _ in self.expansions.get(maximum, ()):
            used = {v for index in indices for v in index.variables} & set(self.axes)
            if len(used) > 1:
                return False
            own = used.pop() if used else self.axes[0]
            other = self.axes[1] if own == self.axes[0] else self.axes[0]
            if not self._meets(own, other):
                return False
        return maximum in self.expansions

    def _meets(self, own: Variable, other: Variable) -> bool:
        """Whether the condition, which only bounds its index from below, can hold at each place of one axis."""
        highest = np.full(own.extent, np.iinfo(np.int64).min)
        for end in (0, other.extent - 1):

            def number(base: Variable | FromData, end: int = end) -> Any:
                return np.arange(own.extent) if base == own else np.asarray(end)

            highest = np.maximum(highest, indexing.evaluate(self.condition.index, number))
        return bool(np.all(highest >= self.condition.low))


def _is_ordinary(node: Node) -> bool:
    """Whether a number is computed from products and constants by steps that keep clear of masking constants."""
    stack, seen = [node], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen or node.op in (ops.dot_general, ops.iota):
            continue
        seen.add(node)
        if node.op is ops.constant:
            if node.dtype.kind == "bool" or not np.isfinite(float(node.attributes["value"])) or _masks(
                node.attributes["value"], node
            ):
                return False
        elif node.op is ops.div:
            if node.inputs[1].op is not ops.constant or not node.inputs[1].attributes["value"]:
                return False
            stack.append(node.inputs[0])
        elif node.op in _ORDINARY:
            stack.extend(node.inputs)
        else:
            return False
    return True


def _masks(value: Any, node: Node) -> bool:
    """Whether a constant is nearly the lowest number of the type that the node was computed in before any cast."""
    dtype = _uncast(node).dtype
    if not dtype.is_float:
        return False
    limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return bool(value <= float(limits.min) * MASKING_SHARE)


def _uncast(node: Node) -> Node:
    while node.op in (ops.cast, ops.reshape, ops.permute):
        node = node.inputs[0]
    return node


def _unmoved(node: Node) -> Node:
    while node.op in (ops.reshape, ops.permute, ops.broadcast):
        node = node.inputs[0]
    return node
