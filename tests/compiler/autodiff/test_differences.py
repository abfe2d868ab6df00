"""Every gradient rule agrees with central differences in float64, and so does its own derivative.

The cases of a family are differentiated in one graph, with L = sum over cases of weights * (y + y**2 / 2): curved, so
that the second derivative of a linear op is not zero. Along random directions u, v at a point x it must hold that
    grad(x) . v       = (L(x + eps v) - L(x - eps v)) / (2 eps)
    u . Hessian(x) v  = u . (grad(x + eps v) - grad(x - eps v)) / (2 eps)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kaun.compiler.autodiff.vjp import RULES, gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, substitute, topological, verify

from kaun import execution

EPSILON = 1e-6
_identities = itertools.count()


def run(graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of `graph` through the compiler."""
    leaves = [execution.leaf(np.array(array, order="C")) for array in arrays]
    outputs = substitute(graph.outputs, dict(zip(graph.inputs, leaves, strict=True)))
    execution.realize(outputs)
    return [execution.array(node) for node in outputs]


def placeholder(array: Any) -> Node:
    return ops.input_(identity=("case", next(_identities)), dtype=dtypes.of(array.dtype), shape=array.shape)


@dataclass(frozen=True)
class Case:
    """A function of nodes, and the float64 arrays to differentiate it at."""

    name: str
    function: Callable[..., Node]
    arrays: tuple[Any, ...]


def values(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Any:
    """Numbers in general position: spread evenly in [low, high], in random order."""
    count = int(np.prod(shape))
    spaced = low + (high - low) * (np.arange(count) + 0.37) / max(1, count)
    return np.random.default_rng(seed).permutation(spaced).reshape(shape)


def case(name: str, function: Callable[..., Node], *arrays: Any) -> Case:
    return Case(name, function, arrays)


def integers(*numbers: Any, dtype: Any = np.int32) -> Node:
    """An index tensor made of ops, so that it is part of the graph: nested lists become concatenated constants."""
    array = np.asarray(numbers, dtype)
    kind = dtypes.of(array.dtype)
    flat = [full(int(number), kind, (1,)) for number in array.reshape(-1)]
    return ops.reshape(ops.concat(*flat, axis=0), shape=array.shape)


def elementwise() -> list[Case]:
    smooth = (ops.neg, ops.abs_, ops.exp, ops.expm1, ops.sin, ops.cos, ops.atan, ops.tanh, ops.erf)
    cases = [case(op.name, op, values(5, 7)) for op in smooth]
    cases += [case(op.name, op, values(3, 5, low=0.3)) for op in (ops.sqrt, ops.log)]
    cases += [case("log1p", ops.log1p, values(4, low=-0.6))]
    steps = (ops.floor, ops.ceil, ops.trunc, ops.round_)
    cases += [case(op.name, op, values(9)) for op in steps]
    pair = values(3, 5), values(3, 5, low=0.4, seed=1)
    cases += [case(op.name, op, *pair) for op in (ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.minimum)]
    cases += [case("rem", ops.rem, values(11, low=-5, high=5), values(11, low=0.7, high=1.4, seed=1))]
    cases += [case("pow", ops.pow_, values(3, 5, low=0.3), values(3, 5, seed=1))]
    cases += [case(f"pow {n}", lambda x, n=n: ops.pow_(x, x.like(n)), values(7)) for n in (0, 1, 2, 3, -1)]
    other = values(3, 5, low=-1.9, seed=1)
    cases += [case("where", lambda x, y: ops.where(ops.lt(x, y), x * y, y), values(3, 5), other)]
    cases += [case("cast", lambda x: ops.cast(ops.cast(x, dtype=dtypes.float64), dtype=dtypes.float64) * x, values(4))]
    cases += [case("used twice", lambda x: x * ops.sin(x) + x, values(5))]
    cases += [case("scalar", lambda x: ops.exp(x) * x, values())]
    cases += [case("empty", lambda x: ops.exp(x) * x, values(0, 3))]
    return cases


def reductions() -> list[Case]:
    cases = []
    for op in (ops.reduce_sum, ops.reduce_max, ops.reduce_min):
        for shape, axes in (
            ((7,), (0,)), ((3, 5), (1,)), ((3, 5), (0,)), ((2, 3, 5), (0, 2)), ((2, 3, 5), (2, 0)),
            ((2, 3), (0, 1)), ((1, 4), (0,)), ((3,), ()), ((0, 3), (1,)), ((0, 3), (0,)),
        ):  # fmt: skip
            if 0 in shape and axes == (0,) and op is not ops.reduce_sum:
                continue  # infinite
            cases.append(case(f"{op.name} {shape} {axes}", lambda x, op=op, a=axes: op(x, axes=a), values(*shape)))
    return cases


def movement() -> list[Case]:
    def sliced(starts: Any, stops: Any, steps: Any) -> Callable[[Node], Node]:
        return lambda x: ops.slice_(x, starts=starts, stops=stops, steps=steps)

    def padded(low: Any, high: Any, interior: Any) -> Callable[[Node], Node]:
        return lambda x: ops.pad(x, low=low, high=high, interior=interior, value=1.5)

    cases = [
        case("reshape", lambda x: ops.reshape(x, shape=(5, 3)), values(3, 5)),
        case("permute", lambda x: ops.permute(x, axes=(2, 0, 1)), values(2, 3, 5)),
        case("flip", lambda x: ops.flip(x, axes=(0, 2)), values(2, 1, 3)),
        case("broadcast", lambda x: ops.broadcast(x, shape=(2, 3, 5)), values(2, 1, 5)),
        case("broadcast all", lambda x: ops.broadcast(x, shape=(3, 4)), values(1, 1)),
        case("broadcast to nothing", lambda x: ops.broadcast(x, shape=(0, 4)), values(1, 4)),
        case("slice", sliced((1, 0), (4, 5), (1, 1)), values(5, 5)),
        case("slice with steps", sliced((1, 0), (7, 5), (3, 2)), values(8, 5)),
        case("slice of nothing", sliced((2,), (2,), (1,)), values(5)),
        case("pad", padded((1, 0), (2, 3), (0, 0)), values(3, 2)),
        case("pad inside", padded((1, 0), (0, 2), (2, 1)), values(3, 4)),
        case("pad nothing", padded((2,), (1,), (3,)), values(0)),
        case("concat", lambda x, y, z: ops.concat(x, y, z, x, axis=1), values(2, 3), values(2, 0), values(2, 1)),
        case("again", lambda x, y: ops.again(x, y * y, number=0) * y, values(2, 3), values(2, 3)),
        case("remat", lambda x: ops.remat(ops.sin(ops.exp(x)), x, budget=None), values(2, 3)),
        case("remat with a budget", lambda x: ops.remat(ops.sin(ops.exp(x)), x, budget=48), values(2, 3)),
    ]
    for size, stride, dilation, extent in (
        (1, 1, 1, 4), (2, 2, 1, 6), (2, 2, 1, 7), (2, 3, 1, 7), (2, 3, 1, 8), (3, 1, 1, 5), (3, 2, 1, 8),
        (3, 2, 2, 9), (2, 3, 2, 9), (1, 2, 3, 5), (4, 1, 1, 3),
    ):  # fmt: skip
        def windows(x: Node, z: int = size, s: int = stride, d: int = dilation) -> Node:
            return ops.window(x, axes=(1,), sizes=(z,), strides=(s,), dilations=(d,))

        cases.append(case(f"window {size} {stride} {dilation} of {extent}", windows, values(2, extent)))

    def images(x: Node) -> Node:
        return ops.window(x, axes=(2, 1), sizes=(3, 2), strides=(1, 2), dilations=(1, 1))

    def pooled(x: Node) -> Node:
        return ops.reduce_max(ops.window(x, axes=(1, 2), sizes=(3, 3), strides=(2, 2), dilations=(1, 1)), axes=(3, 4))

    return [*cases, case("windows of images", images, values(2, 5, 6)), case("max pool", pooled, values(2, 7, 7))]


def indexing() -> list[Case]:
    return [
        case("gather", lambda x: ops.gather(x, integers(2, 0, 2, 2)), values(3, 5)),
        case("gather rows of vectors", lambda x: ops.gather(x, integers([1, 1], [0, 3])), values(4)),
        case("gather out of range", lambda x: ops.gather(x, integers(-4, 7, 1)), values(3, 2)),
        case("gather by bytes", lambda x: ops.gather(x, integers(5, 255, 0, dtype=np.uint8)), values(6)),
        case("gather one", lambda x: ops.gather(x, full(1, dtypes.int64)), values(3, 2)),
        case("gather nothing", lambda x: ops.gather(x, full(0, dtypes.int64, (0,))), values(3, 2)),
        case("scatter", lambda x: ops.scatter_add(integers(2, 0, 2), x, size=4), values(3, 5)),
        case("scatter out of range", lambda x: ops.scatter_add(integers(-1, 4, 3, 0), x, size=4), values(4, 2)),
        case("scatter by bytes", lambda x: ops.scatter_add(integers(3, 250, dtype=np.uint8), x, size=300), values(2)),
        case("scatter nothing", lambda x: ops.scatter_add(full(0, dtypes.int32, (0,)), x, size=2), values(0, 2)),
        case("scatter into nothing", lambda x: ops.scatter_add(integers(0, 1), x, size=0), values(2, 3)),
    ]


def contractions() -> list[Case]:
    def dot(lhs_batch: Any, rhs_batch: Any, lhs_contract: Any, rhs_contract: Any) -> Callable[[Node, Node], Node]:
        names = ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract")
        axes = dict(zip(names, (lhs_batch, rhs_batch, lhs_contract, rhs_contract), strict=True))
        return lambda a, b: ops.dot_general(a, b, **axes)

    return [
        case("matrices", dot((), (), (1,), (0,)), values(3, 5), values(5, 2)),
        case("transposed matrices", dot((), (), (0,), (1,)), values(5, 3), values(2, 5)),
        case("vectors", dot((), (), (0,), (0,)), values(7), values(7, seed=1)),
        case("outer", dot((), (), (), ()), values(3), values(1, 2)),
        case("batched", dot((0,), (0,), (2,), (1,)), values(2, 3, 5), values(2, 5, 1)),
        case("batch axes anywhere", dot((1, 3), (2, 0), (0,), (3,)), values(5, 2, 4, 3), values(3, 6, 2, 5)),
        case("two summed axes", dot((), (), (2, 0), (0, 2)), values(3, 2, 4), values(4, 2, 3)),
        case("only a batch", dot((0,), (1,), (), ()), values(3, 2), values(2, 3)),
        case("no depth", dot((), (), (1,), (0,)), values(3, 0), values(0, 2)),
        case("no rows", dot((), (), (1,), (0,)), values(0, 5), values(5, 2)),
        case("of itself", lambda x: dot((), (), (1,), (1,))(x, x), values(3, 2)),
    ]


def convolutions(rank: int) -> list[Case]:
    """Strides that do not divide, padding wider than the kernel, both dilations, groups."""
    chooser = np.random.default_rng(rank)
    cases = []
    for number in range(14):
        groups, inner, outer = (int(n) for n in chooser.integers(1, 3, 3))
        extents = tuple(int(n) for n in chooser.integers(1, 8, rank))
        kernel = tuple(int(n) for n in chooser.integers(1, 4, rank))
        strides, lhs_dilation, rhs_dilation = (tuple(int(n) for n in chooser.integers(1, 4, rank)) for _ in range(3))
        padding = tuple((int(a), int(b)) for a, b in chooser.integers(0, 5, (rank, 2)))
        attributes = {
            "strides": strides, "padding": padding, "lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation,
            "groups": groups,
        }  # fmt: skip
        x, w = values(2, groups * inner, *extents), values(groups * outer, inner, *kernel, low=-1, high=1)
        cases.append(case(f"{number} {attributes}", lambda a, b, f=attributes: ops.conv_general(a, b, **f), x, w))
    return cases


def loss_and_gradients(cases: Sequence[Case]) -> tuple[list[list[Node]], list[Node], list[list[Node]]]:
    """(inputs, loss, gradients) of every case."""
    inputs, losses, grads = [], [], []
    for each in cases:
        nodes = [placeholder(array) for array in each.arrays]
        output = each.function(*nodes)
        weights = ops.cos(ops.iota(shape=(output.size + 1,), axis=0, dtype=dtypes.float64))
        weights = ops.slice_(weights, starts=(0,), stops=(output.size,), steps=(1,))
        curved = ops.reshape(output, shape=(output.size,))
        curved = weights * (curved + curved * curved * 0.5)
        loss = ops.reduce_sum(curved, axes=(0,))
        inputs.append(nodes)
        losses.append(loss)
        grads.append(gradients([loss], [full(1, dtypes.float64)], nodes))
    return inputs, losses, grads


FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "elementwise": elementwise,
    "reductions": reductions,
    "movement": movement,
    "indexing": indexing,
    "contractions": contractions,
    "convolutions of sequences": lambda: convolutions(1),
    "convolutions of images": lambda: convolutions(2),
}


def dot(left: Sequence[Any], right: Sequence[Any]) -> float:
    return sum(float(np.sum(a * b)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_derivatives_agree_with_central_differences(family: str) -> None:
    cases = FAMILIES[family]()
    inputs, losses, grads = loss_and_gradients(cases)
    flat_inputs = tuple(itertools.chain(*inputs))
    first = Graph(flat_inputs, (*losses, *itertools.chain(*grads)))
    # Hessian-vector products: the gradient of grad . u.
    directions = [placeholder(array) for each in cases for array in each.arrays]
    products, position = [], 0
    for nodes, gradient in zip(inputs, grads, strict=True):
        u = directions[position : position + len(nodes)]
        products.append(gradients(gradient, u, nodes))
        position += len(nodes)
    second = Graph((*flat_inputs, *directions), tuple(itertools.chain(*products)))
    verify(first)
    verify(second)

    chooser = np.random.default_rng(7)
    point = [array for each in cases for array in each.arrays]
    u = [chooser.normal(size=array.shape) for array in point]
    v = [chooser.normal(size=array.shape) for array in point]
    here = run(first, point)
    ahead = run(first, [x + EPSILON * d for x, d in zip(point, v, strict=True)])
    behind = run(first, [x - EPSILON * d for x, d in zip(point, v, strict=True)])
    curvature = run(second, [*point, *u])

    start, count = 0, len(cases)
    for number, each in enumerate(cases):
        own = slice(start, start + len(each.arrays))
        start = own.stop
        gradient, after, before = (result[count:][own] for result in (here, ahead, behind))
        difference = (ahead[number] - behind[number]) / (2 * EPSILON)
        np.testing.assert_allclose(dot(gradient, v[own]), difference, rtol=1e-6, atol=1e-6, err_msg=f"\n{each.name}")
        change = [(a - b) / (2 * EPSILON) for a, b in zip(after, before, strict=True)]
        np.testing.assert_allclose(
            dot(curvature[own], v[own]), dot(u[own], change), rtol=1e-6, atol=1e-6, err_msg=f"\n{each.name}, second"
        )


def test_the_cases_use_every_rule() -> None:
    used = {"stop_gradient"}
    for family in FAMILIES.values():
        for each in family():
            used |= {node.op.name for node in topological([each.function(*map(placeholder, each.arrays))])}
    assert set(RULES) <= used
