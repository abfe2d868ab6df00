"""Plans a contraction whose rows are an image: tile, blocks, chunks, and the tables that say where elements lie.

An element of the operand is found at f(m) + g(k) on every axis of the image. Both are tabulated for all m and k, and a
block is a size after which the table repeats: then one table of distances serves all blocks, and the elements that a
block of rows and a block of the depth see together are a box of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..schedule import index as indexing
from ..schedule.index import FromData, Index, Variable
from ..schedule.loop_ir import Image
from .contraction_blocking import Blocking
from .finishing import turned_bytes
from .vector_target import VectorTarget, element_bits

# Costs are counted in slots, the time of one vector multiply-add, as in contraction_blocking.
_LATENCY_SLOTS = 10
_BROADCAST_SLOTS, _VECTOR_SLOTS = 0.15, 0.5  # what loads inside a tile cost although they overlap with arithmetic
_TABLE_SLOTS = 0.5  # reading the distance of one k step
_TILE_SLOTS = 30
_CHUNK_SLOTS = 1000
_SMALLEST_CHUNK_SLOTS = 32768
_PACK_SLOTS, _GATHER_SLOTS = 8.0, 50.0  # packing a vector of B, if its elements lie together or if they do not
_FETCH_SLOTS = 1.5  # fetching a vector of B from an outer cache
_STAGE_SLOTS = 5.0  # computing a vector of the image
_FINISH_SLOTS = 6.0  # turning a vector of sums and storing it
_STRETCH_SLOTS = 30.0  # for each array of the epilogue, going on where results lie together next: another page, often
_MOST_CHUNKS = 512
_THREADS = (1, 2, 4, 8, 16)  # thread counts a grid of chunks should serve; the plan never learns the real one
_MOST_DEPTH = 2048  # k steps of a block: the length of the table
_MOST_ROWS = 4096
_LONGEST_SEGMENT = 512
LINE = 64
_WAYS, _SETS = 8, 64  # of a first-level cache with ways of a page
_DEFAULT_L1, DEFAULT_L2 = 16384, 131072

Table = NDArray[np.int64]
Slots = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class WindowContraction:
    """C[b, m, n] = sum over k of image[f(m) + g(k) + h(b)] * B[b, k, n].

    image:    whose places are f + g + h, indices of the variables `rows` (m) and `depth` (k) and of others
    in_place: distances in memory of neighbours on each axis if the image is an array of the element type
    gathered: whether elements of B lie together along neither n nor k
    taps_together: whether those of each nine steps lie together
    arrays:   how many the epilogue reads and writes
    finish_rows: how many consecutive m the results lie together for, so that vectors of results run along m; 0 if they
              run along n
    column_sums: whether the sums over k of B[b, k, n] are wanted too
    """

    batch: int
    rows: Variable
    n: int
    depth: Variable
    element: str
    image: Image
    in_place: tuple[int, ...] | None
    gathered: bool
    taps_together: bool
    arrays: int
    finish_rows: int
    column_sums: bool = False

    @property
    def m(self) -> int:
        return self.rows.extent

    @property
    def k(self) -> int:
        return self.depth.extent


@dataclass(frozen=True)
class WindowPlan:
    """The plan of one such contraction; every number is fixed at compile time, distances are in elements.

    blocking:      tile, blocks and chunks; its scratch memory holds a note of what the packed B is of (if it is kept),
                   the box, tiles, turned results, B panels, and column sums (if there are any)
    segment:       rows that are tiled together: tiles never cross from one segment to the next
    tile_sizes:    how many rows tiles have, the most frequent number first
    box:           extents of the box of a block, None if the image is read in place
    strides:       distances of neighbours on each axis, in the box or in memory
    origin:        on each axis, where the box starts from the place of the block's first element
    first:         distance of that element from the start of the box
    row_offsets, tile_offsets, depth_offsets: distances of a tile's rows from its first, of a block's tiles from the
                   block's first row, and of a block's k steps from its first
    tile_rows:     distance of two rows of sums in the scratch memory
    finish_rows:   as in the contraction, but no longer than a block
    turned_offset: where results are turned, so that vectors run along m
    slots:         what it is expected to cost, summed over the thread counts a machine may have
    """

    blocking: Blocking
    segment: int
    tile_sizes: tuple[int, ...]
    box: tuple[int, ...] | None
    strides: tuple[int, ...]
    origin: tuple[int, ...]
    first: int
    row_offsets: tuple[int, ...]
    tile_offsets: tuple[int, ...]
    depth_offsets: tuple[int, ...]
    tile_rows: int
    finish_rows: int
    turned_offset: int
    slots: float

    @property
    def tiles_per_segment(self) -> int:
        return -(-self.segment // self.blocking.mr)


@dataclass(frozen=True)
class _Tile:
    """Rows of a segment, rows and vectors of a tile, and the slots that all tiles of one batch entry take."""

    segment: int
    rows: int
    vectors: int
    slots: float


class _Grid(NamedTuple):
    """Blocks of rows, columns and steps; of the box they see the elements, the bytes, and the vectors to compute."""

    mc: int
    nc: int
    kc: int
    box: int
    box_bytes: int
    staged_vectors: int


@lru_cache(maxsize=256)
def plan_windows(contraction: WindowContraction, target: VectorTarget) -> WindowPlan:
    """Choose tile, blocks and chunks."""
    lanes = target.lanes(contraction.element)
    image = contraction.image
    rows = np.array([tabulated(place, contraction.rows) for place in image.places])
    depth = np.array([tabulated(place, contraction.depth) for place in image.places])
    # One number for a place, so that equal distances are equal on every axis.
    extents = [axis.extent for axis in image.axes]
    weights = np.cumprod([1, *(2 * extent + 1 for extent in extents[:0:-1])])[::-1].astype(np.int64)
    tile = _choose_tile(contraction, target, weights @ rows, lanes)
    grids = list(_grids(contraction, target, tile, rows, depth, weights, lanes))
    costs, keeps = _grid_costs(contraction, target, tile, grids, lanes)
    best = min(range(len(grids)), key=lambda g: (costs[g], grids[g]))
    keep_b, slots = bool(keeps[best]), float(costs[best])
    return _plan(contraction, target, tile, rows, depth, grids[best][:3], keep_b, slots, lanes)


def tabulated(index: Index, variable: Variable) -> Table:
    """The part of an index that depends on the variable alone, for all its values."""
    own = Index(tuple((atom, c) for atom, c in index.terms if variable in atom.variables))
    return values_along(own, variable)


def values_along(index: Index, variable: Variable) -> Table:
    """The index for all values of one variable, the others being 0."""

    def number(atom: Variable | FromData) -> Table:
        return np.arange(variable.extent) if atom == variable else np.zeros(variable.extent, dtype=np.int64)

    return np.broadcast_to(indexing.evaluate(index, number), (variable.extent,)).astype(np.int64)


def repeats(places: Table, length: int) -> bool:
    """Whether each block of `length` places has the distances of the first one (a shorter last block its beginning)."""
    if length + 1 < places.size and places[length + 1] - places[length] != places[min(1, length - 1)] - places[0]:
        if length > 1:
            return False  # What rules out most lengths, without a look at the whole table.
    whole = places.size // length
    blocks = places[: whole * length].reshape(whole, length)
    distances = blocks - blocks[:, :1]
    rest = places[whole * length :]
    if np.any(distances != distances[0]):
        return False
    return rest.size == 0 or bool(np.all(rest - rest[0] == distances[0, : rest.size]))


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def parts(total: int, block: int) -> list[tuple[int, int]]:
    """(how many, of what size): the blocks a dimension falls into, the smaller last one separately."""
    sizes = [(total // block, block), (1 if total % block else 0, total % block)]
    return [(count, size) for count, size in sizes if count]


def _tile_slots(rows: int, vectors: int) -> float:
    """Slots of one k step of a tile."""
    busy = max(rows * vectors, rows + vectors + _TABLE_SLOTS, _LATENCY_SLOTS)
    return busy + _BROADCAST_SLOTS * rows + _VECTOR_SLOTS * vectors + _TABLE_SLOTS


def _choose_tile(contraction: WindowContraction, target: VectorTarget, places: Table, lanes: int) -> _Tile:
    """The segment and the register tile with the least work, waste at the edges included."""
    m, k, n_vectors = contraction.m, contraction.k, -(-contraction.n // lanes)
    usable = target.vector_registers - 1 - (not target.has_fma)
    best = _Tile(1, 1, 1, float("inf"))
    for segment in _divisors(m):
        if (segment > _LONGEST_SEGMENT and segment != m) or not repeats(places, segment):
            continue
        inside = places[:segment]
        for rows in range(1, min(segment, max(1, usable // 2)) + 1):
            regular: bool | None = None
            for vectors in range(1, min(n_vectors, max(1, usable // (rows + 1))) + 1):
                row_parts, column_parts = parts(segment, rows), parts(n_vectors, vectors)
                slots = (m // segment) * sum(
                    i * j * (k * _tile_slots(r, v) + _TILE_SLOTS + 2 * r * v)
                    for i, r in row_parts
                    for j, v in column_parts
                )
                slots *= 1 + 0.01 * (len(row_parts) * len(column_parts) - 1)
                if slots < best.slots:
                    regular = repeats(inside, rows) if regular is None else regular
                    if regular:
                        best = _Tile(segment, rows, vectors, slots)
    return best


def _depth_blocks(contraction: WindowContraction, places: Table) -> Iterator[int]:
    """Lengths of k blocks worth trying, the longest first, each at most two thirds of the one before."""
    limit = min(contraction.k, _MOST_DEPTH)
    found = False
    for length in range(limit, 0, -1):
        if length > limit and found:
            continue
        if repeats(places, length):
            yield length
            found, limit = True, length * 2 // 3
            if length < 64:
                return


def _reads_in_place(
    contraction: WindowContraction, tile: _Tile, rows: Table, depth: Table, lanes: int
) -> bool:
    """Whether the image is an array of which a first-level cache can hold what one tile sees of it, or needs not to."""
    if contraction.in_place is None:
        return False
    strides = np.array(contraction.in_place, dtype=np.int64)
    seen = (strides @ rows[:, : tile.rows])[:, None] + (strides @ depth)[None, :]
    size = element_bits(contraction.element) // 8
    return _most_in_a_set(seen, size) <= _WAYS or contraction.n <= tile.vectors * lanes


def _most_in_a_set(offsets: Table, size: int) -> int:
    """How many of the cache lines the offsets touch fall into one set of a first-level cache."""
    lines = np.unique(offsets.ravel() * size // LINE)
    return int(np.bincount(lines % _SETS).max())


def _grids(
    contraction: WindowContraction,
    target: VectorTarget,
    tile: _Tile,
    rows: Table,
    depth: Table,
    weights: Table,
    lanes: int,
) -> Iterator[_Grid]:
    """Every grid of blocks worth trying."""
    size = element_bits(contraction.element) // 8
    row_blocks = list(_row_blocks(contraction, tile, weights @ rows))
    reach_m = {mc: np.ptp(rows[:, :mc], axis=1) for mc in row_blocks}
    columns = list(column_blocks(contraction.n, tile.vectors * lanes))
    for kc in _depth_blocks(contraction, weights @ depth):
        reach_k = np.ptp(depth[:, :kc], axis=1)
        staged = not _reads_in_place(contraction, tile, rows, depth[:, :kc], lanes)
        for mc in row_blocks:
            box = tuple(int(e) for e in reach_m[mc] + reach_k + 1)
            box_bytes = _box_strides(box, size)[0] * box[0] * size
            staged_vectors = prod(box[:-1]) * -(-box[-1] // lanes) if staged else 0
            for nc in columns:
                yield _Grid(mc, nc, kc, prod(box), box_bytes, staged_vectors)


def _grid_costs(
    contraction: WindowContraction, target: VectorTarget, tile: _Tile, grids: list[_Grid], lanes: int
) -> tuple[Slots, Flags]:
    """What grids cost summed over the thread counts a machine may have, and whether packed B is kept."""
    size = element_bits(contraction.element) // 8
    l1, l2 = target.l1_bytes or _DEFAULT_L1, target.l2_bytes or DEFAULT_L2
    m, n, k = contraction.m, contraction.n, contraction.k
    mc, nc, kc, box, box_bytes, staged_vectors = np.array(grids, dtype=np.int64).T
    m_blocks, n_blocks, k_blocks = -(-m // mc), -(-n // nc), -(-k // kc)
    nr = tile.vectors * lanes
    padded_n = -(-nc // nr) * nr
    seen = tile.rows * np.minimum(kc, box) * size  # of the image by one tile, at most
    used = box_bytes + padded_n * kc * size + mc * (padded_n + lanes) * size
    crowded = 1.0 + np.maximum(0.0, used / (0.75 * l2) - 1.0) + 0.1 * np.maximum(0.0, seen / l1 - 1.0)
    keep_b = (m_blocks > 1) & (k * padded_n * size <= max(target.l2_bytes, target.l3_bytes // 8))
    staging = k_blocks * staged_vectors * _STAGE_SLOTS
    tiles = -(-mc // tile.rows) * -(-nc // nr)
    visits = (k_blocks - 1) * tiles * (_TILE_SLOTS + 2 * tile.rows * tile.vectors)
    chunk = tile.slots * (np.minimum(mc, m) / m) * (np.minimum(nc, n) / n) * crowded + _CHUNK_SLOTS + staging + visits
    chunk += nc * k * _FETCH_SLOTS / lanes + finishing_slots(contraction, mc, nc, lanes)
    pack_b = nc * k * packing_slots(contraction) / lanes
    slots = np.full(len(grids), tile.slots)
    return over_threads(contraction.batch, slots, (m_blocks, n_blocks), keep_b, chunk, pack_b), keep_b


def finishing_slots(contraction: WindowContraction, mc: Table, nc: Table, lanes: int) -> Slots:
    """What finishing blocks of sums costs."""
    stretches = nc * -(-mc // contraction.finish_rows) if contraction.finish_rows else mc
    slots: Slots = mc * nc * _FINISH_SLOTS / lanes + stretches * contraction.arrays * _STRETCH_SLOTS
    return slots


def packing_slots(contraction: WindowContraction, by_taps: bool = False) -> float:
    """What packing a vector of B costs, nine steps at a time if `by_taps`."""
    return _GATHER_SLOTS if contraction.gathered and not (by_taps and contraction.taps_together) else _PACK_SLOTS


def over_threads(
    batch: int, slots: Slots, blocks: tuple[Table, Table], keep_b: Flags, chunk: Slots, pack_b: Slots
) -> Slots:
    """What grids of chunks cost, summed over the thread counts a machine may have.

    slots: of one batch entry, which say how many chunks are worth having; blocks: of rows and of columns; chunk and
    pack_b: the slots of a chunk, and of packing B for one, which is done once for those of a column if it is kept.
    """
    m_blocks, n_blocks = blocks
    chunks = batch * m_blocks * n_blocks
    most_chunks = np.minimum(_MOST_CHUNKS, np.maximum(1.0, batch * slots // _SMALLEST_CHUNK_SLOTS))
    total = np.zeros(chunks.shape)
    for threads in _THREADS:
        turns = -(-chunks // threads)
        packs = np.where(keep_b, np.minimum(turns, -(-chunks // m_blocks)), turns)
        total += (turns * chunk + packs * pack_b) * np.minimum(threads, most_chunks)
    total *= np.maximum(1.0, chunks / np.maximum(batch, most_chunks))
    return total


def _row_blocks(contraction: WindowContraction, tile: _Tile, places: Table) -> Iterator[int]:
    """Sizes of row blocks worth trying: whole segments; if there is only one, whole tiles of it."""
    m, unit = contraction.m, tile.segment
    if unit == m:
        unit = tile.rows
    units = -(-m // unit)
    whole = _divisors(units)
    others = [-(-units // blocks) for blocks in range(1, min(units, 12) + 1)]
    for count in sorted({*whole, *others}, reverse=True):
        size = min(m, count * unit)
        if size <= max(_MOST_ROWS, unit) and repeats(places, size):
            yield size


def column_blocks(n: int, nr: int) -> Iterator[int]:
    tiles, tried = -(-n // nr), set()
    for blocks in range(1, tiles + 1):
        count = -(-tiles // blocks)
        if count not in tried:
            tried.add(count)
            yield min(n, count * nr)


def _box_strides(box: Sequence[int], size: int) -> tuple[int, ...]:
    """Distances on the axes of a box, such that neighbours on no axis fall into the same set of a cache."""
    strides = [1]
    for extent in reversed(box[1:]):
        stride = strides[-1] * extent
        if stride * size % (8 * LINE) == 0:
            stride += LINE // size
        strides.append(stride)
    return tuple(reversed(strides))


def _plan(
    contraction: WindowContraction,
    target: VectorTarget,
    tile: _Tile,
    rows: Table,
    depth: Table,
    sizes: tuple[int, int, int],
    keep_b: bool,
    slots: float,
    lanes: int,
) -> WindowPlan:
    (mc, nc, kc), size = sizes, element_bits(contraction.element) // 8
    in_rows, in_depth = rows[:, :mc] - rows[:, :1], depth[:, :kc] - depth[:, :1]
    origin = in_rows.min(axis=1) + in_depth.min(axis=1)
    box: tuple[int, ...] | None = tuple(int(e) for e in np.ptp(in_rows, axis=1) + np.ptp(in_depth, axis=1) + 1)
    assert box is not None
    strides, first = _box_strides(box, size), 0
    if contraction.in_place is not None and _reads_in_place(contraction, tile, rows, depth[:, :kc], lanes):
        box, strides = None, contraction.in_place
    if box is not None:
        first = -int(np.array(strides) @ origin)
    weights = np.array(strides, dtype=np.int64)
    starts = [s + t for s in range(0, mc, tile.segment) for t in range(0, min(tile.segment, mc - s), tile.rows)]
    finish_rows = gcd(contraction.finish_rows, mc) if contraction.finish_rows else 0
    m_blocks, n_blocks = -(-contraction.m // mc), -(-contraction.n // nc)
    nr = tile.vectors * lanes
    padded_n = -(-nc // nr) * nr
    tile_rows = padded_n + lanes
    box_offset = LINE if keep_b else 0
    tile_offset = aligned(box_offset + (0 if box is None else strides[0] * box[0] * size))
    turned_offset = aligned(tile_offset + (mc + lanes) * tile_rows * size)
    b_offset = aligned(turned_offset + turned_bytes(finish_rows, lanes, size))
    chunks = contraction.batch * m_blocks * n_blocks
    sums_offset = aligned(b_offset + padded_n * (contraction.k if keep_b else kc) * size)
    sums_bytes = padded_n * size if contraction.column_sums else 0
    unroll = 1 if tile.rows * tile.vectors >= 16 else 2 if tile.rows * tile.vectors >= 8 else 4
    blocking = Blocking(
        lanes=lanes, mr=tile.rows, nr=nr, mc=mc, nc=nc, kc=kc, batches=1, chunks=chunks, direct_a=True, direct_b=False,
        a_panel=(0, 0), a_block=False, keep_b=keep_b, unroll=unroll, a_offset=box_offset, tile_offset=tile_offset,
        b_offset=b_offset, scratch_bytes=aligned(sums_offset + sums_bytes), sums_offset=sums_offset,
    )  # fmt: skip
    return WindowPlan(
        blocking=blocking,
        segment=min(tile.segment, mc),
        tile_sizes=_tile_sizes(contraction.m, mc, min(tile.segment, mc), tile.rows),
        box=box,
        strides=strides,
        origin=tuple(int(o) for o in origin),
        first=first,
        row_offsets=tuple(int(o) for o in weights @ in_rows[:, : tile.rows]),
        tile_offsets=tuple(int(weights @ in_rows[:, s]) for s in starts),
        depth_offsets=tuple(int(o) for o in weights @ in_depth),
        tile_rows=tile_rows,
        finish_rows=finish_rows,
        turned_offset=turned_offset,
        slots=slots,
    )


def _tile_sizes(m: int, mc: int, segment: int, rows: int) -> tuple[int, ...]:
    """How many rows the tiles of a block, and of the smaller last block, have."""
    last = m % mc
    remainders = (segment % rows, last % rows if last < segment else 0)
    return tuple(dict.fromkeys(size for size in (min(rows, segment), *remainders) if size))


def aligned(count: int) -> int:
    return -(-count // LINE) * LINE
