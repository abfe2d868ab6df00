"""Loop IR: kernels as loops over scalar expressions, loads, stores and reductions.

A loop kernel is

    for outer variables (parallel):
        for each pass, in order:
            for the pass's own variables:
                accumulate its reductions; do its stores

where a pass without variables runs once per outer iteration. A contraction kernel is

    for b, m, n (parallel, blocked):
        accumulator = sum over k of left(b, m, k) * right(b, k, n)
        stores of expressions of the accumulator, b, m and n
    for b, n:
        accumulator = sum over k of right(b, k, n)
        column stores of expressions of the accumulator, b and n

where left may be an image: an expression over axes of its own, taken at places that depend on b, m and k. Most have no
column stores; the gradient of a bias is such a sum beside the gradient of its weight.

A chain kernel computes a matrix with a contraction, goes over its rows, and contracts what became of it:

    for b (parallel), for blocks of m (parallel unless a sum is over rows), for m in the block:
        products[b, m, n] = sum over k of left(b, m, k) * right(b, k, n)
        for each pass, in order: for n: accumulate its reductions, keep its values
        stores of expressions of b, m and the reductions
        sums over n of a kept value times right(b, n, e), and their stores
    sums over m of a kept value times right(b, m, e), and their stores

where what is between the contractions exists for one block of rows at a time.

Every value is an expression tree with sharing; which loop an expression is computed in follows from the variables it
depends on, so code motion is not a pass.

What computes something knows its origin, for whoever looks at the code made of it. It is no part of a kernel's text,
and code does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..ir.computed import cached_property
from ..ir.dtypes import DType
from ..ir.graph import Node
from . import index as indexing
from .index import FromData, Index, Variable

# The node that something computes or, where it was read from text, its line there, counted from 1.
Origin = Node | int | None


@dataclass(frozen=True)
class Condition:
    """low <= index < high."""

    index: Index
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Value:
    """A scalar expression of type `dtype` (narrow floats mean their compute type after a load)."""

    dtype: DType
    origin: Origin = field(default=None, kw_only=True, repr=False)

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        """The values this one is computed from, those inside indices included."""
        return ()

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        """The indices this value itself uses."""
        return ()

    @cached_property
    def variables(self) -> frozenset[Variable]:
        """The loop variables the value depends on."""
        result: frozenset[Variable] = frozenset()
        for index in self.indices:
            result |= index.variables
        for operand in self.operands:
            result |= operand.variables
        return result


def data_operands(indices: tuple[Index, ...]) -> tuple[Value, ...]:
    """The values that the indices are read from, where part of an index is data."""
    found: list[Value] = []

    def walk(index: Index) -> None:
        for atom, _ in index.terms:
            if isinstance(atom, FromData):
                found.append(atom.value)
            elif not isinstance(atom, Variable):
                walk(atom.index)

    for index in indices:
        walk(index)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Literal(Value):
    """A constant."""

    value: Any


@dataclass(frozen=True, eq=False)
class IndexValue(Value):
    """An index as a number of type `dtype` (what `iota` computes)."""

    index: Index

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        return (self.index,)

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        return data_operands(self.indices)


@dataclass(frozen=True, eq=False)
class Load(Value):
    """buffer[index] where all of `guard` hold; any value (and no access) where not."""

    buffer: Buffer
    index: Index
    guard: tuple[Condition, ...]

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        return (self.index, *(c.index for c in self.guard))

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        return data_operands(self.indices)


@dataclass(frozen=True, eq=False)
class Guarded(Value):
    """`inside` where all conditions hold, else `outside`."""

    conditions: tuple[Condition, ...]
    inside: Value
    outside: Value

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        return tuple(c.index for c in self.conditions)

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        return (self.inside, self.outside, *data_operands(self.indices))


@dataclass(frozen=True, eq=False)
class Apply(Value):
    """An elementwise op, by the name it has in the op table, on scalars."""

    name: str
    arguments: tuple[Value, ...]
    # dtype the op computes in where it differs from the result's: comparisons and casts.
    argument_dtype: DType

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        return self.arguments


@dataclass(frozen=True, eq=False)
class Reduced(Value):
    """The result of a reduction of an earlier pass, at the current outer iteration."""

    reduction: Reduction
    outer: tuple[Variable, ...]

    @cached_property
    def variables(self) -> frozenset[Variable]:
        return frozenset(self.outer)


@dataclass(frozen=True, eq=False)
class Accumulator(Value):
    """The finished accumulator of a contraction at (b, m, n), or of the sums of its columns at (b, n)."""

    at: tuple[Variable, ...]

    @cached_property
    def variables(self) -> frozenset[Variable]:
        return frozenset(self.at)


@dataclass(frozen=True, eq=False)
class ProductAt(Value):
    """A product of a chain at (b, m, n)."""

    product: Product
    at: tuple[Variable, ...]

    @cached_property
    def variables(self) -> frozenset[Variable]:
        return frozenset(self.at)


@dataclass(frozen=True, eq=False)
class Kept(Value):
    """What an earlier pass of a chain kept at (b, m, n)."""

    keep: Keep
    at: tuple[Variable, ...]

    @cached_property
    def variables(self) -> frozenset[Variable]:
        return frozenset(self.at)


@dataclass(frozen=True, eq=False)
class Buffer:
    """An array in memory: one argument of a kernel. `node` is whose value it holds (not part of the kernel's text)."""

    position: int
    dtype: DType
    size: int
    node: Node = field(repr=False)


@dataclass(frozen=True, eq=False)
class Reduction:
    """combine(value over the pass's variables); `combine` is the op's name: reduce_sum, ..., argmin."""

    combine: str
    dtype: DType
    value: Value
    # For argmax and argmin: the position reduced over, as a number.
    position: Value | None = None
    origin: Origin = field(default=None, kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Store:
    """buffer[index] = value, or += value where `accumulate`. Done where all of `guard` hold."""

    buffer: Buffer
    index: Index
    value: Value
    accumulate: bool = False
    guard: tuple[Condition, ...] = ()
    origin: Origin = field(default=None, kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Pass:
    """A loop nest over `variables` inside the outer loops."""

    variables: tuple[Variable, ...]
    reductions: tuple[Reduction, ...]
    stores: tuple[Store, ...]


@dataclass(frozen=True, eq=False)
class LoopKernel:
    """Outer parallel loops around passes in order."""

    buffers: tuple[Buffer, ...]
    outer: tuple[Variable, ...]
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class Image:
    """Few elements that stand for many: an operand's element is an expression over `axes`, taken at `places`.

    `places` are sums of parts that each depend on one loop variable, as windows make them, so that a block of the
    operand is a box of the image, and an element's distance from the box's first is a sum of tabulated parts.
    """

    axes: tuple[Variable, ...]
    places: tuple[Index, ...]


@dataclass(frozen=True, eq=False)
class ContractionKernel:
    """accumulator[b, m, n] = sum_k left[b, m, k] * right[b, k, n], then `stores`.

    With `column_stores`, the sums over k of right[b, k, n] too, then those. With an `image`, `left` is an expression
    over the image's axes, and left[b, m, k] what it is at the image's places.
    """

    buffers: tuple[Buffer, ...]
    batch: Variable
    rows: Variable
    columns: Variable
    depth: Variable
    left: Value
    right: Value
    element: DType
    stores: tuple[Store, ...]
    image: Image | None = None
    column_stores: tuple[Store, ...] = ()
    origin: Origin = field(default=None, kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Product:
    """product[b, m, n] = sum over depth of left[b, m, k] * right[b, k, n], for the chain it is part of."""

    depth: Variable
    left: Value
    right: Value
    origin: Origin = field(default=None, kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Keep:
    """A value at (b, m, n) that later passes and sums of a chain read instead of computing it again."""

    value: Value


@dataclass(frozen=True, eq=False)
class RowPass:
    """A loop over the columns of one row."""

    reductions: tuple[Reduction, ...]
    keeps: tuple[Keep, ...]


@dataclass(frozen=True, eq=False)
class Term:
    """What a chain computed or kept, and an operand from outside that it is contracted with."""

    left: ProductAt | Kept
    right: Value


@dataclass(frozen=True, eq=False)
class ChainSum:
    """Contractions of what a chain kept with operands from outside, added up and finished by `stores` of the result.

    over the columns: accumulator[b, m, e] = sum over terms and n of left[b, m, n] * right[b, n, e];
    over the rows:    accumulator[b, n, e] = sum over terms and m of left[b, m, n] * right[b, m, e].
    """

    over_rows: bool
    free: Variable
    terms: tuple[Term, ...]
    stores: tuple[Store, ...]
    origin: Origin = field(default=None, kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class ChainKernel:
    """Contractions to a matrix, passes over its rows, and contractions of what they keep.

    Where a condition of `live` does not hold (each is about the column and the row), a place takes no part: reductions
    pass over it and sums add nothing for it. What the chain computes there has no effect, so code may leave it out.
    """

    buffers: tuple[Buffer, ...]
    batch: Variable
    rows: Variable
    columns: Variable
    element: DType
    live: tuple[Condition, ...]
    products: tuple[Product, ...]
    passes: tuple[RowPass, ...]
    stores: tuple[Store, ...]
    sums: tuple[ChainSum, ...]


Kernel = LoopKernel | ContractionKernel | ChainKernel


class Substitution:
    """Replaces loop variables in values and indices, keeping shared values shared."""

    def __init__(self, mapping: Mapping[Variable, Index], reductions: Mapping[Reduction, Reduction] | None = None):
        self.mapping = mapping
        self.reductions = dict(reductions or {})
        self._values: dict[Value, Value] = {}

    def index(self, index: Index) -> Index:
        return indexing.substitute(index, self.mapping, self._data)

    def _data(self, atom: FromData) -> Index:
        return indexing.of(FromData(self.value(atom.value), atom.extent))

    def condition(self, condition: Condition) -> Condition:
        return Condition(self.index(condition.index), condition.low, condition.high)

    def guard(self, guard: tuple[Condition, ...]) -> tuple[Condition, ...]:
        return tuple(self.condition(c) for c in guard)

    def value(self, value: Value) -> Value:
        if value not in self._values:
            self._values[value] = self._replace(value)
        return self._values[value]

    def _replace(self, value: Value) -> Value:
        if isinstance(value, IndexValue):
            return IndexValue(value.dtype, self.index(value.index), origin=value.origin)
        if isinstance(value, Load):
            place, guard = self.index(value.index), self.guard(value.guard)
            return Load(value.dtype, value.buffer, place, guard, origin=value.origin)
        if isinstance(value, Guarded):
            inside, outside = self.value(value.inside), self.value(value.outside)
            return replace(value, conditions=self.guard(value.conditions), inside=inside, outside=outside)
        if isinstance(value, Apply):
            arguments = tuple(map(self.value, value.arguments))
            return Apply(value.dtype, value.name, arguments, value.argument_dtype, origin=value.origin)
        if isinstance(value, Reduced):
            reduction = self.reductions.get(value.reduction, value.reduction)
            return replace(value, reduction=reduction, outer=self._variables(value.outer))
        if isinstance(value, Accumulator):
            return replace(value, at=self._variables(value.at))
        return value

    def _variables(self, old: tuple[Variable, ...]) -> tuple[Variable, ...]:
        found: dict[Variable, None] = {}
        for variable in old:
            if variable in self.mapping:
                found.update(dict.fromkeys(self.mapping[variable].variables))
            else:
                found[variable] = None
        return tuple(found)

    def reduction(self, reduction: Reduction) -> Reduction:
        position = None if reduction.position is None else self.value(reduction.position)
        new = replace(reduction, value=self.value(reduction.value), position=position)
        self.reductions[reduction] = new
        return new

    def store(self, store: Store) -> Store:
        index, value = self.index(store.index), self.value(store.value)
        return replace(store, index=index, value=value, guard=self.guard(store.guard))
