"""The register-tiled inner kernel of the contraction template: one tile of C, all of a k block, nothing but FMAs."""

from dataclasses import dataclass

from llvmlite import ir

from .control_flow import INDEX, POINTER, index
from .vector_target import element_bits

_BYTE_BITS = 8


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
                 a fifth argument, i32 distances of each k step from the first
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


def emit_micro_kernel(module: ir.Module, name: str, kernel: MicroKernel, attributes: str) -> ir.Function:
    """Define `void name(ptr a, ptr b, ptr tile, i64 k)` in `module`, with the target's function `attributes`.

    accumulators[rows][vectors] = tile if accumulate else 0
    for p in range(0, k, unroll):         # straight line inside: `unroll` outer products
        for v in vectors: b[v] = B[p, v]
        for r in rows:
            a = broadcast(A[r, p])
            for v in vectors: accumulators[r][v] += a * b[v]
    tile = accumulators
    """
    parameters = [POINTER, POINTER, POINTER, INDEX, *([POINTER] if kernel.a_rows else [])]
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
    at, b, accumulators = _k_loop(builder, read, read.start, b, unrolled_k, accumulators, kernel.unroll)
    if kernel.k_remainder:
        _, _, accumulators = _k_loop(builder, read, at, b, builder.sub(k, unrolled_k), accumulators, 1)
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


def _k_loop(
    builder: ir.IRBuilder,
    read: _Reading,
    a: ir.Value,
    b: ir.Value,
    count: ir.Value,
    accumulators: list[ir.Value],
    unroll: int,
) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
    """`count` / `unroll` turns of `unroll` outer products; returns the advanced pointers and the sums."""
    kernel, function, scalar = read.kernel, builder.function, element_type(read.kernel.element)
    before = builder.block
    header = function.append_basic_block("k.header")
    body = function.append_basic_block("k.body")
    done = function.append_basic_block("k.done")
    builder.branch(header)
    builder.position_at_end(header)
    left = builder.phi(INDEX, "k.left")
    starts = [count, a, b, *accumulators]
    carried = [left, builder.phi(POINTER, "a"), builder.phi(POINTER, "b")]
    carried += [builder.phi(value.type) for value in accumulators]
    for phi, start in zip(carried, starts, strict=True):
        phi.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed(">", left, index(0)), body, done)
    builder.position_at_end(body)
    sums = list(carried[3:])
    for step in range(unroll):
        sums = _outer_product(builder, read, carried[1], carried[2], step, sums)
    advanced = [
        builder.sub(left, index(unroll)),
        read.advance(builder, carried[1], unroll),
        builder.gep(carried[2], [index(unroll * kernel.b_stride)], source_etype=scalar),
        *sums,
    ]
    for phi, value in zip(carried, advanced, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(header)
    builder.position_at_end(done)
    return carried[1], carried[2], list(carried[3:])


def _outer_product(
    builder: ir.IRBuilder, read: _Reading, a: ir.Value, b: ir.Value, step: int, sums: list[ir.Value]
) -> list[ir.Value]:
    """sums[r][v] + A[r, step] * B[step, v]."""
    kernel = read.kernel
    scalar, lanes = element_type(kernel.element), kernel.lanes
    size = element_bits(kernel.element) // _BYTE_BITS
    columns = []
    for v in range(kernel.vectors):
        pointer = builder.gep(b, [index(step * kernel.b_stride + v * lanes)], source_etype=scalar)
        valid = kernel.last_lanes if v == kernel.vectors - 1 else lanes
        columns.append(load_vector(builder, pointer, scalar, lanes, valid, size * lanes if kernel.b_aligned else size))
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


def broadcast(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """<lanes x T> with `value` in each lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
    )


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
    arguments = [pointer, ir.Constant(ir.IntType(32), align), _lane_mask(lanes, valid), ir.Constant(vector, None)]
    return builder.call(function, arguments)


def store_vector(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, valid: int, align: int) -> None:
    """Store the first `valid` lanes; memory past them is not touched."""
    lanes = value.type.count
    if valid == lanes:
        builder.store(value, pointer, align=align)
        return
    mask = ir.VectorType(ir.IntType(1), lanes)
    name = f"llvm.masked.store.v{lanes}{_suffix(value.type.element)}.p0"
    signature = ir.FunctionType(ir.VoidType(), [value.type, POINTER, ir.IntType(32), mask])
    arguments = [value, pointer, ir.Constant(ir.IntType(32), align), _lane_mask(lanes, valid)]
    builder.call(_declare(builder.module, name, signature), arguments)


def _lane_mask(lanes: int, valid: int) -> ir.Constant:
    bit = ir.IntType(1)
    return ir.Constant(ir.VectorType(bit, lanes), [ir.Constant(bit, int(lane < valid)) for lane in range(lanes)])


def _suffix(scalar: ir.Type) -> str:
    if isinstance(scalar, ir.IntType):
        return f"i{scalar.width}"
    return "f32" if isinstance(scalar, ir.FloatType) else "f64"


def _declare(module: ir.Module, name: str, signature: ir.FunctionType) -> ir.Function:
    existing = module.globals.get(name)
    return existing if existing is not None else ir.Function(module, signature, name)
