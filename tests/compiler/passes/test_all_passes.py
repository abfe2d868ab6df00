"""What every pass promises: a well-formed graph of the same meaning, and nothing left to do a second time."""

from __future__ import annotations

import pytest
from graph_strategies import Example, assert_outputs_agree, graph_from_seed, graphs
from hypothesis import HealthCheck, given, settings
from kaun.compiler import passes
from kaun.compiler.ir import Graph, dtypes, key, ops, topological, verify
from kaun.compiler.ir.interpreter import evaluate

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check(name: str | None, example: Example) -> None:
    """One pass, or the standard sequence for None."""
    apply = passes.run if name is None else passes.PASSES[name]
    before = key(example.graph)
    result = apply(example.graph)
    assert key(example.graph) == before
    verify(result)
    assert result.inputs == example.graph.inputs
    expected = evaluate(example.graph, example.arguments)
    assert_outputs_agree(example, evaluate(result, example.arguments), expected)
    assert key(apply(result)) == key(result)


@pytest.mark.parametrize("name", [*passes.PASSES, None])
@relaxed
@given(example=graphs())
def test_random_graphs_keep_their_meaning(name: str | None, example: Example) -> None:
    check(name, example)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*passes.PASSES, None])
def test_a_thousand_random_graphs_keep_their_meaning(name: str | None) -> None:
    for seed in range(1000):
        check(name, graph_from_seed(seed))


@pytest.mark.parametrize("name", passes.PASSES)
def test_inputs_stay_in_order_and_outputs_may_be_inputs_or_repeated(name: str) -> None:
    x, y, z = (ops.input_(identity=("pass", i), dtype=dtypes.float32, shape=(2,)) for i in range(3))
    graph = Graph((z, x, y), (x, x + y, x), ("z", "x", "y"))
    result = passes.PASSES[name](graph)
    assert result.inputs == (z, x, y)
    assert result.input_names == ("z", "x", "y")
    assert (result.outputs[0], result.outputs[2]) == (x, x)


@pytest.mark.parametrize("name", passes.PASSES)
def test_no_pass_looks_behind_an_input_that_was_computed(name: str) -> None:
    x = ops.input_(identity=("pass", "x"), dtype=dtypes.float32, shape=(2, 3))
    computed = ops.neg(ops.permute(x, axes=(1, 0)))
    graph = Graph((computed, x), (ops.neg(computed), ops.permute(x, axes=(1, 0))))
    result = passes.PASSES[name](graph)
    verify(result)
    assert all(node.op is ops.input_ for node in result.inputs)
    assert topological([result.outputs[0]])[0] is result.inputs[0]
    assert result.inputs[1] is x


@pytest.mark.parametrize("name", passes.PASSES)
def test_a_chain_of_ten_thousand_ops_is_rewritten_without_recursion(name: str) -> None:
    x = node = ops.input_(identity=("pass", "x"), dtype=dtypes.float32, shape=(2,))
    for _ in range(10_000):
        node = ops.tanh(node)
    result = passes.PASSES[name](Graph((x,), (node,)))
    assert len(result.nodes) == 10_001


def test_passes_are_registered_under_the_names_of_their_files() -> None:
    assert all(function.__module__.endswith(f".{name}") for name, function in passes.PASSES.items())


def test_an_unknown_pass_is_named() -> None:
    with pytest.raises(ValueError, match=r"passes\.run: unknown pass 'fuse'; expected one of canonicalise, "):
        passes.run(Graph((), ()), ["fuse"])


