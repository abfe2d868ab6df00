"""Plans a contraction: tile, cache blocks, parallel chunks and scratch, from shapes and target alone (no code here).

The loop nest the plan sizes is BLIS's (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
Functionality", ACM TOMS 2015) with its two innermost block loops exchanged, so that the operand read by broadcasts
stays in the first-level cache, or passes through it line by line, and the other one, read by whole vectors, streams
from the second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd, lcm

from .vector_target import VectorTarget, element_bits

# Costs are counted in slots: the time of one vector multiply-add. They steer choices only; no result depends on them.
_LATENCY_SLOTS = 10  # independent multiply-adds in flight that keep the units busy (latency 4, two units, some slack)
_OPERAND_SLOTS = 0.15  # what a load inside a tile costs although it overlaps with arithmetic
_SPARE_REGISTERS, _CROWDED = 3, 1.03  # with fewer left for elements of A, these wait for one another
_TILE_SLOTS = 24  # call, loop start and loop end of one micro-kernel run
_CHUNK_SLOTS = 1000  # claiming one chunk and starting its loops
_SMALLEST_CHUNK_SLOTS = 32768  # below this (about ten microseconds) waking another thread costs more than it gives
_COPY_SLOTS = 10.0  # packing a vector whose lanes lie together in memory, outer caches included
_COLUMN_SLOTS = 16.0  # packing the rows of a tile at one k, each k in a line (and often a page) of its own
_TRANSPOSE_SLOTS = 12.0  # packing a vector by a transpose in registers
_COMPUTE_SLOTS = 8.0  # packing a vector through a callback
_LINE_SLOTS = 24.0  # the same in short lines, a line for each k
_STREAM_SLOTS = 3.0  # the pace at which lines of a packed B come from the second-level cache
_STRIDE_SLOTS = 5.0  # the same for lines of B read in place, row after row
_REREAD_SLOTS = 0.15  # what reading a vector of B in place costs although it overlaps with arithmetic
_CROSSING_SLOTS = 0.25  # the same if rows of B do not start at a multiple of a vector
_COLLIDING_SLOTS = 1.0  # the same if the rows evict each other from the second-level cache
_FETCH_SLOTS = 1.5  # bringing a vector of A or B to the core that runs a chunk
_COVERING_BYTES = 1024  # a k step that multiplies this much hides fetching a line of A from the second-level cache
_CACHE_WAYS = 8  # associativity assumed of the caches
_SMALLEST_PAGE = 4096  # no first-level cache has longer ways, as it is indexed before addresses are translated
_BUSY_TILE = 16  # multiply-adds of a k step that hide the loop around them; smaller tiles unroll k
_MOST_CHUNKS = 512
_THREADS = (1, 2, 4, 8, 16, 32, 64)  # thread counts a grid of chunks should serve; the plan never learns the real one,
_THREADS_PER_CORE = 2  # but on a machine whose cores are known stops here
_TAIL = 0.25  # of a chunk: how long threads wait for the last one, as they neither start together nor run equally fast
_ALIGNMENT = 64  # bytes of a cache line, and what scratch is aligned to
_DEFAULT_L1, _DEFAULT_L2 = 16384, 131072  # where the target does not know its caches


@dataclass(frozen=True)
class Operand:
    """How the elements of A (indices m, k) or B (indices k, n) of each batch can be had.

    strides: distances in elements along its two indices if the operand is plain memory of the contraction's element
             type, else None: its values are computed, and a pack callback writes them
    fastest: for computed operands, which of the two indices (0 or 1) the callback likes to run innermost
    """

    strides: tuple[int, int] | None = None
    fastest: int = 1

    @property
    def contiguous(self) -> int | None:
        """The index (0 or 1) whose neighbours are neighbours in memory (or cheap together), None if neither."""
        if self.strides is None:
            return self.fastest
        return 1 if self.strides[1] == 1 else 0 if self.strides[0] == 1 else None


@dataclass(frozen=True)
class Contraction:
    """C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n], accumulated and packed as `element`.

    `column_sums`: the sums over k of B[b, k, n] are wanted too.
    `depth_step`: blocks of k start at multiples of it, for callbacks that want whole vectors along k.
    Sizes may be 0 (k == 0 finishes zeros). Vectors run along n: callers swap A and B so that n is the better one.
    """

    batch: int
    m: int
    n: int
    k: int
    element: str = "float32"
    a: Operand = Operand()
    b: Operand = Operand()
    depth_step: int = 1
    column_sums: bool = False

    def __post_init__(self) -> None:
        element_bits(self.element)
        if min(self.batch, self.m, self.n, self.k) < 0:
            sizes = (self.batch, self.m, self.n, self.k)
            raise ValueError(f"contraction_blocking.Contraction: got sizes {sizes}, expected none below 0")


@dataclass(frozen=True)
class Blocking:
    """The plan of one contraction; every number is fixed at compile time.

    lanes:     elements of one vector (the target's, or fewer where n is narrower)
    mr, nr:    rows and columns of a micro-kernel tile; nr is a multiple of lanes
    mc, nc:    rows and columns of a chunk's block of C: multiples of mr and nr, or the whole m and n
    kc:        k steps between two visits of a tile; a multiple of the unrolling
    batches:   batch entries a chunk does
    chunks:    parallel tasks; chunk = (batch block * n blocks + n block) * m blocks + m block
    direct_a, direct_b: whether the micro-kernel reads the operand in place instead of a packed copy
    a_panel:   distances of rows and of k steps in a packed panel of A
    a_block:   whether a panel of A is a whole block of mc rows, computed in vectors along m, instead of one tile's
    keep_b:    whether the chunks that one thread runs share a packed B (all of k is then packed at once)
    a_offset, tile_offset, b_offset, sums_offset, scratch_bytes: layout of the scratch memory: what the packed B is of
               (if it is kept), A panel, C tiles, packed B, column sums (if there are any)
    """

    lanes: int
    mr: int
    nr: int
    mc: int
    nc: int
    kc: int
    batches: int
    chunks: int
    direct_a: bool
    direct_b: bool
    a_panel: tuple[int, int]
    a_block: bool
    keep_b: bool
    unroll: int
    a_offset: int
    tile_offset: int
    b_offset: int
    scratch_bytes: int
    sums_offset: int = 0


@dataclass(frozen=True)
class _Tile:
    """A candidate register tile, whether it reads B in place, and the slots that all tiles of one batch entry take."""

    lanes: int
    rows: int
    vectors: int
    direct_b: bool
    slots: float


@cache
def plan(
    contraction: Contraction,
    target: VectorTarget,
    direct_a: bool | None = None,
    direct_b: bool | None = None,
) -> Blocking:
    """Choose tile, blocks and chunks.

    direct_a, direct_b: force reading in place (True) or packing (False); None lets the costs decide.
    Raises ValueError if an operand that is not plain memory (for B: with n contiguous) is forced to be direct.
    """
    possible_a, possible_b = readable_in_place(contraction)
    for name, wanted, possible in (("a", direct_a, possible_a), ("b", direct_b, possible_b)):
        if wanted and not possible:
            operand = contraction.a if name == "a" else contraction.b
            expected = "plain memory" if name == "a" else "plain memory with n contiguous"
            raise ValueError(f"contraction_blocking.plan: got direct_{name}=True for {operand}, expected {expected}")
    ways = [False, True] if direct_b is None and possible_b else [bool(direct_b)]
    tile = _choose_tile(contraction, target, ways)
    in_place_a = _prefer_direct_a(contraction, target, tile) if direct_a is None else direct_a
    return _block(contraction, target, tile, possible_a and in_place_a)


def readable_in_place(contraction: Contraction) -> tuple[bool, bool]:
    """Whether the micro-kernel could read A, and B, without a packed copy."""
    a, b = contraction.a.strides, contraction.b.strides
    return a is not None, b is not None and (b[1] == 1 or contraction.n <= 1)


def comes_in_lines(a: Operand) -> bool:
    """Whether rows of A are runs of memory: the micro-kernel then asks for the lines of the next tile's rows early."""
    return a.strides is not None and a.strides[1] == 1


def _parts(total: int, block: int) -> list[tuple[int, int]]:
    """(how many, of what size): the blocks a dimension falls into, the smaller last one separately."""
    parts = [(total // block, block), (1 if total % block else 0, total % block)]
    return [(count, size) for count, size in parts if count]


def _choose_tile(contraction: Contraction, target: VectorTarget, ways: Sequence[bool]) -> _Tile:
    """The register tile, and the way to read B (in place or not), with the least total work on this m and n."""
    m, n = max(1, contraction.m), max(1, contraction.n)
    target_lanes = lanes = target.lanes(contraction.element)
    in_vectors = _computed_along_m(contraction)
    while lanes > 1 and lanes // 2 >= n:
        lanes //= 2
    n_vectors = -(-n // lanes)
    best: tuple[float, _Tile] | None = None
    # One register holds the broadcast element of A, and without a fused multiply-add another one the product.
    usable = target.vector_registers - 1 - (not target.has_fma)
    most_rows = min(m, _rows_without_collision(contraction, target))
    for direct_b in ways:
        for vectors in range(1, min(n_vectors, max(1, usable // 2)) + 1):
            for rows in range(1, min(most_rows, max(1, (usable - vectors) // vectors)) + 1):
                if in_vectors and rows < m and lcm(rows, target_lanes) > 4 * rows:
                    continue  # few blocks of such tiles would start at whole vectors
                tile = _with_slots(contraction, target, _Tile(lanes, rows, vectors, direct_b, 0.0))
                # Every further shape of tile is another micro-kernel to compile.
                shapes = len(_parts(m, rows)) * len(_parts(n_vectors, vectors))
                pack = 0.0 if direct_b else _pack_b_slots(contraction.b, lanes) * n * max(1, contraction.k)
                cost = tile.slots * (1 + 0.01 * (shapes - 1)) + pack
                if best is None or cost < best[0]:
                    best = cost, tile
    assert best is not None
    return best[1]


def _with_slots(contraction: Contraction, target: VectorTarget, tile: _Tile) -> _Tile:
    """The tile with its slots, waste at the edges included."""
    m, n, k = max(1, contraction.m), max(1, contraction.n), max(1, contraction.k)
    slots = 0.0
    for down, rows in _parts(m, tile.rows):
        for along, vectors in _parts(-(-n // tile.lanes), tile.vectors):
            once = _TILE_SLOTS + 2 * rows * vectors
            slots += down * along * (k * _step_slots(contraction, target, tile, rows, vectors) + once)
    return replace(tile, slots=slots)


def _step_slots(contraction: Contraction, target: VectorTarget, tile: _Tile, rows: int, vectors: int) -> float:
    """Slots of one k step of a tile: multiply-adds, or what feeds them if that is slower, or too few in flight."""
    slots = float(max(rows * vectors, rows + vectors, _LATENCY_SLOTS))
    vector_bytes = tile.lanes * _bytes(contraction)
    if contraction.m > tile.rows and contraction.k * vectors * vector_bytes > (target.l1_bytes or _DEFAULT_L1) // 2:
        lines = vectors * vector_bytes / _ALIGNMENT
        slots = max(slots, lines * (_STRIDE_SLOTS if tile.direct_b else _STREAM_SLOTS))
    slots += _OPERAND_SLOTS * (rows + vectors)
    if rows * vectors + vectors > target.vector_registers - _SPARE_REGISTERS:
        slots *= _CROWDED
    return slots + vectors * _in_place_slots(contraction, target, tile) if tile.direct_b else slots


def _in_place_slots(contraction: Contraction, target: VectorTarget, tile: _Tile) -> float:
    """Slots that a vector of B read in place costs each tile of rows beyond one in a panel."""
    stride = (contraction.b.strides or (0, 0))[0]
    slots = _REREAD_SLOTS + (_CROSSING_SLOTS if stride % tile.lanes else 0.0)
    if min(contraction.k, _kc(contraction, target, tile)) > _l2_rows(stride, contraction, target):
        slots += _COLLIDING_SLOTS
    return slots


def _computed_along_m(contraction: Contraction) -> bool:
    """Whether A is computed, and vectors of it run along m."""
    return contraction.a.strides is None and contraction.a.contiguous == 0


def _rows_without_collision(contraction: Contraction, target: VectorTarget) -> int:
    """Rows of A a tile can read side by side before they need more lines of one first-level set than it has."""
    strides = contraction.a.strides
    if strides is None or strides[1] != 1:
        return target.vector_registers
    return _CACHE_WAYS * _distinct_lines(strides[0], contraction.element, _SMALLEST_PAGE)


def _distinct_lines(stride: int, element: str, way: int) -> int:
    """How many addresses `stride` elements apart fall into different sets of a cache with ways of `way` bytes."""
    step = stride * element_bits(element) // 8
    return way // max(gcd(step, way), _ALIGNMENT) if step else way // _ALIGNMENT


def _prefer_direct_a(contraction: Contraction, target: VectorTarget, tile: _Tile) -> bool:
    """Broadcasts from memory cost the same as from a panel, unless the lines they touch do not stay in the caches."""
    if contraction.a.strides is None or contraction.n <= 3 * tile.vectors * tile.lanes:
        return True
    if contraction.a.contiguous != 0:
        return contraction.a.contiguous == 1
    if tile.rows * tile.vectors * tile.lanes * _bytes(contraction) >= _COVERING_BYTES:
        return True
    return _kc(contraction, target, tile) <= _l2_rows(contraction.a.strides[1], contraction, target) // 2


def _l2_rows(stride: int, contraction: Contraction, target: VectorTarget) -> int:
    """How many addresses `stride` elements apart the second-level cache can hold."""
    way = (target.l2_bytes or _DEFAULT_L2) // _CACHE_WAYS
    return _CACHE_WAYS * _distinct_lines(stride, contraction.element, way)


def _kc(contraction: Contraction, target: VectorTarget, tile: _Tile) -> int:
    """The k block: a panel of A fills half of the first-level cache, and all k blocks are about equally long.

    A that comes line by line needs no place there; then a panel of B fills half of the second-level one.
    """
    if comes_in_lines(contraction.a):
        limit = (target.l2_bytes or _DEFAULT_L2) // 2 // (tile.vectors * tile.lanes * _bytes(contraction))
    else:
        row_bytes = tile.rows * _bytes(contraction) * _overfetch(contraction, tile)
        limit = int((target.l1_bytes or _DEFAULT_L1) / 2 / row_bytes)
    limit = max(64, limit)
    blocks = max(1, -(-contraction.k // limit))
    return max(1, _round_up(-(-contraction.k // blocks), lcm(_unroll(tile), contraction.depth_step)))


def _overfetch(contraction: Contraction, tile: _Tile) -> float:
    """How much more of A than its tile of rows comes into the cache: with m contiguous, whole lines at each k."""
    if contraction.a.strides is None or contraction.a.contiguous == 1:
        return 1.0
    return max(1.0, _ALIGNMENT / (tile.rows * _bytes(contraction)))


def _bytes(contraction: Contraction) -> int:
    return element_bits(contraction.element) // 8


def _unroll(tile: _Tile) -> int:
    """k steps of one turn of the micro-kernel's loop: a power of two, 1 if the tile is big enough to hide the loop."""
    unroll = 1
    while unroll * tile.rows * tile.vectors < _BUSY_TILE and unroll < 4:
        unroll *= 2
    return unroll


def _block(contraction: Contraction, target: VectorTarget, tile: _Tile, direct_a: bool) -> Blocking:
    size = _bytes(contraction)
    mr, nr = tile.rows, tile.vectors * tile.lanes
    l2 = target.l2_bytes or _DEFAULT_L2
    m, n, k, kc = max(1, contraction.m), max(1, contraction.n), contraction.k, _kc(contraction, target, tile)
    # nc: what one k block visits of B fills half of the second-level cache, a quarter if lines of A pass through it.
    nc_limit = max(nr, l2 // (4 if comes_in_lines(contraction.a) else 2) // (kc * size) // nr * nr)
    # mc: tiles that wait for the next k block fill a quarter of it.
    mc_limit = max(mr, l2 // 4 // (min(nc_limit, _round_up(n, nr)) * size) // mr * mr) if k > kc else m
    full_lanes = target.lanes(contraction.element)
    a_block = _computed_along_m(contraction) and full_lanes > 1
    if a_block:  # and rows of A computed together a quarter of it as well
        mc_limit = min(mc_limit, max(mr, l2 // 4 // (kc * size) // mr * mr))
    mc, nc, keep_b = _choose_grid(contraction, target, tile, (mc_limit, nc_limit), direct_a)
    m_blocks, n_blocks = -(-m // mc), -(-n // nc)
    batches = 1
    if m_blocks == n_blocks == 1 and contraction.batch > 1:
        wanted = min(contraction.batch, max(1, int(_SMALLEST_CHUNK_SLOTS // tile.slots)))
        batches = -(-contraction.batch // -(-contraction.batch // wanted))
    chunks = -(-contraction.batch // batches) * m_blocks * n_blocks if contraction.m and contraction.n else 0
    rows_together = contraction.a.contiguous == 0
    # Rows of a panel are padded by a cache line, so that they do not collide as rows of the source may.
    a_panel = (kc + _ALIGNMENT // size, 1)
    if rows_together:
        a_panel = (1, _round_up(mc, full_lanes) if a_block else mr)
    padded_n = _round_up(nc, nr)
    a_bytes = 0 if direct_a else (a_panel[1] * kc if rows_together else mr * a_panel[0]) * size
    tile_bytes = (_round_up(mc, mr) * padded_n if k > kc else mr * nr) * size
    b_bytes = 0 if tile.direct_b else padded_n * (k if keep_b else min(k, kc)) * size
    a_offset = _ALIGNMENT if keep_b else 0
    tile_offset = _round_up(a_offset + a_bytes, _ALIGNMENT)
    b_offset = _round_up(tile_offset + tile_bytes, _ALIGNMENT)
    sums_offset = _round_up(b_offset + b_bytes, _ALIGNMENT)
    sums_bytes = padded_n * size if contraction.column_sums else 0
    return Blocking(
        lanes=tile.lanes,
        mr=mr,
        nr=nr,
        mc=mc,
        nc=nc,
        kc=kc,
        batches=batches,
        chunks=chunks,
        direct_a=direct_a,
        direct_b=tile.direct_b,
        a_panel=a_panel,
        a_block=a_block,
        keep_b=keep_b,
        unroll=_unroll(tile),
        a_offset=a_offset,
        tile_offset=tile_offset,
        b_offset=b_offset,
        scratch_bytes=_round_up(sums_offset + sums_bytes, _ALIGNMENT) if chunks else 0,
        sums_offset=sums_offset,
    )


def _choose_grid(
    contraction: Contraction,
    target: VectorTarget,
    tile: _Tile,
    limits: tuple[int, int],
    direct_a: bool,
) -> tuple[int, int, bool]:
    """(mc, nc, keep_b) with the least time summed over the thread counts a machine may have."""
    m, n, k = max(1, contraction.m), max(1, contraction.n), max(1, contraction.k)
    batch, size = max(1, contraction.batch), _bytes(contraction)
    nr = tile.vectors * tile.lanes
    b_slots = 0.0 if tile.direct_b else _pack_b_slots(contraction.b, tile.lanes)
    most_chunks = min(_MOST_CHUNKS, max(1.0, batch * tile.slots // _SMALLEST_CHUNK_SLOTS))
    overfetch = _overfetch(contraction, tile) if direct_a else 1.0
    kept_limit = max(target.l2_bytes, target.l3_bytes // 8)
    best: tuple[float, int, int, bool] | None = None
    lanes = target.lanes(contraction.element)
    for mc in _block_heights(contraction, tile, lanes, limits[0]):
        a_slots = 0.0 if direct_a else _pack_a_slots(contraction, tile, lanes, mc)
        for nc in _block_sizes(n, nr, limits[1]):
            m_blocks, n_blocks = -(-m // mc), -(-n // nc)
            chunks = batch * m_blocks * n_blocks
            keep_b = not tile.direct_b and m_blocks > 1 and k * _round_up(nc, nr) * size <= kept_limit

            def chunk_slots(rows: float, columns: float, a_slots: float = a_slots) -> float:
                fetch = (overfetch * rows + columns) * k * _FETCH_SLOTS / tile.lanes
                return tile.slots * rows / m * columns / n + _CHUNK_SLOTS + a_slots * rows * k + fetch

            mean, largest = chunk_slots(m / m_blocks, n / n_blocks), chunk_slots(min(mc, m), min(nc, n))
            pack_b = b_slots * n / n_blocks * k
            total = 0.0
            for threads in _thread_counts(target):
                turns = -(-chunks // threads)
                packs = min(turns, -(-chunks // m_blocks)) if keep_b else turns
                # A thread that does many chunks does some of every size; the last may be a large one.
                tail = largest - mean + (_TAIL * largest if threads > 1 else 0.0)
                total += (turns * mean + tail + packs * pack_b) * min(threads, most_chunks)
            if chunks > max(batch, most_chunks):
                total *= chunks / max(batch, most_chunks)
            if best is None or total < best[0]:
                best = (total, mc, nc, keep_b)
    assert best is not None
    return best[1:]


def _thread_counts(target: VectorTarget) -> Sequence[int]:
    """Thread counts worth a thought on this machine."""
    return [threads for threads in _THREADS if not target.cores or threads <= _THREADS_PER_CORE * target.cores]


def _block_sizes(total: int, tile: int, limit: int) -> Iterator[int]:
    """Block sizes worth trying: whole tiles, evenly many in each block, at most `limit` (but one tile at least)."""
    tiles = -(-total // tile)
    tried: set[int] = set()
    blocks = 1
    while blocks <= tiles:
        count = -(-tiles // blocks)
        size = min(count * tile, total)
        if count not in tried and (size <= limit or count == 1):
            tried.add(count)
            yield size
        blocks = max(blocks + 1, blocks * 9 // 8)
    if not tried:
        yield min(tile, total)


def _block_heights(contraction: Contraction, tile: _Tile, lanes: int, limit: int) -> Iterator[int]:
    """Values of mc worth trying; where A is computed in vectors along m, those whose blocks start at whole vectors."""
    m = max(1, contraction.m)
    step = tile.rows
    if _computed_along_m(contraction) and lcm(step, lanes) <= limit:
        step = lcm(step, lanes)
    return _block_sizes(m, step, limit)


def _pack_a_slots(contraction: Contraction, tile: _Tile, lanes: int, mc: int) -> float:
    """Slots to pack one element of A: vectors along m or k if it is computed, short runs of rows, or one by one."""
    if contraction.a.strides is not None:
        return _COLUMN_SLOTS / tile.rows if contraction.a.contiguous == 0 else 1.0
    if contraction.a.contiguous == 1:
        return _COMPUTE_SLOTS / lanes
    # The last vector of a block is masked unless all blocks start at whole vectors.
    partial = 2 * lanes if mc % lanes and mc < contraction.m else 0
    return _LINE_SLOTS / lanes * (_round_up(mc, lanes) + partial) / mc


def _pack_b_slots(operand: Operand, lanes: int) -> float:
    """Slots to pack one element of B."""
    if operand.strides is None:
        return _COMPUTE_SLOTS / lanes
    if operand.contiguous is None:
        return 1.0
    return (_COPY_SLOTS if operand.contiguous == 1 else _TRANSPOSE_SLOTS) / lanes


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
