"""A graph at rest holds no nodes, and is the same graph when somebody looks."""

from __future__ import annotations

import gc
import itertools
import weakref

from kaun.compiler.ir import Graph, KeptGraph, dtypes, forget_dead_nodes, ops, print_graph
from kaun.compiler.ir import graph as graphs
from kaun.compiler.ir.source import Source, inherit

numbers = itertools.count()


def made() -> Graph:
    x = ops.input_(identity=("kept", next(numbers)), dtype=dtypes.float32, shape=(2, 3))
    with inherit(Source("model.py", 7, "0.linear")):
        y = ops.tanh(x)
    with inherit(Source("", 0, "", "backward")):
        return Graph((x,), (ops.mul(y, y), y), ("params.w",))


def test_it_is_the_same_graph_after_rest_with_sources_and_names() -> None:
    graph = made()
    kept = KeptGraph(graph)
    assert kept.graph is graph
    kept.rest()
    assert kept.graph is not graph and print_graph(kept.graph) == print_graph(graph)
    assert kept.graph.input_names == ("params.w",)
    assert [node.source.phase for node in kept.graph.outputs] == ["backward", "forward"]
    assert kept.graph.outputs[1].source == Source("model.py", 7, "0.linear")


def test_while_somebody_holds_it_it_is_one_graph() -> None:
    kept = KeptGraph(made())
    kept.rest()
    held = kept.graph
    assert kept.graph is held
    kept.rest()
    assert kept.graph is held


def test_at_rest_it_holds_no_node() -> None:
    kept = KeptGraph()
    kept.hold(made())
    gone = [weakref.ref(node) for node in kept.graph.nodes]
    gc.disable()
    try:
        kept.rest()
        assert [reference() for reference in gone] == [None] * len(gone)
    finally:
        gc.enable()


def test_other_names_are_those_of_the_same_graph_at_rest_or_not() -> None:
    for rests in (False, True):
        kept = KeptGraph(made())
        if rests:
            kept.rest()
        named = kept.named(("x",))
        assert named.graph.input_names == ("x",) and kept.graph.input_names == ("params.w",)
        named.rest()
        assert print_graph(named.graph) == print_graph(kept.graph).replace("params.w", "x")


def test_dead_nodes_leave_no_entries() -> None:
    x = ops.input_(identity=("kept", "many"), dtype=dtypes.float32, shape=())
    for _ in range(1000):
        x = ops.sin(x)
    before = len(graphs._interned)
    del x
    forget_dead_nodes()
    assert len(graphs._interned) <= before - 1000
