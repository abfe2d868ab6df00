"""Aliasing: which results of a kernel may be written over what it reads.

A training step reads each weight for the last time in the kernel that writes its successor. If every element is read
only where its successor is stored, by the same iteration and before the store, both may have one address:

    parallel o < n {  once {
        v0 = load %0[o]              an element of the old weight
        v1 = sub(v0, ...)
        store %3[o] = v1             its successor
    }}

What is said here of one kernel holds for any order of its iterations and any division into vectors and chunks. It
rests on three habits of code generation: each iteration runs once, remainders of loops included; the lanes of a vector
are loaded before any of them is stored; a value that several stores need is computed once, for the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .collapse import all_values
from .index import Index, Variable
from .loop_ir import (
    Buffer,
    ContractionKernel,
    Guarded,
    Kernel,
    Load,
    LoopKernel,
    Reduction,
    Store,
    Value,
    data_operands,
)


def may_overwrite(kernel: Kernel, read: Buffer, written: Buffer) -> bool:
    """Whether the kernel computes the same if both buffers have one address."""
    if (read.dtype, read.size) != (written.dtype, written.size) or read is written:
        return False
    groups = _groups(kernel)
    storing = [group for group in groups if any(store.buffer is written for store in group.stores)]
    if len(storing) != 1:
        return False
    (own,) = storing
    # The iterations of other groups come before or after this one's, for other elements too.
    others = [*own.apart, *(value for group in groups if group is not own for value in group.values)]
    elsewhere = [value for value in others if value not in own.of_rows]
    return not _loads(read, elsewhere) and _in_order(own, read, written) and _keeps_to_rows(own, read, written)


@dataclass(frozen=True, eq=False)
class _Group:
    """Stores that each iteration over `variables` does in order, right after computing `before`.

    `earlier` is what was computed for the same iteration some time before, and is computed again where it is needed.
    `apart` is what the group computes in other iterations: operands of a contraction, shared by many of its results.
    `of_rows` is computed for whole rows, which the variables `rows` number, before any store of the row.
    """

    variables: tuple[Variable, ...]
    before: tuple[Value, ...]
    stores: tuple[Store, ...]
    apart: tuple[Value, ...] = ()
    earlier: tuple[Value, ...] = ()
    of_rows: tuple[Value, ...] = ()
    rows: tuple[Variable, ...] = ()

    @property
    def values(self) -> list[Value]:
        return [*self.before, *self.earlier, *self.apart, *_stored(self.stores)]


def _groups(kernel: Kernel) -> list[_Group]:
    if isinstance(kernel, LoopKernel):
        groups: list[_Group] = []
        for one in kernel.passes:
            before = tuple(value for group in groups for value in group.values)
            variables = (*kernel.outer, *one.variables)
            groups.append(_Group(variables, _reduced(one.reductions), one.stores, of_rows=before, rows=kernel.outer))
        return groups
    if isinstance(kernel, ContractionKernel):
        axes = (kernel.batch, kernel.rows, kernel.columns)
        groups = [_Group(axes, (), kernel.stores, (kernel.left, kernel.right))]
        if kernel.column_stores:
            groups.append(_Group((kernel.batch, kernel.columns), (), kernel.column_stores, (kernel.right,)))
        return groups
    # The passes of a row come before its stores, and read of other rows only what depends on the column.
    passes = [value for each in kernel.passes for value in _reduced(each.reductions)]
    passes += [keep.value for each in kernel.passes for keep in each.keeps]
    operands = [operand for product in kernel.products for operand in (product.left, product.right)]
    groups = [_Group((kernel.batch, kernel.rows), (), kernel.stores, tuple(operands), tuple(passes))]
    rights = {product.right for product in kernel.products}
    of_rows = (*passes, *(product.left for product in kernel.products if product.left not in rights))
    for each in kernel.sums:
        across = kernel.columns if each.over_rows else kernel.rows
        terms = tuple(value for term in each.terms for value in (term.left, term.right))
        own = () if each.over_rows else of_rows
        variables, of = (kernel.batch, across, each.free), (kernel.batch, kernel.rows)
        groups.append(_Group(variables, (), each.stores, terms, of_rows=own, rows=of))
    return groups


def _keeps_to_rows(group: _Group, read: Buffer, written: Buffer) -> bool:
    """Whether what is computed for a row reads only elements of the stretch of memory that the row's stores go to."""
    loads = _loads(read, group.of_rows)
    if not loads:
        return True
    (own,) = (store.index for store in group.stores if store.buffer is written)
    rows = sorted((v for v in group.rows if v.extent > 1), key=lambda v: dict(own.terms).get(v, 0))
    strides = [dict(own.terms).get(v, 0) for v in rows]
    # Stretches lie apart: each stride is as long as all that smaller ones reach.
    apart = all(b >= a * v.extent for v, a, b in zip(rows, strides, strides[1:], strict=False)) and 0 not in strides
    stretch = dict(zip(rows, strides, strict=True))
    return apart and all(not load.guard and _is_in_stretch(load.index, stretch) for load in loads) and (
        _is_in_stretch(own, stretch)
    )


def _is_in_stretch(index: Index, strides: Mapping[Variable, int]) -> bool:
    """Whether the index is the sum of strides * variables and less than the smallest stride beyond that."""
    steps = dict(index.terms)
    if index.has_data or any(steps.get(variable, 0) != stride for variable, stride in strides.items()):
        return False
    rest = Index(tuple((atom, step) for atom, step in index.terms if atom not in strides), index.constant)
    if any(not atom.variables.isdisjoint(strides) for atom, _ in rest.terms):
        return False
    low, high = rest.bounds
    return not strides or (0 <= low and high < min(strides.values()))


def _in_order(group: _Group, read: Buffer, written: Buffer) -> bool:
    """Whether each iteration reads only the element that it stores, before it does."""
    positions = [position for position, store in enumerate(group.stores) if store.buffer is written]
    if len(positions) != 1:
        return False
    position = positions[0]
    store = group.stores[position]
    if store.accumulate or store.guard or not _is_one_to_one(store.index, group.variables):
        return False
    values = [*group.before, *group.earlier, *_stored(group.stores)]
    if any(load.index != store.index or load.guard for load in _loads(read, values)):
        return False
    # What is computed under a condition may be computed again under another one, and too late.
    guarded = [value for value in all_values(values) if isinstance(value, Guarded)]
    if any(_loads(read, [value.inside, value.outside]) for value in guarded):
        return False
    before = set(_loads(read, [*group.before, *_stored(group.stores[: position + 1])]))
    return before.issuperset(_loads(read, _stored(group.stores[position + 1 :])))


def _is_one_to_one(index: Index, variables: Sequence[Variable]) -> bool:
    """Whether no two iterations have the same index: each stride is longer than all that smaller ones reach."""
    if not all(isinstance(atom, Variable) for atom, _ in index.terms):
        return False
    strides = {atom: abs(coefficient) for atom, coefficient in index.terms}
    reach = 0
    for variable in sorted((v for v in variables if v.extent > 1), key=lambda v: strides.get(v, 0)):
        if strides.get(variable, 0) <= reach:
            return False
        reach += strides[variable] * (variable.extent - 1)
    return True


def _loads(buffer: Buffer, roots: Iterable[Value]) -> list[Load]:
    return [value for value in all_values(roots) if isinstance(value, Load) and value.buffer is buffer]


def _reduced(reductions: Sequence[Reduction]) -> tuple[Value, ...]:
    positions = [reduction.position for reduction in reductions if reduction.position is not None]
    return (*(reduction.value for reduction in reductions), *positions)


def _stored(stores: Sequence[Store]) -> list[Value]:
    """Everything the stores compute, for their indices and conditions too."""
    values: list[Value] = []
    for store in stores:
        values += [store.value, *data_operands((store.index, *(condition.index for condition in store.guard)))]
    return values
