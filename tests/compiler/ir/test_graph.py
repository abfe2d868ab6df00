"""Nodes: equal ones are the same object, and everything that makes them different is seen."""

from __future__ import annotations

import gc
import threading

import pytest
from kaun.compiler.ir import Graph, Node, dtypes, full, key, ops, rewrite, source, substitute, topological


def tensor(name: str, *shape: int) -> Node:
    return ops.input_(identity=("graph", name), dtype=dtypes.float32, shape=shape)


def test_equal_expressions_are_one_node() -> None:
    x, y = tensor("x", 3), tensor("y", 3)
    assert ops.exp(x + y) is ops.exp(x + y)
    assert x + y is not y + x
    assert ops.reduce_sum(x, axes=(0,)) is ops.reduce_sum(x, axes=(0,))


def test_constants_that_differ_in_sign_of_zero_or_type_are_told_apart() -> None:
    assert full(0.0, dtypes.float32) is not full(-0.0, dtypes.float32)
    assert full(1, dtypes.float32) is not full(1, dtypes.float64)
    assert full(1, dtypes.float32) is full(1.0, dtypes.float32)
    assert full(float("nan"), dtypes.float32) is full(float("nan"), dtypes.float32)
    assert full(True, dtypes.bool_) is not full(1, dtypes.int32)


def test_nodes_nobody_holds_are_forgotten() -> None:
    x = tensor("forgotten", 5)
    serial = ops.sin(x).serial
    gc.collect()
    assert ops.sin(x).serial != serial


def test_threads_that_build_the_same_expression_get_the_same_node() -> None:
    x, found = tensor("x", 7), []
    barrier = threading.Barrier(8)

    def build() -> None:
        barrier.wait()
        node = x
        for _ in range(300):
            node = ops.tanh(node)
        found.append(node)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_a_node_knows_the_line_that_made_it() -> None:
    with source.layer("0"), source.layer("linear"):
        node = ops.cos(tensor("made here", 2))
    assert node.source.file == __file__
    assert (node.source.path, node.source.phase) == ("0.linear", "forward")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda x, y: x + y, ValueError, r"add: got float32\[3\] and float32\[2\], expected equal shapes"),
        (lambda x, y: ops.and_(x, x), TypeError, r"and: got float32\[3\] and float32\[3\], expected bool or integers"),
        (lambda x, y: ops.eq(x, ops.cast(x, dtype=dtypes.int8)), TypeError, "eq: .* expected equal dtypes"),
        (lambda x, y: ops.reshape(x, shape=(2,)), ValueError, r"reshape: cannot reshape float32\[3\] to \[2\]"),
        (lambda x, y: ops.reduce_sum(x, axes=(1,)), ValueError, r"reduce_sum: axes \(1,\) are not distinct axes"),
        (lambda x, y: ops.broadcast(x, shape=(4,)), ValueError, r"broadcast: cannot broadcast float32\[3\] to \[4\]"),
        (lambda x, y: ops.slice_(x, starts=(2,), stops=(1,), steps=(1,)), ValueError, "slice: "),
        (lambda x, y: ops.pad(x, low=(-1,), high=(0,), interior=(0,), value=0.0), ValueError, "pad: .* negative"),
        (lambda x, y: ops.gather(x, y), TypeError, "gather: .* expected integer indices"),
        (lambda x, y: ops.argmax(ops.slice_(x, starts=(0,), stops=(0,), steps=(1,)), axis=0), ValueError, "is empty"),
        (lambda x, y: ops.exp(x, axis=1), TypeError, "exp: attributes .* given"),
        (lambda x, y: ops.exp(x, y), TypeError, "exp: 2 inputs given, expected 1"),
        (lambda x, y: ops.concat(axis=0), TypeError, "concat: no inputs given, expected one or more"),
        (lambda x, y: full(0, dtypes.int8, (-1,)), ValueError, "negative extent"),
    ],
)
def test_ill_typed_nodes_are_rejected_with_what_was_given(build, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        build(tensor("x", 3), tensor("y", 2))


def test_topological_order_has_inputs_first_and_stops_where_told() -> None:
    x = tensor("x", 3)
    y = ops.exp(x)
    z = y + ops.sin(y)
    order = topological([z])
    assert all(order.index(child) < order.index(node) for node in order for child in node.inputs)
    assert set(topological([z], stop=lambda node: node is y)) == {y, ops.sin(y), z}


def test_substitute_replaces_nodes_and_leaves_what_does_not_depend_on_them() -> None:
    x, y = tensor("x", 3), tensor("y", 3)
    old = ops.exp(y)
    late = tensor("late", 3)
    assert substitute([old * x + old, old], {x: y}) == [old * y + old, old]
    assert substitute([late * ops.sin(late), old], {late: ops.neg(late)}) == [-late * ops.sin(-late), old]
    assert substitute([x + y], {x: y, y: x}) == [y + x]


def test_rewrite_visits_every_node_once_with_its_new_inputs() -> None:
    x = tensor("x", 3)
    graph = Graph((x,), (ops.exp(ops.sin(x)) + ops.sin(x),))
    result = rewrite(graph, lambda node, inputs: ops.cos(*inputs) if node.op is ops.sin else node.op(*inputs))
    assert result.outputs == (ops.exp(ops.cos(x)) + ops.cos(x),)


def test_the_key_does_not_depend_on_where_or_in_what_order_nodes_were_made() -> None:
    def build(*names: str) -> str:
        x, y = (tensor(name, 2) for name in names)
        return key(Graph((x, y), (ops.exp(x) * y,), names))

    assert build("a", "b") == build("c", "d") == build("b", "a")


def test_users_list_every_reader() -> None:
    x = tensor("x", 2)
    square = x * x
    users = Graph((x,), (square, ops.neg(square))).users
    assert users[x] == [square, square]
    assert users[square] == [ops.neg(square)]
