"""Fusion: which nodes get memory, and which of those are computed by one kernel.

First every node that must or should be stored is found (outputs, contractions, reductions, expensive shared values);
each starts as a kernel of its own. Then kernels are merged, producers into consumers and siblings that read the same
data, as long as the merged kernel can be lowered (`lowering.lower` is the judge), recomputes nothing expensive, keeps
enough parallel work, and closes no cycle. Values that no other kernel reads any more lose their memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import networkx

from ..ir import ops
from ..ir.graph import Graph, Node, topological
from .expand import Illegal, nontrivial
from .loop_ir import Kernel, LoopKernel
from .lowering import MOST_PARTS, Lowered, lower

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
    """A kernel with the nodes it stores and reads; `nodes` are all the nodes it computes, for cost and display."""

    kernel: Kernel
    outputs: tuple[Node, ...]
    nodes: tuple[Node, ...]

    @property
    def reads(self) -> tuple[Node, ...]:
        written = set(self.outputs)
        return tuple(b.node for b in self.kernel.buffers if b.node not in written)


def fuse(graph: Graph, lanes: int = 1) -> list[ScheduledKernel]:
    """The kernels that compute the graph's outputs, in an order in which they can run.

    `lanes`: elements (of float32) in one vector of the target.
    """
    return _Fusion(graph, lanes).run()


def _needs_kernel(node: Node) -> bool:
    """Whether the node is computed by loops of its own rather than inside its users' expressions."""
    if node.op is ops.concat:
        return len(node.inputs) > MOST_PARTS
    return node.op.kind in ("reduce", "contract") or node.op is ops.scatter_add


def stored_nodes(graph: Graph) -> set[Node]:
    """The nodes that get memory before merging; the others are computed where they are used."""
    given = set(graph.inputs)
    stored = {node for node in graph.outputs if node not in given}
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
        if _needs_kernel(node) or node in stored or _worth_storing(node, uses[node], cost, loads, depth):
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

    def __init__(self, graph: Graph, lanes: int):
        self.graph, self.lanes = graph, lanes
        self.given = set(graph.inputs)
        self.stored = stored_nodes(graph)
        self.results = set(graph.outputs)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        ordered = sorted(self.stored, key=self.order.__getitem__)
        self.groups: dict[int, list[Node]] = {i: [node] for i, node in enumerate(ordered)}
        self.kernel_of = {node: i for i, node in enumerate(ordered)}
        self.lowered: dict[int, Lowered] = {}
        self.readers: dict[Node, set[int]] = {node: set() for node in self.stored}
        self.dependencies = networkx.DiGraph()
        self.dependencies.add_nodes_from(self.groups)
        for number, (node,) in self.groups.items():
            for source in self._sources(node):
                if source not in self.given:
                    self.readers[source].add(number)
                    self.dependencies.add_edge(self.kernel_of[source], number)
        self.sources = {number: self._all_sources(members) for number, members in self.groups.items()}

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

    def _all_sources(self, members: Iterable[Node]) -> set[Node]:
        inside = set(members)
        return {s for m in inside for s in self._sources(m)} - inside

    def run(self) -> list[ScheduledKernel]:
        self._merge_producers()
        self._merge_siblings()
        self._merge_producers()
        result = []
        for number in networkx.lexicographical_topological_sort(self.dependencies):
            members = self.groups[number]
            outputs = self._outputs(members, {number})
            try:
                lowered = lower(members, outputs, self._has_memory, self.lanes)
            except Illegal as reason:
                raise AssertionError(f"fusion.fuse: kernel of {members} cannot be lowered: {reason}") from reason
            inside = [n for n in lowered.counts if n in members or not self._has_memory(n)]
            computed = tuple(sorted(inside, key=self.order.__getitem__))
            result.append(ScheduledKernel(lowered.kernel, tuple(outputs), computed))
        return result

    def _has_memory(self, node: Node) -> bool:
        return node in self.stored or node in self.given

    def _outputs(self, members: Iterable[Node], inside: set[int]) -> list[Node]:
        return [m for m in members if m in self.results or self.readers[m] - inside]

    def _merge_producers(self) -> None:
        changed = True
        while changed:
            changed = False
            for number in list(networkx.topological_sort(self.dependencies)):
                if number not in self.groups:
                    continue
                for producer in sorted(self.dependencies.predecessors(number), reverse=True):
                    if self._try_merge(producer, number):
                        changed = True

    def _merge_siblings(self) -> None:
        """Merge kernels without a path between them that have the same outer loops and read the same big array."""
        for node in sorted(self.stored | self.given, key=self.order.__getitem__):
            if node.size <= 1:
                continue
            readers = [n for n in self.groups if node in self.sources[n]]
            for position, first in enumerate(readers):
                for second in readers[position + 1 :]:
                    if first in self.groups and second in self.groups and self._same_outer(first, second):
                        self._try_merge(first, second)

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
        if self._would_close_cycle(first, second):
            return False
        members = sorted(self.groups[first] + self.groups[second], key=self.order.__getitem__)
        if len(members) > MOST_MEMBERS or self._depth(members) > DEEPEST_KERNEL:
            return False
        outputs = self._outputs(members, {first, second})
        try:
            lowered = lower(members, outputs, self._has_memory, self.lanes)
        except Illegal:
            return False
        if not self._worth_it(lowered, members, outputs):
            return False
        for m in self.groups[first]:
            self.kernel_of[m] = second
        self.groups[second] = members
        del self.groups[first]
        for readers in self.readers.values():
            if first in readers:
                readers.discard(first)
                readers.add(second)
        for other in list(self.dependencies.predecessors(first)):
            if other != second:
                self.dependencies.add_edge(other, second)
        for other in list(self.dependencies.successors(first)):
            if other != second:
                self.dependencies.add_edge(second, other)
        self.dependencies.remove_node(first)
        self.sources[second] = self._all_sources(members)
        return True

    def _would_close_cycle(self, first: int, second: int) -> bool:
        """Whether a path leads from one kernel to the other through a third."""
        for start, goal in ((first, second), (second, first)):
            for successor in self.dependencies.successors(start):
                if successor != goal and networkx.has_path(self.dependencies, successor, goal):
                    return True
        return False

    def _depth(self, members: list[Node]) -> int:
        """The longest chain of nodes that computing the members goes through without a stop in memory."""
        inside = set(members)
        order = topological(members, stop=lambda n: n not in inside and self._has_memory(n))
        depth: dict[Node, int] = {}
        for node in order:
            stops = node not in inside and self._has_memory(node)
            depth[node] = 0 if stops else 1 + max((depth[c] for c in node.inputs), default=0)
        return max(depth.values())

    def _worth_it(self, lowered: Lowered, members: list[Node], outputs: list[Node]) -> bool:
        for node, count in lowered.counts.items():
            cost = node.op.flops(node) // max(1, node.size)
            if count > 1 and (cost >= EXPENSIVE or node.op is ops.random_bits) and node.size > 1:
                return False
        kernel = lowered.kernel
        if isinstance(kernel, LoopKernel):
            outer = math.prod(v.extent for v in kernel.outer)
            reducing = any(p.reductions for p in kernel.passes)
            biggest = max((node.size for node in outputs), default=0)
            if reducing and outer < FEW_OUTER and biggest > max(outer, 1) and biggest > BIG_INNER:
                return False
        return True
