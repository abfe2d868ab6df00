"""Fusion: which nodes get memory, and which of those are computed by one kernel.

First every node that must or should be stored is found (outputs, contractions, reductions, expensive shared values);
each starts as a kernel of its own. Then kernels are merged, producers into consumers and siblings that read the same
data, as long as the merged kernel can be lowered (`lowering.lower` is the judge), recomputes nothing expensive, keeps
enough parallel work, and closes no cycle. Values that no other kernel reads any more lose their memory.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.graph import Graph, Node, topological
from . import chains
from .chain_lowering import lower_chain, reached_products
from .column_sums import may_sum_columns, origin
from .dependencies import Dependencies
from .expand import Illegal, nontrivial
from .loop_ir import ChainKernel, Kernel, LoopKernel
from .lowering import MOST_PARTS, Lowered, lower
from .structure import structure
from .waits import Waits

# An inlined expression of at least this many operations per element is not computed twice to save memory traffic.
EXPENSIVE = 8
# Longest chain of operations in one expression, and in one kernel: they bound the recursion of later stages.
DEEPEST, DEEPEST_KERNEL = 60, 100
# More values than this are not computed by one kernel: it would only take long to compile.
MOST_MEMBERS = 48
# A kernel that reduces runs its outer loops in parallel; with fewer outer iterations than this, big elementwise work
# is better off in a kernel of its own.
FEW_OUTER, BIG_INNER = 8, 8192


@dataclass(frozen=True, eq=False)
class ScheduledKernel:
    """A kernel with the nodes it stores and reads; `nodes` are all the nodes it computes, for cost and display.

    `apart` tells of nodes it reads why the kernels that store them are not part of it. `waits` are results of other
    kernels that come before it though it does not read them.
    """

    kernel: Kernel
    outputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    apart: Mapping[Node, str] = field(default_factory=dict)
    waits: tuple[Node, ...] = ()

    @property
    def reads(self) -> tuple[Node, ...]:
        written = set(self.outputs)
        return tuple(b.node for b in self.kernel.buffers if b.node not in written)


def fuse(graph: Graph, lanes: int = 1, waits: Waits | None = None) -> list[ScheduledKernel]:
    """The kernels that compute the graph's outputs, in an order in which they can run.

    `lanes`: elements (of float32) in one vector of the target. `waits`: see `without_waits`.
    """
    return _Fusion(graph, lanes, Waits.none(graph) if waits is None else waits).run()


def _needs_kernel(node: Node) -> bool:
    """Whether the node is computed by loops of its own rather than inside its users' expressions."""
    if node.op is ops.concat:
        return len(node.inputs) > MOST_PARTS
    return node.op.kind in ("reduce", "contract") or node.op is ops.scatter_add


def stored_nodes(graph: Graph, unstored: frozenset[Node] = frozenset()) -> set[Node]:
    """The nodes that get memory before merging; the others, all of `unstored` among them, are computed where used."""
    given = set(graph.inputs)
    stored = {node for node in graph.outputs if node not in given} | chains.packed_often(graph, unstored)
    uses = _compute_uses(graph)
    cost: dict[Node, int] = {}
    loads: dict[Node, frozenset[Node]] = {}
    depth: dict[Node, int] = {}
    pushed: set[Node] = set()
    for node in graph.nodes:
        if node in given:
            cost[node], loads[node], depth[node] = 0, frozenset((node,)), 0
            continue
        own = node.op.flops(node) // max(1, node.size) if node.op.is_elementwise or node.op.kind == "leaf" else 0
        cost[node] = own + sum(cost[c] for c in node.inputs)
        depth[node] = 1 + max((depth[c] for c in node.inputs), default=0)
        loads[node] = frozenset().union(*(loads[c] for c in node.inputs)) if node.inputs else frozenset()
        absorbed = _finishes_contraction(node, stored, pushed, uses, graph)
        if absorbed is not None:
            pushed.add(node)
            stored.add(node)
            if absorbed in pushed and absorbed not in graph.outputs:
                stored.discard(absorbed)
        if node in unstored:
            stored.discard(node)
        elif _needs_kernel(node) or node in stored or _worth_storing(node, uses[node], cost, loads, depth):
            stored.add(node)
        if node in stored:
            cost[node], loads[node], depth[node] = 0, frozenset((node,)), 0
    return {node for node in stored if node.size}


def _finishes_contraction(
    node: Node, stored: set[Node], pushed: set[Node], uses: dict[Node, _Uses], graph: Graph
) -> Node | None:
    """The contraction (or node finishing one) that only `node` uses, element by element: its epilogue can do `node`."""
    if not node.op.is_elementwise:
        return None
    for child in node.inputs:
        while child.op.kind == "movement" and child.op in (ops.reshape, ops.permute) and uses[child].count == 1:
            child = child.inputs[0]
        finished = child.op is ops.dot_general or child in pushed
        if finished and child in stored and uses[child].count == 1 and child.size == node.size:
            return child
    return None


@dataclass
class _Uses:
    """How a node's value is used: by how many computations, and whether in ways that multiply evaluations."""

    count: int = 0
    repeated: bool = False
    contracted: bool = False
    gathered: bool = False


def _compute_uses(graph: Graph) -> dict[Node, _Uses]:
    """Uses through movement ops, which compute nothing themselves."""
    uses = {node: _Uses() for node in graph.nodes}
    for node in graph.outputs:
        uses[node].count += 1
    given = set(graph.inputs)
    for node in reversed(graph.nodes):
        if node in given:
            continue
        for position, child in enumerate(node.inputs):
            use = uses[child]
            if node.op.kind == "movement":
                through = uses[node]
                use.count += through.count
                use.contracted |= through.contracted
                use.gathered |= through.gathered
                grows = node.size > child.size and node.op in (ops.broadcast, ops.window)
                use.repeated |= through.repeated or grows
            else:
                use.count += 1
                use.contracted |= node.op is ops.dot_general
                use.gathered |= (node.op is ops.gather and position == 0) or node.op is ops.scatter_add
    return uses


def _worth_storing(
    node: Node, use: _Uses, cost: dict[Node, int], loads: dict[Node, frozenset[Node]], depth: dict[Node, int]
) -> bool:
    if node.size <= 1 and depth[node] < DEEPEST:
        return False
    if depth[node] >= DEEPEST and node.op.kind != "movement":
        return True
    if not (node.op.is_elementwise or node.op in (ops.random_bits, ops.gather)):
        return False
    expensive = cost[node] >= EXPENSIVE
    several = sum(1 for n in loads[node] if n.size * 8 > node.size) >= 2
    if use.contracted and (expensive or several):
        return True
    if use.gathered and expensive:
        return True
    if use.repeated and expensive:
        return True
    return use.count > 1 and (expensive or several)


class _Fusion:
    """The merging phase. `groups` maps a kernel's number to its members; `kernel_of` a stored node to its kernel."""

    def __init__(self, graph: Graph, lanes: int, waits: Waits):
        self.graph, self.lanes, self.waits = graph, lanes, waits
        self.given = set(graph.inputs)
        self.unstored = chains.unstored(graph, lambda unstored: stored_nodes(graph, unstored))
        self.stored = stored_nodes(graph, self.unstored)
        self.packed_often = chains.packed_often(graph, self.unstored)
        self.results = set(graph.outputs)
        self.order = {node: i for i, node in enumerate(waits.order)}
        ordered = sorted(self.stored, key=self.order.__getitem__)
        self.groups: dict[int, list[Node]] = {i: [node] for i, node in enumerate(ordered)}
        self.kernel_of = {node: i for i, node in enumerate(ordered)}
        self.readers: dict[Node, set[int]] = {node: set() for node in self.stored | self.given}
        self.sources: dict[Node, set[Node]] = {node: self._sources(node) for node in ordered}
        edges = []
        for number, (node,) in self.groups.items():
            for source in self.sources[node]:
                self.readers[source].add(number)
                if source not in self.given:
                    edges.append((self.kernel_of[source], number))
            edges += [(self.kernel_of[awaited], number) for awaited in self._awaited(node)]
        self.dependencies = Dependencies(len(ordered), edges)
        # What a kernel was lowered to, for which outputs, unless it was not because another of its structure was; an
        # upper bound of its depth; how often it has changed.
        self.lowered: dict[int, tuple[list[Node], Lowered]] = {}
        self.depth = {number: self._depth(members) for number, members in self.groups.items()}
        self.version = dict.fromkeys(self.groups, 0)
        # Why two kernels were not merged when they had these versions. Only a change to one of them can change that.
        self.refused: dict[tuple[int, int], tuple[int, int, str]] = {}
        # Why kernels of some structure were refused, None if they were not: what holds for one layer holds for all.
        self.judged: dict[Hashable, str | None] = {}

    def _sources(self, node: Node) -> set[Node]:
        """The stored or given nodes that computing `node` loads."""
        found: set[Node] = set()
        seen = {node}
        stack = list(node.inputs)
        while stack:
            child = stack.pop()
            if child in seen:
                continue
            seen.add(child)
            if child in self.stored or child in self.given:
                found.add(child)
            else:
                stack.extend(child.inputs)
        return found

    def _awaited(self, node: Node) -> list[Node]:
        """The stored nodes that the computation of `node` waits for without loading them."""
        if not self.waits.awaited:
            return []
        inside = topological([node], stop=lambda n: n is not node and self._has_memory(n))
        awaited = {a for n in inside for a in self.waits.awaited.get(n, ())}
        loaded = {s for a in awaited for s in ({a} if self._has_memory(a) else self._sources(a))}
        return sorted(loaded - self.given - {node}, key=self.order.__getitem__)

    def run(self) -> list[ScheduledKernel]:
        self._merge_producers()
        self._merge_column_sums()
        self._merge_siblings()
        self._merge_chains()
        self._merge_scalars()
        self._merge_producers()
        return [self._scheduled(number) for number in self.dependencies.first_numbers_first()]

    def _scheduled(self, number: int) -> ScheduledKernel:
        members = self.groups[number]
        outputs = self._outputs(members, {number})
        before, lowered = self.lowered.get(number, ([], None))
        if lowered is None or before != outputs:
            try:
                lowered = self._lower(members, outputs)
            except Illegal as reason:
                raise AssertionError(f"fusion.fuse: kernel of {members} cannot be lowered: {reason}") from reason
        inside = [n for n in lowered.counts if n in members or not self._has_memory(n)]
        computed = tuple(sorted(inside, key=self.order.__getitem__))
        awaited = sorted({self.kernel_of[a] for m in members for a in self._awaited(m)} - {number})
        waits = tuple(self._outputs(self.groups[other], {other})[0] for other in awaited)
        return ScheduledKernel(lowered.kernel, tuple(outputs), computed, self._apart(number), waits)

    def _apart(self, number: int) -> dict[Node, str]:
        """Why the kernels of the values that a kernel reads are not part of it."""
        reasons = {}
        for node in sorted({s for m in self.groups[number] for s in self.sources[m]}, key=self.order.__getitem__):
            producer = self.kernel_of.get(node, number)
            if (producer, number) in self.refused and producer != number:
                reasons[node] = self.refused[producer, number][2]
        return reasons

    def _lower(self, members: list[Node], outputs: list[Node]) -> Lowered:
        products = self._products(members)
        if products:
            return lower_chain(members, outputs, products, self._has_memory)
        return lower(members, outputs, self._has_memory, self.lanes)

    def _products(self, members: list[Node]) -> list[Node]:
        """The products a kernel of these members computes without anybody storing them: then it is a chain."""
        return reached_products(members, frozenset(members), self._has_memory) if self.unstored else []

    def _has_memory(self, node: Node) -> bool:
        return node in self.stored or node in self.given

    def _outputs(self, members: Iterable[Node], inside: set[int]) -> list[Node]:
        return [m for m in members if m in self.results or self.readers[m] - inside]

    def _merge_producers(self) -> None:
        changed = True
        while changed:
            changed = False
            for number in self.dependencies.by_generation():
                if number not in self.groups:
                    continue
                for producer in sorted(self.dependencies.before[number], reverse=True):
                    if self._try_merge(producer, number):
                        changed = True

    def _merge_column_sums(self) -> None:
        """Merge sums of a contraction's operand over its depth into the contraction."""
        contractions = {n: m for n, members in self.groups.items() for m in members if m.op is ops.dot_general}
        readers: dict[Node, list[int]] = {}
        for number, contraction in contractions.items():
            for operand in contraction.inputs:
                readers.setdefault(origin(operand, self._has_memory), []).append(number)
        for number, members in list(self.groups.items()):
            reductions = [m for m in members if m.op.kind == "reduce"]
            if not reductions or number in contractions:
                continue
            for other in readers.get(origin(reductions[0].inputs[0], self._has_memory), []):
                possible = all(may_sum_columns(contractions[other], r, self._has_memory) for r in reductions)
                if possible and self._try_merge(number, other):
                    break

    def _merge_siblings(self) -> None:
        """Merge kernels without a path between them that have the same outer loops and read the same big array."""
        for node in sorted(self.readers, key=self.order.__getitem__):
            if node.size <= 1:
                continue
            readers = sorted(n for n in self.readers[node] if n != self.kernel_of.get(node))
            for position, first in enumerate(readers):
                for second in readers[position + 1 :]:
                    if first in self.groups and second in self.groups and self._same_outer(first, second):
                        self._try_merge(first, second)

    def _merge_chains(self) -> None:
        """Merge kernels that would compute the same products."""
        products = {number: self._products(members) for number, members in self.groups.items()}
        chained = [number for number in self.groups if products[number]]
        for position, first in enumerate(chained):
            for second in chained[position + 1 :]:
                if first in self.groups and second in self.groups and set(products[first]) & set(products[second]):
                    self._try_merge(first, second)

    def _merge_scalars(self) -> None:
        """Merge kernels of a few numbers that are results: counters, a loss, what is measured beside it."""
        work: dict[int, int] = {}
        for number in self.dependencies.first_numbers_first():
            members = self.groups[number]
            if any(m.size != 1 or m.op.kind == "contract" for m in members):
                continue
            if not all(node in self.results for node in self._outputs(members, {number})):
                continue
            work[number] = sum(m.inputs[0].size if m.op.kind == "reduce" else 1 for m in members)
            for other in list(work):
                both = work[other] + work[number]
                if other != number and both <= BIG_INNER and self._try_merge(other, number):
                    work[number] = both
                    del work[other]
                    break

    def _same_outer(self, first: int, second: int) -> bool:
        shapes = []
        for number in (first, second):
            members = self.groups[number]
            if any(m.op.kind == "contract" or m.op in (ops.scatter_add, ops.concat) for m in members):
                return False
            reducing = [m for m in members if m.op.kind == "reduce"] or members
            shapes.append(nontrivial(reducing[0].shape))
        return shapes[0] == shapes[1]

    def _try_merge(self, first: int, second: int) -> bool:
        """Merge `first` into `second` if that is legal and worth it."""
        versions = self.version[first], self.version[second]
        known = self.refused.get((first, second))
        if known is not None and known[:2] == versions:
            return False
        reason = self._merge(first, second)
        if reason is None:
            return True
        self.refused[first, second] = (*versions, reason)
        return False

    def _merge(self, first: int, second: int) -> str | None:
        """Merge `first` into `second`, or tell why not."""
        if self.dependencies.leads_around(first, second):
            return "a third kernel stands between them"
        if self.packed_often.intersection(self.groups[first]) and self._products(self.groups[second]):
            return "every chunk of the chain would compute it anew"
        members = sorted(self.groups[first] + self.groups[second], key=self.order.__getitem__)
        if len(members) > MOST_MEMBERS:
            return f"more than {MOST_MEMBERS} values in one kernel"
        depth = self.depth[first] + self.depth[second]
        if depth > DEEPEST_KERNEL:
            depth = self._depth(members)
            if depth > DEEPEST_KERNEL:
                return f"a chain of more than {DEEPEST_KERNEL} operations"
        outputs = self._outputs(members, {first, second})
        alike = structure(members, outputs, self._has_memory)
        lowered = None
        if alike not in self.judged:
            lowered = self._lowered_or_not(members, outputs)
            self.judged[alike] = lowered if isinstance(lowered, str) else None
        reason = self.judged[alike]
        if reason is not None:
            return reason
        for m in self.groups[first]:
            self.kernel_of[m] = second
            for source in self.sources[m]:
                self.readers[source].discard(first)
                self.readers[source].add(second)
        self.groups[second] = members
        self.lowered.pop(second, None)
        if isinstance(lowered, Lowered):
            self.lowered[second] = (outputs, lowered)
        self.depth[second] = depth
        self.version[second] += 1
        for table in (self.groups, self.lowered, self.depth, self.version):
            table.pop(first, None)
        self.dependencies.merge(first, second)
        return None

    def _lowered_or_not(self, members: list[Node], outputs: list[Node]) -> Lowered | str:
        """The kernel of these members, or why there is none or should be none."""
        try:
            lowered = self._lower(members, outputs)
        except Illegal as illegal:
            return str(illegal)
        inside = set(members)
        computed = {n: c for n, c in lowered.counts.items() if n in inside or not self._has_memory(n)}
        return _not_worth_it(lowered.kernel, computed, outputs) or lowered

    def _depth(self, members: list[Node]) -> int:
        """The longest chain of nodes that computing the members goes through without a stop in memory."""
        inside = set(members)
        order = topological(members, stop=lambda n: n not in inside and self._has_memory(n))
        depth: dict[Node, int] = {}
        for node in order:
            stops = node not in inside and self._has_memory(node)
            depth[node] = 0 if stops else 1 + max((depth[c] for c in node.inputs), default=0)
        return max(depth.values())


def _not_worth_it(kernel: Kernel, computed: Mapping[Node, int], outputs: list[Node]) -> str | None:
    """Why a kernel would be slower than the two it was merged from; None if it is not.

    `computed`: at how many places it computes each node.
    """
    for node, count in computed.items():
        cost = node.op.flops(node) // max(1, node.size)
        if count > 1 and (cost >= EXPENSIVE or node.op is ops.random_bits) and node.size > 1:
            return f"{node.op.name} would be computed {count} times"
    if isinstance(kernel, ChainKernel):
        return chains.not_worth_it(kernel)
    if isinstance(kernel, LoopKernel):
        outer = math.prod(v.extent for v in kernel.outer)
        reducing = any(p.reductions for p in kernel.passes)
        biggest = max((node.size for node in outputs), default=0)
        if reducing and outer < FEW_OUTER and biggest > max(outer, 1) and biggest > BIG_INNER:
            return "too few rows to share among threads"
    return None
