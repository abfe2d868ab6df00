"""What reaches what, while nodes merge: against a search of the edges."""

from __future__ import annotations

import random

import pytest
from kaun.compiler.schedule.dependencies import Dependencies


def reached(dependencies, start):
    found, stack = set(), [start]
    while stack:
        for node in dependencies.after[stack.pop()]:
            if node not in found:
                found.add(node)
                stack.append(node)
    return found


@pytest.mark.parametrize("ten", range(10))
def test_paths_are_known_however_nodes_merge(ten):
    for seed in range(30 * ten, 30 * ten + 30):
        source = random.Random(seed)
        count = source.randint(2, 16)
        edges = [(a, b) for b in range(count) for a in range(b) if source.random() < 0.25]
        dependencies = Dependencies(count, edges)
        for _ in range(count):
            nodes = list(dependencies.before)
            if len(nodes) < 2:
                break
            first, second = source.sample(nodes, 2)
            around = any(
                goal in reached(dependencies, node)
                for start, goal in ((first, second), (second, first))
                for node in dependencies.after[start]
                if node != goal
            )
            assert dependencies.leads_around(first, second) == around
            if not around:
                dependencies.merge(first, second)
                assert first not in dependencies.before
            for order in (dependencies.by_generation(), dependencies.first_numbers_first()):
                place = {node: position for position, node in enumerate(order)}
                assert place.keys() == dependencies.before.keys()
                assert all(place[a] < place[b] for a in place for b in dependencies.after[a])


def test_a_merged_node_takes_the_edges_of_both():
    dependencies = Dependencies(5, [(0, 2), (1, 2), (2, 4), (1, 3)])
    dependencies.merge(0, 3)
    assert set(dependencies.before[3]) == {1} and set(dependencies.after[3]) == {2}
    assert dependencies.leads_around(1, 2) and not dependencies.leads_around(3, 2)
    assert dependencies.first_numbers_first() == [1, 3, 2, 4]
