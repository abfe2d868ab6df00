"""Plans a contraction with a 3x3 window that moves by one as minimal filtering: 16 products where there would be 36.

Places (n, y, x) fall into tiles of 2x2, each of which sees a 4x4 patch of every channel of the image. With places as
rows and (channel, 3, 3) as the depth, as in a convolution and its input gradient, tiles become rows and channels steps;
with (channel, 3, 3) as rows and places as the depth, as in a weight gradient, it is the other way round. Either way
there are 16 plain products of (rows, steps) by (steps, columns), one for each point (filter_transforms.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, inf, prod
from typing import NamedTuple, TypeVar

import numpy as np

from .contraction_blocking import Blocking
from .filter_transforms import POINTS
from .finishing import turned_bytes
from .vector_target import VectorTarget, element_bits
from .window_blocking import (
    DEFAULT_L2,
    LINE,
    Flags,
    Slots,
    Table,
    WindowContraction,
    aligned,
    column_blocks,
    finishing_slots,
    over_threads,
    packing_slots,
    parts,
    repeats,
    tabulated,
)

_WINDOW, _TILE = 3, 2  # on each of two axes: taps, and places of a tile
_PATCH = _WINDOW + _TILE - 1
_PRODUCTS = POINTS * POINTS
# Costs in slots, as in window_blocking. Transforms are of a vector of 16 numbers each.
_IMAGE_SLOTS, _RIGHT_SLOTS, _RESULT_SLOTS = 45.0, 45.0, 45.0
_TURN_SLOTS = 10.0  # computing a vector of the image and turning it into vectors along the channels
_LATENCY_SLOTS, _BROADCAST_SLOTS, _VECTOR_SLOTS, _CALL_SLOTS = 10.0, 0.15, 0.5, 30.0
_CHUNK_SLOTS = 1000.0
_MOST_TILES = 512  # of a block

Number = TypeVar("Number", int, Table)


@dataclass(frozen=True)
class FilterPlan:
    """The plan of one such contraction; distances are in elements.

    blocking:      register tile, blocks (mc, kc in rows and steps of the contraction itself) and chunks
    by_places:     whether the rows are places (True) or channels and taps
    rows, steps:   of one of the products in a block: tiles and channels, or the other way round
    all_rows, all_steps: the same of the whole contraction
    channel:       the axis of the image that is the channels
    box, strides, origin: as in a WindowPlan; channels lie together
    window:        distances in the box of neighbours on the two axes of the window
    covered:       whether the image covers the box of every block
    patches:       where the patch of each tile of a block begins in the box
    taps:          for each step of a block, which rows of the packed right operand it is made of; kc is a row of zeros
    results:       for each row of a block, which rows of the contraction it makes; the last row is for what is dropped
    image_plane, right_plane, sum_plane: distances between points of the transformed operands and of the sums
    channel_step:  distance of two patches in the transformed image
    row_stride:    distance of two rows of results
    finish_rows:   as in a WindowPlan
    image_offset, sums_offset, results_offset, turned_offset, raw_offset: where the scratch memory has the transformed
                   image, sums at all points, results (over box and image, which are no longer read then), results that
                   are turned, and a panel of the right operand as it is
    slots:         what it is expected to cost, in the unit of WindowPlan
    """

    blocking: Blocking
    by_places: bool
    rows: int
    steps: int
    all_rows: int
    all_steps: int
    channel: int
    box: tuple[int, ...]
    strides: tuple[int, ...]
    origin: tuple[int, ...]
    window: tuple[int, int]
    covered: bool
    patches: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    image_plane: int
    right_plane: int
    sum_plane: int
    channel_step: int
    row_stride: int
    finish_rows: int
    image_offset: int
    sums_offset: int
    results_offset: int
    turned_offset: int
    raw_offset: int
    slots: float


@dataclass(frozen=True)
class _Shape:
    """A contraction seen as places and channels.

    by_places: whether places are the rows, and channels and taps the depth, or the other way round
    channel, window: the axis of the image that channels are, and the two that the window moves along
    places:    of the rows or the depth, where each lies on every axis of the image
    height, width: of the places of one outer entry, an example of a batch
    """

    by_places: bool
    channels: int
    channel: int
    window: tuple[int, int]
    places: Table
    height: int
    width: int

    @property
    def outer(self) -> int:
        return int(self.places.shape[1]) // (self.height * self.width)

    @property
    def down(self) -> int:
        return -(-self.height // _TILE)

    @property
    def across(self) -> int:
        return -(-self.width // _TILE)


class _Grid(NamedTuple):
    """What is chosen: tiles of a block (as whole entries, or as `down` rows of tiles), channels, columns, registers."""

    entries: int
    down: int
    channels: int
    nc: int
    mr: int
    vectors: int


@lru_cache(maxsize=256)
def plan_filter(contraction: WindowContraction, target: VectorTarget, limit: float = inf) -> FilterPlan | None:
    """Choose blocks; None if this is no window of 3x3 that moves by one, or would cost `limit` slots or more.

    Tables are only made for a plan that is wanted: a block of a big image with an odd number of rows is all of it.
    """
    if not contraction.element.startswith("float"):
        return None
    rows = np.array([tabulated(place, contraction.rows) for place in contraction.image.places])
    depth = np.array([tabulated(place, contraction.depth) for place in contraction.image.places])
    shape = _shape(rows, depth)
    if shape is None:
        return None
    lanes = target.lanes(contraction.element)
    grids = list(_grids(contraction, target, shape, lanes))
    costs, keeps = _costs(contraction, target, shape, grids)
    best = int(np.argmin(costs))
    if costs[best] >= limit:
        return None
    return _plan(contraction, target, shape, grids[best], bool(keeps[best]), float(costs[best]))


def _shape(rows: Table, depth: Table) -> _Shape | None:
    window = [a for a in range(len(rows)) if np.ptp(rows[a]) and np.ptp(depth[a])]
    if len(window) != 2:
        return None
    y, x = window
    for by_places, places, taps in ((True, rows, depth), (False, depth, rows)):
        height, width = int(places[y].max()) + 1, int(places[x].max()) + 1
        numbers = np.arange(places.shape[1])
        if places.shape[1] % (height * width) or min(height, width) < _TILE:
            continue
        if np.any(places[x] != numbers % width) or np.any(places[y] != numbers // width % height):
            continue
        numbers = np.arange(taps.shape[1])
        if taps.shape[1] % _WINDOW**2:
            continue
        if np.any(taps[x] != numbers % _WINDOW) or np.any(taps[y] != numbers // _WINDOW % _WINDOW):
            continue
        others = [a for a in range(len(rows)) if a not in window]
        moving = [a for a in others if np.ptp(taps[a])]
        if len(moving) != 1 or np.any(taps[moving[0]] != numbers // _WINDOW**2) or np.ptp(places[moving[0]]):
            continue
        outer = places[others].reshape(len(others), -1, height * width)
        if np.any(outer != outer[:, :, :1]):
            continue
        return _Shape(by_places, int(taps.shape[1]) // _WINDOW**2, moving[0], (y, x), places, height, width)
    return None


def _grids(contraction: WindowContraction, target: VectorTarget, shape: _Shape, lanes: int) -> Iterator[_Grid]:
    """Every grid worth trying."""
    n_vectors = -(-contraction.n // lanes)
    usable = target.vector_registers - 1 - (not target.has_fma)
    places = _weights(contraction) @ shape.places
    blocks = []
    for entries in range(1, shape.outer + 1):
        tiles = entries * shape.down * shape.across
        if (tiles <= _MOST_TILES or entries == 1) and -(-shape.outer // -(-shape.outer // entries)) == entries:
            if repeats(places, entries * shape.height * shape.width):
                blocks.append((entries, shape.down))
    if shape.height % _TILE == 0:
        blocks += [(1, down) for down in range(1, shape.down) if shape.down % down == 0]
    channels = {min(shape.channels, lanes * count) for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
    widths = range(1, min(n_vectors, max(1, usable // 2)) + 1)
    columns = {vectors: list(column_blocks(contraction.n, vectors * lanes)) for vectors in widths}
    for entries, down in blocks:
        for block in sorted(channels):
            rows, _ = _rows_and_steps(shape, entries * down * shape.across, block)
            for vectors in widths:
                mr = _tile_rows(rows, vectors, usable)
                for nc in columns[vectors]:
                    yield _Grid(entries, down, block, nc, mr, vectors)


@lru_cache(maxsize=4096)
def _tile_rows(rows: int, vectors: int, usable: int) -> int:
    """The rows of a register tile that suit a block of so many rows best."""
    most = min(rows, max(1, usable // vectors - 1))
    return min(range(1, most + 1), key=lambda r: (_sweep(rows, r, vectors), -r))


@lru_cache(maxsize=4096)
def _sweep(rows: int, mr: int, vectors: int) -> float:
    """Slots of one step of one column of tiles."""
    return sum(
        count * (max(r * vectors, r + vectors, _LATENCY_SLOTS) + _BROADCAST_SLOTS * r + _VECTOR_SLOTS * vectors)
        for count, r in parts(rows, mr)
    ) * (1 + 0.01 * (len(parts(rows, mr)) - 1))


def _weights(contraction: WindowContraction) -> Table:
    """One number for a place, so that equal distances are equal on every axis."""
    extents = [axis.extent for axis in contraction.image.axes]
    return np.cumprod([1, *(2 * extent + 1 for extent in extents[:0:-1])])[::-1].astype(np.int64)


def _box(shape: _Shape, entries: int, down: int, channels: int) -> tuple[int, ...]:
    block = shape.places[:, : entries * shape.height * shape.width]
    box = [int(extent) + 1 for extent in np.ptp(block, axis=1)]
    box[shape.channel] = channels
    box[shape.window[0]] = down * _TILE + _WINDOW - 1
    box[shape.window[1]] = shape.across * _TILE + _WINDOW - 1
    return tuple(box)


def _rows_and_steps(shape: _Shape, tiles: Number, channels: Number) -> tuple[Number, Number]:
    return (tiles, channels) if shape.by_places else (channels, tiles)


def _all_rows_and_steps(shape: _Shape) -> tuple[int, int]:
    return _rows_and_steps(shape, shape.outer * shape.down * shape.across, shape.channels)


def _costs(
    contraction: WindowContraction, target: VectorTarget, shape: _Shape, grids: list[_Grid]
) -> tuple[Slots, Flags]:
    """What grids cost summed over the thread counts a machine may have; all at once, since there are thousands.

    Also whether a transformed column of B is kept for the chunks after.
    """
    lanes, size = target.lanes(contraction.element), element_bits(contraction.element) // 8
    entries, down, block, nc, mr, vectors = np.array(grids, dtype=np.int64).T
    tiles = entries * down * shape.across
    rows, steps = _rows_and_steps(shape, tiles, block)
    all_rows, all_steps = _all_rows_and_steps(shape)
    m_blocks, n_blocks, k_blocks = -(-all_rows // rows), -(-contraction.n // nc), -(-all_steps // steps)
    nr = vectors * lanes
    padded_n, channels = -(-nc // nr) * nr, -(-block // lanes) * lanes
    boxes = {pair: prod(_box(shape, *pair, 1)) for pair in {(grid.entries, grid.down) for grid in grids}}
    box_vectors = np.array([boxes[grid.entries, grid.down] for grid in grids]) * channels / lanes
    transformed, sums, right = tiles * channels, rows * padded_n, steps * padded_n
    used = (box_vectors * lanes + _PRODUCTS * (transformed + sums + right)) * size
    crowded = 1.0 + np.maximum(0.0, used / (0.85 * (target.l2_bytes or DEFAULT_L2)) - 1.0) * 0.5
    column_tiles = -(-nc // nr)
    calls = -(-rows // mr) * column_tiles * k_blocks
    sweeps = np.array([_sweep(*tile) for tile in zip(rows.tolist(), mr.tolist(), vectors.tolist(), strict=True)])
    products = all_steps * column_tiles * sweeps
    products += calls * (_CALL_SLOTS + 2.0 * np.minimum(mr, rows) * vectors)
    chunk = _PRODUCTS * products * crowded + _CHUNK_SLOTS
    chunk += k_blocks * (transformed / lanes * _IMAGE_SLOTS + box_vectors * _TURN_SLOTS)
    chunk += sums / lanes * _RESULT_SLOTS
    mc = rows * (_TILE**2 if shape.by_places else _WINDOW**2)
    chunk += finishing_slots(contraction, mc, nc, lanes)
    pack = nc / lanes * (all_steps * _RIGHT_SLOTS + contraction.k * packing_slots(contraction, shape.by_places))
    keep = (all_rows > rows) & (_PRODUCTS * all_steps * padded_n * size <= max(target.l2_bytes, target.l3_bytes // 8))
    slots = chunk * m_blocks * n_blocks
    return over_threads(contraction.batch, slots, (m_blocks, n_blocks), keep, chunk, pack), keep


def _plan(
    contraction: WindowContraction, target: VectorTarget, shape: _Shape, grid: _Grid, keep: bool, slots: float
) -> FilterPlan:
    lanes, size = target.lanes(contraction.element), element_bits(contraction.element) // 8
    rows, steps = _rows_and_steps(shape, grid.entries * grid.down * shape.across, grid.channels)
    all_rows, all_steps = _all_rows_and_steps(shape)
    places = grid.entries * (shape.height if grid.down == shape.down else grid.down * _TILE) * shape.width
    mc, kc = (places, grid.channels * _WINDOW**2) if shape.by_places else (grid.channels * _WINDOW**2, places)
    finish_rows = gcd(contraction.finish_rows, mc) if contraction.finish_rows else 0
    padded_channels = -(-grid.channels // lanes) * lanes
    box = _box(shape, grid.entries, grid.down, grid.channels)
    strides = _box_strides(shape, box, padded_channels, size)
    inside = shape.places[:, :places] - shape.places[:, :1]
    origin = inside.min(axis=1)
    corners, members = _tiles(shape, grid, places)
    weights = np.array(strides, dtype=np.int64)
    patches = tuple(int(p) for p in weights @ (inside[:, corners] - origin[:, None]))
    taps_of_channels = tuple(
        tuple(range(c * _WINDOW**2, (c + 1) * _WINDOW**2)) for c in range(grid.channels)
    )
    dropped = mc + lanes
    in_places = tuple(tuple(places if m is None else m for m in tile) for tile in members)
    results = tuple(tuple(dropped if m is None else m for m in tile) for tile in members)
    nr, line = grid.vectors * lanes, max(1, LINE // size)
    padded_n = -(-grid.nc // nr) * nr
    # Planes and rows begin a cache line further than powers of two, so that they do not fall into one set of a cache.
    row_stride = padded_n + lanes
    tiles = len(patches)
    image_plane, sum_plane = _spread(tiles * padded_channels, line), _spread(rows * padded_n, line)
    right_plane = _spread(steps * padded_n, line)
    box_offset = LINE if keep else 0
    image_offset = aligned(box_offset + _extent(box, strides) * size)
    results_offset, results_bytes = box_offset, (dropped + 1) * row_stride * size
    sums_offset = aligned(max(image_offset + _PRODUCTS * image_plane * size, results_offset + results_bytes))
    turned_offset = aligned(sums_offset + _PRODUCTS * sum_plane * size)
    raw_offset = aligned(turned_offset + turned_bytes(finish_rows, lanes, size))
    b_offset = aligned(raw_offset + (kc + 1) * nr * size)
    k_blocks = -(-all_steps // steps) if keep else 1
    m_blocks, n_blocks = -(-all_rows // rows), -(-contraction.n // grid.nc)
    registers = grid.mr * grid.vectors
    blocking = Blocking(
        lanes=lanes, mr=grid.mr, nr=nr, mc=mc, nc=grid.nc, kc=kc, batches=1,
        chunks=contraction.batch * m_blocks * n_blocks, direct_a=True, direct_b=False, a_panel=(0, 0), a_block=False,
        keep_b=keep, unroll=1 if registers >= 16 else 2 if registers >= 8 else 4, a_offset=box_offset,
        tile_offset=results_offset, b_offset=b_offset,
        scratch_bytes=aligned(b_offset + k_blocks * _PRODUCTS * right_plane * size),
    )  # fmt: skip
    extents = np.array([axis.extent for axis in contraction.image.axes])
    covered = not (shape.height % _TILE or shape.width % _TILE) and bool(np.all(np.array(box) <= extents))
    return FilterPlan(
        blocking=blocking, by_places=shape.by_places, rows=rows, steps=steps, all_rows=all_rows, all_steps=all_steps,
        channel=shape.channel, box=box, strides=strides, origin=tuple(int(o) for o in origin),
        window=(strides[shape.window[0]], strides[shape.window[1]]), covered=covered, patches=patches,
        taps=taps_of_channels if shape.by_places else in_places,
        results=results if shape.by_places else taps_of_channels,
        image_plane=image_plane, right_plane=right_plane, sum_plane=sum_plane, channel_step=padded_channels,
        row_stride=row_stride,
        finish_rows=finish_rows, image_offset=image_offset,
        sums_offset=sums_offset, results_offset=results_offset, turned_offset=turned_offset, raw_offset=raw_offset,
        slots=slots,
    )  # fmt: skip


def _spread(count: int, line: int) -> int:
    """At least `count` elements, an odd number of cache lines."""
    lines = -(-count // line)
    return (lines + (lines % 2 == 0)) * line


def _extent(box: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The elements from the first of a box to behind its last, lines of channels in full."""
    largest = max(range(len(box)), key=lambda a: (strides[a], box[a]))
    return strides[largest] * box[largest]


def _box_strides(shape: _Shape, box: tuple[int, ...], channels: int, size: int) -> tuple[int, ...]:
    strides, stride = [0] * len(box), channels
    strides[shape.channel] = 1
    others = [a for a in range(len(box)) if a not in (shape.channel, *shape.window)]
    for axis in (shape.window[1], shape.window[0], *reversed(others)):
        if axis != shape.window[1] and stride * size % (8 * LINE) == 0:
            stride += max(1, LINE // size)
        strides[axis] = stride
        stride *= box[axis]
    return tuple(strides)


def _tiles(shape: _Shape, grid: _Grid, places: int) -> tuple[list[int], list[list[int | None]]]:
    """The tiles of a block: the place each begins at, and its places row by row, None for one that does not exist."""
    corners: list[int] = []
    members: list[list[int | None]] = []
    height = places // (grid.entries * shape.width)
    for entry in range(grid.entries):
        for down in range(grid.down):
            for across in range(shape.across):
                places_of: list[int | None] = []
                for y in range(down * _TILE, (down + 1) * _TILE):
                    for x in range(across * _TILE, (across + 1) * _TILE):
                        exists = y < height and x < shape.width
                        places_of.append((entry * height + y) * shape.width + x if exists else None)
                corners.append((entry * height + down * _TILE) * shape.width + across * _TILE)
                members.append(places_of)
    return corners, members
