"""Bundling: which kernels run together, started by one launch and waited for once.

A launch is what the entry function starts: one fork and join of the threads, or one stretch of code on the calling
thread. A bundle is what it runs, chains that do not depend on one another:

    launch: | chain 0: kernel 3, in 12 pieces | chain 1: kernel 4, kernel 7, kernel 5, one after another | ...

A chain is a kernel, in pieces that threads share, or a sequence of kernels too small to share, on one thread. Kernels
keep the order they are given in but for a few places, and their own chunks, so that bundling changes no bit of any
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node
from .fusion import ScheduledKernel
from .memory import aligned
from .order import replaced_inputs

# A chain of more than one kernel takes no longer than this, which is about what it is worth to wake a thread for.
LONGEST_CHAIN_NANOSECONDS = 20_000.0
# What it costs to start several threads and to wait for them.
LAUNCH_NANOSECONDS = 3_000.0
# How many kernels a bundle may leave for later ones while it looks for more that can join.
LOOKAHEAD = 8
# A bundle of several chains has about this many pieces, of about equal cost: what threads claim is then alike.
PIECES = 128


@dataclass(frozen=True)
class Launch:
    """How to run a kernel: `chunks` independent pieces of work, each thread with `scratch_bytes` of its own.

    `nanoseconds` estimates what all of them cost one thread.
    """

    chunks: int
    scratch_bytes: int
    nanoseconds: float = 0.0


@dataclass(frozen=True)
class Chain:
    """Kernels, by number, that run one after another; `pieces` is into how many parts of the bundle they fall.

    Of several kernels each has one chunk, and `pieces` is 1.
    """

    kernels: tuple[int, ...]
    pieces: int


Bundle = tuple[Chain, ...]


def bundle(
    kernels: Sequence[ScheduledKernel], launches: Sequence[Launch], graph: Graph, slack_bytes: int
) -> list[Bundle]:
    """The kernels of a graph in bundles, in an order in which they can run.

    A kernel joins the bundle before it unless it needs a result of it, or can at least follow what it needs on the
    same thread. So do kernels a little further on, past a few that do not join. What a bundle reads and writes is alive
    all at once, so it stops growing where that would take more than `slack_bytes` beyond what the kernels one by one
    need at most. Nor does it read an input of the graph beside a kernel whose result may be written over that input.
    """
    elsewhere = {*graph.inputs, *graph.outputs}
    alive_before, peak = _alive(kernels, elsewhere)
    own = [sum(aligned(node.nbytes) for node in k.outputs if node not in elsewhere) for k in kernels]
    bundles: list[Bundle] = []
    waiting = list(range(len(kernels)))
    ahead: set[int] = set()  # kernels in bundles already, though some before them still wait
    while waiting:
        first = waiting[0]
        ahead = {number for number in ahead if number > first}
        room = peak + slack_bytes - alive_before[first] - sum(own[number] for number in ahead)
        current = _Open(launches, graph)
        skipped: list[int] = []
        looked_at = 0
        for number in waiting:
            looked_at += 1
            scheduled = kernels[number]
            if number == first or (own[number] <= room and current.admits(number, scheduled)):
                current.add(number, scheduled)
                room -= own[number]
                ahead.add(number)
            else:
                current.skip(scheduled)
                skipped.append(number)
                if len(skipped) > LOOKAHEAD:
                    break
        bundles.append(current.finished())
        waiting = skipped + waiting[looked_at:]
    return bundles


def _alive(kernels: Sequence[ScheduledKernel], elsewhere: set[Node]) -> tuple[list[int], int]:
    """(bytes of intermediates that are needed again, before each kernel; the most alive at one kernel)."""
    last: dict[Node, int] = {}
    for number, scheduled in enumerate(kernels):
        last.update(dict.fromkeys((*scheduled.outputs, *scheduled.reads), number))
    dying: list[int] = [0] * len(kernels)
    for node, number in last.items():
        if node not in elsewhere:
            dying[number] += aligned(node.nbytes)
    before, alive, peak = [], 0, 0
    for number, scheduled in enumerate(kernels):
        before.append(alive)
        alive += sum(aligned(node.nbytes) for node in scheduled.outputs if node not in elsewhere)
        peak = max(peak, alive)
        alive -= dying[number]
    return before, peak


class _Open:
    """A bundle that still grows."""

    def __init__(self, launches: Sequence[Launch], graph: Graph):
        self.launches = launches
        self.given, self.results = set(graph.inputs), set(graph.outputs)
        self.chains: list[list[int]] = []
        self.writers: dict[Node, int] = {}
        self.read: dict[Node, list[int]] = {}
        self.replaced: dict[Node, list[int]] = {}
        # What kernels that did not join write and read.
        self.later: set[Node] = set()
        self.read_later: set[Node] = set()

    def skip(self, scheduled: ScheduledKernel) -> None:
        """Leave a kernel for a later bundle: what waits for it may not join."""
        self.later.update(scheduled.outputs)
        self.read_later.update(scheduled.reads)

    def admits(self, number: int, scheduled: ScheduledKernel) -> bool:
        """Whether the kernel may join."""
        if not self.later.isdisjoint((*scheduled.reads, *scheduled.waits)):
            return False
        if not self.read_later.isdisjoint(replaced_inputs(scheduled, self.given, self.results)):
            return False
        needed = self._needed(scheduled)
        return not needed or self._is_short([*(k for chain in needed for k in chain), number])

    def add(self, number: int, scheduled: ScheduledKernel) -> None:
        needed = self._needed(scheduled)
        self.chains = [chain for chain in self.chains if not any(chain is other for other in needed)]
        self.chains.append([*(k for chain in needed for k in chain), number])
        self.writers.update(dict.fromkeys(scheduled.outputs, number))
        for node in scheduled.reads:
            if node in self.given:
                self.read.setdefault(node, []).append(number)
        for node in replaced_inputs(scheduled, self.given, self.results):
            self.replaced.setdefault(node, []).append(number)

    def _needed(self, scheduled: ScheduledKernel) -> list[list[int]]:
        """The chains to follow: with a result that the kernel reads or waits for, or an input that one may replace."""
        numbers = {self.writers[node] for node in (*scheduled.reads, *scheduled.waits) if node in self.writers}
        for node in scheduled.reads:
            numbers.update(self.replaced.get(node, ()))
        for node in replaced_inputs(scheduled, self.given, self.results):
            numbers.update(self.read.get(node, ()))
        return [chain for chain in self.chains if not numbers.isdisjoint(chain)]

    def _is_short(self, chain: Sequence[int]) -> bool:
        """Whether the kernels can run one after another on one thread."""
        return (
            all(self.launches[k].chunks == 1 for k in chain)
            and sum(self.launches[k].nanoseconds for k in chain) <= LONGEST_CHAIN_NANOSECONDS
        )

    def finished(self) -> Bundle:
        """Chains that are short together become one; the most expensive pieces come first."""
        packed: list[list[int]] = []
        for chain in self.chains:
            if packed and self._is_short([*packed[-1], *chain]):
                packed[-1] += chain
            elif self._is_short(chain):
                packed.append(list(chain))
        chains = [chain for chain in self.chains if not self._is_short(chain)] + packed
        costs = sorted(sum(self.launches[k].nanoseconds for k in chain) for chain in chains)
        alone = all(self.launches[chain[0]].chunks == 1 for chain in chains)
        if alone and sum(costs[:-1]) <= LAUNCH_NANOSECONDS:
            chains = [[k for chain in chains for k in chain]]
        if len(chains) == 1:
            return (Chain(tuple(chains[0]), self.launches[chains[0][0]].chunks),)
        cost = {id(chain): sum(self.launches[k].nanoseconds for k in chain) for chain in chains}
        piece = sum(cost.values()) / PIECES
        pieces = {}
        for chain in chains:
            wanted = -(-cost[id(chain)] // piece) if piece else 1
            pieces[id(chain)] = max(1, min(self.launches[chain[0]].chunks, int(wanted)))
        chains.sort(key=lambda chain: -cost[id(chain)] / pieces[id(chain)])
        return tuple(Chain(tuple(chain), pieces[id(chain)]) for chain in chains)
