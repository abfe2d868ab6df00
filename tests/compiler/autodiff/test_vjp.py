"""The driver of reverse mode, the completeness of its table, and the values chosen where a derivative is not unique."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graph_strategies import Example, graphs
from hypothesis import HealthCheck, given, settings
from kaun.compiler.autodiff.vjp import NOT_DIFFERENTIABLE, RULES, gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, source, topological, verify
from kaun.compiler.ir.interpreter import evaluate

INF, NAN = float("inf"), float("nan")


def vector(name: str, size: int = 4, dtype: dtypes.DType = dtypes.float64) -> Node:
    return ops.input_(identity=("vjp", name), dtype=dtype, shape=(size,))


def gradient_at(function: Callable[..., Node], *arrays: Any) -> list[list[float]]:
    """The gradients of the sum of `function` at vectors."""
    nodes = [vector(str(i), len(array)) for i, array in enumerate(arrays)]
    output = function(*nodes)
    grads = gradients([output], [output.like(1)], nodes)
    return [g.tolist() for g in evaluate(Graph(tuple(nodes), tuple(grads)), [np.asarray(a, float) for a in arrays])]


def test_every_op_has_a_rule_or_a_reason() -> None:
    assert set(RULES) | set(NOT_DIFFERENTIABLE) == set(ops.TABLE)
    assert not set(RULES) & set(NOT_DIFFERENTIABLE)
    assert all(NOT_DIFFERENTIABLE.values())


def test_relu_written_with_where_has_gradient_zero_at_zero() -> None:
    assert gradient_at(lambda x: ops.where(ops.lt(x.like(0), x), x, x.like(0)), [-1, 0, 2]) == [[0, 0, 1]]


def test_abs_has_gradient_zero_at_zero() -> None:
    assert gradient_at(ops.abs_, [-3, 0, 2]) == [[-1, 0, 1]]


def test_maximum_and_minimum_split_ties() -> None:
    assert gradient_at(ops.maximum, [1, 2, 3], [3, 2, 1]) == [[0, 0.5, 1], [1, 0.5, 0]]
    assert gradient_at(ops.minimum, [1, 2, 3], [3, 2, 1]) == [[1, 0.5, 0], [0, 0.5, 1]]


def test_reductions_to_an_extremum_send_the_cotangent_to_the_first() -> None:
    assert gradient_at(lambda x: ops.reduce_max(x, axes=(0,)), [1, 3, 3, 2]) == [[0, 1, 0, 0]]
    assert gradient_at(lambda x: ops.reduce_min(x, axes=(0,)), [1, 3, 1, 1]) == [[1, 0, 0, 0]]
    square = gradient_at(lambda x: ops.reduce_max(ops.reshape(x, shape=(2, 2)), axes=(1, 0)), [0, 5, 5, 5])
    assert square == [[0, 1, 0, 0]]


def test_pow_at_base_zero_is_finite_where_the_function_is_flat() -> None:
    base, exponent = [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]
    assert gradient_at(ops.pow_, base, exponent) == [[0, 1, 0, 0], [0, 0, 0, 0]]
    twice = gradient_at(lambda x: gradients([ops.pow_(x, x.like(2))], [x.like(1)], [x])[0], [0, -1, 3])
    assert twice == [[2, 2, 2]]


def test_pow_of_a_negative_base_has_a_derivative_in_the_base() -> None:
    assert gradient_at(lambda x: ops.pow_(x, x.like(3)), [-2, 2]) == [[12, 12]]


def test_infinite_slopes_stay_infinite() -> None:
    assert gradient_at(ops.sqrt, [0, 4]) == [[INF, 0.25]]
    assert gradient_at(ops.log, [0, 4]) == [[INF, 0.25]]


def test_nothing_flows_through_stop_gradient_rounding_or_integers() -> None:
    assert gradient_at(lambda x: x * ops.stop_gradient(x), [2, 3]) == [[2, 3]]
    assert gradient_at(lambda x: x + ops.floor(x), [2.5]) == [[1]]
    through_integers = lambda x: x * ops.cast(ops.cast(x, dtype=dtypes.int32), dtype=x.dtype)  # noqa: E731
    assert gradient_at(through_integers, [2.5]) == [[2]]


def test_what_the_output_does_not_depend_on_has_a_zero_constant() -> None:
    x, y = vector("x"), vector("y", 3)
    (dx, dy) = gradients([ops.exp(x)], [x.like(1)], [x, y])
    assert dy is full(0, dtypes.float64, (3,))
    assert dx.op is ops.mul


def test_a_gradient_with_respect_to_an_inner_node_is_its_total_derivative() -> None:
    x = vector("x", 1)
    y = x * x
    z = y * x
    dx, dy, dz = evaluate(Graph((x,), tuple(gradients([z], [z.like(1)], [x, y, z]))), [np.array([2.0])])
    assert (dx, dy, dz) == (12, 2, 1)


def test_contributions_of_several_outputs_add_up() -> None:
    x = vector("x", 1)
    (dx,) = gradients([x * x, ops.neg(x), x], [x.like(1), x.like(5), x.like(100)], [x])
    assert evaluate(Graph((x,), (dx,)), [np.array([3.0])]) == [6 - 5 + 100]


def test_narrow_floats_get_gradients_of_their_own_type() -> None:
    x = vector("half", 2, dtypes.bfloat16)
    y = ops.cast(ops.cast(x, dtype=dtypes.float32) * 3, dtype=dtypes.float16)
    (dx,) = gradients([y], [y.like(1)], [x])
    assert dx.dtype is dtypes.bfloat16


def test_a_chain_of_twenty_thousand_ops_is_differentiated_without_recursion() -> None:
    x = node = vector("x", 1)
    for _ in range(20_000):
        node = ops.neg(node)
    (dx,) = gradients([node], [node.like(1)], [x])
    assert dx.shape == (1,)


def test_new_nodes_carry_the_source_of_the_forward_node_and_the_backward_phase() -> None:
    x = vector("source", 3)
    with source.inherit(source.Source("model.py", 12, "0.linear")):
        y = ops.tanh(x)
    (dx,) = gradients([y], [y.like(1)], [x])
    assert dx.source == source.Source("model.py", 12, "0.linear", "backward")


def test_wrong_cotangents_and_integers_are_rejected() -> None:
    x, i = vector("x"), vector("i", 4, dtypes.int32)
    with pytest.raises(ValueError, match=r"a cotangent float64\[3\] was given for an output float64\[4\]"):
        gradients([x], [vector("y", 3)], [x])
    with pytest.raises(ValueError, match=r"vjp\.gradients: 0 cotangents given for 1 outputs"):
        gradients([x], [], [x])
    with pytest.raises(TypeError, match=r"vjp\.gradients: only floats"):
        gradients([x], [x], [i])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(graphs())
def test_gradients_of_random_graphs_are_well_formed_and_of_the_inputs_types(example: Example) -> None:
    outputs = [node for node in example.graph.outputs if node.dtype.is_float]
    inputs = [node for node in example.graph.inputs if node.dtype.is_float]
    grads = gradients(outputs, [node.like(1) for node in outputs], inputs)
    assert [(g.dtype, g.shape) for g in grads] == [(x.dtype, x.shape) for x in inputs]
    verify(Graph(example.graph.inputs, tuple(grads)))
    again = gradients(grads, [g.like(1) for g in grads], inputs)
    verify(Graph(example.graph.inputs, tuple(again)))
    assert all(node.op.name in ops.TABLE for node in topological(again))
