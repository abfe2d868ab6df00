"""Algebra keeps every bit: also of NaN, infinities, both zeros, subnormal and extreme numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kaun.compiler import passes
from kaun.compiler.ir import Graph, Node, dtypes, full, ops
from kaun.compiler.ir.interpreter import evaluate

FLOATS = (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64)
INTEGERS = (dtypes.int8, dtypes.uint8, dtypes.int32, dtypes.uint64)
SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 1e-5, -6e4, float("inf"), float("-inf"), float("nan"))


def pairs(dtype: dtypes.DType) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of special numbers."""
    if dtype.is_float:
        information = np.finfo(np.float16 if dtype is dtypes.float16 else np.float32)
        numbers = np.array([*SPECIAL, float(information.tiny), float(information.max)]).astype(dtype.numpy)
    elif dtype.kind == "bool":
        numbers = np.array([False, True])
    else:
        low, high = (int(bound) for bound in dtypes.value_bounds(dtype))
        numbers = np.array(sorted({low, low + 1, max(low, -1), 0, 1, 2, 3, high // 2, high}), dtype.numpy)
    grid = list(itertools.product(numbers, numbers))
    return tuple(np.array(column, dtype.numpy) for column in zip(*grid, strict=True))  # type: ignore[return-value]


def expressions(x: Node, y: Node) -> list[Node]:
    """Compositions of two ops, with every constant that a rule looks for."""
    dtype = x.dtype
    numbers = (0, 1, 2, 255) if dtype.kind == "unsigned" else (0, 1) if dtype.kind == "bool" else (0, 1, -1, 2, -4)
    constants = [full(number, dtype, x.shape) for number in numbers]
    constants += [full(bound, dtype, x.shape) for bound in dtypes.value_bounds(dtype)]
    if dtype.is_float:
        constants += [x.like(value) for value in (-0.0, 0.5, 3.0, 2.0**-14, 2.0**15, float("nan"))]
    letter = "f" if dtype.is_float else "b" if dtype.kind == "bool" else "i"
    binary = {
        "f": (ops.add, ops.sub, ops.mul, ops.div, ops.rem, ops.maximum, ops.minimum),
        "i": (ops.add, ops.sub, ops.mul, ops.div, ops.rem, ops.maximum, ops.minimum, ops.and_, ops.or_, ops.xor,
              ops.shift_left, ops.shift_right),
        "b": (ops.maximum, ops.minimum, ops.and_, ops.or_, ops.xor),
    }[letter]  # fmt: skip
    of_floats, of_integers = (ops.neg, ops.abs_, ops.floor, ops.trunc), (ops.neg, ops.abs_, ops.not_)
    unary = {"f": of_floats, "i": of_integers, "b": (ops.not_,)}[letter]
    leaves = [x, y, *constants]
    simple = [op(a, b) for op in binary for a in leaves for b in (x, y)]
    simple += [op(a, b) for op in binary for a in (x, y) for b in constants]
    inner = [op(a) for op in unary for a in (x, y)]
    result = simple + [op(a) for op in unary for a in simple + inner]
    result += [op(a, b) for op in binary for a in inner for b in [*inner, *leaves]]
    result += [op(b, a) for op in binary for a in inner for b in leaves]
    tests = [op(a, b) for op in (ops.eq, ops.ne, ops.lt, ops.le) for a in leaves for b in (x, y)]
    result += tests + [ops.not_(test) for test in tests]
    result += [ops.where(test, a, b) for test in tests[:9] for a, b in ((x, x), (x, y), (x, constants[0]))]
    if dtype.is_float:
        result += [ops.pow_(x, x.like(value)) for value in (0, 1)] + [ops.pow_(x.like(1), y)]
    result += [ops.cast(ops.cast(x, dtype=middle), dtype=last) for middle in dtypes.ALL for last in dtypes.ALL]
    return result


@pytest.mark.parametrize("dtype", (dtypes.bool_, *INTEGERS, *FLOATS), ids=str)
def test_simplified_expressions_have_the_same_bits(dtype: dtypes.DType) -> None:
    a, b = pairs(dtype)
    x, y = (ops.input_(identity=("exact", name), dtype=dtype, shape=a.shape) for name in "xy")
    graph = Graph((x, y), tuple(expressions(x, y)))
    result = passes.simplify(graph)
    assert len(result.nodes) < len(graph.nodes)
    for node, before, after in zip(
        graph.outputs, evaluate(graph, (a, b)), evaluate(result, (a, b)), strict=True
    ):
        before, after = (array.astype(np.float64) if node.dtype.is_float else array for array in (before, after))
        np.testing.assert_array_equal(before, after, err_msg=repr((node, node.inputs)))
        if node.dtype.is_float and not ambiguous_zero(node):
            number = ~np.isnan(before)
            np.testing.assert_array_equal(
                np.signbit(before)[number], np.signbit(after)[number], err_msg=repr((node, node.inputs))
            )


def ambiguous_zero(node: Node) -> bool:
    """IEEE 754 leaves open which zero the maximum of both zeros is."""
    return any(part.op in (ops.maximum, ops.minimum) for part in (node, *node.inputs))
