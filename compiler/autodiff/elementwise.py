"""Gradient rules of the elementwise ops."""

from __future__ import annotations

import math

from ..ir import Node, ops
from .vjp import Cotangents, rule


@rule(ops.neg)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (-cotangent,)


@rule(ops.abs_)
def _(node: Node, cotangent: Node) -> Cotangents:
    """The sign of x times the cotangent; 0 at 0."""
    (x,) = node.inputs
    zero = x.like(0)
    negative = ops.where(ops.lt(x, zero), -cotangent, zero)
    return (ops.where(ops.lt(zero, x), cotangent, negative),)


@rule(ops.floor, ops.ceil, ops.trunc, ops.round_, ops.stop_gradient)
def _(node: Node, cotangent: Node) -> Cotangents:
    """Steps are flat wherever they have a derivative."""
    return (None,)


@rule(ops.sqrt)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (cotangent * 0.5 / node,)


@rule(ops.exp)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (cotangent * node,)


@rule(ops.expm1)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (cotangent * (node + 1),)


@rule(ops.log)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (cotangent / x,)


@rule(ops.log1p)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (cotangent / (x + 1),)


@rule(ops.sin)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (cotangent * ops.cos(x),)


@rule(ops.cos)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (-(cotangent * ops.sin(x)),)


@rule(ops.atan)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (cotangent / (x * x + 1),)


@rule(ops.tanh)
def _(node: Node, cotangent: Node) -> Cotangents:
    return (cotangent * (1 - node * node),)


@rule(ops.erf)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (cotangent * (2 / math.sqrt(math.pi)) * ops.exp(-(x * x)),)


@rule(ops.add)
def _(node: Node, cotangent: Node) -> Cotangents:
    return cotangent, cotangent


@rule(ops.sub)
def _(node: Node, cotangent: Node) -> Cotangents:
    return cotangent, -cotangent


@rule(ops.mul)
def _(node: Node, cotangent: Node) -> Cotangents:
    a, b = node.inputs
    return cotangent * b, cotangent * a


@rule(ops.div)
def _(node: Node, cotangent: Node) -> Cotangents:
    """d/db (a/b) = -(a/b)/b, so one division serves both."""
    _, b = node.inputs
    quotient = cotangent / b
    return quotient, -(quotient * node)


@rule(ops.rem)
def _(node: Node, cotangent: Node) -> Cotangents:
    """a - b * trunc(a / b), where trunc is flat."""
    a, b = node.inputs
    return cotangent, -(cotangent * ops.trunc(a / b))


@rule(ops.pow_)
def _(node: Node, cotangent: Node) -> Cotangents:
    """b * a**(b-1) and a**b * log(a); x**0 is constant in x also at 0, and 0**y is constant in y >= 0."""
    a, b = node.inputs
    flat = ops.eq(b, b.like(0))
    power = ops.pow_(a, ops.where(flat, b.like(1), b - 1))
    zero_base = ops.and_(ops.eq(a, a.like(0)), ops.le(b.like(0), b))
    logarithm = ops.log(ops.where(zero_base, a.like(1), a))
    return ops.where(flat, b.like(0), cotangent * (b * power)), cotangent * (node * logarithm)


@rule(ops.maximum)
def _(node: Node, cotangent: Node) -> Cotangents:
    a, b = node.inputs
    return _to_winner(ops.lt(b, a), ops.lt(a, b), cotangent)


@rule(ops.minimum)
def _(node: Node, cotangent: Node) -> Cotangents:
    a, b = node.inputs
    return _to_winner(ops.lt(a, b), ops.lt(b, a), cotangent)


def _to_winner(first: Node, second: Node, cotangent: Node) -> Cotangents:
    """The whole cotangent to the input that won, half to each when neither did."""
    zero, half = cotangent.like(0), cotangent * 0.5
    return (
        ops.where(second, zero, ops.where(first, cotangent, half)),
        ops.where(first, zero, ops.where(second, cotangent, half)),
    )


@rule(ops.where)
def _(node: Node, cotangent: Node) -> Cotangents:
    condition, _, _ = node.inputs
    zero = cotangent.like(0)
    return None, ops.where(condition, cotangent, zero), ops.where(condition, zero, cotangent)


@rule(ops.cast)
def _(node: Node, cotangent: Node) -> Cotangents:
    (x,) = node.inputs
    return (ops.cast(cotangent, dtype=x.dtype),) if x.dtype.is_float else (None,)
