"""Products of matrices and tensors, each mapped to one contraction: matmul, tensordot, einsum, vecdot, outer."""

from __future__ import annotations

from collections.abc import Sequence

from kaun.compiler.ir import Node, full, ops
from kaun.compiler.ir.graph import Shape

from .contraction import Labels, contract, parse_subscripts, single
from .errors import describe, invalid_type, invalid_value
from .movement import part, permuted
from .operands import broadcast_shape, node_of, normalize_axis, promoted, same_dtype
from .reductions import sum as sum_
from .tensor import Tensor, TensorLike


def _factors(function: str, x1: TensorLike, x2: TensorLike) -> tuple[Node, Node]:
    if type(x1) is Tensor and type(x2) is Tensor and x1._node.dtype is x2._node.dtype:
        a, b = x1._node, x2._node
    else:
        a, b = promoted(function, x1, x2)
    if a.dtype.kind == "bool":
        raise invalid_type(function, f"got {describe(a, b)}, expected integers or floats")
    return a, b


def matmul(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """y[.., i, j] = sum over k of x1[.., i, k] * x2[.., k, j]; the leading axes broadcast.

    A tensor of one axis is a row on the left and a column on the right, and that axis is absent from the result.
    Leading axes that only one side has join its rows or columns, so nothing is copied to broadcast. ValueError if the
    contracted extents differ or a side has no axes.
    """
    a, b = _factors("nx.matmul", x1, x2)
    left, right = a.shape, b.shape
    if not left or not right or left[-1] != right[-2 if len(right) > 1 else 0]:
        raise invalid_value("nx.matmul", f"got {describe(a, b)}, expected (.., n, k) and (.., k, m), or (k) for either")
    if len(right) <= 2:
        return Tensor(_dot(a, b, (), (), (len(left) - 1,), (0,)))
    if len(left) == len(right) and left[:-2] == right[:-2]:
        batch = tuple(range(len(left) - 2))
        return Tensor(_dot(a, b, batch, batch, (len(left) - 1,), (len(right) - 2,)))
    # Labels: batch axis i (from the back) is 2 + i, rows and columns -1 and -2, the contracted axis 0.
    outer = max(len(left), len(right)) - 2
    row = (-1,) if len(left) > 1 else ()
    rows: Labels = (*range(len(left), 2, -1), *row, 0)
    columns: Labels = (*range(len(right), 2, -1), 0, -2)
    broadcast_shape("nx.matmul", _stand_in(a, left[:-2]), _stand_in(b, right[:-2]))
    return Tensor(contract("nx.matmul", a, rows, b, columns, (*range(outer + 2, 2, -1), *row, -2)))


def _stand_in(node: Node, shape: Shape) -> Node:
    return full(0, node.dtype, shape)


def _dot(
    a: Node, b: Node, lhs_batch: Shape, rhs_batch: Shape, lhs_contract: Shape, rhs_contract: Shape
) -> Node:  # fmt: skip
    return ops.dot_general(
        a, b, lhs_batch=lhs_batch, rhs_batch=rhs_batch, lhs_contract=lhs_contract, rhs_contract=rhs_contract
    )


def tensordot(x1: TensorLike, x2: TensorLike, /, axes: int | Sequence[Sequence[int]] = 2) -> Tensor:
    """The sum of products over pairs of axes: the last `axes` of x1 with the first of x2, or two lists of axes.

    The result has the remaining axes of x1, then those of x2. ValueError if paired extents differ.
    """
    a, b = _factors("nx.tensordot", x1, x2)
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.rank, b.rank):
            raise invalid_value("nx.tensordot", f"got {axes} axes for {describe(a, b)}")
        left, right = tuple(range(a.rank - axes, a.rank)), tuple(range(axes))
    else:
        first, second = axes
        left = tuple(normalize_axis("nx.tensordot", axis, a.rank) for axis in _listed(first))
        right = tuple(normalize_axis("nx.tensordot", axis, b.rank) for axis in _listed(second))
    if (
        len(left) != len(right) or len(set(left)) != len(left) or len(set(right)) != len(right)
        or any(a.shape[i] != b.shape[j] for i, j in zip(left, right, strict=True))
    ):  # fmt: skip
        raise invalid_value("nx.tensordot", f"axes {left} and {right} of {describe(a, b)} do not pair")
    return Tensor(_dot(a, b, (), (), left, right))


def _listed(axes: int | Sequence[int]) -> Sequence[int]:
    return (axes,) if isinstance(axes, int) else axes


def vecdot(x1: TensorLike, x2: TensorLike, /, axis: int = -1) -> Tensor:
    """The sum of x1 * x2 along `axis` of both; the other axes broadcast."""
    a, b = _factors("nx.vecdot", x1, x2)
    left, right = normalize_axis("nx.vecdot", axis, a.rank), normalize_axis("nx.vecdot", axis, b.rank)
    if a.shape[left] != b.shape[right]:
        raise invalid_value("nx.vecdot", f"axis {axis} of {describe(a, b)} differs")
    a, b = (
        permuted(node, (*(i for i in range(node.rank) if i != place), place)) for node, place in ((a, left), (b, right))
    )
    broadcast_shape("nx.vecdot", _stand_in(a, a.shape[:-1]), _stand_in(b, b.shape[:-1]))
    outer = max(a.rank, b.rank) - 1
    labels: list[Labels] = [(*range(node.rank - 1, 0, -1), 0) for node in (a, b)]
    return Tensor(contract("nx.vecdot", a, labels[0], b, labels[1], tuple(range(outer, 0, -1))))


def dot(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The sum of products of two tensors of one axis each, or of their matrices: `nx.matmul`."""
    return matmul(x1, x2)


def outer(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """y[i, j] = x1[i] * x2[j] of two tensors of one axis each."""
    a, b = _factors("nx.outer", x1, x2)
    if a.rank != 1 or b.rank != 1:
        raise invalid_value("nx.outer", f"got {describe(a, b)}, expected one axis each")
    return Tensor(contract("nx.outer", a, (1,), b, (2,), (1, 2)))


def einsum(subscripts: str, /, *operands: TensorLike) -> Tensor:
    """Einstein's summation: products over shared letters, summed over those not in the result.

    `subscripts` as in NumPy: `"bqd,bkd->bqk"`, with `...` for leading axes and, without `->`, the letters that occur
    once in alphabetical order. A letter twice in one operand takes its diagonal; axes of extent 1 broadcast. Two
    operands are one contraction; more are taken in pairs, the cheapest first. ValueError for malformed subscripts
    and extents that differ.
    """
    nodes = same_dtype("nx.einsum", [node_of("nx.einsum", x) for x in operands]) if operands else []
    if nodes and nodes[0].dtype.kind == "bool":
        raise invalid_type("nx.einsum", f"got {describe(*nodes)}, expected integers or floats")
    inputs, output = parse_subscripts(subscripts, tuple(node.rank for node in nodes))
    pool = [single("nx.einsum", node, labels) for node, labels in zip(nodes, inputs, strict=True)]
    extents: dict[int, int] = {}
    for node, labels in pool:
        for label, extent in zip(labels, node.shape, strict=True):
            known = extents.setdefault(label, extent)
            if extent != known and 1 not in (extent, known):
                raise invalid_value("nx.einsum", f"{subscripts!r} does not fit {describe(*nodes)}: extents differ")
            extents[label] = known if extent == 1 else extent
    while len(pool) > 2:
        i, j = min(
            ((i, j) for j in range(len(pool)) for i in range(j)),
            key=lambda two: _cost(pool[two[0]][1], pool[two[1]][1], extents),
        )
        b, right = pool.pop(j)
        a, left = pool.pop(i)
        needed = {label for _, labels in pool for label in labels} | set(output)
        kept = tuple(label for label in dict.fromkeys(left + right) if label in needed)
        pool.append((contract("nx.einsum", a, left, b, right, kept), kept))
    if len(pool) == 2:
        (a, left), (b, right) = pool
        return Tensor(contract("nx.einsum", a, left, b, right, output))
    node, labels = pool[0]
    summed = tuple(place for place, label in enumerate(labels) if label not in output)
    node = ops.reduce_sum(node, axes=summed) if summed else node
    labels = tuple(label for label in labels if label in output)
    return Tensor(permuted(node, tuple(labels.index(label) for label in output)))


def _cost(left: Labels, right: Labels, extents: dict[int, int]) -> int:
    """Multiplications of contracting two operands."""
    result = 1
    for label in set(left) | set(right):
        result *= extents[label]
    return result


def diagonal(x: TensorLike, /, *, offset: int = 0) -> Tensor:
    """The diagonal number `offset` of the last two axes: y[.., i] = x[.., i, i + offset]."""
    node = node_of("nx.diagonal", x)
    if node.rank < 2:
        raise invalid_value("nx.diagonal", f"got {describe(node)}, expected at least two axes")
    rows, columns = node.shape[-2:]
    start = min(offset, columns) if offset >= 0 else min(-offset, rows) * columns
    count = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    flat = ops.reshape(node, shape=(*node.shape[:-2], rows * columns))
    if count == 0:
        return Tensor(part(flat, flat.rank - 1, 0, 0))
    return Tensor(part(flat, flat.rank - 1, start, start + (count - 1) * (columns + 1) + 1, columns + 1))


def trace(x: TensorLike, /, *, offset: int = 0) -> Tensor:
    """The sum of the diagonal number `offset` of the last two axes."""
    return sum_(diagonal(x, offset=offset), axis=-1)
