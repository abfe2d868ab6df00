"""Lowering of scatter_add: the result is zeroed, then the updates are added in their order.

What runs in parallel are the columns of the result, or blocks of its rows if it is large:

    for column:                                     for block of rows:
        for row: result[row, column] = 0                for row in block, column: result[row, column] = 0
        for update: result[row of it, column] += ...    for update: if its row is in the block:
                                                            for column: result[row of it, column] += ...

A block lies in one piece of memory that the cache holds until the updates are added, and rows are added in whole
vectors; for that every block looks at the rows of all updates.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir import dtypes
from ..ir.graph import Node
from . import index as indexing
from .expand import Expander, nontrivial, spread
from .index import ZERO, FromData, Index, Variable
from .loop_ir import Apply, Condition, Literal, LoopKernel, Pass, Store

# A block is worth having if it has this many bytes. Looking at the row of an update costs as much as writing so many
# bytes, which should be a small part of what is written and added.
_BLOCK_BYTES, _BYTES_PER_LOOK = 256 << 10, 32
# With fewer blocks, the columns are divided more evenly.
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 32


def _blocks(node: Node) -> int:
    """Into how many blocks of rows the result is divided; 1 if columns run in parallel."""
    rows, updates = node.shape[0], node.inputs[0].size
    row_bytes = node.nbytes // max(1, rows)
    most = (node.nbytes // 4 + row_bytes * updates // 4) // max(1, updates * _BYTES_PER_LOOK)
    blocks = min(most, node.nbytes // _BLOCK_BYTES, row_bytes // 16, _MOST_BLOCKS, rows)
    return blocks if blocks >= _FEWEST_BLOCKS else 1


def lower_scatter(node: Node, has_memory: Callable[[Node], bool]) -> tuple[LoopKernel, dict[Node, int]]:
    """The kernel of a scatter_add, and how often each node inside it is computed at a different place."""
    indices, updates = node.inputs
    rows, rest = node.shape[0], updates.shape[indices.rank :]
    blocks = _blocks(node)
    within = -(-rows // blocks)
    blocks = -(-rows // within) if within else 1
    across = tuple(Variable(f"c{i}" if blocks > 1 else f"o{i}", n) for i, n in enumerate(nontrivial(rest)))
    block, row = Variable("o0", blocks), Variable("r0_0", within)
    outer, inner = ((block,), across) if blocks > 1 else (across, ())
    places = tuple(Variable(f"r1_{i}", n) for i, n in enumerate(nontrivial(indices.shape)))
    columns, position = spread(rest, across), spread(indices.shape, places)

    expander = Expander(has_memory, outer=outer)
    target = expander.expand(indices, position)
    update = expander.expand(updates, (*position, *columns))
    bounds = [Literal(indices.dtype, bound, origin=node) for bound in (0, rows)]
    inside = Apply(dtypes.bool_, "le", (bounds[0], target), indices.dtype, origin=node)
    if rows <= dtypes.value_bounds(indices.dtype)[1]:
        below = Apply(dtypes.bool_, "lt", (target, bounds[1]), indices.dtype, origin=node)
        inside = Apply(dtypes.bool_, "and", (inside, below), dtypes.bool_, origin=node)
    nothing = Literal(updates.dtype, 0, origin=node)
    added = Apply(updates.dtype, "where", (inside, update, nothing), updates.dtype, origin=node)

    first: Index = indexing.of(block) * within if blocks > 1 else ZERO
    cleared = first + indexing.of(row)
    where = indexing.of(FromData(target, rows)) if rows > 1 else ZERO
    exists = (Condition(cleared, 0, rows),) if blocks * within != rows else ()
    own = (Condition(where - first, 0, within),) if blocks > 1 else ()
    buffer = expander.buffer(node)

    def place(index: Index) -> Index:
        return indexing.flatten((index, *columns), node.shape)

    clear = Store(buffer, place(cleared), Literal(node.dtype, 0, origin=node), guard=exists, origin=node)
    add = Store(buffer, place(where), added, accumulate=True, guard=own, origin=node)
    passes = (
        Pass(((row,) if within != 1 else ()) + inner, (), (clear,)),
        Pass(places + inner, (), (add,)),
    )
    return LoopKernel(tuple(expander.buffers.values()), outer, passes), expander.counts()
