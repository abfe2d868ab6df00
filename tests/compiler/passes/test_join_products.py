"""Sums of products become one product where that spares a large result, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler import passes
from kaun.compiler.ir import Graph, Node, dtypes, ops, verify
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.schedule.fusion import fuse


def leaf(name: str, *shape: int) -> Node:
    return ops.input_(identity=("join", name), dtype=dtypes.float32, shape=shape)


def dot(a: Node, b: Node, first: int = 0, second: int = 0) -> Node:
    return ops.dot_general(a, b, lhs_batch=(), rhs_batch=(), lhs_contract=(first,), rhs_contract=(second,))


def products(graph: Graph) -> int:
    return sum(node.op is ops.dot_general for node in graph.nodes)


def transposed(node: Node) -> Node:
    return ops.permute(node, axes=(1, 0))


X, Y, U, V, W = leaf("x", 3, 40), leaf("y", 5, 40), leaf("u", 3, 30), leaf("v", 5, 30), leaf("w", 40, 5)
BOTH_WAYS = {
    "as they are": dot(X, U) + dot(Y, V),
    "the first transposed": transposed(dot(U, X)) + dot(Y, V),
    "the second transposed": dot(X, U) + transposed(dot(V, Y)),
    "an operand transposed": dot(X, U) + dot(W, V, 1, 0),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_sums_of_products_are_joined(name: str) -> None:
    graph = Graph((X, Y, U, V, W), (BOTH_WAYS[name],))
    joined = passes.run(graph, ["join_products"])
    verify(joined)
    assert (products(graph), products(joined)) == (2, 1)
    generator = np.random.default_rng(0)
    values = [generator.standard_normal(node.shape).astype(np.float32) for node in graph.inputs]
    np.testing.assert_allclose(evaluate(joined, values)[0], evaluate(graph, values)[0], rtol=1e-4, atol=1e-5)


def test_an_update_finishes_a_joined_product_and_no_term_is_stored() -> None:
    weight = leaf("weight", 40, 30)
    graph = passes.run(Graph((X, Y, U, V, weight), (weight - (dot(X, U) + transposed(dot(V, Y))) * 0.1,)))
    (kernel,) = fuse(graph)
    assert kernel.outputs == graph.outputs


@pytest.mark.parametrize(
    "outputs",
    [
        (dot(X, U) + dot(Y, V), dot(X, U)),
        (dot(X, U) + dot(X, U),),
        (dot(X, U) + transposed(dot(transposed(dot(Y, V)), leaf("z", 40, 40), 1, 0)),),
        (dot(leaf("p", 3, 4), leaf("q", 3, 4)) + dot(leaf("r", 5, 4), leaf("s", 5, 4)),),
        (dot(leaf("e", 3, 0), U) + dot(leaf("f", 5, 0), V),),
    ],
    ids=["a term used elsewhere", "one product twice", "a deep product", "a small result", "an empty result"],
)
def test_sums_are_left_alone_where_joining_spares_nothing(outputs: tuple[Node, ...]) -> None:
    leaves = dict.fromkeys(n for n in Graph((), outputs).nodes if n.op is ops.input_)
    graph = Graph(tuple(leaves), outputs)
    assert passes.run(graph, ["join_products"]).outputs == outputs
