"""Collapse: neighbouring loops whose variables are only ever used together as one number become one loop.

Loops over (64, 128) that read and write contiguous arrays become one loop over 8192: longer vectors, fewer tails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from . import index as indexing
from .index import FromData, Index, Variable
from .loop_ir import Accumulator, ChainKernel, Kernel, LoopKernel, Origin, Pass, Store, Substitution, Value


def all_values(roots: Iterable[Value], stop: Callable[[Value], bool] = lambda value: False) -> list[Value]:
    """Every value the roots are computed from, operands first, without what lies behind a value that stops."""
    order: list[Value] = []
    seen: set[Value] = set()
    stack: list[tuple[Value, bool]] = [(root, False) for root in roots]
    while stack:
        value, expanded = stack.pop()
        if expanded:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            if not stop(value):
                stack.extend((operand, False) for operand in value.operands)
    return order


def summed_origin(stores: Iterable[Store]) -> Origin:
    """The origin of the sums that stores are made from."""
    sums = (value for value in all_values(store.value for store in stores) if isinstance(value, Accumulator))
    return next((value.origin for value in sums), None)


def pass_roots(each: Pass) -> list[Value]:
    """The values a pass reduces or stores."""
    roots = [r.value for r in each.reductions] + [r.position for r in each.reductions if r.position is not None]
    return roots + [s.value for s in each.stores]


def roots_of(kernel: Kernel) -> list[Value]:
    """The values a kernel reduces, multiplies, keeps or stores."""
    if isinstance(kernel, LoopKernel):
        return [root for each in kernel.passes for root in pass_roots(each)]
    if isinstance(kernel, ChainKernel):
        return _chain_roots(kernel)
    return [kernel.left, kernel.right, *(store.value for store in (*kernel.stores, *kernel.column_stores))]


def _chain_roots(kernel: ChainKernel) -> list[Value]:
    roots = [operand for product in kernel.products for operand in (product.left, product.right)]
    for each in kernel.passes:
        roots += [r.value for r in each.reductions] + [k.value for k in each.keeps]
    roots += [s.value for s in kernel.stores]
    for one in kernel.sums:
        roots += [value for term in one.terms for value in (term.left, term.right)]
        roots += [s.value for s in one.stores]
    return roots


def collapse(kernel: LoopKernel) -> LoopKernel:
    """`kernel` with as few loops as its indices allow."""
    indices = _all_indices(kernel)
    groups = [kernel.outer, *dict.fromkeys(p.variables for p in kernel.passes)]
    mapping: dict[Variable, Index] = {}
    for group in groups:
        mapping.update(_collapse_group(group, indices))
    return _substituted(kernel, mapping) if mapping else kernel


def _all_indices(kernel: LoopKernel) -> list[Index]:
    found: dict[Index, None] = {}
    for each in kernel.passes:
        for value in all_values(pass_roots(each)):
            found.update(dict.fromkeys(value.indices))
        for store in each.stores:
            found[store.index] = None
            found.update(dict.fromkeys(c.index for c in store.guard))
    return list(found)


def _collapse_group(group: Sequence[Variable], indices: list[Index]) -> dict[Variable, Index]:
    """Variable -> its index in the merged variables, for every run of at least two that can merge."""
    runs: list[list[Variable]] = []
    for variable in group:
        if runs and all(_together(index, runs[-1][-1], variable) for index in indices):
            runs[-1].append(variable)
        else:
            runs.append([variable])
    mapping: dict[Variable, Index] = {}
    for run in runs:
        if len(run) > 1:
            extents = [v.extent for v in run]
            total = 1
            for extent in extents:
                total *= extent
            merged = indexing.of(Variable(run[0].name, total))
            mapping.update(zip(run, indexing.unflatten(merged, extents), strict=True))
    return mapping


def _together(index: Index, outer: Variable, inner: Variable) -> bool:
    """Whether the index uses the two only as outer * inner.extent + inner."""
    if not index.variables & {outer, inner}:
        return True
    coefficients = dict(index.terms)
    if coefficients.get(outer, 0) != coefficients.get(inner, 0) * inner.extent:
        return False
    return all(
        _together(atom.index, outer, inner) for atom, _ in index.terms if not isinstance(atom, (Variable, FromData))
    )


def _substituted(kernel: LoopKernel, mapping: dict[Variable, Index]) -> LoopKernel:
    change = Substitution(mapping)

    def merged(variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
        found: dict[Variable, None] = {}
        for variable in variables:
            replaced = mapping.get(variable)
            found.update(dict.fromkeys(replaced.variables if replaced is not None else (variable,)))
        return tuple(found)

    passes = tuple(
        Pass(merged(p.variables), tuple(map(change.reduction, p.reductions)), tuple(map(change.store, p.stores)))
        for p in kernel.passes
    )
    return LoopKernel(kernel.buffers, merged(kernel.outer), passes)
