"""Graphs of updates: weights and momenta that their successors may be written over, and arrays that only look so."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
from graph_strategies import Example
from kaun.compiler.ir import Graph, Node, dtypes, full, ops


def _exact(inputs: Sequence[Node], outputs: Sequence[Node]) -> Example:
    """Small integers as arguments, so that every order of summation gives the same floats."""
    draw = np.random.default_rng(len(inputs))
    arguments = tuple(draw.integers(-3, 4, node.shape).astype(node.dtype.numpy) for node in inputs)
    return Example(Graph(tuple(inputs), tuple(outputs)), arguments, (0.0,) * len(outputs))


def updates() -> Iterator[Example]:
    """Weights and momenta replaced by their successors, and arrays that look so but are read elsewhere too."""
    source = random.Random(11)
    for _ in range(12):
        rows, inner, columns = (source.choice((1, 2, 3, 5, 8, 17, 33, 64, 130)) for _ in range(3))
        dtype = source.choice((dtypes.float32, dtypes.float32, dtypes.float64, dtypes.bfloat16))

        def leaf(name: str, *shape: int, dtype: dtypes.DType = dtype) -> Node:
            return ops.input_(identity=name, dtype=dtype, shape=shape)

        x, g = leaf("x", rows, inner), leaf("g", rows, columns)
        w, v, b, s = leaf("w", inner, columns), leaf("v", inner, columns), leaf("b", columns), leaf("s", inner, inner)
        gradient = ops.dot_general(x, g, lhs_batch=(), rhs_batch=(), lhs_contract=(0,), rhs_contract=(0,))
        back = ops.dot_general(g, w, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(1,))
        momentum = v * 0.5 + gradient
        outputs = [w - momentum * 0.125, momentum, b - ops.reduce_sum(g, axes=(0,)) * 0.25, back]
        transposed = ops.permute(s, axes=(1, 0))
        outputs += source.sample([s + transposed, ops.flip(s, axes=(0,)), s * 2.0, transposed, s, ops.neg(s)], 2)
        whole = ops.broadcast(ops.reshape(ops.reduce_sum(s, axes=(0, 1)), shape=(1, 1)), shape=s.shape)
        outputs += source.sample([s - whole, ops.concat(b, b, axis=0), x + x], 2)
        example = _exact((x, g, w, v, b, s), tuple(outputs))
        # Narrow floats round, so only the bits in place and elsewhere are compared.
        rounded = dataclasses.replace(example, tolerances=(math.inf,) * len(outputs))
        yield rounded if dtype is dtypes.bfloat16 else example
    for sizes in ((5, 7, 3, 2), (64, 40, 128, 10), (33, 130, 65, 17), (8, 16, 200, 1)):
        yield _perceptron(*sizes)


def _perceptron(batch: int, inputs: int, hidden: int, outputs: int) -> Example:
    """A step of two layers with momentum: some kernels read one weight and replace another."""
    shapes = {"x": (batch, inputs), "g": (batch, outputs)}
    shapes |= {"w": (inputs, hidden), "b": (hidden,), "u": (hidden, outputs)}
    shapes |= {"mw": (inputs, hidden), "mb": (hidden,), "mu": (hidden, outputs)}
    leaves = {name: ops.input_(identity=name, dtype=dtypes.float32, shape=shape) for name, shape in shapes.items()}
    x, g, w, b, u, mw, mb, mu = leaves.values()

    def product(left: Node, right: Node, over: tuple[int, int]) -> Node:
        return ops.dot_general(
            left, right, lhs_batch=(), rhs_batch=(), lhs_contract=(over[0],), rhs_contract=(over[1],)
        )

    before = product(x, w, (1, 0)) + ops.broadcast(ops.reshape(b, shape=(1, hidden)), shape=(batch, hidden))
    zero = full(0, before.dtype, before.shape)
    slope = ops.where(ops.le(before, zero), zero, product(g, u, (1, 1)))
    momenta = [
        mw * 0.5 + product(x, slope, (0, 0)),
        mb * 0.5 + ops.reduce_sum(slope, axes=(0,)),
        mu * 0.5 + product(ops.maximum(before, zero), g, (0, 0)),
    ]
    return _exact(tuple(leaves.values()), (*(p - m * 0.5 for p, m in zip((w, b, u), momenta, strict=True)), *momenta))
