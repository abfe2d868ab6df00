"""Minimum cuts are those that networkx finds."""

from __future__ import annotations

import random

import networkx
import pytest
from kaun.compiler.autodiff.maximum_flow import Network


def random_edges(seed):
    """(number of nodes, edges as (start, end, capacity)); one of seven edges has no capacity, but no path of them."""
    draw = random.Random(seed)
    nodes = draw.randint(2, 30)
    edges = {}
    for _ in range(draw.randint(0, 4 * nodes)):
        start, end = draw.sample(range(nodes), 2)
        unbounded = start < end and draw.random() < 1 / 7 and {start, end}.isdisjoint((0, nodes - 1))
        edges[start, end] = float("inf") if unbounded else draw.randint(0, 64) / draw.choice((1, 4, 32))
    return nodes, [(*ends, capacity) for ends, capacity in edges.items()]


@pytest.mark.parametrize("ten", range(20))
def test_the_cut_nearest_to_the_sink_is_found(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        nodes, edges = random_edges(seed)
        network, other = Network(nodes), networkx.DiGraph()
        other.add_nodes_from(range(nodes))
        for start, end, capacity in edges:
            network.add_edge(start, end, capacity)
            other.add_edge(start, end, capacity=capacity)
        reached = network.minimum_cut(0, nodes - 1)
        value, (expected, _) = networkx.minimum_cut(other, 0, nodes - 1)
        assert reached == set(expected)
        assert sum(c for start, end, c in edges if start in reached and end not in reached) == value


def test_a_path_that_cannot_be_cut_is_refused():
    network = Network(3)
    network.add_edge(0, 1)
    network.add_edge(1, 2)
    with pytest.raises(ValueError, match="a path of edges without a capacity leads to the sink"):
        network.minimum_cut(0, 2)
