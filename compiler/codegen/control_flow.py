"""Structured control flow over an llvmlite builder: a counted loop and index arithmetic shared by the templates."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from llvmlite import ir

from .constants import integer

INDEX = ir.IntType(64)
POINTER = ir.PointerType()


def index(value: "int | ir.Value") -> ir.Value:
    """A 64-bit index: Python integers become constants, values pass through."""
    return integer(64, value) if isinstance(value, int) else value


@contextmanager
def counted_loop(
    builder: ir.IRBuilder, start: "int | ir.Value", stop: "int | ir.Value", step: int = 1, name: str = "loop"
) -> Iterator[ir.Value]:
    """`for i in range(start, stop, step)`: the with-body emits the loop body and may open blocks of its own."""
    function = builder.function
    header = function.append_basic_block(f"{name}.header")
    body = function.append_basic_block(f"{name}.body")
    done = function.append_basic_block(f"{name}.done")
    before = builder.block
    builder.branch(header)
    builder.position_at_end(header)
    counter = builder.phi(INDEX, name=name)
    counter.add_incoming(index(start), before)
    builder.cbranch(builder.icmp_signed("<", counter, index(stop)), body, done)
    builder.position_at_end(body)
    yield counter
    counter.add_incoming(builder.add(counter, index(step), flags=("nsw",)), builder.block)
    builder.branch(header)
    builder.position_at_end(done)


def carried_loop(
    builder: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    carried: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    name: str = "loop",
) -> list[ir.Value]:
    """`for i in range(start, stop, step): values = body(i, values)`, from `carried` on; the last values."""
    before = builder.block
    function = builder.function
    header, inside, done = (function.append_basic_block(f"{name}.{part}") for part in ("header", "body", "done"))
    builder.branch(header)
    builder.position_at_end(header)
    counter, values = builder.phi(INDEX, name=name), [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", counter, stop), inside, done)
    builder.position_at_end(inside)
    results = body(counter, list(values))
    following = builder.add(counter, index(step), flags=("nsw",))
    for phi, first, later in zip((counter, *values), (start, *carried), (following, *results), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(header)
    builder.position_at_end(done)
    return values


def clear(
    builder: ir.IRBuilder, base: ir.Value, vector: ir.VectorType, count: int, align: int, name: str = "clear"
) -> None:
    """`count` zeros from `base` on, in whole vectors."""
    with counted_loop(builder, 0, count, vector.count, name=name) as at:
        builder.store(ir.Constant(vector, None), offset(builder, base, vector.element, (at, 1)), align=align)


def on_first(builder: ir.IRBuilder, start: ir.Value) -> AbstractContextManager[object]:
    """For code that only the first of some blocks runs, the one that starts at 0."""
    if isinstance(start, ir.Constant) and start.constant == 0:
        return nullcontext()
    return builder.if_then(builder.icmp_signed("==", start, index(0)))  # type: ignore[no-any-return]


def smaller(builder: ir.IRBuilder, a: "int | ir.Value", b: "int | ir.Value") -> ir.Value:
    """min(a, b) of two signed indices."""
    left, right = index(a), index(b)
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def offset(
    builder: ir.IRBuilder, pointer: ir.Value, element: ir.Type, *terms: "tuple[ir.Value | int, int]"
) -> ir.Value:
    """pointer + sum(value * stride) elements; constant terms fold here, so no dead arithmetic reaches LLVM."""
    constant, total = 0, None
    for value, stride in terms:
        if isinstance(value, int):
            constant += value * stride
        elif stride:
            term = value if stride == 1 else builder.mul(value, index(stride), flags=("nsw",))
            total = term if total is None else builder.add(total, term, flags=("nsw",))
    if constant:
        total = index(constant) if total is None else builder.add(total, index(constant), flags=("nsw",))
    return pointer if total is None else builder.gep(pointer, [total], inbounds=True, source_etype=element)


def divide(builder: ir.IRBuilder, value: ir.Value, divisor: int) -> tuple[ir.Value, ir.Value]:
    """Quotient and remainder of a non-negative index by a constant."""
    if divisor == 1:
        return value, index(0)
    return builder.udiv(value, index(divisor)), builder.urem(value, index(divisor))


def block_range(builder: ir.IRBuilder, block: ir.Value, size: int, total: int) -> tuple[ir.Value, ir.Value]:
    """(start, count) of a block; the count is a constant where all blocks have the same."""
    if size >= total:
        return index(0), index(total)
    start = builder.mul(block, index(size), flags=("nsw",))
    if total % size == 0:
        return start, index(size)
    return start, smaller(builder, builder.sub(index(total), start), size)
