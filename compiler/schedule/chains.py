"""Chains: contractions whose result nobody needs as a whole, because all that becomes of it is reduced or contracted.

Attention is the example: scores are big, and go through a softmax, row by row, into a second contraction. Such a result
and everything of its size that is made from it stay out of memory: the kernels that reduce or contract it compute it
again, a block of rows at a time, so that no array grows with the product of both lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.graph import Graph, Node
from .chain_lowering import lower_chain, reached_products
from .expand import Illegal
from .loop_ir import ChainKernel

# A product of deeper contractions costs more to compute again than to read from memory.
DEEPEST_PRODUCT = 128
# A chain with sums over its rows goes through all rows of a batch entry at one place: with fewer entries than this too
# little of it is parallel, and with bigger sums than this they would go through memory again for every block of rows.
FEW_ENTRIES, BIGGEST_SUMS = 16, 1 << 17


@dataclass
class _Region:
    """Products, all of their size that is made from them, and the reductions and contractions where that ends."""

    products: set[Node]
    big: set[Node]
    ends: set[Node] = field(default_factory=set)
    closed: bool = True


def unstored(graph: Graph, stored: Callable[[frozenset[Node]], set[Node]]) -> frozenset[Node]:
    """The nodes that chains keep out of memory; `stored` tells which nodes get memory if these do not."""
    regions = [r for r in _regions(graph) if r.closed and any(end.op.kind == "reduce" for end in r.ends)]
    while regions:
        out = frozenset(node for r in regions for node in _computed_with(r, graph))
        memory = stored(out) | set(graph.inputs)
        kept = [r for r in regions if _is_lowerable(r, memory)]
        if len(kept) == len(regions):
            return out
        regions = kept
    return frozenset()


def not_worth_it(kernel: ChainKernel) -> str | None:
    """Why chains that were merged to this one are better off apart; None if they are not."""
    sums = sum(kernel.columns.extent * s.free.extent for s in kernel.sums if s.over_rows)
    if sums and kernel.batch.extent < FEW_ENTRIES:
        return "too few batch entries to share among threads"
    return "sums over the rows too big for a cache" if sums > BIGGEST_SUMS else None


def _is_lowerable(region: _Region, memory: set[Node]) -> bool:
    """Whether every reduction and contraction of the region can be a chain by itself."""
    for end in region.ends:
        inside = frozenset((end,))
        products = reached_products([end], inside, memory.__contains__)
        try:
            if end not in memory or not products:
                return False
            lower_chain([end], [end], products, memory.__contains__)
        except Illegal:
            return False
    return True


def _is_big_product(node: Node) -> bool:
    if node.op is not ops.dot_general or not node.size:
        return False
    depth = 1
    for axis in node.attributes["lhs_contract"]:
        depth *= node.inputs[0].shape[axis]
    return depth <= DEEPEST_PRODUCT and node.size >= sum(child.size for child in node.inputs)


def _regions(graph: Graph) -> list[_Region]:
    """The regions of all big products; products that meet in one elementwise operation share one."""
    given, results = set(graph.inputs), set(graph.outputs)
    region_of: dict[Node, _Region] = {}
    for node in graph.nodes:
        if node in given:
            continue
        if _is_big_product(node):
            region_of[node] = _Region({node}, {node})
        elif node.op.is_elementwise or node.op in (ops.reshape, ops.permute):
            joined = list({id(region_of[c]): region_of[c] for c in node.inputs if c in region_of}.values())
            if joined:
                region = joined[0]
                for other in joined[1:]:
                    _merge(region, other, region_of)
                region.big.add(node)
                region_of[node] = region
        if node in region_of and node in results:
            region_of[node].closed = False
        for child in node.inputs:
            region = region_of.get(child) or _NONE
            if region is _NONE or (region_of.get(node) is region and not _is_big_product(node)):
                continue
            region.ends.add(node)
            if not (node.op is ops.dot_general or (node.op.kind == "reduce" and "axes" in node.attributes)):
                region.closed = False
    return list({id(region): region for region in region_of.values()}.values())


_NONE = _Region(set(), set())


def _merge(region: _Region, other: _Region, region_of: dict[Node, _Region]) -> None:
    region.products |= other.products
    region.big |= other.big
    region.ends |= other.ends
    region.closed &= other.closed
    for node in other.big:
        region_of[node] = region


def _computed_with(region: _Region, graph: Graph) -> set[Node]:
    """The region, and what of its size is computed from indices, random bits and small arrays only for it."""
    given, size = set(graph.inputs), next(iter(region.products)).size
    found = set(region.big)
    stack = list(region.big)
    while stack:
        for child in stack.pop().inputs:
            computed = child.op.is_elementwise or child.op.kind == "leaf" or child.op in (
                ops.reshape, ops.permute, ops.broadcast,
            )  # fmt: skip
            if child not in found and child not in given and computed and child.size >= size:
                found.add(child)
                stack.append(child)
    return found - set(graph.outputs)
