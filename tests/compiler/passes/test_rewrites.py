"""Each rewriting rule, one by one: what it makes of the expression it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kaun.compiler import passes
from kaun.compiler.ir import Graph, Node, dtypes, full, ops

F, I, B = dtypes.float32, dtypes.int32, dtypes.bool_


def tensor(name: str, *shape: int, dtype: dtypes.DType = F) -> Node:
    return ops.input_(identity=("rewrite", name), dtype=dtype, shape=shape)


def constant(value: float, *shape: int, dtype: dtypes.DType = F) -> Node:
    return full(value, dtype, shape)


def apply(name: str, node: Node) -> Node:
    """The only output after a pass."""
    inputs = tuple(child for child in Graph((), (node,)).nodes if child.op is ops.input_)
    return passes.PASSES[name](Graph(inputs, (node,))).outputs[0]


x, y = tensor("x", 2, 3), tensor("y", 2, 3)
i, j = tensor("i", 4, dtype=I), tensor("j", 4, dtype=I)
b, c = tensor("b", 4, dtype=B), tensor("c", 4, dtype=B)
v, row = tensor("v", 6), tensor("row", 1, 3)


def cut(node: Node, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> Node:
    return ops.slice_(node, starts=starts, stops=stops, steps=steps)


def pad(node: Node, low: tuple[int, ...], high: tuple[int, ...], interior: tuple[int, ...], value: float = 0.0) -> Node:
    return ops.pad(node, low=low, high=high, interior=interior, value=value)


def cast(node: Node, *types: dtypes.DType) -> Node:
    for dtype in types:
        node = ops.cast(node, dtype=dtype)
    return node


def dot(left: Node, right: Node, lhs_contract: tuple[int, ...], rhs_contract: tuple[int, ...]) -> Node:
    return ops.dot_general(
        left, right, lhs_batch=(), rhs_batch=(), lhs_contract=lhs_contract, rhs_contract=rhs_contract
    )


CANONICAL: dict[str, tuple[Node, Node]] = {
    "stop_gradient": (ops.stop_gradient(x), x),
    "empty result": (ops.exp(tensor("e", 0, 3)), constant(0, 0, 3)),
    "reshape to itself": (ops.reshape(x, shape=(2, 3)), x),
    "reshape of reshape": (ops.reshape(ops.reshape(x, shape=(6,)), shape=(3, 2)), ops.reshape(x, shape=(3, 2))),
    "permute and back": (ops.permute(ops.permute(x, axes=(1, 0)), axes=(1, 0)), x),
    "permute of unit axes": (ops.permute(row, axes=(1, 0)), ops.reshape(row, shape=(3, 1))),
    "broadcast of broadcast": (
        ops.broadcast(ops.broadcast(tensor("u", 1, 1), shape=(1, 3)), shape=(2, 3)),
        ops.broadcast(tensor("u", 1, 1), shape=(2, 3)),
    ),
    "broadcast of constant": (ops.broadcast(constant(2, 1, 3), shape=(2, 3)), constant(2, 2, 3)),
    "flip twice": (ops.flip(ops.flip(x, axes=(0, 1)), axes=(0,)), ops.flip(x, axes=(1,))),
    "flip of one": (ops.flip(row, axes=(0,)), row),
    "whole slice": (cut(x, (0, 0), (2, 3), (1, 1)), x),
    "slice of slice": (cut(cut(v, (1,), (6,), (2,)), (1,), (3,), (1,)), cut(v, (3,), (6,), (2,))),
    "slice of concat": (
        cut(ops.concat(x, y, axis=1), (0, 4), (2, 6), (1, 1)), cut(y, (0, 1), (2, 3), (1, 1)),
    ),
    "slice of pad": (cut(pad(x, (1, 0), (0, 2), (0, 0)), (1, 0), (3, 3), (1, 1)), x),
    "slice in the padding": (cut(pad(x, (5, 0), (0, 0), (0, 0), 7.0), (1, 0), (3, 3), (1, 1)), constant(7, 2, 3)),
    "slice of broadcast": (
        cut(ops.broadcast(row, shape=(5, 3)), (1, 0), (3, 2), (1, 1)),
        ops.broadcast(cut(row, (0, 0), (1, 2), (1, 1)), shape=(2, 2)),
    ),
    "no padding": (pad(x, (0, 0), (0, 0), (0, 0)), x),
    "pad of pad": (
        pad(pad(x, (1, 0), (0, 0), (0, 2)), (0, 1), (2, 0), (0, 0)), pad(x, (1, 1), (2, 0), (0, 2)),
    ),
    "pad of nothing": (pad(tensor("e", 0, 3), (1, 0), (1, 0), (0, 0), 4.0), constant(4, 2, 3)),
    "pad of its own value": (pad(constant(4, 1, 3), (1, 0), (0, 0), (0, 0), 4.0), constant(4, 2, 3)),
    "concat of one": (ops.concat(x, axis=0), x),
    "concat with nothing": (ops.concat(x, tensor("e", 0, 3), axis=0), x),
    "concat of concat": (
        ops.concat(ops.concat(x, y, axis=0), x, axis=0), ops.concat(x, y, x, axis=0),
    ),
    "concat of equal constants": (ops.concat(constant(1, 2), constant(1, 3), axis=0), constant(1, 5)),
    "window of one": (
        ops.window(x, axes=(1,), sizes=(1,), strides=(1,), dilations=(5,)), ops.reshape(x, shape=(2, 3, 1)),
    ),
    "strided window of one": (
        ops.window(v, axes=(0,), sizes=(1,), strides=(2,), dilations=(1,)),
        ops.reshape(cut(v, (0,), (5,), (2,)), shape=(3, 1)),
    ),
    "reduce over nothing": (ops.reduce_sum(x, axes=()), x),
    "reduce over one": (ops.reduce_max(row, axes=(0,)), ops.reshape(row, shape=(3,))),
    "sum of nothing": (ops.reduce_sum(tensor("e", 0, 3), axes=(0,)), constant(0, 3)),
    "maximum of nothing": (ops.reduce_max(tensor("e", 0, 3), axes=(0,)), constant(float("-inf"), 3)),
    "reduction axes in order": (ops.reduce_sum(x, axes=(1, 0)), ops.reduce_sum(x, axes=(0, 1))),
    "argmax of one": (ops.argmax(row, axis=0), constant(0, 3, dtype=dtypes.int64)),
    "contraction of nothing": (dot(tensor("e", 2, 0), tensor("f", 0, 3), (1,), (0,)), constant(0, 2, 3)),
    "outer product": (
        dot(ops.reshape(v, shape=(6, 1)), row, (1,), (0,)),
        ops.broadcast(ops.reshape(v, shape=(6, 1)), shape=(6, 3)) * ops.broadcast(row, shape=(6, 3)),
    ),
    "contraction of unit axes": (
        dot(tensor("p", 4, 1, 3), tensor("q", 3, 5, 1), (2, 1), (0, 2)),
        dot(
            ops.reshape(tensor("p", 4, 1, 3), shape=(4, 3)), ops.reshape(tensor("q", 3, 5, 1), shape=(3, 5)), (1,), (0,)
        ),
    ),
    "contraction axes in order": (dot(x, y, (1, 0), (1, 0)), dot(x, y, (0, 1), (0, 1))),
    "gather from a constant": (ops.gather(constant(3, 5, 2), i), constant(3, 4, 2)),
    "scatter of zeros": (ops.scatter_add(i, constant(0, 4, 2), size=9), constant(0, 9, 2)),
    "scatter of nothing": (ops.scatter_add(tensor("k", 0, dtype=I), tensor("e", 0, 3), size=2), constant(0, 2, 3)),
    "iota of one": (ops.iota(shape=(3, 1), axis=1, dtype=I), constant(0, 3, 1, dtype=I)),
    "constant on the right": (constant(2, 2, 3) * x, x * 2),
    "cast to itself": (cast(x, F), x),
    "cast there and back": (cast(x, dtypes.float64, F), x),
    "cast through a wider type": (cast(i, dtypes.int64, dtypes.int8), cast(i, dtypes.int8)),
    "cast through wrapping integers": (cast(i, dtypes.int16, dtypes.int8), cast(i, dtypes.int8)),
    "bitcast of bitcast": (
        ops.bitcast(ops.bitcast(i, dtype=F), dtype=dtypes.uint32), ops.bitcast(i, dtype=dtypes.uint32),
    ),
}  # fmt: skip

# What must stay, because some value would change.
KEPT: dict[str, Node] = {
    "cast through a narrower float": cast(x, dtypes.float16, F),
    "cast through a type that rounds": cast(i, F, dtypes.int64),
    "cast through a float, which saturates": cast(tensor("s", 4, dtype=dtypes.int8), F, dtypes.uint8),
    "slice across pieces": cut(ops.concat(x, y, axis=1), (0, 2), (2, 4), (1, 1)),
    "pad of pad with another value": pad(pad(x, (1, 0), (0, 0), (0, 0)), (1, 0), (0, 0), (0, 0), 1.0),
    "float times zero": x * 0,
    "float minus itself": x - x,
    "float plus zero": x + 0.0,
    "zero minus float": constant(0, 2, 3) - x,
    "float compared with itself": ops.eq(x, x),
    "negated float order": ops.not_(ops.lt(x, y)),
    "negated difference": ops.neg(x - y),
    "maximum with infinity": ops.maximum(x, x.like(float("inf"))),
    "division by three": x / 3,
}

SIMPLE: dict[str, tuple[Node, Node]] = {
    "x + -0": (x + -0.0, x),
    "x - 0": (x - 0.0, x),
    "-0 - x": (constant(-0.0, 2, 3) - x, -x),
    "x + -y": (x + -y, x - y),
    "-x + y": (-x + y, y - x),
    "x - -y": (x - -y, x + y),
    "--x": (ops.neg(-x), x),
    "-(x * 3)": (-(x * 3), x * -3),
    "-x * -y": (-x * -y, x * y),
    "x * 1": (x * 1, x),
    "x * -1": (x * -1, -x),
    "-x * 3": (-x * 3, x * -3),
    "x / 1": (x / 1, x),
    "x / 4": (x / 4, x * 0.25),
    "x ** 1": (ops.pow_(x, x.like(1)), x),
    "x ** 2": (ops.pow_(x, x.like(2)), x * x),
    "x ** -1": (ops.pow_(x, x.like(-1)), 1 / x),
    "x ** 0": (ops.pow_(x, x.like(0)), constant(1, 2, 3)),
    "max(x, x)": (ops.maximum(x, x), x),
    "max(x, -inf)": (ops.maximum(x, x.like(float("-inf"))), x),
    "abs(-x)": (ops.abs_(-x), ops.abs_(x)),
    "floor of round": (ops.floor(ops.round_(x)), ops.round_(x)),
    "i * 0": (i * 0, constant(0, 4, dtype=I)),
    "i + 0": (i + 0, i),
    "i - i": (i - i, constant(0, 4, dtype=I)),
    "i rem 1": (ops.rem(i, i.like(1)), constant(0, 4, dtype=I)),
    "i & 0": (ops.and_(i, i.like(0)), constant(0, 4, dtype=I)),
    "i & -1": (ops.and_(i, i.like(-1)), i),
    "i | -1": (ops.or_(i, i.like(-1)), constant(-1, 4, dtype=I)),
    "i ^ -1": (ops.xor(i, i.like(-1)), ops.not_(i)),
    "i ^ i": (ops.xor(i, i), constant(0, 4, dtype=I)),
    "i == i": (ops.eq(i, i), constant(True, 4, dtype=B)),
    "x < x": (ops.lt(x, x), constant(False, 2, 3, dtype=B)),
    "not (i < j)": (ops.not_(ops.lt(i, j)), ops.le(j, i)),
    "not (x == y)": (ops.not_(ops.eq(x, y)), ops.ne(x, y)),
    "b and true": (ops.and_(b, b.like(True)), b),
    "b xor true": (ops.xor(b, b.like(True)), ops.not_(b)),
    "where with equal branches": (ops.where(b, i, i), i),
    "where true": (ops.where(b.like(True), i, j), i),
    "where not": (ops.where(ops.not_(b), i, j), ops.where(b, j, i)),
    "where in where": (ops.where(b, ops.where(b, i, j), j), ops.where(b, i, j)),
    "where as a bool": (ops.where(b, b.like(True), b.like(False)), b),
    "sum of sum": (ops.reduce_sum(ops.reduce_sum(x, axes=(0,)), axes=(0,)), ops.reduce_sum(x, axes=(0, 1))),
    "sum of broadcast": (
        ops.reduce_sum(ops.broadcast(row, shape=(5, 3)), axes=(0,)), ops.reshape(row, shape=(3,)) * 5,
    ),
    "maximum of broadcast": (
        ops.reduce_max(ops.broadcast(row, shape=(5, 3)), axes=(0, 1)),
        ops.reduce_max(ops.reshape(row, shape=(3,)), axes=(0,)),
    ),
    "broadcast last": (
        ops.exp(ops.broadcast(row, shape=(5, 3)) * 2), ops.broadcast(ops.exp(row * 2), shape=(5, 3)),
    ),
}  # fmt: skip

FOLDED: dict[str, tuple[Node, Node]] = {
    "arithmetic": (constant(2, 3) * constant(0.5, 3) + constant(3, 3), constant(4, 3)),
    "rounding to the dtype": (
        constant(1, 2, dtype=dtypes.bfloat16) / constant(3, 2, dtype=dtypes.bfloat16),
        constant(0.333984375, 2, dtype=dtypes.bfloat16),
    ),
    "wrapping": (constant(100, dtype=dtypes.int8) + constant(100, dtype=dtypes.int8), constant(-56, dtype=dtypes.int8)),
    "comparison": (ops.lt(constant(1, 2), constant(2, 2)), constant(True, 2, dtype=B)),
    "cast": (cast(constant(-1.5), dtypes.uint8), constant(0, dtype=dtypes.uint8)),
    "sum": (ops.reduce_sum(constant(0.5, 2, 3), axes=(1,)), constant(1.5, 2)),
    "wrapping sum": (
        ops.reduce_sum(constant(100, 3, dtype=dtypes.int8), axes=(0,)), constant(44, dtype=dtypes.int8),
    ),
    "maximum": (ops.reduce_max(constant(0.5, 2, 3), axes=(1,)), constant(0.5, 2)),
    "contraction": (dot(constant(2, 3, 5), constant(0.5, 5, 2), (1,), (0,)), constant(5, 3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CANONICAL)
def test_canonicalise(name: str) -> None:
    before, after = CANONICAL[name]
    assert apply("canonicalise", before) is after


@pytest.mark.parametrize("name", KEPT)
def test_what_would_change_a_value_is_kept(name: str) -> None:
    node = KEPT[name]
    assert apply("canonicalise", node) is node
    assert apply("simplify", node) is node


@pytest.mark.parametrize("name", SIMPLE)
def test_simplify(name: str) -> None:
    before, after = SIMPLE[name]
    assert apply("simplify", before) is after


@pytest.mark.parametrize("name", FOLDED)
def test_fold_constants(name: str) -> None:
    before, after = FOLDED[name]
    assert apply("fold_constants", before) is after


COMMUTING: tuple[Callable[[Node, Node], Node], ...] = (
    ops.add, ops.mul, ops.maximum, ops.minimum, ops.and_, ops.or_, ops.xor, ops.eq, ops.ne,
)  # fmt: skip


@pytest.mark.parametrize("op", COMMUTING, ids=str)
def test_operands_of_commutative_ops_are_shared_in_either_order(op: Callable[[Node, Node], Node]) -> None:
    graph = passes.share_subexpressions(Graph((i, j), (op(i, ops.not_(j)), op(ops.not_(j), i))))
    assert graph.outputs[0] is graph.outputs[1]


def test_operands_that_do_not_commute_stay() -> None:
    graph = passes.share_subexpressions(Graph((x, y), (x - y, y - x, ops.lt(x, y), ops.lt(y, x))))
    assert graph.outputs == (x - y, y - x, ops.lt(x, y), ops.lt(y, x))


def test_zeros_in_a_gradient_leave_nothing_behind() -> None:
    repeated = ops.broadcast(constant(0, 1, 3), shape=(2, 3))
    masked = ops.where(ops.lt(x, y), repeated, ops.reshape(constant(0, 6), shape=(2, 3)))
    assert apply("simplify", masked) is constant(0, 2, 3)
