"""Ops on constants become constants, computed by the ops' own NumPy meaning.

A constant has one value everywhere, so an elementwise op on constants needs to be evaluated once, on numbers.
"""

from __future__ import annotations

import math

import numpy as np

from ..ir import Graph, Node, full, ops
from ..ir.graph import TABLE as OPS
from .rules import RuleTable, normalise, uniform

TABLE = RuleTable()


def fold_constants(graph: Graph) -> Graph:
    """The graph with every op whose inputs are all constants replaced by a constant, where its value is uniform."""
    return normalise(graph, TABLE)


def _as_constant(value: np.ndarray[tuple[int, ...], np.dtype[np.generic]], node: Node) -> Node:
    number = float(value) if node.dtype.is_float else value.item()
    return full(number, node.dtype, node.shape)


@TABLE.rule(*(op for op in OPS.values() if op.is_elementwise and op is not ops.bitcast))
def elementwise(node: Node) -> Node | None:
    # (A bitcast may turn a NaN's bits into a number, and constants do not keep those bits.)
    if any(child.op is not ops.constant for child in node.inputs):
        return None
    scalars = [np.asarray(child.attributes["value"], child.dtype.numpy) for child in node.inputs]
    return _as_constant(np.asarray(node.op.meaning(*scalars, **node.attributes)), node)


@TABLE.rule(ops.reduce_max, ops.reduce_min)
def extremum(node: Node) -> Node | None:
    """All elements are equal."""
    (x,) = node.inputs
    return full(x.attributes["value"], node.dtype, node.shape) if x.op is ops.constant and x.size else None


@TABLE.rule(ops.reduce_sum)
def total(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.op is not ops.constant:
        return None
    return _repeated(uniform(x), math.prod(x.shape[axis] for axis in node.attributes["axes"]), node)


@TABLE.rule(ops.dot_general)
def contraction(node: Node) -> Node | None:
    lhs, rhs = node.inputs
    if not lhs.op is rhs.op is ops.constant:
        return None
    depth = math.prod(lhs.shape[axis] for axis in node.attributes["lhs_contract"])
    return _repeated(uniform(lhs) * uniform(rhs), depth, node)


def _repeated(value: float, count: int, node: Node) -> Node:
    """The sum of `count` times `value`: floats rounded once, integers wrapped."""
    if count == 0:
        return full(0, node.dtype, node.shape)
    if node.dtype.is_float:
        with np.errstate(over="ignore"):
            return _as_constant(np.asarray(value * count).astype(node.dtype.numpy), node)
    wrapped = int(value) * count % 2**node.dtype.bits
    signed = node.dtype.kind == "signed" and wrapped >= 2 ** (node.dtype.bits - 1)
    return full(wrapped - 2**node.dtype.bits if signed else wrapped, node.dtype, node.shape)
