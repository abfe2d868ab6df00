"""Plans a chain: blocks of rows, tiles of its contractions, scratch memory and chunks, from the kernel and the target.

The rows of a block are few enough that what is between the contractions of the chain stays in a cache: the first level
if the operands of the contractions stay in the second, else a share of the second, so that they are fetched less often.

Right operands that no cache holds, such as a vocabulary's embedding, are streamed instead: a block of columns at a time
meets as many rows as the second level has room for, and each pass computes the products of the block again, so that
rows are never whole. What fetching and packing costs is then shared by many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from ..schedule.chain_passes import without_keeps
from ..schedule.collapse import all_values
from ..schedule.index import Index, Variable
from ..schedule.loop_ir import Apply, ChainKernel, ChainSum, Keep, Kept, Load, Product, ProductAt, Reduction, Value
from . import contraction_blocking as blocking
from .contraction_blocking import Blocking, Contraction, Operand
from .lanes import VectorLoop, lane_step
from .vector_target import VectorTarget, element_bits

_ALIGNMENT = 64
_DEFAULT_L1, _DEFAULT_L2 = 16384, 131072  # where the target does not know its caches
_PASS_SLOTS = 12  # what the passes take for a vector, in multiply-adds: an exponential and a division
_CHUNK_SLOTS = 32768  # work worth waking a thread for
_MOST_CHUNKS = 64
_NARROW_VECTORS = 2  # vectors of a product's tile where columns are skipped
_LIVE_BLOCKS = 12  # blocks of rows where columns are skipped: each computes what one of its rows needs
_FEWEST_ROWS = 64  # rows of a chunk if one batch entry is several: each packs the operands again


@dataclass(frozen=True)
class Memory:
    """An operand that is an array in memory: `base` is its element (0, 0), of the batch entry alone."""

    load: Load
    base: Index
    strides: tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One contraction of a chain: how its tiles are computed, and where in scratch its operands lie once packed.

    `left`, `right`: the operands in memory, None for those that are computed (and for what the chain keeps).
    `tiles`: the blocking, of which the tile, the vectors and whether operands are read in place count.
    """

    contraction: Contraction
    tiles: Blocking
    left: Memory | None
    right: Memory | None
    left_offset: int
    right_offset: int
    tile_offset: int

    @property
    def padded(self) -> int:
        """The columns of the result, whole tiles of them."""
        return _round_up(self.contraction.n, self.tiles.nr)


@dataclass(frozen=True)
class ChainPlan:
    """How a chain is run; every number is fixed at compile time.

    kernel:        the chain, in the form in which it is run
    block_rows:    rows of a block (a multiple of the products' tile, or all rows)
    lanes:         columns that the passes take at once; divides the products' tile
    leading:       distance of two rows of a block
    blocks:        the block of scratch that holds each product and each kept value, and `offsets` of the blocks
    results:       where in scratch the results of each reduction are, one for each row of the block
    columns:       columns of a block if operands are streamed, else 0
    partial:       where in scratch, if operands are streamed, reductions are carried from block to block
    batches, rows: batch entries and rows of a chunk
    multiply_adds: all the work, as vector multiply-adds
    """

    kernel: ChainKernel
    block_rows: int
    lanes: int
    leading: int
    blocks: dict[Product | Keep, int]
    offsets: tuple[int, ...]
    results: dict[Reduction, int]
    products: tuple[Step, ...]
    sums: tuple[tuple[Step, ...], ...]
    columns: int
    partial: dict[Reduction, int]
    batches: int
    rows: int
    chunks: int
    scratch_bytes: int
    multiply_adds: float

    @property
    def is_streamed(self) -> bool:
        """Whether right operands are streamed."""
        return bool(self.columns)


def plan(kernel: ChainKernel, target: VectorTarget) -> ChainPlan:
    """Choose blocks, tiles and chunks."""
    if _is_streamed(kernel, target):
        return _streamed_plan(without_keeps(kernel), target)
    m, n, size = kernel.rows.extent, kernel.columns.extent, element_bits(kernel.element.name) // 8
    shapes = [_product_shape(kernel, p, target) for p in kernel.products]
    # Where columns are skipped, narrow tiles and few rows at a time follow what is live more closely.
    narrow = _NARROW_VECTORS * target.lanes(kernel.element.name) if kernel.live else n
    tiles = [blocking.plan(replace(each, n=min(each.n, narrow)), target) for each, _, _ in shapes]
    # All products have the tile of the deepest, so that one range of columns serves them all.
    chosen = max(zip(shapes, tiles, strict=True), key=lambda each: each[0][0].k)[1]
    mr, nr = chosen.mr, chosen.nr
    leading = _round_up(n, nr)
    if leading * size % 4096 == 0:
        # Rows a multiple of a page apart would all meet in the same lines of the cache.
        leading += nr
    blocks, count = _assign_blocks(kernel)
    block_rows = _block_rows(kernel, target, count * leading * size, mr)
    if kernel.live:
        block_rows = min(block_rows, _round_up(-(-m // _LIVE_BLOCKS), mr))
    block_rows = min(block_rows, _round_up(-(-m // _parts(kernel, _entry_slots(kernel, chosen.lanes))), mr))
    layout = _Layout(size)
    offsets = tuple(layout.take(block_rows * leading * size) for _ in range(count))
    results = {r: layout.take(block_rows * r.dtype.itemsize) for each in kernel.passes for r in each.reductions}
    products = tuple(
        _product_step(shape, own, (mr, nr, chosen.lanes), block_rows, n, size, layout)
        for shape, own in zip(shapes, tiles, strict=True)
    )
    sums = tuple(_sum_steps(kernel, each, target, (block_rows, leading, nr), None, layout) for each in kernel.sums)
    slots = _entry_slots(kernel, chosen.lanes)
    batches, rows = _chunk(kernel, slots, block_rows)
    chunks = -(-kernel.batch.extent // batches) * -(-m // rows) if kernel.batch.extent and m and n else 0
    return ChainPlan(
        kernel, block_rows, _pass_lanes(kernel, chosen), leading, blocks, offsets, results, products, sums, 0, {},
        batches, rows, chunks, layout.end if chunks else 0, slots * kernel.batch.extent,
    )  # fmt: skip


class _Layout:
    """Hands out scratch memory; `size` is that of an element."""

    def __init__(self, size: int) -> None:
        self.size, self.end = size, 0

    def take(self, nbytes: int) -> int:
        start = self.end
        self.end = _round_up(start + nbytes, _ALIGNMENT)
        return start


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# Operands


def in_memory(kernel: ChainKernel, value: Value, axes: tuple[Variable, Variable]) -> Memory | None:
    """The operand as an array of the chain's element type with constant strides along `axes`, if it is one."""
    if not isinstance(value, Load) or value.guard or value.buffer.dtype is not kernel.element or value.index.has_data:
        return None
    steps = dict(value.index.terms)
    rest = tuple((atom, c) for atom, c in value.index.terms if atom not in axes)
    if any(not atom.variables <= {kernel.batch} for atom, _ in rest):
        return None
    # A variable that can only be 0 does not occur in indices; any stride will do for it.
    strides = steps.get(axes[0], 0), 1 if axes[1].extent == 1 else steps.get(axes[1], 0)
    return Memory(value, Index(rest, value.index.constant), strides)


def _operand(kernel: ChainKernel, value: Value, axes: tuple[Variable, Variable], target: VectorTarget) -> Operand:
    memory = in_memory(kernel, value, axes)
    if memory is not None:
        return Operand(memory.strides)
    lanes = target.lanes(kernel.element.name)
    runs = [0, 0]
    for inner in all_values([value]):
        if isinstance(inner, Load):
            for position, axis in enumerate(axes):
                runs[position] += lane_step(inner.index, VectorLoop(axis, lanes, position == 0)) == 1
    return Operand(None, 0 if runs[0] > runs[1] else 1)


_Shape = tuple[Contraction, Memory | None, Memory | None]


def _product_shape(kernel: ChainKernel, product: Product, target: VectorTarget) -> _Shape:
    left, right = (kernel.rows, product.depth), (product.depth, kernel.columns)
    contraction = Contraction(
        1, kernel.rows.extent, kernel.columns.extent, product.depth.extent, kernel.element.name,
        _operand(kernel, product.left, left, target), _operand(kernel, product.right, right, target),
    )  # fmt: skip
    return contraction, in_memory(kernel, product.left, left), in_memory(kernel, product.right, right)


def _product_step(
    shape: _Shape, own: Blocking, tile: tuple[int, int, int], rows: int, columns: int, size: int, layout: _Layout
) -> Step:
    """How a product of a block of rows is computed; so many columns of the right operand are packed at once."""
    contraction, left, right = shape
    mr, nr, lanes = tile
    # A computed operand is packed once for a block of rows; its rows are padded so that they do not collide.
    panel = (contraction.k + _ALIGNMENT // size, 1)
    strides = left.strides if left is not None else panel
    tiles = _retiled(own, mr, nr, lanes, left is not None, panel, contraction.k)
    left_offset = 0 if left is not None else layout.take(rows * panel[0] * size)
    right_offset = 0 if tiles.direct_b else layout.take(contraction.k * _round_up(columns, nr) * size)
    placed = Contraction(
        1, contraction.m, contraction.n, contraction.k, contraction.element, Operand(strides), contraction.b
    )
    return Step(placed, tiles, left, right, left_offset, right_offset, 0)


def _retiled(
    own: Blocking, mr: int, nr: int, lanes: int, direct_a: bool, panel: tuple[int, int], k: int
) -> Blocking:
    return replace(own, mr=mr, nr=nr, lanes=lanes, direct_a=direct_a, a_panel=panel, kc=max(1, k))


def _sum_steps(
    kernel: ChainKernel, each: ChainSum, target: VectorTarget, block: tuple[int, int, int],
    columns: int | None, layout: _Layout,
) -> tuple[Step, ...]:  # fmt: skip
    """How the terms of a sum are computed, of so many columns at a time if they are streamed, in the first's tile.

    The result of a tile is where all terms are added up; it is that of all tiles if it is added to later.
    """
    block_rows, leading, nr = block
    over = kernel.rows if each.over_rows else kernel.columns
    if each.over_rows:
        m, k, strides = kernel.columns.extent, block_rows, (1, leading)
    else:
        m, k, strides = block_rows, columns or kernel.columns.extent, (leading, 1)
    steps: list[Step] = []
    for term in each.terms:
        right = in_memory(kernel, term.right, (over, each.free))
        operand = _operand(kernel, term.right, (over, each.free), target)
        contraction = Contraction(1, m, each.free.extent, k, kernel.element.name, Operand(strides), operand)
        tiles = blocking.plan(contraction, target)
        mr, wide, lanes = tiles.mr, tiles.nr, tiles.lanes
        if each.over_rows and kernel.live:
            # Tiles go by the ranges of columns that the products are computed for.
            mr = max(power for power in (1, 2, 4, 8, 16) if power <= mr and nr % power == 0)
        if steps:
            mr, wide, lanes = steps[0].tiles.mr, steps[0].tiles.nr, steps[0].tiles.lanes
        tiles = _retiled(tiles, mr, wide, lanes, True, strides, k)
        right_offset = 0 if tiles.direct_b else layout.take(k * _round_up(each.free.extent, wide) * layout.size)
        steps.append(Step(contraction, tiles, None, right, 0, right_offset, 0))
    rows = m if each.over_rows else steps[0].tiles.mr if columns is None else block_rows
    result = layout.take(rows * steps[0].padded * layout.size)
    return tuple(replace(step, tile_offset=result) for step in steps)


# Streaming


def _is_streamed(kernel: ChainKernel, target: VectorTarget) -> bool:
    """Whether what the products and sums read of all columns is more than half of the last cache holds.

    Not where columns are skipped.
    """
    if kernel.live or any(s.over_rows for s in kernel.sums):
        return False
    if any(r.dtype.kind == "bool" for each in kernel.passes for r in each.reductions):
        return False
    cache = target.l3_bytes or target.l2_bytes or _DEFAULT_L2
    return _widths(kernel) * kernel.columns.extent * kernel.element.itemsize > cache // 2


def _widths(kernel: ChainKernel) -> int:
    """What the right operands have for each column."""
    return sum(p.depth.extent for p in kernel.products) + sum(s.free.extent * len(s.terms) for s in kernel.sums)


def _streamed_plan(kernel: ChainKernel, target: VectorTarget) -> ChainPlan:
    """Blocks of columns of which right operands fill half of the second level, and rows that fill as much."""
    m, n, size = kernel.rows.extent, kernel.columns.extent, kernel.element.itemsize
    budget = (target.l2_bytes or _DEFAULT_L2) // 2
    wanted = max(1, min(n, budget // (size * _widths(kernel))))
    blocks, count = _assign_blocks(kernel)
    beside = _widths(kernel) + count * wanted
    slots = _entry_slots(kernel, target.lanes(kernel.element.name), max(1, len(kernel.passes)))
    rows = min(max(1, budget // (size * beside)), -(-m // _parts(kernel, slots)))
    shapes = [_product_shape(kernel, p, target) for p in kernel.products]
    tiles = [blocking.plan(replace(each, m=rows, n=min(n, wanted)), target) for each, _, _ in shapes]
    chosen = max(zip(shapes, tiles, strict=True), key=lambda each: each[0][0].k)[1]
    mr, nr = chosen.mr, chosen.nr
    block_rows, columns = min(_round_up(rows, mr), m), max(nr, wanted // nr * nr)
    # The last block may have more columns, by less than a tile.
    leading = columns + nr * (2 if (columns + nr) * size % 4096 == 0 else 1)
    layout = _Layout(size)
    offsets = tuple(layout.take(block_rows * leading * size) for _ in range(count))
    reductions = [r for each in kernel.passes for r in each.reductions]
    results = {r: layout.take(block_rows * r.dtype.itemsize) for r in reductions}
    lanes = _pass_lanes(kernel, chosen)
    partial = {r: layout.take(block_rows * lanes * r.dtype.itemsize) for r in reductions}
    products = tuple(
        _product_step(shape, own, (mr, nr, chosen.lanes), block_rows, columns + nr, size, layout)
        for shape, own in zip(shapes, tiles, strict=True)
    )
    block = (block_rows, leading, nr)
    sums = tuple(_sum_steps(kernel, each, target, block, columns + nr, layout) for each in kernel.sums)
    batches, chunk_rows = _chunk(kernel, slots, block_rows)
    chunks = -(-kernel.batch.extent // batches) * -(-m // chunk_rows) if kernel.batch.extent and m else 0
    return ChainPlan(
        kernel, block_rows, lanes, leading, blocks, offsets, results, products, sums, columns, partial, batches,
        chunk_rows, chunks, layout.end if chunks else 0, slots * kernel.batch.extent,
    )  # fmt: skip


# Blocks


def _assign_blocks(kernel: ChainKernel) -> tuple[dict[Product | Keep, int], int]:
    """(which block holds what, how many there are): a kept value takes the place of one not read after its pass."""
    last: dict[Product | Keep, int] = {}
    for number, each in enumerate(kernel.passes):
        for block in _read([*(r.value for r in each.reductions), *(k.value for k in each.keeps)]):
            last[block] = number
    for block in _read([term.left for s in kernel.sums for term in s.terms]):
        last[block] = len(kernel.passes)
    assigned: dict[Product | Keep, int] = {}
    count = 0
    for product in kernel.products:
        assigned[product] = count
        count += 1
    alive: set[Product | Keep] = set(kernel.products)
    for number, each in enumerate(kernel.passes):
        free = [assigned[b] for b in sorted(alive, key=assigned.__getitem__) if last.get(b, -1) <= number]
        alive = {b for b in alive if last.get(b, -1) > number}
        for keep in each.keeps:
            if free:
                assigned[keep] = free.pop(0)
            else:
                assigned[keep] = count
                count += 1
            alive.add(keep)
    return assigned, count


def _read(values: Sequence[Value]) -> list[Product | Keep]:
    found: list[Product | Keep] = []
    for value in all_values(values):
        if isinstance(value, ProductAt):
            found.append(value.product)
        elif isinstance(value, Kept):
            found.append(value.keep)
    return found


def _block_rows(kernel: ChainKernel, target: VectorTarget, row_bytes: int, mr: int) -> int:
    """Rows of a block: what is between the contractions stays in a cache."""
    size, n, m = element_bits(kernel.element.name) // 8, kernel.columns.extent, kernel.rows.extent
    l1, l2 = target.l1_bytes or _DEFAULT_L1, target.l2_bytes or _DEFAULT_L2
    depths = [p.depth.extent for p in kernel.products]
    depths += [s.free.extent * len(s.terms) * (2 if s.over_rows else 1) for s in kernel.sums]
    budget = l1 // 2 if sum(depths) * n * size <= l2 // 2 else l2 // 2
    rows = max(mr, budget // max(1, row_bytes) // mr * mr)
    return min(rows, m)


def _pass_lanes(kernel: ChainKernel, tiles: Blocking) -> int:
    """Vectors the passes take at once: more of them overlap, until they no longer fit into registers."""
    operations = 0
    for each in kernel.passes:
        roots = [*(r.value for r in each.reductions), *(k.value for k in each.keeps)]
        operations = max(operations, sum(isinstance(v, Apply) for v in all_values(roots)))
    wanted = 4 if operations <= 6 else 2 if operations <= 16 else 1
    return tiles.lanes * gcd(wanted, tiles.nr // tiles.lanes)


def _entry_slots(kernel: ChainKernel, lanes: int, repeated: int = 1) -> float:
    """The work of one batch entry in vector multiply-adds, where products are computed so many times."""
    depths = [p.depth.extent * repeated for p in kernel.products]
    depths += [s.free.extent * len(s.terms) for s in kernel.sums]
    work = sum(depths) + _PASS_SLOTS * len(kernel.passes)
    return max(1.0, kernel.rows.extent * kernel.columns.extent * work / max(1, lanes))


def _parts(kernel: ChainKernel, slots: float) -> int:
    """Into how many parts the rows of a batch entry are dealt, so that there are enough chunks."""
    if any(s.over_rows for s in kernel.sums) or kernel.batch.extent >= _MOST_CHUNKS:
        return 1
    wanted = min(-(-_MOST_CHUNKS // max(1, kernel.batch.extent)), int(slots // _CHUNK_SLOTS))
    return max(1, min(wanted, kernel.rows.extent // _FEWEST_ROWS))


def _chunk(kernel: ChainKernel, slots: float, block_rows: int) -> tuple[int, int]:
    """(batch entries, rows) of a chunk."""
    m, batch, parts = kernel.rows.extent, max(1, kernel.batch.extent), _parts(kernel, slots)
    if parts > 1:
        return 1, _round_up(-(-m // parts), block_rows)
    wanted = max(1, min(batch, int(_CHUNK_SLOTS // slots)))
    return -(-batch // -(-batch // wanted)), m
