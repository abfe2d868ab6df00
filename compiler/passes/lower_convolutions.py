"""Convolutions become contractions of sliding windows, so that one contraction kernel serves them all.

    conv_general(x: (N, C, *S), w: (O, C/g, *K))
        pad        zeros at the borders and between elements (lhs_dilation)
        window     (N, C, *P, *K): every place the kernel stands, a view that is never stored
        reshape    (N, g, C/g, *P, *K) and (g, O/g, C/g, *K)
        dot        over (C/g, *K), batched over g: (g, O/g, N, *P)
        permute    (N, g, O/g, *P), reshaped to (N, O, *P)

Gaps between elements go first, where they can (convolution_phases). A contraction to few results is summed in parts of
the channels, each of which can run beside the others: the weight gradient, whose channels are the examples, is one.

A window that is one element wide and moves by one is no window. When a group has one output channel (depthwise
convolutions and both their gradients) a window element is used once, so packing it for a contraction could only
cost: it is multiplied and summed instead, which vectorises over places. A single group of one output channel stays
a contraction: it still shares the weights among all places.
"""

from __future__ import annotations

import math

from ..ir import Graph, Node, ops, rebuild, rewrite
from .convolution_phases import split_phases
from .rules import isolate_inputs

# A contraction with this many results, or with so many on one side, has work for many threads without being summed in
# parts. A part multiplies at least as often as the third number says.
MANY_RESULTS, LONG_SIDE, LEAST_PART = 3 * 2**17, 2**12, 2**20


def lower_convolutions(graph: Graph) -> Graph:
    """The graph without conv_general."""
    graph = isolate_inputs(graph)
    split = rewrite(graph, _without_gaps)
    while split.nodes != graph.nodes:
        graph, split = split, rewrite(split, _without_gaps)
    return rewrite(graph, _lower)


def _without_gaps(node: Node, inputs: tuple[Node, ...]) -> Node:
    node = rebuild(node, inputs)
    split = split_phases(node) if node.op is ops.conv_general else None
    return node if split is None else split


def _lower(node: Node, inputs: tuple[Node, ...]) -> Node:
    if node.op is not ops.conv_general:
        return node if inputs == node.inputs else node.op(*inputs, **node.attributes)
    x, w = inputs
    windows = _windows(x, w.shape[2:], node)
    groups = node.attributes["groups"]
    if groups > 1 and groups == w.shape[0]:
        return _multiply_and_sum(windows, w, node)
    return _contract(windows, w, groups, node)


def _windows(x: Node, kernel: tuple[int, ...], node: Node) -> Node:
    """(N, C, *P, *K): what the kernel sees at every place."""
    attributes, spatial = node.attributes, tuple(range(2, x.rank))
    low = (0, 0, *(before for before, _ in attributes["padding"]))
    high = (0, 0, *(after for _, after in attributes["padding"]))
    interior = (0, 0, *(dilation - 1 for dilation in attributes["lhs_dilation"]))
    if any((*low, *high, *interior)):
        x = ops.pad(x, low=low, high=high, interior=interior, value=0.0 if x.dtype.is_float else 0)
    if all(size == 1 for size in kernel) and all(stride == 1 for stride in attributes["strides"]):
        return ops.reshape(x, shape=(*x.shape, *kernel))
    strides, dilations = attributes["strides"], attributes["rhs_dilation"]
    return ops.window(x, axes=spatial, sizes=kernel, strides=strides, dilations=dilations)


def _contract(windows: Node, w: Node, groups: int, node: Node) -> Node:
    batch, places, kernel = node.shape[0], node.shape[2:], w.shape[2:]
    outputs, channels, spatial = w.shape[0] // groups, w.shape[1], len(kernel)
    parts = _parts(node, groups, channels, channels * math.prod(kernel))
    if groups == parts == 1:
        product = ops.dot_general(
            w,
            windows,
            lhs_batch=(),
            rhs_batch=(),
            lhs_contract=tuple(range(1, 2 + spatial)),
            rhs_contract=(1, *range(2 + spatial, 2 + 2 * spatial)),
        )
        return ops.permute(product, axes=(1, 0, *range(2, 2 + spatial)))
    split = (parts,) if parts > 1 else ()
    first = 2 + len(split)
    product = ops.dot_general(
        ops.reshape(w, shape=(groups, outputs, *split, channels // parts, *kernel)),
        ops.reshape(windows, shape=(batch, groups, *split, channels // parts, *places, *kernel)),
        lhs_batch=(0, *range(2, first)),
        rhs_batch=(1, *range(2, first)),
        lhs_contract=tuple(range(first, first + 1 + spatial)),
        rhs_contract=(first, *range(first + 1 + spatial, first + 1 + 2 * spatial)),
    )
    # (groups, parts if there are some, outputs, batch, *places)
    summed = ops.reduce_sum(product, axes=(1,)) if split else product
    return ops.reshape(ops.permute(summed, axes=(2, 0, 1, *range(3, 3 + spatial))), shape=node.shape)


def _parts(node: Node, groups: int, channels: int, depth: int) -> int:
    """In how many parts the channels are summed: a divisor of their number. Narrow types would round each part."""
    if node.dtype is not node.dtype.compute:
        return 1
    channels_out = max(1, node.shape[1])
    side = max(channels_out // groups, node.size // channels_out)
    results = max(1, node.size)
    most = min(MANY_RESULTS // results, LONG_SIDE // max(1, side * groups), results * depth // LEAST_PART)
    return max((parts for parts in range(1, min(most, channels) + 1) if channels % parts == 0), default=1)


def _multiply_and_sum(windows: Node, w: Node, node: Node) -> Node:
    """One output channel per group: (N, g, *P, C/g, *K) times (1, g, *1, C/g, *K), summed over (C/g, *K)."""
    groups, channels, kernel = w.shape[0], w.shape[1], w.shape[2:]
    batch, places, spatial = node.shape[0], node.shape[2:], len(w.shape) - 2
    grouped = ops.reshape(windows, shape=(batch, groups, channels, *places, *kernel))
    order = (0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
    seen = ops.permute(grouped, axes=order)
    weights = ops.reshape(w, shape=(1, groups, *(1,) * spatial, channels, *kernel))
    product = seen * ops.broadcast(weights, shape=seen.shape)
    return ops.reduce_sum(product, axes=tuple(range(2 + spatial, seen.rank)))
