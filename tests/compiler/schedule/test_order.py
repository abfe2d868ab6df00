"""Kernels run in an order that is right and, among those, needs little memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from kaun.compiler import passes
from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.schedule.fusion import fuse
from kaun.compiler.schedule.memory import Lifetime, peak_bytes
from kaun.compiler.schedule.order import Task, live_bytes, order_kernels, order_tasks

KILO = 1024


def is_right(tasks: Sequence[Task], order: Sequence[int]) -> bool:
    """Every task once, none before the value that it reads is written."""
    place = {task: position for position, task in enumerate(order)}
    writer = {value: number for number, task in enumerate(tasks) for value in task.writes}
    reads = ((writer[v], n) for n, task in enumerate(tasks) for v in task.reads if v in writer)
    return sorted(order) == list(range(len(tasks))) and all(place[first] < place[second] for first, second in reads)


def all_orders(tasks: Sequence[Task]) -> Iterator[tuple[int, ...]]:
    return (order for order in itertools.permutations(range(len(tasks))) if is_right(tasks, order))


def random_tasks(generator: random.Random, count: int) -> tuple[list[Task], list[int]]:
    """Tasks with one or two values each, which read values of a few tasks before, or of none."""
    tasks: list[Task] = []
    sizes: list[int] = []
    for _ in range(count):
        reads = generator.sample(range(len(sizes)), min(len(sizes), generator.randrange(3)))
        writes = range(len(sizes), len(sizes) + generator.randrange(1, 3))
        sizes += [generator.randrange(5) * KILO for _ in writes]
        tasks.append(Task(tuple(reads), tuple(writes)))
    return tasks, sizes


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7])
def test_orders_are_right_and_never_need_more_than_the_given_one(count: int) -> None:
    generator = random.Random(count)
    for _ in range(200):
        tasks, sizes = random_tasks(generator, count)
        order = order_tasks(tasks, sizes)
        assert is_right(tasks, order)
        assert live_bytes(tasks, sizes, order) <= live_bytes(tasks, sizes, range(count))


def test_most_small_programs_get_the_best_order_there_is_and_all_come_close() -> None:
    generator = random.Random(0)
    found = 0
    for _ in range(100):
        tasks, sizes = random_tasks(generator, 7)
        best = min(live_bytes(tasks, sizes, order)[0] for order in all_orders(tasks))
        peak = live_bytes(tasks, sizes, order_tasks(tasks, sizes))[0]
        assert best <= peak <= 1.25 * best
        found += peak == best
    assert found >= 90


def test_live_bytes_are_the_peak_of_the_memory_plan() -> None:
    generator = random.Random(1)
    for _ in range(50):
        tasks, sizes = random_tasks(generator, 6)
        last = {v: n for n, task in enumerate(tasks) for v in (*task.reads, *task.writes)}
        lives = [Lifetime(sizes[v], n, last[v]) for n, task in enumerate(tasks) for v in task.writes]
        assert live_bytes(tasks, sizes, range(6))[0] == peak_bytes(lives)


def test_what_frees_memory_runs_early() -> None:
    """Three layers forward, their gradients backward, and at the end of the given order the updates of their weights.

    Values: activations 0, 1, 2 and cotangents 3, 4, 5 of the layers 2, 1, 0. The update of a layer reads the
    activation before it and the cotangent after it.
    """
    forward = [Task((), (0,)), Task((0,), (1,)), Task((1,), (2,))]
    backward = [Task((2,), (3,)), Task((3, 1), (4,)), Task((4, 0), (5,))]
    updates = [Task((5,), ()), Task((0, 4), ()), Task((1, 3), ())]
    tasks, sizes = [*forward, *backward, *updates], [KILO] * 6
    assert live_bytes(tasks, sizes, range(9))[0] == 5 * KILO
    order = order_tasks(tasks, sizes)
    # The update of the last layer comes before the cotangent of the first.
    assert order.index(8) < order.index(5)
    assert live_bytes(tasks, sizes, order)[0] == 4 * KILO


def test_what_can_be_made_any_time_is_made_just_before_its_use() -> None:
    """A big value made from nothing is not there while another comes and goes."""
    big, chain = Task((), (0,)), [Task((), (1,)), Task((1,), (2,)), Task((0, 2), ())]
    tasks, sizes = [big, *chain], [8 * KILO, 8 * KILO, KILO]
    order = order_tasks(tasks, sizes)
    assert order == [1, 2, 0, 3]


def test_wishes_are_granted_unless_they_go_round_in_a_circle() -> None:
    tasks = [Task((), (0,)), Task((0,), (1,), after=(2, 1)), Task((0,), (2,)), Task((1, 2), ())]
    order = order_tasks(tasks, [KILO] * 3)
    assert order == [0, 2, 1, 3]
    circle = [Task((), (0,), after=(1,)), Task((0,), ())]
    assert order_tasks(circle, [KILO]) == [0, 1]


def test_equal_programs_are_ordered_equally() -> None:
    tasks, sizes = random_tasks(random.Random(2), 60)
    assert order_tasks(tasks, sizes) == order_tasks(list(tasks), list(sizes))


def updated_weight() -> Graph:
    """Two uses of a weight, a gradient-like product, and the weight's update; the update is the first result."""
    x, w = (ops.input_(identity=name, dtype=dtypes.float32, shape=(8, 8)) for name in ("x", "w"))

    def product(a: Node, b: Node) -> Node:
        return ops.dot_general(a, b, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))

    updated = w - product(x, x) * 0.5
    second = product(product(product(x, w), x), w)
    return Graph((x, w), (updated, second), ("x", "w"))


def test_a_weight_is_updated_after_its_last_reader() -> None:
    graph = passes.run(updated_weight())
    kernels = order_kernels(fuse(graph), graph)
    weight, result = graph.inputs[1], graph.outputs[0]
    readers = [position for position, kernel in enumerate(kernels) if weight in kernel.reads]
    (writer,) = (position for position, kernel in enumerate(kernels) if result in kernel.outputs)
    assert len(readers) > 2 and writer == max(readers)
