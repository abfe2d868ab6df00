"""Plans a chain: blocks of rows, tiles of its contractions, scratch memory and chunks, from the kernel and the target.

The rows of a block are few enough that what is between the contractions of the chain stays in a cache: the first level
if the operands of the contractions stay in the second, else a share of the second, so that they are fetched less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

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

    block_rows:    rows of a block (a multiple of the products' tile, or all rows)
    lanes:         columns that the passes take at once; divides the products' tile
    leading:       distance of two rows of a block
    blocks:        the block of scratch that holds each product and each kept value, and `offsets` of the blocks
    results:       where in scratch the results of each reduction are, one for each row of the block
    batches, rows: batch entries and rows of a chunk
    multiply_adds: all the work, as vector multiply-adds
    """

    block_rows: int
    lanes: int
    leading: int
    blocks: dict[Product | Keep, int]
    offsets: tuple[int, ...]
    results: dict[Reduction, int]
    products: tuple[Step, ...]
    sums: tuple[Step, ...]
    batches: int
    rows: int
    chunks: int
    scratch_bytes: int
    multiply_adds: float


def plan(kernel: ChainKernel, target: VectorTarget) -> ChainPlan:
    """Choose blocks, tiles and chunks."""
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
    layout = _Layout()
    offsets = tuple(layout.take(block_rows * leading * size) for _ in range(count))
    results = {r: layout.take(block_rows * r.dtype.itemsize) for each in kernel.passes for r in each.reductions}
    products = tuple(
        _product_step(shape, own, (mr, nr, chosen.lanes), block_rows, size, layout)
        for shape, own in zip(shapes, tiles, strict=True)
    )
    sums = tuple(_sum_step(kernel, each, target, (block_rows, leading, nr), size, layout) for each in kernel.sums)
    slots = _entry_slots(kernel, chosen.lanes)
    batches, rows = _chunk(kernel, slots, block_rows)
    chunks = -(-kernel.batch.extent // batches) * -(-m // rows) if kernel.batch.extent and m and n else 0
    return ChainPlan(
        block_rows, _pass_lanes(kernel, chosen), leading, blocks, offsets, results, products, sums, batches, rows,
        chunks, layout.end if chunks else 0, slots * kernel.batch.extent,
    )  # fmt: skip


class _Layout:
    """Hands out scratch memory."""

    def __init__(self) -> None:
        self.end = 0

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
    shape: _Shape, own: Blocking, tile: tuple[int, int, int], rows: int, size: int, layout: _Layout
) -> Step:
    contraction, left, right = shape
    mr, nr, lanes = tile
    # A computed operand is packed once for a block of rows; its rows are padded so that they do not collide.
    panel = (contraction.k + _ALIGNMENT // size, 1)
    strides = left.strides if left is not None else panel
    tiles = _retiled(own, mr, nr, lanes, left is not None, panel, contraction.k)
    left_offset = 0 if left is not None else layout.take(rows * panel[0] * size)
    padded = _round_up(contraction.n, nr)
    right_offset = 0 if tiles.direct_b else layout.take(contraction.k * padded * size)
    placed = Contraction(
        1, contraction.m, contraction.n, contraction.k, contraction.element, Operand(strides), contraction.b
    )
    return Step(placed, tiles, left, right, left_offset, right_offset, 0)


def _retiled(
    own: Blocking, mr: int, nr: int, lanes: int, direct_a: bool, panel: tuple[int, int], k: int
) -> Blocking:
    return replace(own, mr=mr, nr=nr, lanes=lanes, direct_a=direct_a, a_panel=panel, kc=max(1, k))


def _sum_step(
    kernel: ChainKernel, each: ChainSum, target: VectorTarget, block: tuple[int, int, int], size: int, layout: _Layout
) -> Step:
    block_rows, leading, nr = block
    over = kernel.rows if each.over_rows else kernel.columns
    right = in_memory(kernel, each.right, (over, each.free))
    operand = _operand(kernel, each.right, (over, each.free), target)
    if each.over_rows:
        m, k, strides = kernel.columns.extent, block_rows, (1, leading)
    else:
        m, k, strides = block_rows, kernel.columns.extent, (leading, 1)
    contraction = Contraction(1, m, each.free.extent, k, kernel.element.name, Operand(strides), operand)
    tiles = blocking.plan(contraction, target)
    mr = tiles.mr
    if each.over_rows and kernel.live:
        # Tiles go by the ranges of columns that the products are computed for.
        mr = max(power for power in (1, 2, 4, 8, 16) if power <= mr and nr % power == 0)
    tiles = _retiled(tiles, mr, tiles.nr, tiles.lanes, True, strides, k)
    padded = _round_up(each.free.extent, tiles.nr)
    right_offset = 0 if tiles.direct_b else layout.take(k * padded * size)
    tile_offset = layout.take((m if each.over_rows else mr) * padded * size)
    return Step(contraction, tiles, None, right, 0, right_offset, tile_offset)


# Blocks


def _assign_blocks(kernel: ChainKernel) -> tuple[dict[Product | Keep, int], int]:
    """(which block holds what, how many there are): a kept value takes the place of one not read after its pass."""
    last: dict[Product | Keep, int] = {}
    for number, each in enumerate(kernel.passes):
        for block in _read([*(r.value for r in each.reductions), *(k.value for k in each.keeps)]):
            last[block] = number
    for block in _read([s.left for s in kernel.sums]):
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
    depths += [s.free.extent * (2 if s.over_rows else 1) for s in kernel.sums]
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


def _entry_slots(kernel: ChainKernel, lanes: int) -> float:
    """The work of one batch entry in vector multiply-adds."""
    depths = [p.depth.extent for p in kernel.products] + [s.free.extent for s in kernel.sums]
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
