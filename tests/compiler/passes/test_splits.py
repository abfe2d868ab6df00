"""Passes that take ops apart keep their meaning, and leave others alone."""

import numpy as np
import pytest
from kaun.compiler.ir import Graph, dtypes, ops, topological, verify
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.passes import reduce_vectors, split_concatenations, split_reductions, widen_accumulations
from kaun.compiler.passes.split_concatenations import MOST_PARTS


def argument(position, shape, dtype=dtypes.float32):
    return ops.input_(identity=("split", position), dtype=dtype, shape=shape)


def ops_of(graph):
    return [node.op.name for node in topological(graph.outputs)]


@pytest.mark.parametrize("reduction", [ops.reduce_sum, ops.reduce_max, ops.reduce_min], ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((70_001,), (0,)),
        ((3, 30_011), (1,)),
        ((40_000, 2), (0,)),
        ((32, 4, 28, 28), (0, 2, 3)),
        ((5, 200, 101), (0, 1, 2)),
    ],
)
def test_long_reductions_become_two_and_mean_the_same(reduction, shape, axes):
    x = argument(0, shape)
    graph = Graph((x,), (reduction(x, axes=axes),))
    split = split_reductions(graph)
    verify(split)
    assert ops_of(split).count(reduction.name) == 2
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[(0,) * len(shape)] = -7.0
    expected, got = (evaluate(g, [values])[0] for g in (graph, split))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [dtypes.int32, dtypes.uint8, dtypes.bool_, dtypes.float64], ids=str)
def test_padding_of_a_split_reduction_never_wins(dtype):
    x = argument(0, (100_003,), dtype)
    reductions = [ops.reduce_max, ops.reduce_min] + ([ops.reduce_sum] if dtype is not dtypes.bool_ else [])
    graph = Graph((x,), tuple(reduction(x, axes=(0,)) for reduction in reductions))
    for fill in (0, 1):
        values = np.full((100_003,), fill).astype(dtype.numpy)
        for left, right in zip(evaluate(graph, [values]), evaluate(split_reductions(graph), [values]), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("shape", "axes"), [((1000,), (0,)), ((64, 10_000), (1,)), ((0, 9), (0,)), ((70_000,), ())])
def test_other_reductions_stay_as_they_are(shape, axes):
    x = argument(0, shape)
    graph = Graph((x,), (ops.reduce_sum(x, axes=axes),))
    assert split_reductions(graph).outputs == graph.outputs


@pytest.mark.parametrize("parts", [1, MOST_PARTS, MOST_PARTS + 1, MOST_PARTS**2 + 5])
def test_concatenations_have_few_parts_each_and_keep_their_order(parts):
    inputs = tuple(argument(i, (2, i % 3)) for i in range(parts))
    graph = Graph(inputs, (ops.concat(*inputs, axis=1),))
    split = split_concatenations(graph)
    verify(split)
    assert max(len(n.inputs) for n in topological(split.outputs)) <= MOST_PARTS
    arrays = [np.full((2, i % 3), i, np.float32) for i in range(parts)]
    np.testing.assert_array_equal(evaluate(split, arrays)[0], np.concatenate(arrays, axis=1))


def test_narrow_floats_are_scattered_in_float32():
    indices, updates = argument(0, (300,), dtypes.int32), argument(1, (300,), dtypes.bfloat16)
    graph = widen_accumulations(Graph((indices, updates), (ops.scatter_add(indices, updates, size=2),)))
    verify(graph)
    scatter = next(n for n in topological(graph.outputs) if n.op is ops.scatter_add)
    assert scatter.dtype is dtypes.float32 and graph.outputs[0].dtype is dtypes.bfloat16
    # 300 ones add up to 300 only in a type that can hold 257.
    (result,) = evaluate(graph, [np.zeros(300, np.int32), np.ones(300, np.float32).astype(dtypes.bfloat16.numpy)])
    assert float(result[0]) == 300.0


def contraction(lhs, rhs, batch=((), ()), contract=((1,), (0,)), dtype=dtypes.float32):
    operands = (argument(0, lhs, dtype), argument(1, rhs, dtype))
    roles = {"lhs_batch": batch[0], "rhs_batch": batch[1], "lhs_contract": contract[0], "rhs_contract": contract[1]}
    return Graph(operands, (ops.dot_general(*operands, **roles),))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int32], ids=str)
@pytest.mark.parametrize(
    ("lhs", "rhs", "batch", "contract"),
    [
        ((7, 33), (33,), ((), ()), ((1,), (0,))),
        ((33,), (7, 33), ((), ()), ((0,), (1,))),
        ((7, 33), (33, 1), ((), ()), ((1,), (0,))),
        ((33,), (33,), ((), ()), ((0,), (0,))),
        ((1, 1), (1, 1), ((), ()), ((1,), (0,))),
        ((4, 7, 3, 5), (3, 4, 5, 1), ((0,), (1,)), ((2, 3), (0, 2))),
        ((4, 1, 5), (4, 2, 3, 5), ((0,), (0,)), ((2,), (3,))),
    ],
    ids=str,
)
def test_products_with_a_vector_along_rows_become_sums_and_mean_the_same(lhs, rhs, batch, contract, dtype):
    graph = contraction(lhs, rhs, batch, contract, dtype)
    reduced = reduce_vectors(graph)
    verify(reduced)
    assert "dot_general" not in ops_of(reduced) or lhs == (1, 1)
    generator = np.random.default_rng(0)
    values = [generator.integers(-9, 9, shape).astype(dtype.numpy) for shape in (lhs, rhs)]
    np.testing.assert_array_equal(evaluate(reduced, values)[0], evaluate(graph, values)[0])


@pytest.mark.parametrize(
    ("lhs", "rhs", "contract", "dtype"),
    [
        ((33,), (33, 7), ((0,), (0,)), dtypes.float32),  # columns along the result's vectors
        ((2, 33), (7, 33), ((1,), (1,)), dtypes.float32),  # no vector
        ((7, 33), (33,), ((1,), (0,)), dtypes.bfloat16),  # products that multiplications would round
    ],
    ids=str,
)
def test_other_products_stay_contractions(lhs, rhs, contract, dtype):
    graph = contraction(lhs, rhs, ((), ()), contract, dtype)
    assert reduce_vectors(graph).outputs == graph.outputs


def test_a_permuted_matrix_counts_as_it_lies_in_memory():
    w, x = argument(0, (33, 7)), argument(1, (33,))
    roles = {"lhs_batch": (), "rhs_batch": (), "lhs_contract": (1,), "rhs_contract": (0,)}
    graph = Graph((w, x), (ops.dot_general(ops.permute(w, axes=(1, 0)), x, **roles),))
    assert reduce_vectors(graph).outputs == graph.outputs
