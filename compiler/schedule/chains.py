"""Chains: contractions whose result nobody needs as a whole, because all that becomes of it is reduced or contracted.

Attention is the example: scores are big, and go through a softmax, row by row, into a second contraction. Such a result
and everything of its size that is made from it stay out of memory: the kernels that reduce or contract it compute it
again, a block of rows at a time, so that no array grows with the product of both lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.graph import Graph, Node
from .chain_lowering import lower_chain, pieces_of, reached_products
from .expand import Illegal
from .loop_ir import ChainKernel
from .placing import Side
from .structure import structure

# What is computed again, in multiply-adds for each element of the products, is worth less than going through memory a
# few times: more if the products would not stay in a cache.
CACHED_BYTES, WORTH_CACHED, WORTH_UNCACHED = 16 << 20, 96, 384
# The same where what needs it waits for it to be computed again, as gradients do that may not keep it: memory is what
# was asked for, but not at any price.
WORTH_WAITING = 2048
# A product with a parameter is big if it is so many times as big as its other operand.
GROWTH = 8
# A chain with sums over its rows goes through all rows of a batch entry at one place: with fewer entries than this too
# little of it is parallel, and with bigger sums than this they would go through memory again for every block of rows.
FEW_ENTRIES, BIGGEST_SUMS = 8, 1 << 17


@dataclass
class _Region:
    """Products, all of their size that is made from them, and the reductions and contractions where that ends."""

    products: set[Node]
    big: set[Node]
    ends: set[Node] = field(default_factory=set)
    closed: bool = True


def unstored(graph: Graph, stored: Callable[[frozenset[Node]], set[Node]]) -> frozenset[Node]:
    """The nodes that chains keep out of memory; `stored` tells which nodes get memory if these do not."""
    # Where something is computed again, memory matters more than time.
    there = set(graph.inputs) if any(node.op is ops.again for node in graph.nodes) else set()
    regions = [r for r in _regions(graph, there) if r.closed and _is_normalised(r) and _is_cheap(r)]
    judged: dict[Hashable, bool] = {}
    while regions:
        out = frozenset(node for r in regions for node in _computed_with(r, graph))
        memory = stored(out) | set(graph.inputs)
        kept = [r for r in regions if all(_is_lowerable(end, memory, judged) for end in r.ends)]
        if len(kept) == len(regions):
            return out
        regions = kept
    return frozenset()


def computed_by_rows(graph: Graph) -> frozenset[Node]:
    """What of a forward pass chains keep out of memory, as far as that can be told before there are gradients.

    For a forward pass whose gradients compute it again, so that memory matters more than time.
    """
    return frozenset(n for r in _regions(graph, set(graph.inputs)) if r.closed and _is_normalised(r) for n in r.big)


def packed_often(graph: Graph, unstored: frozenset[Node]) -> set[Node]:
    """What is better stored than computed by every chunk of a chain anew: operands of sums of several terms."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op is ops.dot_general and len(pieces_of(node)) > 1 and not unstored.isdisjoint(node.inputs):
            parts = [part for child in node.inputs if child not in unstored for part in child.inputs]
            found.update(operand for operand in map(_moved, parts) if operand.op.is_elementwise)
    return found - unstored


def not_worth_it(kernel: ChainKernel) -> str | None:
    """Why chains that were merged to this one are better off apart; None if they are not."""
    sums = sum(kernel.columns.extent * s.free.extent for s in kernel.sums if s.over_rows)
    if sums and kernel.batch.extent < FEW_ENTRIES:
        return "too few batch entries to share among threads"
    return "sums over the rows too big for a cache" if sums > BIGGEST_SUMS else None


def _is_lowerable(end: Node, memory: set[Node], judged: dict[Hashable, bool]) -> bool:
    """Whether a reduction or contraction can be a chain by itself; `judged` remembers it of what is made alike."""
    if end not in memory:
        return False
    alike = structure([end], [end], memory.__contains__)
    if alike not in judged:
        products = reached_products([end], frozenset((end,)), memory.__contains__)
        try:
            judged[alike] = bool(products and lower_chain([end], [end], products, memory.__contains__))
        except Illegal:
            judged[alike] = False
    return judged[alike]


def _is_normalised(region: _Region) -> bool:
    """Whether a reduction over the region goes back into it.

    Only then is there something to gain: otherwise contractions that finish what they compute do as well.
    """
    seen: set[Node] = set()
    stack = [child for node in region.big for child in node.inputs if child not in region.big]
    while stack:
        node = stack.pop()
        if node in seen or node in region.big:
            continue
        seen.add(node)
        if node in region.ends:
            if node.op.kind == "reduce":
                return True
        elif node.op.is_elementwise or node.op in _VIEWS:
            stack.extend(node.inputs[:1] if node.op in _MOVING or node.op in _VIEWS else node.inputs)
    return False


def _is_cheap(region: _Region) -> bool:
    """Whether computing the products again in each kernel that needs them costs less than storing them.

    Forward and backward passes are kernels of their own, and so are sums over the columns and those over the rows where
    one batch entry after the other would be too much for one place.
    """
    repeated, asked = 0, True
    for product in region.products:
        left = Side.of(product, 0)
        entries, rows = (math.prod(left.extents(axes)) for axes in (left.batch, left.free))
        columns = product.size // max(1, entries * rows)
        kernels = set()
        for end in region.ends:
            if product in reached_products([end], frozenset((end,)), lambda n: n in region.ends):
                width = end.size // max(1, entries * rows)
                together = entries >= FEW_ENTRIES and columns * width <= BIGGEST_SUMS
                kernels.add((end.source.phase, together or _is_over_rows(end, region)))
                asked &= end.source.phase == "forward" or _waits(end)
        repeated += math.prod(left.extents(left.contract)) * (len(kernels) - 1)
    uncached = sum(p.nbytes for p in region.products) > CACHED_BYTES
    return repeated <= (WORTH_WAITING if asked else WORTH_UNCACHED if uncached else WORTH_CACHED)


def _waits(end: Node) -> bool:
    """Whether an end reads something of which it was said that it is computed again (see `without_waits`)."""
    seen: set[Node] = set()
    stack = list(end.inputs)
    while stack:
        node = stack.pop()
        if node.op is ops.again:
            return True
        if node not in seen and node.op is not ops.dot_general:
            seen.add(node)
            stack.extend(node.inputs)
    return False


def _is_over_rows(end: Node, region: _Region) -> bool:
    """Whether a contraction sums over the axis before the last of what the region gives it."""
    if end.op.kind == "reduce":
        return False
    for position, child in enumerate(end.inputs):
        if child in region.big:
            side = Side.of(end, position)
            return max(side.contract, default=0) < max(side.free, default=0)
    return False


# What computes nothing and leaves as many elements, and what else shows the elements of its first input.
_MOVING = (ops.reshape, ops.permute, ops.again)
_VIEWS = (ops.reshape, ops.permute, ops.broadcast, ops.stop_gradient, ops.remat)


def _is_summed(node: Node, users: Mapping[Node, Sequence[Node]]) -> bool:
    """Whether arrays are laid end to end only for contractions that sum over all of them."""
    return node.op is ops.concat and all(
        user.op is ops.dot_general and len(pieces_of(user)) == len(node.inputs) for user in users.get(node, ())
    )


def _is_big_product(node: Node, given: Collection[Node]) -> bool:
    """Whether a contraction's result outgrows its operands, of which those in `given` are in memory anyway."""
    if node.op is not ops.dot_general or node.size == 0:
        return False
    operands = [child for child in node.inputs if _moved(child) not in given]
    growth = 1 if len(operands) == len(node.inputs) else GROWTH
    return node.size >= growth * sum(child.size for child in operands)


def _moved(node: Node) -> Node:
    """What an array is a view of."""
    while node.op in _MOVING or node.op in _VIEWS:
        node = node.inputs[0]
    return node


def _regions(graph: Graph, always_there: Collection[Node]) -> list[_Region]:
    """The regions of all big products; products that meet in one elementwise operation share one.

    `always_there`: what takes no memory beyond what there is anyway.
    """
    given, results, users = set(graph.inputs), set(graph.outputs), graph.users
    region_of: dict[Node, _Region] = {}
    for node in graph.nodes:
        if node in given:
            continue
        is_product = _is_big_product(node, always_there)
        if is_product:
            region_of[node] = _Region({node}, {node})
        elif node.op.is_elementwise or node.op in _MOVING or _is_summed(node, users):
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
            if region is _NONE or (region_of.get(node) is region and not is_product):
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
