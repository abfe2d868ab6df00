"""Runs one kernel in NumPy: what the loop IR means, and how scheduling bugs are told from code generation bugs.

Every value is an array with one axis for each loop around it, of extent 1 where it does not depend on the loop. Narrow
floats are float32 between loads and stores, as in compiled code. A load outside its guard gives an implausible number,
so that a kernel which uses it is found out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dtypes, meaning
from ..ir.dtypes import DType
from ..ir.graph import TABLE
from ..ir.meaning import Array
from . import index as indexing
from .index import FromData, Index, Variable
from .loop_ir import (
    Accumulator,
    Apply,
    ChainKernel,
    Condition,
    ContractionKernel,
    Guarded,
    IndexValue,
    Keep,
    Kept,
    Kernel,
    Literal,
    Load,
    LoopKernel,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    Store,
    Substitution,
    Value,
)


def run_kernel(kernel: Kernel, arrays: Sequence[Array]) -> None:
    """Run the kernel on one C-contiguous array for each buffer, in order; stores write into the arrays.

    ValueError if an array does not fit its buffer. IndexError if a load or store is out of bounds.
    """
    if len(arrays) != len(kernel.buffers):
        raise ValueError(f"run.run_kernel: got {len(arrays)} arrays for {len(kernel.buffers)} buffers")
    flat = []
    for buffer, array in zip(kernel.buffers, arrays, strict=True):
        if array.dtype != buffer.dtype.numpy or array.size != buffer.size or not array.flags.c_contiguous:
            raise ValueError(
                f"run.run_kernel: got {array.dtype}[{array.size}] for buffer %{buffer.position}, "
                f"expected C-contiguous {buffer.dtype}[{buffer.size}]"
            )
        flat.append(array.reshape(-1))
    if isinstance(kernel, ContractionKernel):
        _run_contraction(kernel, flat)
    elif isinstance(kernel, ChainKernel):
        _run_chain(kernel, flat)
    else:
        _run_loops(kernel, flat)


def _run_loops(kernel: LoopKernel, arrays: Sequence[Array]) -> None:
    results: dict[Reduction, Array] = {}
    for each in kernel.passes:
        nest = _Nest((*kernel.outer, *each.variables), arrays, results, len(kernel.outer))
        own = {reduction: nest.reduce(reduction, len(each.variables)) for reduction in each.reductions}
        for store in each.stores:
            nest.store(store)
        results.update(own)


def _run_contraction(kernel: ContractionKernel, arrays: Sequence[Array]) -> None:
    """Sums in float64, or in the integer type itself, which wraps."""
    value = kernel.left
    if kernel.image is not None:
        value = Substitution(dict(zip(kernel.image.axes, kernel.image.places, strict=True))).value(value)
    left = _Nest((kernel.batch, kernel.rows, kernel.depth), arrays).everywhere(value)
    right = _Nest((kernel.batch, kernel.depth, kernel.columns), arrays).everywhere(kernel.right)
    wide = np.float64 if kernel.element.is_float else kernel.element.numpy
    with np.errstate(all="ignore"):
        sums = np.matmul(left.astype(wide), right.astype(wide)).astype(kernel.element.numpy)
    nest = _Nest((kernel.batch, kernel.rows, kernel.columns), arrays)
    nest.accumulator = sums
    for store in kernel.stores:
        nest.store(store)
    if kernel.column_stores:
        nest = _Nest((kernel.batch, kernel.columns), arrays)
        with np.errstate(all="ignore"):
            nest.accumulator = right.astype(wide).sum(axis=1).astype(kernel.element.numpy)
        for store in kernel.column_stores:
            nest.store(store)


def _run_chain(kernel: ChainKernel, arrays: Sequence[Array]) -> None:
    """All rows at once. Outside of `live` products are implausible, and what is kept counts as zero in the sums."""
    batch, rows, columns = at = (kernel.batch, kernel.rows, kernel.columns)
    wide = np.float64 if kernel.element.is_float else kernel.element.numpy
    blocks: dict[Product | Keep, Array] = {}
    results: dict[Reduction, Array] = {}
    live = _Nest(at, arrays).holds(kernel.live)

    def product(left: Array, right: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.matmul(left.astype(wide), right.astype(wide)).astype(kernel.element.numpy))

    for each in kernel.products:
        left = _Nest((batch, rows, each.depth), arrays).everywhere(each.left)
        right = _Nest((batch, each.depth, columns), arrays).everywhere(each.right)
        blocks[each] = np.where(live, product(left, right), kernel.element.numpy.type(_implausible(kernel.element)))
    for row_pass in kernel.passes:
        nest = _Nest(at, arrays, results, 2, blocks)
        own = {reduction: nest.reduce(reduction, 1, live) for reduction in row_pass.reductions}
        blocks.update((keep, nest.everywhere(keep.value)) for keep in row_pass.keeps)
        results.update(own)
    nest = _Nest((batch, rows), arrays, results, 2)
    for store in kernel.stores:
        nest.store(store)
    for one in kernel.sums:
        over, across = (rows, columns) if one.over_rows else (columns, rows)
        lefts, rights = [], []
        for term in one.terms:
            kept = blocks[term.left.product if isinstance(term.left, ProductAt) else term.left.keep]
            kept = np.where(live, kept, kernel.element.numpy.type(0))
            lefts.append(np.swapaxes(kept, 1, 2) if one.over_rows else kept)
            rights.append(_Nest((batch, over, one.free), arrays).everywhere(term.right))
        nest = _Nest((batch, across, one.free), arrays)
        nest.accumulator = product(np.concatenate(lefts, 2), np.concatenate(rights, 1))
        for store in one.stores:
            nest.store(store)


def _implausible(dtype: DType) -> Any:
    if dtype is dtypes.bool_:
        return True
    return math.nan if dtype.is_float else dtypes.value_bounds(dtype)[1]


class _Nest:
    """Evaluates values over all iterations of some loops at once."""

    def __init__(
        self,
        variables: Sequence[Variable],
        arrays: Sequence[Array],
        results: dict[Reduction, Array] | None = None,
        outer: int = 0,
        blocks: dict[Product | Keep, Array] | None = None,
    ):
        self.axes = {variable: axis for axis, variable in enumerate(variables)}
        self.shape = tuple(v.extent for v in variables)
        self.arrays, self.outer = arrays, outer
        self.results, self.blocks = results or {}, blocks or {}
        self.accumulator: Array | None = None
        self.memo: dict[Value, Array] = {}

    def everywhere(self, value: Value) -> Array:
        """The value in every iteration."""
        return np.broadcast_to(self.value(value), self.shape)

    def value(self, value: Value) -> Array:
        """The value with extent 1 along the loops it does not depend on."""
        if value not in self.memo:
            self.memo[value] = self._evaluate(value)
        return self.memo[value]

    def _evaluate(self, value: Value) -> Array:
        compute = value.dtype.compute.numpy
        if isinstance(value, Literal):
            return np.full((1,) * len(self.shape), value.value, compute)
        if isinstance(value, IndexValue):
            return self.index(value.index).astype(compute)
        if isinstance(value, Load):
            return self._load(value)
        if isinstance(value, Guarded):
            holds = self.holds(value.conditions)
            return np.where(holds, self.value(value.inside), self.value(value.outside)).astype(compute, copy=False)
        if isinstance(value, Apply):
            return self._apply(value)
        if isinstance(value, Reduced):
            result = self.results[value.reduction]
            return result.reshape(result.shape + (1,) * (len(self.shape) - self.outer))
        if isinstance(value, (ProductAt, Kept)):
            return self.blocks[value.product if isinstance(value, ProductAt) else value.keep]
        assert isinstance(value, Accumulator) and self.accumulator is not None
        return self.accumulator

    def _apply(self, value: Apply) -> Array:
        arguments = [self.value(a) for a in value.arguments]
        if value.name == "random_bits":
            return _random_word(*arguments)
        attributes = {"dtype": value.dtype} if value.name in ("cast", "bitcast") else {}
        if value.name == "bitcast":
            arguments = [arguments[0].astype(value.argument_dtype.numpy)]
        result = np.asarray(TABLE[value.name].meaning(*arguments, **attributes))
        return result.astype(value.dtype.compute.numpy, copy=False)

    # Indices and memory

    def index(self, index: Index) -> Array:
        zeros = np.zeros((1,) * len(self.shape), dtype=np.int64)
        return np.asarray(zeros + indexing.evaluate(index, self._number))

    def _number(self, base: Variable | FromData) -> Array:
        if isinstance(base, Variable):
            axis = self.axes[base]
            return np.arange(base.extent).reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        data = self.value(base.value)
        top = min(base.extent - 1, int(np.iinfo(data.dtype).max))
        return np.clip(data, 0, top).astype(np.int64)

    def holds(self, conditions: Sequence[Condition]) -> Array:
        result = np.ones((1,) * len(self.shape), dtype=np.bool_)
        for condition in conditions:
            index = self.index(condition.index)
            result = result & (condition.low <= index) & (index < condition.high)
        return result

    def _places(self, index: Index, holds: Array, array: Array) -> Array:
        places = np.where(holds, self.index(index), 0)
        if 0 not in self.shape and np.any(holds & ((places < 0) | (places >= array.size))):
            raise IndexError(f"run.run_kernel: {indexing.format_index(index)} is out of bounds for size {array.size}")
        return places

    def _load(self, load: Load) -> Array:
        array, holds = self.arrays[load.buffer.position], self.holds(load.guard)
        compute = load.dtype.compute
        places = self._places(load.index, holds, array)
        if not array.size:
            return np.full(places.shape, _implausible(compute), compute.numpy)
        return np.where(holds, array[places].astype(compute.numpy), compute.numpy.type(_implausible(compute)))

    def store(self, store: Store) -> None:
        array, holds = self.arrays[store.buffer.position], self.holds(store.guard)
        places = np.broadcast_to(self._places(store.index, holds, array), self.shape)
        chosen = np.broadcast_to(holds, self.shape)
        values = self.everywhere(store.value)[chosen]
        with np.errstate(all="ignore"):
            if store.accumulate:
                sums = array.astype(store.buffer.dtype.compute.numpy)
                np.add.at(sums, places[chosen], values)
                array[:] = sums.astype(array.dtype)
            else:
                array[places[chosen]] = values.astype(array.dtype)

    # Reductions

    def reduce(self, reduction: Reduction, inner: int, live: Array | None = None) -> Array:
        """The reduction over the innermost loops, where `live`: an array with one axis for each outer loop."""
        value = self.everywhere(reduction.value)
        if live is not None:
            lowest, highest = dtypes.value_bounds(reduction.value.dtype.compute)
            neutral = {"reduce_sum": 0, "reduce_max": lowest, "reduce_min": highest}[reduction.combine]
            value = np.where(live, value, np.asarray(neutral, value.dtype))
        axes = tuple(range(len(self.shape) - inner, len(self.shape)))
        if reduction.position is None:
            result = TABLE[reduction.combine].meaning(value, axes=axes)
            return np.asarray(result).astype(reduction.dtype.numpy, copy=False)
        best = (meaning.reduce_max if reduction.combine == "argmax" else meaning.reduce_min)(value, axes=axes)
        best = np.expand_dims(best, axes)
        # NaN counts as the extremum; the first of equals wins.
        is_best = np.where(np.isnan(best), np.isnan(value), value == best) if value.dtype.kind == "f" else value == best
        last = np.iinfo(np.int64).max
        return np.asarray(np.min(np.where(is_best, self.everywhere(reduction.position), last), axis=axes, initial=last))


def _random_word(key0: Array, key1: Array, counter: Array, position: Array) -> Array:
    """Word position % 2 of Threefry-2x32(key, (position // 2, counter))."""
    block, high = np.broadcast_arrays((position // 2).astype(np.uint32), counter)
    even, odd = meaning.threefry2x32((key0, key1), (block, high))
    return np.where(position % 2 == 1, odd, even)
