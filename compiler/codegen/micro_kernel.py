"""The register-tiled inner kernel of the contraction template: one tile of C, all of a k block, nothing but FMAs."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .constants import integer, lane_mask, lane_order
from .control_flow import INDEX, POINTER, index, smaller
from .vector_target import element_bits

_BYTE_BITS = 8
_LINE_BYTES = 64  # of a cache
_FOR_READING, _SECOND_LEVEL, _FIRST_LEVEL, _DATA = 0, 2, 3, 1  # what llvm.prefetch wants to be told
_AHEAD_SLOTS = 768  # multiply-adds of a vector that hide how long memory takes to answer


def element_type(element: str) -> ir.Type:
    """The LLVM scalar type of an accumulator; LLVM integers have no sign, so signed and unsigned share one."""
    bits = element_bits(element)
    if element.startswith("float"):
        return ir.FloatType() if bits == 32 else ir.DoubleType()
    return ir.IntType(bits)


@dataclass(frozen=True)
class MicroKernel:
    """C[rows, vectors * lanes] (+)= A[rows, k] B[k, vectors * lanes]; all strides in elements, all known now.

    tile_stride: distance of two rows of the C tile (in scratch, always whole vectors)
    a_strides:   distances of neighbouring rows and of neighbouring k of A
    b_stride:    distance of neighbouring k of B; along n B is contiguous
    b_aligned:   whether each vector of B starts at a multiple of its own size
    last_lanes:  lanes of the last vector of B that may be read; fewer than `lanes` only if B is read in place
    unroll:      k steps a loop turn; k_remainder tells whether k may not be a multiple of it
    accumulate:  whether sums start from the tile's contents (more than one k block) or from zero
    a_rows:      if A is found by tables instead of strides: distances of its rows from the first; the kernel then takes
                 another argument, i32 distances of each k step from the first
    rows_ahead:  whether to ask for the rows of A that lie behind these, for the next tile, while this one is computed
    source_stride: if B is in memory and its panel is written on the way: distance of neighbouring k there; the kernel
                 then takes another argument, where B is; `last_lanes` of the last vector are read, the whole is written
    """

    element: str
    rows: int
    vectors: int
    lanes: int
    tile_stride: int
    a_strides: tuple[int, int]
    b_stride: int
    b_aligned: bool
    last_lanes: int
    unroll: int
    k_remainder: bool
    accumulate: bool
    has_fma: bool
    a_rows: tuple[int, ...] = ()
    rows_ahead: bool = False
    source_stride: int | None = None


def emit_micro_kernel(module: ir.Module, name: str, kernel: MicroKernel, attributes: str) -> ir.Function:
    """Define `void name(ptr a, ptr b, ptr tile, i64 k)` in `module`, with the target's function `attributes`.

    accumulators[rows][vectors] = tile if accumulate else 0
    for p in range(0, k, unroll):         # straight line inside: `unroll` outer products; every line, A ahead
        for v in vectors: b[v] = B[p, v]  # or: panel[p, v] = b[v] = source[p, v]
        for r in rows:
            a = broadcast(A[r, p])
            for v in vectors: accumulators[r][v] += a * b[v]
    tile = accumulators
    """
    parameters = [POINTER, POINTER, POINTER, INDEX]
    parameters += [POINTER] * (bool(kernel.a_rows) + (kernel.source_stride is not None))
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), parameters), name)
    function.linkage = "internal"
    # One copy, however many call sites: inlining it would only cost compile time.
    function.attributes.add("noinline")
    # The builder's own `add` refuses attributes of the form "key"="value", which targets need.
    set.add(function.attributes, attributes)
    for argument in function.args[:3]:
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, b, tile, k = function.args[:4]
    read = _Reading(kernel, a, function.args[4]) if kernel.a_rows else _Reading(kernel, None, a)
    scalar = element_type(kernel.element)
    vector, align = ir.VectorType(scalar, kernel.lanes), kernel.lanes * element_bits(kernel.element) // _BYTE_BITS
    places = [r * kernel.tile_stride + v * kernel.lanes for r in range(kernel.rows) for v in range(kernel.vectors)]
    pointers = [builder.gep(tile, [index(place)], source_etype=scalar) for place in places]
    accumulators: list[ir.Value] = [ir.Constant(vector, None)] * len(pointers)
    if kernel.accumulate:
        accumulators = [builder.load(pointer, typ=vector, align=align) for pointer in pointers]
    unrolled_k = k
    if kernel.k_remainder:
        unrolled_k = builder.and_(k, index(-kernel.unroll))  # unroll is a power of two
    moving = [read.start, b, *([function.args[-1]] if kernel.source_stride is not None else [])]
    k_loop = _k_loop_with_rows_ahead if kernel.rows_ahead and kernel.a_strides[1] == 1 else _k_loop
    state = k_loop(builder, read, unrolled_k, kernel.unroll, [*moving, *accumulators])
    if kernel.k_remainder:
        state = _k_loop(builder, read, builder.sub(k, unrolled_k), 1, state)
    accumulators = state[len(moving) :]
    for pointer, value in zip(pointers, accumulators, strict=True):
        builder.store(value, pointer, align=align)
    builder.ret_void()
    return function


@dataclass(frozen=True)
class _Reading:
    """How A is read: along a pointer that moves from k to k, or at `base` plus what a moving pointer into a table says.

    start: where the moving pointer is at k = 0.
    """

    kernel: MicroKernel
    base: ir.Value | None
    start: ir.Value

    def advance(self, builder: ir.IRBuilder, at: ir.Value, steps: int) -> ir.Value:
        """The moving pointer `steps` k steps later."""
        if self.base is not None:
            return builder.gep(at, [index(steps)], source_etype=ir.IntType(32))
        place = index(steps * self.kernel.a_strides[1])
        return builder.gep(at, [place], source_etype=element_type(self.kernel.element))

    def column(self, builder: ir.IRBuilder, at: ir.Value, step: int) -> tuple[ir.Value, list[int]]:
        """A pointer, and the distances from it of the rows' elements `step` k steps after the moving pointer."""
        rows, (row_stride, step_stride) = range(self.kernel.rows), self.kernel.a_strides
        if self.base is None:
            return at, [row * row_stride + step * step_stride for row in rows]
        entry = builder.gep(at, [index(step)], source_etype=ir.IntType(32))
        distance = builder.sext(builder.load(entry, typ=ir.IntType(32), align=4), INDEX)
        first = builder.gep(self.base, [distance], source_etype=element_type(self.kernel.element))
        return first, [self.kernel.a_rows[row] for row in rows]


def _k_loop_with_rows_ahead(
    builder: ir.IRBuilder, read: _Reading, count: ir.Value, unroll: int, state: list[ir.Value]
) -> list[ir.Value]:
    """The loop below in runs of a line of A, and before each the lines of the next tile at the same k are asked for."""
    kernel = read.kernel
    scalar = element_type(kernel.element)
    run = max(unroll, _LINE_BYTES * _BYTE_BITS // element_bits(kernel.element))

    def body(left: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
        for row in range(kernel.rows, 2 * kernel.rows):
            prefetch(builder, builder.gep(state[0], [index(row * kernel.a_strides[0])], source_etype=scalar))
        return _k_loop(builder, read, smaller(builder, left, run), unroll, state)

    return _counting_down(builder, count, run, state, body, "line")


def _k_loop(
    builder: ir.IRBuilder, read: _Reading, count: ir.Value, unroll: int, state: list[ir.Value]
) -> list[ir.Value]:
    """`count` / `unroll` turns of `unroll` outer products.

    state: pointers to where A and B are read, and to B in memory if its panel is written; then the sums.
    """
    kernel = read.kernel
    scalar, pointers = element_type(kernel.element), 2 + (kernel.source_stride is not None)

    def body(left: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
        (a, b, *source), sums = state[:pointers], state[pointers:]
        for step in range(unroll):
            if source:
                row = _packed_row(builder, kernel, source[0], b, step, left)
            else:
                row = _row_of_b(builder, kernel, b, step)
            if kernel.rows_ahead and kernel.a_strides[1] != 1:  # where the line at this k ends, the next tile goes on
                last = step * kernel.a_strides[1] + (2 * kernel.rows - 1) * kernel.a_strides[0]
                prefetch(builder, builder.gep(a, [index(last)], source_etype=scalar), _FIRST_LEVEL)
            sums = _outer_product(builder, read, a, row, step, sums)
        return [
            read.advance(builder, a, unroll),
            builder.gep(b, [index(unroll * kernel.b_stride)], source_etype=scalar),
            *(builder.gep(at, [index(unroll * (kernel.source_stride or 0))], source_etype=scalar) for at in source),
            *sums,
        ]

    return _counting_down(builder, count, unroll, state, body, "k")


def _counting_down(
    builder: ir.IRBuilder,
    count: ir.Value,
    step: int,
    state: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    name: str,
) -> list[ir.Value]:
    """`while count > 0: state = body(count, state); count -= step`: the state at the end."""
    before, function = builder.block, builder.function
    header = function.append_basic_block(f"{name}.header")
    inside = function.append_basic_block(f"{name}.body")
    done = function.append_basic_block(f"{name}.done")
    builder.branch(header)
    builder.position_at_end(header)
    left, *carried = phis = [builder.phi(value.type) for value in (count, *state)]
    builder.cbranch(builder.icmp_signed(">", left, index(0)), inside, done)
    builder.position_at_end(inside)
    changed = body(left, carried)
    after = [builder.sub(left, index(step)), *changed]
    for phi, start, value in zip(phis, (count, *state), after, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, builder.block)
    builder.branch(header)
    builder.position_at_end(done)
    return carried


def _row_of_b(builder: ir.IRBuilder, kernel: MicroKernel, panel: ir.Value, step: int) -> list[ir.Value]:
    """The vectors of B `step` k steps after the pointer."""
    return _load_row(builder, kernel, panel, step * kernel.b_stride, kernel.b_aligned)


def _packed_row(
    builder: ir.IRBuilder, kernel: MicroKernel, source: ir.Value, panel: ir.Value, step: int, left: ir.Value
) -> list[ir.Value]:
    """The vectors of B `step` k steps after the pointers, from memory and into the panel.

    Rows lie too far apart for the processor to guess the next one, so it is told; of the last rows, `left` steps from
    the end, it is told those that it has.
    """
    scalar, lanes, stride = element_type(kernel.element), kernel.lanes, kernel.source_stride or 0
    size = element_bits(kernel.element) // _BYTE_BITS
    steps_ahead = -(-_AHEAD_SLOTS // (kernel.rows * kernel.vectors))
    inside = builder.icmp_signed(">", left, index(steps_ahead + kernel.unroll))
    ahead = builder.select(inside, index((step + steps_ahead) * stride), index(step * stride))
    for v in range(kernel.vectors):
        place = builder.add(ahead, index(v * lanes))
        prefetch(builder, builder.gep(source, [place], source_etype=scalar))
    row = _load_row(builder, kernel, source, step * stride, aligned=False)
    for v, value in enumerate(row):
        at = builder.gep(panel, [index(step * kernel.b_stride + v * lanes)], source_etype=scalar)
        builder.store(value, at, align=size * lanes)
    return row


def _load_row(
    builder: ir.IRBuilder, kernel: MicroKernel, pointer: ir.Value, place: int, aligned: bool
) -> list[ir.Value]:
    """The vectors of a row of B that begins `place` elements after the pointer."""
    scalar, lanes = element_type(kernel.element), kernel.lanes
    size = element_bits(kernel.element) // _BYTE_BITS
    row = []
    for v in range(kernel.vectors):
        at = builder.gep(pointer, [index(place + v * lanes)], source_etype=scalar)
        valid = kernel.last_lanes if v == kernel.vectors - 1 else lanes
        row.append(load_vector(builder, at, scalar, lanes, valid, size * lanes if aligned else size))
    return row


def _outer_product(
    builder: ir.IRBuilder, read: _Reading, a: ir.Value, columns: list[ir.Value], step: int, sums: list[ir.Value]
) -> list[ir.Value]:
    """sums[r][v] + A[r, step] * columns[v]."""
    kernel = read.kernel
    scalar, lanes = element_type(kernel.element), kernel.lanes
    size = element_bits(kernel.element) // _BYTE_BITS
    result = []
    first, places = read.column(builder, a, step)
    for r, at in enumerate(places):
        value = builder.load(builder.gep(first, [index(at)], source_etype=scalar), typ=scalar, align=size)
        row = broadcast(builder, value, lanes)
        for v, column in enumerate(columns):
            result.append(multiply_add(builder, row, column, sums[r * kernel.vectors + v], kernel.has_fma))
    return result


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, has_fma: bool) -> ir.Value:
    """a * b + c: one rounding where the target fuses, two where a fused one would be a library call."""
    if isinstance(a.type.element, ir.IntType):
        return builder.add(builder.mul(a, b), c)
    if has_fma:
        name = f"llvm.fma.v{a.type.count}{_suffix(a.type.element)}"
        return builder.call(_declare(builder.module, name, ir.FunctionType(a.type, [a.type] * 3)), [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


def prefetch(builder: ir.IRBuilder, pointer: ir.Value, level: int = _SECOND_LEVEL) -> None:
    """Ask for the line at `pointer` to be brought to a cache; no access, so any address will do."""
    signature = ir.FunctionType(ir.VoidType(), [POINTER, *[ir.IntType(32)] * 3])
    arguments = [integer(32, value) for value in (_FOR_READING, level, _DATA)]
    builder.call(_declare(builder.module, "llvm.prefetch.p0", signature), [pointer, *arguments])


def broadcast(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """<lanes x T> with `value` in each lane."""
    vector = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, integer(32, 0))
    return builder.shuffle_vector(first, undefined, lane_order([0] * lanes))


def load_vector(
    builder: ir.IRBuilder, pointer: ir.Value, scalar: ir.Type, lanes: int, valid: int, align: int
) -> ir.Value:
    """The first `valid` lanes from memory, zeros behind them; memory past them is not touched."""
    vector = ir.VectorType(scalar, lanes)
    if valid == lanes:
        return builder.load(pointer, typ=vector, align=align)
    mask = ir.VectorType(ir.IntType(1), lanes)
    name = f"llvm.masked.load.v{lanes}{_suffix(scalar)}.p0"
    function = _declare(builder.module, name, ir.FunctionType(vector, [POINTER, ir.IntType(32), mask, vector]))
    on = lane_mask(lane < valid for lane in range(lanes))
    return builder.call(function, [pointer, integer(32, align), on, ir.Constant(vector, None)])


def store_vector(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, valid: int, align: int) -> None:
    """Store the first `valid` lanes; memory past them is not touched."""
    lanes = value.type.count
    if valid == lanes:
        builder.store(value, pointer, align=align)
        return
    mask = ir.VectorType(ir.IntType(1), lanes)
    name = f"llvm.masked.store.v{lanes}{_suffix(value.type.element)}.p0"
    signature = ir.FunctionType(ir.VoidType(), [value.type, POINTER, ir.IntType(32), mask])
    arguments = [value, pointer, integer(32, align), lane_mask(lane < valid for lane in range(lanes))]
    builder.call(_declare(builder.module, name, signature), arguments)


def _suffix(scalar: ir.Type) -> str:
    if isinstance(scalar, ir.IntType):
        return f"i{scalar.width}"
    return "f32" if isinstance(scalar, ir.FloatType) else "f64"


def _declare(module: ir.Module, name: str, signature: ir.FunctionType) -> ir.Function:
    existing = module.globals.get(name)
    return existing if existing is not None else ir.Function(module, signature, name)
