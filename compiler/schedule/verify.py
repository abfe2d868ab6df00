"""The verifier of the loop IR: whether a kernel is well formed, stays in its memory and writes all of it once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from ..ir import dtypes, ops
from ..ir.dtypes import DType
from ..ir.graph import TABLE
from ..ir.verify import VerificationError
from . import index as indexing
from . import ranges
from .collapse import all_values
from .dead_places import is_by_column
from .index import FloorDivision, FromData, Index, Remainder, Variable
from .loop_ir import (
    Accumulator,
    Apply,
    Buffer,
    ChainKernel,
    ChainSum,
    Condition,
    ContractionKernel,
    Guarded,
    Image,
    IndexValue,
    Keep,
    Kept,
    Kernel,
    Literal,
    Load,
    LoopKernel,
    Pass,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    Store,
    Value,
)
from .text import stores_of

_POSITIONED = ("argmax", "argmin")


def verify_kernel(kernel: Kernel) -> None:
    """Raise VerificationError unless the kernel keeps every rule of the loop IR.

    - An image's places lie on its axes and are sums of parts of one loop variable each.
    - Buffers are numbered in order; loads and stores are on buffers of the kernel; no stored buffer is loaded.
    - A variable's name stands for one loop; a value depends on the loops around it only. `Reduced` is over all outer
      variables and reads a reduction of an earlier pass; `Accumulator` is at (batch, rows, columns), in stores only,
      and at (batch, columns) in column stores, which only a contraction with rows has.
    - In a chain, operands come from outside of it, passes read what earlier ones kept or reduced, the stores of a row
      read reductions, and those of a sum its own accumulator. The conditions of `live` are about the column, with
      step 1, and the row.
    - Indices are normal: distinct atoms, no zero coefficient, divisors above 1.
    - Every load and store is in bounds wherever its guard holds.
    - Types are those of the op table, where a narrow float counts as the type it is computed in.
    - The stores of a buffer write each of its elements exactly once, but for accumulating stores: these come in later
      passes, and add only to elements that the same outer iteration has written.

    A rule about indices that can neither be shown from their form nor by trying all values counts as broken.
    """
    if isinstance(kernel, ContractionKernel):
        _Verifier(kernel).contraction(kernel)
    elif isinstance(kernel, ChainKernel):
        _Verifier(kernel).chain(kernel)
    else:
        _Verifier(kernel).loops(kernel)


def _fail(reason: str) -> VerificationError:
    return VerificationError(f"verify.verify_kernel: {reason}")


def _names(variables: Iterable[Variable]) -> str:
    return ", ".join(sorted(v.name for v in variables)) or "none"


class _Verifier:
    """Checks the parts of one kernel. `available`: the reductions that may be read at this point."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.available: set[Reduction] = set()
        self.outer: tuple[Variable, ...] = ()
        # What may be read in a chain: products and kept values, and the accumulator's place.
        self.blocks: dict[Product | Keep, DType] = {}
        self.at: tuple[Variable, ...] = ()
        self.summed: tuple[Variable, ...] | None = None
        self.written = {store.buffer for store in stores_of(kernel)}
        for position, buffer in enumerate(kernel.buffers):
            if buffer.position != position:
                raise _fail(f"buffer %{buffer.position} is in position {position}")
            if buffer.size < 0:
                raise _fail(f"buffer %{position} has size {buffer.size}")

    # Kernels

    def loops(self, kernel: LoopKernel) -> None:
        self.outer = kernel.outer
        self._distinct(kernel.outer, [p.variables for p in kernel.passes])
        stores: list[tuple[Pass, Store]] = []
        for each in kernel.passes:
            scope = (*kernel.outer, *each.variables)
            for reduction in each.reductions:
                self._reduction(reduction, scope)
            for store in each.stores:
                self._store(store, scope)
                stores.append((each, store))
            self.available.update(each.reductions)
        for buffer in self.written:
            own = [(each, store) for each, store in stores if store.buffer is buffer]
            self._written_once(buffer, kernel.outer, [(p.variables, s) for p, s in own if not s.accumulate])
            for place, (each, store) in enumerate(own):
                if store.accumulate:
                    before = [s for p, s in own[:place] if not s.accumulate and p is not each]
                    self._added_to(buffer, kernel.outer, store, before)

    def contraction(self, kernel: ContractionKernel) -> None:
        self.outer = (kernel.batch, kernel.rows, kernel.columns)
        self._distinct((*self.outer, kernel.depth), [])
        if kernel.element is not kernel.element.compute or kernel.element is dtypes.bool_:
            raise _fail(f"a contraction in {kernel.element}, expected a number type that is computed in")
        for name, operand, across in (("left", kernel.left, kernel.rows), ("right", kernel.right, kernel.columns)):
            scope: tuple[Variable, ...] = (kernel.batch, across, kernel.depth)
            if kernel.image is not None and operand is kernel.left:
                self._image(kernel.image, scope)
                scope = kernel.image.axes
            self._values([operand], scope, f"the {name} operand", accumulator=False)
            if operand.dtype.compute is not kernel.element:
                raise _fail(f"the {name} operand is {operand.dtype} in a contraction in {kernel.element}")
        for store in kernel.stores:
            if store.accumulate:
                raise _fail("a contraction's store accumulates")
            self._store(store, self.outer)
        if kernel.column_stores and kernel.rows.extent == 0:
            raise _fail("column sums of a contraction without rows")
        self.summed = (kernel.batch, kernel.columns)
        for store in kernel.column_stores:
            if store.accumulate:
                raise _fail("a contraction's store accumulates")
            self._store(store, self.summed)
        scopes: list[tuple[tuple[Variable, ...], Store]] = [(self.outer, store) for store in kernel.stores]
        scopes += [(self.summed, store) for store in kernel.column_stores]
        for buffer in self.written:
            own = [(scope, store) for scope, store in scopes if store.buffer is buffer]
            if len({scope for scope, _ in own}) > 1:
                raise _fail(f"%{buffer.position} is stored by both parts of a contraction")
            self._written_once(buffer, own[0][0], [((), store) for _, store in own])

    def chain(self, kernel: ChainKernel) -> None:
        batch, rows, columns = self.at = (kernel.batch, kernel.rows, kernel.columns)
        self.outer = (batch, rows)
        depths, frees = [p.depth for p in kernel.products], [s.free for s in kernel.sums]
        self._distinct(self.at, [(v,) for v in (*depths, *frees)])
        if kernel.element is not kernel.element.compute or kernel.element is dtypes.bool_:
            raise _fail(f"a chain in {kernel.element}, expected a number type that is computed in")
        if not kernel.products:
            raise _fail("a chain without products")
        for condition in kernel.live:
            self._live(condition, rows, columns)
        for product in kernel.products:
            for operand, across in ((product.left, rows), (product.right, columns)):
                self._operand(kernel, operand, (batch, across, product.depth), "a product")
            self.blocks[product] = kernel.element
        for each in kernel.passes:
            for reduction in each.reductions:
                self._reduction(reduction, self.at)
            self._values([k.value for k in each.keeps], self.at, "a kept value", accumulator=False)
            self.available.update(each.reductions)
            self.blocks.update((k, k.value.dtype.compute) for k in each.keeps)
        stores: list[tuple[tuple[Variable, ...], Store]] = []
        blocks, self.blocks = self.blocks, {}
        for store in kernel.stores:
            self._chain_store(store, self.outer)
            stores.append((self.outer, store))
        reductions, self.available = self.available, set()
        for one in kernel.sums:
            self.blocks = blocks
            stores += self._sum(kernel, one)
        self.available = reductions
        for buffer in self.written:
            own = [(scope, store) for scope, store in stores if store.buffer is buffer]
            if len(own) != 1:
                raise _fail(f"%{buffer.position} is stored by several parts of a chain")
            self._written_once(buffer, own[0][0], [((), own[0][1])])

    def _live(self, condition: Condition, rows: Variable, columns: Variable) -> None:
        self._index(condition.index, "a condition of the chain")
        self._guard((condition,), "a chain")
        if not is_by_column(condition.index, rows, columns):
            raise _fail(f"a chain is live by {indexing.format_index(condition.index)}, expected step 1 in the column")

    def _operand(self, kernel: ChainKernel, operand: Value, scope: tuple[Variable, ...], place: str) -> None:
        self._values([operand], scope, f"an operand of {place}", accumulator=False)
        if any(isinstance(v, (ProductAt, Kept, Reduced)) for v in all_values([operand])):
            raise _fail(f"an operand of {place} is computed by the chain")
        if operand.dtype.compute is not kernel.element:
            raise _fail(f"an operand of {place} is {operand.dtype} in a chain in {kernel.element}")

    def _sum(self, kernel: ChainKernel, each: ChainSum) -> list[tuple[tuple[Variable, ...], Store]]:
        """Check a sum; its stores, and the loops they are in."""
        over, across = (kernel.rows, kernel.columns) if each.over_rows else (kernel.columns, kernel.rows)
        if not each.terms:
            raise _fail("a sum without terms")
        for term in each.terms:
            self._values([term.left], self.at, "the left operand of a sum", accumulator=False)
            if term.left.dtype is not kernel.element:
                raise _fail(f"a sum of {term.left.dtype} in a chain in {kernel.element}")
            self._operand(kernel, term.right, (kernel.batch, over, each.free), "a sum")
        self.blocks = {}
        self.summed = (kernel.batch, across, each.free)
        for store in each.stores:
            self._chain_store(store, self.summed)
        scope, self.summed = self.summed, None
        return [(scope, store) for store in each.stores]

    def _chain_store(self, store: Store, scope: tuple[Variable, ...]) -> None:
        if store.accumulate or store.guard:
            raise _fail("a chain's store accumulates or is guarded")
        self._store(store, scope)

    def _image(self, image: Image, scope: tuple[Variable, ...]) -> None:
        self._distinct((*self.outer, *image.axes), [])
        if len(image.axes) != len(image.places):
            raise _fail(f"an image of {len(image.axes)} axes at {len(image.places)} places")
        for axis, place in zip(image.axes, image.places, strict=True):
            self._index(place, "the image")
            self._in_scope(place.variables, scope, f"the place on {axis.name} of the image")
            text = indexing.format_index(place)
            if any(len(atom.variables) != 1 for atom, _ in place.terms) or place.has_data:
                raise _fail(f"a part of an image's place depends on more than one loop: {text}")
            if all(v.extent for v in scope) and not ranges.is_within(place, axis.extent, ()):
                raise _fail(f"a place on {axis.name} < {axis.extent} of the image may be outside: {text}")

    def _distinct(self, outer: Sequence[Variable], groups: Iterable[Sequence[Variable]]) -> None:
        extents: dict[str, int] = {}
        for group in (outer, *groups):
            for variable in group:
                if extents.setdefault(variable.name, variable.extent) != variable.extent:
                    raise _fail(f"{variable.name} is the name of two loops")
                if variable.extent < 0:
                    raise _fail(f"{variable.name} has extent {variable.extent}")
        for group in groups:
            names = [v.name for v in (*outer, *group)]
            if len(set(names)) != len(names):
                raise _fail(f"a loop inside itself among {', '.join(names)}")

    # Statements

    def _reduction(self, reduction: Reduction, scope: Sequence[Variable]) -> None:
        if reduction in self.available:
            raise _fail(f"a {reduction.combine} is computed twice")
        roots = [reduction.value] + ([] if reduction.position is None else [reduction.position])
        self._values(roots, scope, f"a {reduction.combine}")
        positioned = reduction.combine in _POSITIONED
        if positioned != (reduction.position is not None):
            raise _fail(f"a {reduction.combine} {'without' if positioned else 'with'} a position")
        if reduction.position is not None and reduction.position.dtype is not dtypes.int64:
            raise _fail(f"a position of type {reduction.position.dtype}, expected int64")
        expected = _reduced_dtype(reduction.combine, reduction.value.dtype)
        if expected is not reduction.dtype:
            raise _fail(f"a {reduction.combine} of {reduction.value.dtype} has type {reduction.dtype}, not {expected}")

    def _store(self, store: Store, scope: Sequence[Variable]) -> None:
        place = f"a store to %{store.buffer.position}"
        self._is_own(store.buffer, place)
        where = [IndexValue(dtypes.int64, index) for index in (store.index, *(c.index for c in store.guard))]
        self._values([store.value, *where], scope, place)
        self._guard(store.guard, place)
        if store.value.dtype.compute is not store.buffer.dtype.compute:
            raise _fail(f"{place} of {store.value.dtype} into {store.buffer.dtype}")
        if store.accumulate and store.buffer.dtype is dtypes.bool_:
            raise _fail(f"{place} accumulates bool")
        if all(v.extent for v in scope) and not ranges.is_within(store.index, store.buffer.size, store.guard):
            raise _fail(f"{place} may be out of bounds: {self._range(store.index, store.buffer, store.guard)}")

    # Values

    def _values(self, roots: Sequence[Value], scope: Sequence[Variable], place: str, accumulator: bool = True) -> None:
        empty = not all(v.extent for v in scope)
        for value in all_values(roots):
            self._in_scope(value.variables, scope, f"{type(value).__name__} in {place}")
            for index in value.indices:
                self._index(index, place)
            if isinstance(value, Reduced):
                self._reduced(value)
            elif isinstance(value, Accumulator):
                self._accumulator(value, accumulator)
            elif isinstance(value, (ProductAt, Kept)):
                self._block(value)
            elif isinstance(value, Load):
                self._load(value, empty)
            elif isinstance(value, Guarded):
                self._guard(value.conditions, "a select")
                if not value.dtype.compute is value.inside.dtype.compute is value.outside.dtype.compute:
                    raise _fail(f"a select of {value.inside.dtype} and {value.outside.dtype} has type {value.dtype}")
            elif isinstance(value, Apply):
                _check_apply(value.name, value.dtype, tuple(a.dtype for a in value.arguments), value.argument_dtype)
            elif isinstance(value, Literal):
                _check_literal(value)
            elif isinstance(value, IndexValue) and value.dtype is dtypes.bool_:
                raise _fail("an index of type bool")

    def _reduced(self, value: Reduced) -> None:
        if set(value.outer) != set(self.outer):
            raise _fail(f"the result of a reduction at {_names(value.outer)}, expected {_names(self.outer)}")
        if value.reduction not in self.available:
            raise _fail(f"the result of a {value.reduction.combine} is read before its pass has finished")
        if value.dtype is not value.reduction.dtype:
            raise _fail(f"the result of a reduction of type {value.reduction.dtype} has type {value.dtype}")

    def _block(self, value: ProductAt | Kept) -> None:
        block = value.product if isinstance(value, ProductAt) else value.keep
        if block not in self.blocks:
            raise _fail("a product or a kept value is read where there is none")
        if value.at != self.at:
            raise _fail(f"a product or a kept value is read at {_names(value.at)}, expected {_names(self.at)}")
        if value.dtype.compute is not self.blocks[block]:
            raise _fail(f"a product or a kept value of type {self.blocks[block]} has type {value.dtype}")

    def _accumulator(self, value: Accumulator, allowed: bool) -> None:
        place = self.outer if isinstance(self.kernel, ContractionKernel) and self.summed is None else self.summed
        if isinstance(self.kernel, LoopKernel) or place is None or not allowed:
            raise _fail("the accumulator is read outside the stores of a contraction")
        if value.at != place:
            raise _fail(f"the accumulator is read at {_names(value.at)}, expected {_names(place)}")
        if value.dtype is not self.kernel.element:
            raise _fail(f"the accumulator of type {self.kernel.element} has type {value.dtype}")

    def _load(self, load: Load, empty: bool) -> None:
        place = f"a load of %{load.buffer.position}"
        self._is_own(load.buffer, place)
        if load.buffer in self.written:
            raise _fail(f"{place}, which the kernel writes")
        if load.dtype is not load.buffer.dtype.compute:
            raise _fail(f"{place} of type {load.buffer.dtype} has type {load.dtype}")
        self._guard(load.guard, place)
        if not empty and not ranges.is_within(load.index, load.buffer.size, load.guard):
            raise _fail(f"{place} may be out of bounds: {self._range(load.index, load.buffer, load.guard)}")

    def _is_own(self, buffer: Buffer, place: str) -> None:
        if not any(buffer is own for own in self.kernel.buffers):
            raise _fail(f"{place}, which is not a buffer of the kernel")

    def _in_scope(self, used: frozenset[Variable], scope: Sequence[Variable], place: str) -> None:
        if not used <= set(scope):
            raise _fail(f"{place} uses {_names(used - set(scope))} outside their loops")

    def _range(self, index: Index, buffer: Buffer, guard: tuple[Condition, ...]) -> str:
        found = ranges.bounds(index, guard)
        return f"{indexing.format_index(index)} is in {found}, expected [0, {buffer.size})"

    # Indices

    def _index(self, index: Index, place: str) -> None:
        atoms = [atom for atom, _ in index.terms]
        if len(set(atoms)) != len(atoms) or any(c == 0 for _, c in index.terms):
            raise _fail(f"an index in {place} is not normal: {indexing.format_index(index)}")
        for atom in atoms:
            if isinstance(atom, (FloorDivision, Remainder)):
                if atom.divisor < 2:
                    raise _fail(f"an index in {place} divides by {atom.divisor}")
                self._index(atom.index, place)
            elif isinstance(atom, FromData) and (not atom.value.dtype.is_integer or atom.extent < 1):
                raise _fail(f"an index in {place} is {atom.value.dtype} data in [0, {atom.extent})")

    def _guard(self, guard: tuple[Condition, ...], place: str) -> None:
        for condition in guard:
            if condition.low >= condition.high:
                raise _fail(f"a condition of {place} never holds: {condition.low} <= ... < {condition.high}")

    # What is written

    def _written_once(
        self, buffer: Buffer, outer: Sequence[Variable], stores: list[tuple[Sequence[Variable], Store]]
    ) -> None:
        place = f"%{buffer.position}"
        if not stores:
            raise _fail(f"{place} is added to, but not written first")
        unguarded = ranges.without_padding(stores[0][1].index, stores[0][1].guard, (*outer, *stores[0][0]))
        if len(stores) == 1 and unguarded is not None:
            index, grid = unguarded
            if math.prod(v.extent for v in grid) == buffer.size and (
                buffer.size == 0 or ranges.is_injective(index, grid)
            ):
                return
            raise _fail(f"not every element of {place} is written exactly once")
        counts = np.zeros(buffer.size, dtype=np.int64)
        for inner, store in stores:
            places = ranges.values(store.index, store.guard, (*outer, *inner))
            if places is None:
                raise _fail(f"cannot show that every element of {place} is written exactly once")
            np.add.at(counts, places, 1)
        if np.any(counts != 1):
            raise _fail(f"not every element of {place} is written exactly once")

    def _added_to(self, buffer: Buffer, outer: Sequence[Variable], store: Store, before: list[Store]) -> None:
        """What an outer iteration adds to is what it wrote itself: both indices have the outer variables alike."""
        if not before:
            raise _fail(f"%{buffer.position} is added to before it is written")
        (first, *_) = before
        index = ranges.with_found_numbers(store.index, store.guard)
        added = ranges.digits(index, [first.index])
        written = ranges.digits(first.index, [index])
        reason = f"cannot show that an outer iteration adds only to the elements of %{buffer.position} that it wrote"
        # Every element is written; with a guard, the place that writes it is clear where places are told apart.
        is_clear = not first.guard or ranges.is_positional(first.index)
        if added is None or written is None or len(before) > 1 or not is_clear or added[1] != written[1]:
            raise _fail(reason)
        parts = []
        for found, _ in (added, written):
            own = {digit: each for digit, each in found.items() if digit[0] in outer}
            rest = sorted(each for digit, each in found.items() if digit[0] not in outer)
            parts.append((own, rest))
        if parts[0] != parts[1]:
            raise _fail(reason)


# Types


@lru_cache(maxsize=4096)
def _reduced_dtype(combine: str, dtype: DType) -> DType | None:
    """What the op table makes of reducing `dtype`, None if it does not take it."""
    op = TABLE.get(combine)
    if op is None or op.kind != "reduce":
        raise _fail(f"unknown reduction {combine}")
    operand = ops.input_(identity="operand", dtype=dtype.compute, shape=(1,))
    attributes = {"axis": 0} if combine in _POSITIONED else {"axes": (0,)}
    try:
        return op.infer((operand,), attributes)[0]
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _check_apply(name: str, dtype: DType, arguments: tuple[DType, ...], argument_dtype: DType) -> None:
    got = f"{name}({', '.join(map(str, arguments))}) of {argument_dtype} has type {dtype}"
    if name == "random_bits":
        words = (dtypes.uint32,) * 3
        if (dtype, arguments, argument_dtype) != (dtypes.uint32, (*words, dtypes.int64), dtypes.uint32):
            raise _fail(f"{got}, expected uint32 of two words of a key, a counter and an int64 position")
        return
    op = TABLE.get(name)
    if op is None or not op.is_elementwise:
        raise _fail(f"unknown elementwise op {name}")
    declared = [argument_dtype] * len(arguments)
    if name == "where" and declared:
        declared[0] = dtypes.bool_
    if len(arguments) != op.arity or any(
        a.compute is not b.compute for a, b in zip(arguments, declared, strict=True)
    ):
        raise _fail(f"{got}, expected {op.arity} arguments of that type")
    operands = [ops.input_(identity=("operand", i), dtype=d, shape=()) for i, d in enumerate(declared)]
    try:
        expected = op.infer(operands, {"dtype": dtype} if op.attributes else {})[0]
    except (TypeError, ValueError) as error:
        raise _fail(f"{got}: {error}") from error
    if expected is not dtype:
        raise _fail(f"{got}, expected {expected}")


def _check_literal(literal: Literal) -> None:
    value, dtype = literal.value, literal.dtype
    fits = isinstance(value, (bool, int, float))
    if dtype is dtypes.bool_:
        fits = value in (0, 1)
    elif dtype.is_integer:
        low, high = dtypes.value_bounds(dtype)
        fits = isinstance(value, int) and low <= value <= high
    if not fits:
        raise _fail(f"a literal {value!r} of type {dtype}")
