"""Compiled code and the NumPy interpreter agree on graphs nobody thought of."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from graph_strategies import Example, assert_outputs_agree, graph_from_seed, graphs
from hypothesis import HealthCheck, given, settings
from kaun.compiler.ir import Node, ops, print_graph, rebuild, rewrite, substitute, topological
from kaun.compiler.ir.interpreter import evaluate

from kaun import execution


def execute(example: Example) -> list[Any]:
    """The outputs as `nx` would compute them."""
    leaves = [execution.leaf(argument) for argument in example.arguments]
    outputs = substitute(example.graph.outputs, dict(zip(example.graph.inputs, leaves, strict=True)))
    for node in topological(outputs):
        if node not in leaves:
            node.value = None  # Equal nodes are one node, also across examples; what is compared is computed now.
    execution.realize(outputs)
    return [execution.array(node) for node in outputs]


def check(example: Example) -> None:
    expected = evaluate(example.graph, example.arguments)
    try:
        assert_outputs_agree(example, execute(example), expected)
    except Exception as error:
        error.add_note(print_graph(example.graph))
        raise


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(graphs())
def test_compiled_graphs_agree_with_the_interpreter(example: Example) -> None:
    check(example)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_compiled_graphs_agree_with_the_interpreter(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        try:
            check(graph_from_seed(seed))
        except Exception as error:
            error.add_note(f"graph_from_seed({seed})")
            raise


def with_waits(example: Example, source: random.Random) -> Example:
    """The example with nodes here and there read again, after something else has been computed."""
    before: list[Node] = []

    def waiting(node: Node, inputs: tuple[Node, ...]) -> Node:
        made = rebuild(node, inputs)
        if before and source.random() < 0.3:
            made = ops.again(made, *source.sample(before, min(len(before), 2)), number=0)
        before.append(made)
        return made

    return dataclasses.replace(example, graph=rewrite(example.graph, waiting))


def test_graphs_with_waits_agree_with_the_interpreter() -> None:
    for seed in range(25):
        check(with_waits(graph_from_seed(seed), random.Random(seed)))


@pytest.mark.slow
def test_many_graphs_with_waits_agree_with_the_interpreter() -> None:
    for seed in range(25, 300):
        check(with_waits(graph_from_seed(seed), random.Random(seed)))
