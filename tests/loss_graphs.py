"""Graphs of a language model's loss: scores against a vocabulary, cross-entropy, gradients and an update."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from graph_strategies import Example
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops
from kaun.compiler.ir.interpreter import evaluate


def losses() -> Iterator[Example]:
    """With an embedding of its own or with that of the tokens, which is then updated in place; odd lengths."""
    source = random.Random(5)
    for number in range(12):
        tokens, width = source.choice((1, 3, 33, 64, 70)), source.choice((1, 5, 16, 33))
        vocabulary = source.choice((17, 40, 131, 200, 300))
        dtype = source.choice((dtypes.float32, dtypes.float32, dtypes.float64))
        yield loss_with_gradients(dtype, tokens, width, vocabulary, tied=number % 3 != 0, budget=number % 4 and 0)


def loss_with_gradients(
    dtype: dtypes.DType, tokens: int, width: int, vocabulary: int, tied: bool, budget: int | None
) -> Example:
    """(loss, new embedding of the scores, gradient of what goes into them or of a weight before it).

    `budget`: of bytes to keep for the gradient, None for no mark.
    """
    table = ops.input_(identity="table", dtype=dtype, shape=(vocabulary, width))
    given = ops.input_(identity="tokens", dtype=dtypes.int32, shape=(tokens,))
    classes = ops.input_(identity="classes", dtype=dtypes.int32, shape=(tokens,))
    weight = ops.input_(identity="weight", dtype=dtype, shape=(width, width))
    before = ops.input_(identity="before", dtype=dtype, shape=(tokens, width))
    x = ops.tanh(_product(ops.gather(table, given) if tied else before, weight, (1, 0)))
    scores = _product(x, table, (1, 1))

    def along(value: Node) -> Node:
        return ops.broadcast(ops.reshape(value, shape=(tokens, 1)), shape=scores.shape)

    shifted = ops.sub(scores, along(ops.stop_gradient(ops.reduce_max(scores, axes=(1,)))))
    chosen = ops.eq(ops.iota(shape=scores.shape, axis=1, dtype=dtypes.int32), along(classes))
    picked = ops.reduce_sum(ops.where(chosen, shifted, full(0, dtype, scores.shape)), axes=(1,))
    loss = ops.reduce_sum(ops.log(ops.reduce_sum(ops.exp(shifted), axes=(1,))) - picked, axes=(0,))
    inputs = (table, given, classes, weight, before)
    marked = loss if budget is None else ops.remat(loss, *inputs, budget=budget)
    of_table, of_weight = gradients([marked], [full(1, dtype, ())], [table, weight])
    outputs = (marked, table - of_table * 0.125, of_weight)
    draw = np.random.default_rng(vocabulary)
    arguments = tuple(
        draw.integers(0, vocabulary, node.shape).astype(np.int32)
        if node.dtype is dtypes.int32
        else draw.normal(size=node.shape).astype(node.dtype.numpy)
        for node in inputs
    )
    graph = Graph(inputs, outputs)
    relative = 1e-12 if dtype is dtypes.float64 else 1e-5
    largest = [float(np.abs(value).max()) for value in evaluate(graph, arguments)]
    return Example(graph, arguments, tuple(relative * (1 + each) for each in largest))


def _product(left: Node, right: Node, over: tuple[int, int]) -> Node:
    return ops.dot_general(left, right, lhs_batch=(), rhs_batch=(), lhs_contract=(over[0],), rhs_contract=(over[1],))
