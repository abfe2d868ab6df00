"""The order in which kernels run, chosen so that few bytes of intermediates are alive at once.

Finding the best order is as hard as register allocation for expressions with shared parts (Sethi, Complete register
allocation problems, 1975), so a few orders are made by rules that take near-linear time, and the best is kept. Each
rule lists the kernels from the first to the last, or from the last to the first, and looks only at what the next one
would do to the bytes alive. From the first: a weight's update runs as soon as its gradient can be made, because it
frees what the forward pass kept for it. From the last: what is computed anew for the gradient runs just before its use.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node
from .collapse import all_values, roots_of
from .fusion import ScheduledKernel
from .index import Index
from .loop_ir import Load
from .memory import aligned
from .text import stores_of

# How often the rules are applied, each time to what was best before: they settle ties by the order they are given.
ROUNDS = 2


@dataclass(frozen=True)
class Task:
    """A kernel as ordering sees it: the values it reads and writes, by number; values that no task writes are free.

    It comes after the tasks that write what it reads or `waits` for. `after` are tasks that it wishes to follow: an
    order in which it does is found where there is one.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    waits: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def order_kernels(kernels: Sequence[ScheduledKernel], graph: Graph) -> list[ScheduledKernel]:
    """The kernels of a graph, which are in an order in which they can run, in one that needs little memory.

    A kernel that writes a result and reads an input of the graph of the same type comes after all others that read
    that input, if it can: so the result may be written over the input.
    """
    results, given = set(graph.outputs), set(graph.inputs)
    numbers = {node: number for number, node in enumerate(n for kernel in kernels for n in kernel.outputs)}
    sizes = [0 if node in results else node.nbytes for node in numbers]
    readers: dict[Node, list[int]] = {}
    for position, kernel in enumerate(kernels):
        for node in kernel.reads:
            readers.setdefault(node, []).append(position)
    tasks = []
    for kernel in kernels:
        replaced = replaced_inputs(kernel, given, results)
        tasks.append(
            Task(
                reads=tuple(numbers[node] for node in kernel.reads if node in numbers),
                writes=tuple(numbers[node] for node in kernel.outputs),
                waits=tuple(numbers[node] for node in kernel.waits),
                after=tuple(position for node in replaced for position in readers[node]),
            )
        )
    return [kernels[position] for position in order_tasks(tasks, sizes)]


def replaced_inputs(kernel: ScheduledKernel, given: Container[Node], results: Container[Node]) -> list[Node]:
    """The inputs of the graph that a result may be written over: the kernel that writes it reads just that element."""
    types = {(node.dtype, node.shape) for node in kernel.outputs if node in results}
    candidates = [node for node in kernel.reads if node in given and (node.dtype, node.shape) in types]
    if not candidates:
        return []
    stores = [(store.buffer.node, store.index) for store in stores_of(kernel.kernel)]
    loads: dict[Node, set[Index]] = {}
    for value in all_values(roots_of(kernel.kernel)):
        if isinstance(value, Load):
            loads.setdefault(value.buffer.node, set()).add(value.index)
    return [
        node
        for node in candidates
        if any(
            loads.get(node) == {index} and (written.dtype, written.shape) == (node.dtype, node.shape)
            for written, index in stores
            if written in results
        )
    ]


def order_tasks(tasks: Sequence[Task], sizes: Sequence[int]) -> list[int]:
    """The positions of the tasks in an order that respects who reads what, with few bytes alive at once.

    `tasks` are in an order that is right already; the result never needs more than that one with the wishes granted.
    `sizes` are the bytes of each value. Of orders that need as much, the one whose values wait for less time.
    """
    before = _predecessors(tasks)
    given = _topological(before, lambda task: (task,))
    sizes = [aligned(size) for size in sizes]
    best = given
    for _ in range(ROUNDS):
        candidates = [best]
        for urgent_first in (True, False):
            candidates.append(_forward(tasks, sizes, before, best, urgent_first))
            candidates.append(_backward(tasks, sizes, before, best, urgent_first))
        best = min(candidates, key=lambda order: live_bytes(tasks, sizes, order))
    return best


def live_bytes(tasks: Sequence[Task], sizes: Sequence[int], order: Sequence[int]) -> tuple[int, int]:
    """(the most bytes alive at one task, the sum over tasks of the bytes alive) if the tasks run in this order."""
    last: dict[int, int] = {}
    for position, task in enumerate(order):
        for value in (*tasks[task].reads, *tasks[task].writes):
            last[value] = position
    written = {value for task in tasks for value in task.writes}
    alive = peak = total = 0
    for position, task in enumerate(order):
        alive += sum(sizes[value] for value in tasks[task].writes)
        peak, total = max(peak, alive), total + alive
        touched = {*tasks[task].reads, *tasks[task].writes} & written
        alive -= sum(sizes[value] for value in touched if last[value] == position)
    return peak, total


def _predecessors(tasks: Sequence[Task]) -> list[set[int]]:
    """For each task those that must come before it: who writes what it reads, and whom it wishes to follow."""
    writer = {value: number for number, task in enumerate(tasks) for value in task.writes}
    before = [
        {writer[value] for value in (*task.reads, *task.waits) if value in writer} - {number}
        for number, task in enumerate(tasks)
    ]
    followers: list[set[int]] = [set() for _ in tasks]
    for number, sources in enumerate(before):
        for source in sources:
            followers[source].add(number)
    for number, task in enumerate(tasks):
        for wish in task.after:
            if wish != number and not _reaches(followers, number, wish):
                before[number].add(wish)
                followers[wish].add(number)
    return before


def _reaches(followers: Sequence[set[int]], start: int, goal: int) -> bool:
    seen, stack = {start}, [start]
    while stack:
        for follower in followers[stack.pop()]:
            if follower == goal:
                return True
            if follower not in seen:
                seen.add(follower)
                stack.append(follower)
    return False


def _followers(before: Sequence[Iterable[int]]) -> list[list[int]]:
    followers: list[list[int]] = [[] for _ in before]
    for number, sources in enumerate(before):
        for source in sources:
            followers[source].append(number)
    return followers


def _topological(before: Sequence[set[int]], key: Callable[[int], tuple[int, ...]]) -> list[int]:
    """All tasks, each after those in `before`; of those that could be next, the one with the least key."""
    followers, waiting = _followers(before), [len(sources) for sources in before]
    ready = [(key(n), n) for n, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(number)
        for follower in followers[number]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, (key(follower), follower))
    assert len(order) == len(before), "order: tasks wait for one another in a circle"
    return order


def _forward(
    tasks: Sequence[Task], sizes: Sequence[int], before: Sequence[set[int]], given: Sequence[int], urgent_first: bool
) -> list[int]:
    """From the first task on: next is what adds the fewest bytes, its results less what it is the last to read."""
    readers: dict[int, set[int]] = {}
    for number, task in enumerate(tasks):
        for value in (*task.reads, *task.writes):
            readers.setdefault(value, set()).add(number)
    written = {value for task in tasks for value in task.writes}

    def change(number: int) -> int:
        task = tasks[number]
        freed = sum(sizes[v] for v in {*task.reads, *task.writes} if v in written and len(readers[v]) == 1)
        return sum(sizes[v] for v in task.writes) - freed

    def done(number: int) -> list[int]:
        changed: list[int] = []
        for value in {*tasks[number].reads, *tasks[number].writes}:
            readers[value].discard(number)
            if len(readers[value]) == 1:
                changed += readers[value]
        return changed

    return _greedy(before, change, done, _ranks(given), urgent_first)


def _backward(
    tasks: Sequence[Task], sizes: Sequence[int], before: Sequence[set[int]], given: Sequence[int], urgent_first: bool
) -> list[int]:
    """From the last task on: the one before is what adds the fewest bytes to those that have to be there already."""
    followers = [set(numbers) for numbers in _followers(before)]
    written = {value for task in tasks for value in task.writes}
    readers: dict[int, list[int]] = {}
    for number, task in enumerate(tasks):
        for value in task.reads:
            readers.setdefault(value, []).append(number)
    needed: set[int] = set()

    def change(number: int) -> int:
        task = tasks[number]
        read = {v for v in task.reads if v in written} - set(task.writes)
        return sum(sizes[v] for v in read - needed) - sum(sizes[v] for v in task.writes if v in needed)

    def done(number: int) -> list[int]:
        task = tasks[number]
        fresh = set(task.reads) - needed
        needed.update(fresh)
        return [reader for value in fresh for reader in readers[value]]

    return _greedy(followers, change, done, _ranks(given[::-1]), urgent_first)[::-1]


def _ranks(order: Sequence[int]) -> list[int]:
    ranks = [0] * len(order)
    for position, number in enumerate(order):
        ranks[number] = position
    return ranks


def _greedy(
    before: Sequence[set[int]],
    change: Callable[[int], int],
    done: Callable[[int], Iterable[int]],
    ranks: Sequence[int],
    urgent_first: bool,
) -> list[int]:
    """All tasks, each after those in `before`, next the one that changes the bytes alive to the least.

    With `urgent_first` only those that do not add any are preferred, and the others keep their ranks' order. `done`
    says which other tasks' changes are different after one has run.
    """
    followers, waiting = _followers(before), [len(sources) for sources in before]

    def key(number: int) -> tuple[int, int]:
        bytes_added = change(number)
        return (min(bytes_added, 1) if urgent_first else bytes_added, ranks[number])

    current: dict[int, tuple[int, int]] = {n: key(n) for n, count in enumerate(waiting) if not count}
    heap = [(value, number) for number, value in current.items()]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        value, number = heapq.heappop(heap)
        if current.get(number) != value:
            continue  # it has changed since
        del current[number]
        order.append(number)
        changed = set(done(number))
        for follower in followers[number]:
            waiting[follower] -= 1
            if not waiting[follower]:
                current[follower] = key(follower)
                heapq.heappush(heap, (current[follower], follower))
        for other in changed & current.keys():
            current[other] = key(other)
            heapq.heappush(heap, (current[other], other))
    return order
