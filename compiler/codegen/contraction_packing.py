"""Packs operands of a contraction into panels: vector copies, transposes in registers, or whatever computes them."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from ..schedule.loop_ir import Origin
from .constants import lane_order
from .contraction_blocking import Blocking, Contraction
from .control_flow import counted_loop, index, offset, smaller
from .locations import located
from .micro_kernel import element_type, load_vector
from .vector_target import element_bits

_SEGMENT_BYTES = 16  # most instruction sets shuffle freely only within 128 bits; longer moves go by whole segments

_LARGEST_SQUARE = 16  # a transpose of lanes x lanes takes lanes * log2(lanes) shuffles: beyond this, too much code


@dataclass(frozen=True)
class Memory:
    """An operand in plain memory with the strides its `Operand` declares.

    pointer(builder, batch) -> ptr to the operand's element (0, 0) of batch entry `batch` (an i64 value).
    """

    pointer: Callable[[ir.IRBuilder, ir.Value], ir.Value]
    origin: Origin = None


@dataclass(frozen=True)
class Packed:
    """An operand whose values are computed while it is packed.

    pack(builder, destination, batch, row, rows, column, columns) emits code that writes the part
    [row, row + rows) x [column, column + columns) of the operand's matrix; all but the first two are i64 values.

    For A the rows are m and the columns k: 1 <= rows <= mr, or mc with a_block, and element (i, p) goes to
        destination[i * blocking.a_panel[0] + p * blocking.a_panel[1]];
    rows that are not asked for need not be written.
    For B the rows are k and the columns n: 1 <= columns <= nc, and element (p, j) of the part goes to
        destination[(j // nr) * rows * nr + p * nr + j % nr];
    the last panel's columns past `columns` must hold some ordinary number (zero), as they are multiplied and dropped.
    Destinations are aligned to a vector (A's when its rows are together, B's always).
    """

    pack: Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value], None]
    origin: Origin = None


def _bytes(contraction: Contraction) -> int:
    return element_bits(contraction.element) // 8


def pack_memory_a(
    builder: ir.IRBuilder,
    contraction: Contraction,
    blocking: Blocking,
    source: ir.Value,
    destination: ir.Value,
    rows: ir.Value,
    k_count: ir.Value,
) -> None:
    """Copy rows x k_count elements at `source` into A's panel: destination[i * a_panel[0] + p * a_panel[1]]."""
    strides = contraction.a.strides or (0, 0)
    scalar = element_type(contraction.element)
    row_step, k_step = blocking.a_panel
    if contraction.a.contiguous == 0:
        _copy_columns(builder, contraction, blocking, source, destination, rows, k_count)
        return
    with counted_loop(builder, 0, rows, name="pack.a") as row:
        from_row = offset(builder, source, scalar, (row, strides[0]))
        to_row = offset(builder, destination, scalar, (row, row_step))
        _copy_strided(builder, scalar, from_row, strides[1], to_row, k_step, k_count)


def _copy_columns(
    builder: ir.IRBuilder,
    contraction: Contraction,
    blocking: Blocking,
    source: ir.Value,
    destination: ir.Value,
    rows: ir.Value,
    k_count: ir.Value,
) -> None:
    """A panel from memory with m contiguous: all rows of one k step at once, as a vector of just that length."""
    scalar, size = element_type(contraction.element), _bytes(contraction)
    stride = (contraction.a.strides or (0, 0))[1]

    def copy(count: int) -> None:
        with counted_loop(builder, 0, k_count, name="pack.k") as p:
            from_column = offset(builder, source, scalar, (p, stride))
            value = builder.load(from_column, typ=ir.VectorType(scalar, count), align=size)
            builder.store(value, offset(builder, destination, scalar, (p, blocking.a_panel[1])), align=size)

    _for_each_size(builder, contraction.m, blocking.mr, rows, copy)


def _for_each_size(builder: ir.IRBuilder, total: int, tile: int, size: ir.Value, emit: Callable[[int], None]) -> None:
    """Emit code for whole tiles and for the smaller last one, whichever occur, and branch on `size`."""
    edge = total % tile
    if edge == 0 or total < tile:
        emit(edge or tile)
        return
    with builder.if_else(builder.icmp_signed("==", size, index(tile))) as (whole, partial):
        with whole:
            emit(tile)
        with partial:
            emit(edge)


def _copy_strided(
    builder: ir.IRBuilder,
    scalar: ir.Type,
    source: ir.Value,
    source_stride: int,
    destination: ir.Value,
    destination_stride: int,
    count: ir.Value,
) -> None:
    """Copy `count` elements one by one."""
    with counted_loop(builder, 0, count, name="copy.one") as at:
        value = builder.load(offset(builder, source, scalar, (at, source_stride)), typ=scalar)
        builder.store(value, offset(builder, destination, scalar, (at, destination_stride)))


def pack_b(
    builder: ir.IRBuilder,
    contraction: Contraction,
    blocking: Blocking,
    b: Memory | Packed,
    destination: ir.Value,
    batch: ir.Value,
    k_range: tuple[ir.Value, ir.Value],
    n_range: tuple[ir.Value, ir.Value],
) -> None:
    """Pack a part of B, wherever its elements come from."""
    with located(builder, b.origin):
        if isinstance(b, Packed):
            b.pack(builder, destination, batch, *k_range, *n_range)
            return
        pack_memory_b(builder, contraction, blocking, b.pointer(builder, batch), destination, k_range, n_range)


def pack_memory_b(
    builder: ir.IRBuilder,
    contraction: Contraction,
    blocking: Blocking,
    source: ir.Value,
    destination: ir.Value,
    k_range: tuple[ir.Value, ir.Value],
    n_range: tuple[ir.Value, ir.Value],
) -> None:
    """Pack the part of B (`source` is its element (0, 0)) into panels [ceil(n / nr)][k][nr].

    Columns past the edge repeat the last one or are zero.
    """
    strides = contraction.b.strides or (0, 0)
    scalar = element_type(contraction.element)
    (k_start, k_count), (n_start, n_count) = k_range, n_range
    first = offset(builder, source, scalar, (k_start, strides[0]), (n_start, strides[1]))
    with counted_loop(builder, 0, n_count, blocking.nr, name="pack.b") as j:
        panel = offset(builder, destination, scalar, (builder.mul(j, k_count, flags=("nsw",)), 1))
        columns = smaller(builder, builder.sub(n_count, j), blocking.nr)
        from_panel = offset(builder, first, scalar, (j, strides[1]))
        _PanelOfMemory(builder, contraction, blocking, from_panel, panel, k_count, columns).pack()


@dataclass(frozen=True)
class _PanelOfMemory:
    """A panel of B, [k_count][nr], to be packed from memory: `source` is the first of its elements there."""

    builder: ir.IRBuilder
    contraction: Contraction
    blocking: Blocking
    source: ir.Value
    panel: ir.Value
    k_count: ir.Value
    columns: ir.Value

    @property
    def scalar(self) -> ir.Type:
        return element_type(self.contraction.element)

    @property
    def size(self) -> int:
        return _bytes(self.contraction)

    @property
    def strides(self) -> tuple[int, int]:
        return self.contraction.b.strides or (0, 0)

    def pack(self) -> None:
        """In the way that suits how the elements lie."""
        if self.strides[1] == 1:
            self._copy_rows()
        elif self.strides[0] == 1 and 1 < self.blocking.lanes <= _LARGEST_SQUARE:
            self._transpose()
        else:
            self._gather()

    def _at(self, base: ir.Value, *terms: tuple[ir.Value | int, int]) -> ir.Value:
        return offset(self.builder, base, self.scalar, *terms)

    def _copy_rows(self) -> None:
        """From rows with n contiguous: whole vectors, and a masked one at the right edge of B."""
        builder, lanes, size = self.builder, self.blocking.lanes, self.size

        def copy(valid_columns: int) -> None:
            with counted_loop(builder, 0, self.k_count, name="pack.k") as p:
                from_row = self._at(self.source, (p, self.strides[0]))
                to_row = self._at(self.panel, (p, self.blocking.nr))
                for at in range(0, valid_columns, lanes):
                    valid = min(lanes, valid_columns - at)
                    value = load_vector(builder, self._at(from_row, (at, 1)), self.scalar, lanes, valid, size)
                    builder.store(value, self._at(to_row, (at, 1)), align=size * lanes)

        _for_each_size(builder, self.contraction.n, self.blocking.nr, self.columns, copy)

    def _transpose(self) -> None:
        """From columns with k contiguous: squares of lanes x lanes, transposed in registers."""
        builder, lanes, nr, size = self.builder, self.blocking.lanes, self.blocking.nr, self.size
        vector = ir.VectorType(self.scalar, lanes)
        last = builder.sub(self.columns, index(1))
        with counted_loop(builder, 0, self.columns, lanes, name="pack.square") as at:
            # Past the right edge the last column is read again; what it becomes there is never used.
            starts = [
                self._at(self.source, (smaller(builder, builder.add(at, index(lane)), last), self.strides[1]))
                for lane in range(lanes)
            ]
            to_columns = self._at(self.panel, (at, 1))
            whole = builder.and_(self.k_count, index(-lanes))
            with counted_loop(builder, 0, whole, lanes, name="pack.k") as p:
                square = [builder.load(self._at(start, (p, 1)), typ=vector, align=size) for start in starts]
                for row, value in enumerate(transpose_square(builder, square)):
                    builder.store(value, self._at(to_columns, (p, nr), (row * nr, 1)), align=size * lanes)
            with counted_loop(builder, whole, self.k_count, name="pack.rest") as p:
                for lane, start in enumerate(starts):
                    value = builder.load(self._at(start, (p, 1)), typ=self.scalar)
                    builder.store(value, self._at(to_columns, (p, nr), (lane, 1)))

    def _gather(self) -> None:
        """From memory with no useful order: one element at a time, zeros up to a whole vector."""
        builder, nr, (k_stride, n_stride) = self.builder, self.blocking.nr, self.strides
        with counted_loop(builder, 0, self.k_count, name="pack.k") as p:
            from_row = self._at(self.source, (p, k_stride))
            to_row = self._at(self.panel, (p, nr))
            _copy_strided(builder, self.scalar, from_row, n_stride, to_row, 1, self.columns)
            with counted_loop(builder, self.columns, nr, name="pack.zero") as at:
                builder.store(ir.Constant(self.scalar, 0), self._at(to_row, (at, 1)))


def transpose_square(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose n vectors of n lanes: interleaves within 128-bit segments, then exchanges of whole segments.

    Within segments of g lanes, log2(g) rounds of interleaving row i with row i + g / 2 transpose each g x g square;
    the squares then change places as the blocks of a matrix do (Eklundh's algorithm).
    """
    lanes = len(rows)
    scalar = rows[0].type.element
    bits = scalar.width if isinstance(scalar, ir.IntType) else 32 if isinstance(scalar, ir.FloatType) else 64
    segment = min(lanes, max(1, _SEGMENT_BYTES * 8 // bits))
    result: list[ir.Value] = []
    for first in range(0, lanes, segment):
        group = rows[first : first + segment]
        for _ in range(segment.bit_length() - 1):
            group = [
                _interleave(builder, group[i], group[i + segment // 2], segment, high)
                for i in range(segment // 2)
                for high in (False, True)
            ]
        result += group
    distance = segment
    while distance < lanes:
        exchanged = list(result)
        for i in range(lanes):
            if not i & distance:
                low, high = result[i], result[i + distance]
                exchanged[i] = _exchange(builder, low, high, distance, False)
                exchanged[i + distance] = _exchange(builder, low, high, distance, True)
        result = exchanged
        distance *= 2
    return result


def _interleave(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, segment: int, high: bool) -> ir.Value:
    """In each segment: a0 b0 a1 b1 ... of its lower or upper half."""
    lanes, half = a.type.count, segment // 2
    mask = []
    for first in range(0, lanes, segment):
        for i in range(half):
            mask += [first + high * half + i, lanes + first + high * half + i]
    return _shuffle(builder, a, b, mask)


def _exchange(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, distance: int, upper: bool) -> ir.Value:
    """Blocks of `distance` lanes: the even ones of a and b side by side, or the odd ones."""
    lanes = a.type.count
    mask = []
    for lane in range(lanes):
        from_b = bool(lane & distance)
        source = (lane & ~distance) | (distance if upper else 0)
        mask.append(source + lanes * from_b)
    return _shuffle(builder, a, b, mask)


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, mask: list[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, lane_order(mask))
