"""Algebra that holds for every value: integers that wrap, and floats with NaN, infinities and both zeros.

So x * 0 and x - x stay for floats, and x + 0.0 too (it turns -0.0 into 0.0). A NaN stays a NaN, but its sign and
payload are not kept. Reductions may be reassociated, products of a sum of equal terms included.

Chosen forms: a + (-b) is a - b; (-a) * (-b) is a * b; x * -1 is -x; a negation moves into a constant factor;
a comparison is negated by exchanging it, not by `not`; what is the same along a broadcast is computed before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from ..ir import Graph, Node, dtypes, full, ops
from ..ir.graph import TABLE as OPS
from .canonicalise import TABLE as CANONICAL_RULES
from .fold_constants import TABLE as FOLDING_RULES
from .reduce_vectors import TABLE as VECTOR_RULES
from .rules import RuleTable, is_integral, is_uniform, merged, normalise, uniform

TABLE = RuleTable()


def simplify(graph: Graph) -> Graph:
    """The graph with the rules of this file applied everywhere they match.

    They are applied together with those of canonicalise, fold_constants and reduce_vectors, since each makes work for
    the others.
    """
    return normalise(graph, _all_rules())


@cache
def _all_rules() -> RuleTable:
    return merged(CANONICAL_RULES, FOLDING_RULES, VECTOR_RULES, TABLE)


@TABLE.rule(*(op for op in OPS.values() if op.is_elementwise))
def compute_before_broadcast(node: Node) -> Node | None:
    """f(broadcast(a), broadcast(b), constant) is broadcast(f(a, b, constant)): less to compute."""
    shape = None
    for child in node.inputs:
        if child.op is ops.broadcast:
            if shape not in (None, child.inputs[0].shape):
                return None
            shape = child.inputs[0].shape
        elif child.op is not ops.constant:
            return None
    if shape is None:
        return None
    small = (
        child.inputs[0] if child.op is ops.broadcast else full(child.attributes["value"], child.dtype, shape)
        for child in node.inputs
    )
    return ops.broadcast(node.op(*small, **node.attributes), shape=node.shape)


@TABLE.rule(ops.add)
def add_nothing(node: Node) -> Node | None:
    a, b = node.inputs
    nothing = -0.0 if node.dtype.is_float else 0
    if is_uniform(b, nothing):
        return a
    return b if is_uniform(a, nothing) else None


@TABLE.rule(ops.add)
def add_negative(node: Node) -> Node | None:
    a, b = node.inputs
    if b.op is ops.neg:
        return a - b.inputs[0]
    return b - a.inputs[0] if a.op is ops.neg else None


@TABLE.rule(ops.sub)
def subtract(node: Node) -> Node | None:
    a, b = node.inputs
    if is_uniform(b, 0):
        return a
    if is_uniform(a, -0.0 if node.dtype.is_float else 0):
        return -b
    if b.op is ops.neg:
        return a + b.inputs[0]
    return node.like(0) if a is b and is_integral(node.dtype) else None


@TABLE.rule(ops.neg)
def negate(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.op is ops.neg:
        return x.inputs[0]
    if x.op in (ops.mul, ops.div) and node.dtype.is_float:
        a, b = x.inputs
        if uniform(b) is not None:
            return x.op(a, b.like(-uniform(b)))
        if uniform(a) is not None:
            return x.op(a.like(-uniform(a)), b)
    return None


@TABLE.rule(ops.abs_)
def magnitude(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.op is ops.abs_ or node.dtype.kind == "unsigned":
        return x
    return ops.abs_(x.inputs[0]) if x.op is ops.neg else None


@TABLE.rule(ops.floor, ops.ceil, ops.trunc, ops.round_)
def already_whole(node: Node) -> Node | None:
    (x,) = node.inputs
    return x if x.op in (ops.floor, ops.ceil, ops.trunc, ops.round_) else None


@TABLE.rule(ops.mul)
def multiply(node: Node) -> Node | None:
    a, b = node.inputs
    if a.op is ops.neg and b.op is ops.neg:
        return a.inputs[0] * b.inputs[0]
    for x, factor in ((a, b), (b, a)):
        if is_uniform(factor, 1):
            return x
        if is_uniform(factor, -1):
            return -x
        if is_integral(node.dtype) and is_uniform(factor, 0):
            return factor
        known: float | None = uniform(factor)
        if x.op is ops.neg and node.dtype.is_float and known is not None:
            return x.inputs[0] * -known
    return None


@TABLE.rule(ops.div)
def divide(node: Node) -> Node | None:
    """By a power of two: the exact product with its inverse."""
    a, b = node.inputs
    if is_uniform(b, 1):
        return a
    divisor = uniform(b)
    if divisor is None or not node.dtype.is_float or divisor == 0 or not math.isfinite(divisor):
        return None
    # 2**-100 for bfloat16 and float32, and so on: far from where the inverse or the divisor is subnormal.
    limit = {"float16": 14, "bfloat16": 100, "float32": 100, "float64": 1000}[node.dtype.name]
    mantissa, exponent = math.frexp(divisor)
    return a * (1 / divisor) if abs(mantissa) == 0.5 and abs(exponent) <= limit else None


@TABLE.rule(ops.rem)
def remainder_of_one(node: Node) -> Node | None:
    return node.like(0) if is_integral(node.dtype) and is_uniform(node.inputs[1], 1) else None


@TABLE.rule(ops.pow_)
def small_power(node: Node) -> Node | None:
    x, exponent = node.inputs
    if is_uniform(x, 1):
        return x
    forms: dict[float, Callable[[Node], Node]] = {
        0: lambda x: x.like(1), 1: lambda x: x, 2: lambda x: x * x, 3: lambda x: x * x * x, -1: lambda x: 1 / x,
    }  # fmt: skip
    known: float | None = uniform(exponent)
    form = None if known is None else forms.get(known)
    return form(x) if form is not None else None


@TABLE.rule(ops.maximum, ops.minimum)
def extremum(node: Node) -> Node | None:
    """With itself, with the identity, and (not for floats, whose NaNs pass) with the highest or lowest value."""
    a, b = node.inputs
    if a is b:
        return a
    lowest, highest = dtypes.value_bounds(node.dtype)
    identity, winner = (lowest, highest) if node.op is ops.maximum else (highest, lowest)
    for x, other in ((a, b), (b, a)):
        if is_uniform(other, identity):
            return x
        if is_integral(node.dtype) and is_uniform(other, winner):
            return other
    return None


@TABLE.rule(ops.and_, ops.or_, ops.xor)
def bitwise(node: Node) -> Node | None:
    a, b = node.inputs
    ones = 1 if node.dtype.kind == "bool" else -1 if node.dtype.kind == "signed" else 2**node.dtype.bits - 1
    if a is b:
        return node.like(0) if node.op is ops.xor else a
    for x, other in ((a, b), (b, a)):
        if is_uniform(other, 0):
            return other if node.op is ops.and_ else x
        if is_uniform(other, ones):
            return {"and": x, "or": other}.get(node.op.name) or ops.not_(x)
    return None


@TABLE.rule(ops.shift_left, ops.shift_right)
def shift_by_nothing(node: Node) -> Node | None:
    return node.inputs[0] if is_uniform(node.inputs[1], 0) else None


@TABLE.rule(ops.not_)
def opposite(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.op is ops.not_:
        return x.inputs[0]
    if x.op in (ops.eq, ops.ne):
        return (ops.ne if x.op is ops.eq else ops.eq)(*x.inputs)
    if x.op in (ops.lt, ops.le) and is_integral(x.inputs[0].dtype):
        a, b = x.inputs
        return (ops.le if x.op is ops.lt else ops.lt)(b, a)
    return None


@TABLE.rule(ops.eq, ops.ne, ops.lt, ops.le)
def compare_with_itself(node: Node) -> Node | None:
    a, b = node.inputs
    if a is not b:
        return None
    if node.op is ops.lt:
        return node.like(False)
    return node.like(node.op in (ops.eq, ops.le)) if is_integral(a.dtype) else None


@TABLE.rule(ops.where)
def choose(node: Node) -> Node | None:
    condition, a, b = node.inputs
    if a is b:
        return a
    known = uniform(condition)
    if known is not None:
        return a if known else b
    if condition.op is ops.not_:
        return ops.where(condition.inputs[0], b, a)
    if a.op is ops.where and a.inputs[0] is condition:
        return ops.where(condition, a.inputs[1], b)
    if b.op is ops.where and b.inputs[0] is condition:
        return ops.where(condition, a, b.inputs[2])
    if node.dtype.kind == "bool":
        if is_uniform(a, True) and is_uniform(b, False):
            return condition
        if is_uniform(a, False) and is_uniform(b, True):
            return ops.not_(condition)
    return None


@TABLE.rule(ops.reduce_sum, ops.reduce_max, ops.reduce_min)
def reduce_reduced(node: Node) -> Node | None:
    """A reduction of the same reduction reduces once, over all axes."""
    (x,) = node.inputs
    if x.op is not node.op:
        return None
    (base,), inner = x.inputs, x.attributes["axes"]
    left = [axis for axis in range(base.rank) if axis not in inner]
    outer = {left[axis] for axis in node.attributes["axes"]}
    return node.op(base, axes=tuple(sorted(outer | set(inner))))


@TABLE.rule(ops.reduce_sum, ops.reduce_max, ops.reduce_min)
def reduce_repeated(node: Node) -> Node | None:
    """Equal terms along a broadcast axis: their sum is a product, their extremum one of them."""
    (x,), axes = node.inputs, node.attributes["axes"]
    if x.op is not ops.broadcast or x.size == 0:
        return None
    (base,) = x.inputs
    repeated = {axis for axis in axes if base.shape[axis] != x.shape[axis]}
    if not repeated:
        return None
    count = math.prod(x.shape[axis] for axis in repeated)
    if node.op is ops.reduce_sum and node.dtype.is_float and uniform(full(count, node.dtype)) != count:
        return None  # the dtype cannot hold the factor
    kept = tuple(1 if axis in repeated else extent for axis, extent in enumerate(x.shape))
    result = node.op(ops.broadcast(base, shape=kept), axes=axes)
    if node.op is not ops.reduce_sum:
        return result
    factor = count if node.dtype.is_float else int(np.asarray(count).astype(node.dtype.numpy))
    return result * factor
