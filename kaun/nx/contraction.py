"""The general contraction of two labelled operands, and the reading of einsum subscripts."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from kaun.compiler.ir import Node, ops

from .errors import describe, invalid_value
from .movement import part, permuted
from .operands import spread

# One label (any int) per axis.
Labels: TypeAlias = tuple[int, ...]


def contract(function: str, a: Node, left: Labels, b: Node, right: Labels, output: Labels) -> Node:
    """The sum of a * b over the labels that are not in `output`, with the result's axes in the order of `output`.

    Labels within one operand are distinct. One dot_general: labels of both operands are batch axes if they are in the
    output, else contracted; axes of extent 1 are dropped where the other operand has the label too, so that
    broadcasting copies nothing. A product without contracted labels is a broadcast multiplication, which fuses.
    """
    extents = [*zip(left, a.shape, strict=True), *zip(right, b.shape, strict=True)]
    full = {label: extent for label, extent in extents if extent != 1}
    (a, left), (b, right) = _dropped(a, left, right), _dropped(b, right, left)
    (a, left), (b, right) = _summed(a, left, {*right, *output}), _summed(b, right, {*left, *output})
    shared = [label for label in left if label in right]
    for label in shared:
        if a.shape[left.index(label)] != b.shape[right.index(label)]:
            raise invalid_value(function, f"got {describe(a, b)}: extents of a shared axis differ")
    batch = [label for label in shared if label in output]
    contracted = [label for label in shared if label not in output]
    if not contracted:
        shape = tuple(full.get(label, 1) for label in output)
        return spread(_aligned(a, left, output), shape) * spread(_aligned(b, right, output), shape)
    batch.sort(key=output.index)
    result = ops.dot_general(
        a, b,
        lhs_batch=tuple(left.index(label) for label in batch), rhs_batch=tuple(right.index(label) for label in batch),
        lhs_contract=tuple(left.index(label) for label in contracted),
        rhs_contract=tuple(right.index(label) for label in contracted),
    )  # fmt: skip
    labels = (*batch, *(x for x in left if x not in shared), *(x for x in right if x not in shared))
    return _aligned(result, labels, output)


def _dropped(node: Node, labels: Labels, others: Labels) -> tuple[Node, Labels]:
    """Without the axes of extent 1 whose label the other operand has."""
    kept = [i for i, label in enumerate(labels) if node.shape[i] != 1 or label not in others]
    if len(kept) == len(labels):
        return node, labels
    return ops.reshape(node, shape=tuple(node.shape[i] for i in kept)), tuple(labels[i] for i in kept)


def _summed(node: Node, labels: Labels, needed: set[int]) -> tuple[Node, Labels]:
    """Summed over the labels that nothing else needs."""
    axes = tuple(i for i, label in enumerate(labels) if label not in needed)
    if not axes:
        return node, labels
    return ops.reduce_sum(node, axes=axes), tuple(label for label in labels if label in needed)


def _aligned(node: Node, labels: Labels, output: Labels) -> Node:
    """The axes in the order of `output`, with extent 1 for labels the node lacks."""
    present = [label for label in output if label in labels]
    node = permuted(node, tuple(labels.index(label) for label in present))
    if len(present) == len(output):
        return node
    extents = iter(node.shape)
    return ops.reshape(node, shape=tuple(next(extents) if label in labels else 1 for label in output))


def single(function: str, node: Node, labels: Labels) -> tuple[Node, Labels]:
    """The operand with the diagonal taken for each label that occurs twice."""
    while len(set(labels)) < len(labels):
        label = next(label for label in labels if labels.count(label) > 1)
        first = labels.index(label)
        second = labels.index(label, first + 1)
        extent = node.shape[first]
        if node.shape[second] != extent:
            raise invalid_value(function, f"got {describe(node)}: a diagonal needs equal extents")
        others = tuple(i for i in range(node.rank) if i not in (first, second))
        outer = tuple(node.shape[i] for i in others)
        flat = ops.reshape(permuted(node, (*others, first, second)), shape=(*outer, extent * extent))
        node = part(flat, len(outer), 0, extent * extent, extent + 1) if extent > 1 else flat
        labels = (*(labels[i] for i in others), label)
    return node, labels


@lru_cache(maxsize=1024)
def parse_subscripts(subscripts: str, ranks: tuple[int, ...]) -> tuple[tuple[Labels, ...], Labels]:
    """Labels of every operand and of the result. Letters are their code points, axes of `...` 0, 1, ... from the back.

    ValueError for what is no subscript, or does not fit operands of these ranks.
    """
    text = subscripts.replace(" ", "")
    inputs, arrow, output = text.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(ranks):
        raise invalid_value("nx.einsum", f"{subscripts!r} has {len(terms)} operands, got {len(ranks)}")
    labels = tuple(_labels(subscripts, term, rank) for term, rank in zip(terms, ranks, strict=True))
    used = [label for term in labels for label in term]
    dots = sorted({label for label in used if label < 64}, reverse=True)
    if not arrow:
        once = sorted(label for label in set(used) if label >= 64 and used.count(label) == 1)
        return labels, (*dots, *once)
    result: list[int] = []
    for piece in _pieces(subscripts, output):
        result.extend(dots if piece == "..." else [ord(piece)])
    if len(set(result)) != len(result):
        raise invalid_value("nx.einsum", f"{subscripts!r} repeats a letter in its result")
    if not set(result) <= set(used):
        raise invalid_value("nx.einsum", f"{subscripts!r} has a letter in its result that no operand has")
    if "..." not in output and dots:
        raise invalid_value("nx.einsum", f"{subscripts!r} has '...' in its operands but not in its result")
    return labels, tuple(result)


def _pieces(subscripts: str, term: str) -> list[str]:
    before, dots, after = term.partition("...")
    pieces = [*before, *([dots] if dots else []), *after]
    if any(piece != "..." and not (piece.isascii() and piece.isalpha()) for piece in pieces):
        raise invalid_value("nx.einsum", f"cannot read subscripts {subscripts!r}")
    return pieces


def _labels(subscripts: str, term: str, rank: int) -> Labels:
    pieces = _pieces(subscripts, term)
    letters = len(pieces) - pieces.count("...")
    extra = rank - letters
    if extra < 0 or (extra and "..." not in pieces):
        raise invalid_value("nx.einsum", f"{term!r} of {subscripts!r} does not fit an operand of {rank} axes")
    result: list[int] = []
    for piece in pieces:
        result.extend(range(extra - 1, -1, -1) if piece == "..." else [ord(piece)])
    return tuple(result)
