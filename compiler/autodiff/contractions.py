"""Gradient rules of dot_general and conv_general: contractions and convolutions again."""

from __future__ import annotations

from ..ir import Node, full, ops
from .vjp import Cotangents, rule

Labels = tuple[int, ...]
Range = tuple[int, int]


def contract(a: Node, a_labels: Labels, b: Node, b_labels: Labels, result: Labels) -> Node:
    """The contraction of two labelled tensors to the axes `result`: summed over labels that are not in it.

    The operands go in the order that needs no permutation afterwards, if there is one.
    """
    candidates = []
    for left, left_labels, right, right_labels in ((a, a_labels, b, b_labels), (b, b_labels, a, a_labels)):
        shared = [label for label in left_labels if label in right_labels]
        batch = [label for label in result if label in shared]
        summed = [label for label in shared if label not in result]
        natural = (*batch, *(x for x in left_labels if x not in shared), *(x for x in right_labels if x not in shared))
        order = tuple(natural.index(label) for label in result)
        candidates.append((left, left_labels, right, right_labels, batch, summed, order))
    straight = [candidate for candidate in candidates if candidate[-1] == tuple(range(len(result)))]
    left, left_labels, right, right_labels, batch, summed, order = (straight or candidates)[0]
    product = ops.dot_general(
        left,
        right,
        lhs_batch=tuple(map(left_labels.index, batch)),
        rhs_batch=tuple(map(right_labels.index, batch)),
        lhs_contract=tuple(map(left_labels.index, summed)),
        rhs_contract=tuple(map(right_labels.index, summed)),
    )
    return product if straight else ops.permute(product, axes=order)


@rule(ops.dot_general)
def _(node: Node, cotangent: Node) -> Cotangents:
    lhs, rhs = node.inputs
    # Label each left axis by its number; a right axis by its partner's, or by a new number when it is free.
    left = tuple(range(lhs.rank))
    partners = {
        **dict(zip(node.attributes["rhs_batch"], node.attributes["lhs_batch"], strict=True)),
        **dict(zip(node.attributes["rhs_contract"], node.attributes["lhs_contract"], strict=True)),
    }
    right = tuple(partners.get(axis, lhs.rank + axis) for axis in range(rhs.rank))
    batch = tuple(node.attributes["lhs_batch"])
    result = (*batch, *(x for x in left if x not in right), *(x for x in right if x not in left))
    return contract(cotangent, result, rhs, right, left), contract(lhs, left, cotangent, result, right)


@rule(ops.conv_general)
def _(node: Node, cotangent: Node) -> Cotangents:
    """With x dilated and padded, y[p] = sum over k of w[k] x[p * stride + k * dilation], so

    dx[i] = sum over k of w[k] dy[(i - k * dilation) / stride]: dy dilated by the stride, the kernel reversed;
    dw[k] = sum over p of dy[p] x[k * dilation + p * stride]: dy as a kernel, stride and dilation exchanged.
    """
    x, w = node.inputs
    if 0 in (x.size, w.size, node.size):
        return None, None
    return _input_gradient(node, x, w, cotangent), _weight_gradient(node, x, w, cotangent)


def _input_gradient(node: Node, x: Node, w: Node, cotangent: Node) -> Node:
    groups = node.attributes["groups"]
    outputs, channels, kernel = w.shape[0] // groups, w.shape[1], w.shape[2:]
    rank = w.rank + 1
    grouped = ops.reshape(w, shape=(groups, outputs, channels, *kernel))
    swapped = ops.permute(grouped, axes=(0, 2, 1, *range(3, rank)))
    turned = ops.flip(ops.reshape(swapped, shape=(groups * channels, outputs, *kernel)), axes=tuple(range(2, w.rank)))
    ranges = []
    for extent, size, (low, _), lhs_dilation, rhs_dilation in zip(
        x.shape[2:],
        kernel,
        node.attributes["padding"],
        node.attributes["lhs_dilation"],
        node.attributes["rhs_dilation"],
        strict=True,
    ):
        reach = (size - 1) * rhs_dilation
        begin = low - reach
        ranges.append((begin, begin + (extent - 1) * lhs_dilation + reach + 1))
    result = _convolve(
        cotangent,
        turned,
        ranges,
        strides=node.attributes["lhs_dilation"],
        lhs_dilation=node.attributes["strides"],
        rhs_dilation=node.attributes["rhs_dilation"],
        groups=groups,
    )
    return full(0, x.dtype, x.shape) if result is None else result


def _weight_gradient(node: Node, x: Node, w: Node, cotangent: Node) -> Node:
    groups = node.attributes["groups"]
    batch, channels, extents = x.shape[0], w.shape[1], x.shape[2:]
    rank = x.rank + 1
    # Channels become the batch, and examples the channels, of every group.
    grouped = ops.reshape(x, shape=(batch, groups, channels, *extents))
    examples = ops.permute(grouped, axes=(2, 1, 0, *range(3, rank)))
    images = ops.reshape(examples, shape=(channels, groups * batch, *extents))
    swap = (1, 0, *range(2, x.rank))
    ranges = []
    for size, places, (low, _), stride, rhs_dilation in zip(
        w.shape[2:],
        node.shape[2:],
        node.attributes["padding"],
        node.attributes["strides"],
        node.attributes["rhs_dilation"],
        strict=True,
    ):
        ranges.append((-low, -low + (size - 1) * rhs_dilation + (places - 1) * stride + 1))
    result = _convolve(
        images,
        ops.permute(cotangent, axes=swap),
        ranges,
        strides=node.attributes["rhs_dilation"],
        lhs_dilation=node.attributes["lhs_dilation"],
        rhs_dilation=node.attributes["strides"],
        groups=groups,
    )
    return full(0, w.dtype, w.shape) if result is None else ops.permute(result, axes=swap)


def _convolve(
    x: Node,
    w: Node,
    ranges: list[Range],
    *,
    strides: tuple[int, ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    groups: int,
) -> Node | None:
    """conv_general over positions begin..end of the dilated x on each axis, which may cut x as well as pad it.

    None when no element of x lies in the range, so that the result is zero.
    """
    starts, stops, padding = [0, 0], list(x.shape[:2]), []
    for extent, (begin, end), dilation in zip(x.shape[2:], ranges, lhs_dilation, strict=True):
        first = max(0, -(-begin // dilation))
        last = min(extent - 1, (end - 1) // dilation)
        if first > last:
            return None
        starts.append(first)
        stops.append(last + 1)
        padding.append((first * dilation - begin, end - 1 - last * dilation))
    if (tuple(starts), tuple(stops)) != ((0,) * x.rank, x.shape):
        x = ops.slice_(x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * x.rank)
    return ops.conv_general(
        x,
        w,
        strides=strides,
        padding=tuple(padding),
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        groups=groups,
    )
