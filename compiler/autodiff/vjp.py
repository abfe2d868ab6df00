"""Reverse mode: the table of gradient rules by op, and the driver that walks a graph backward through them.

A rule is given a node and the cotangent of its value and returns one cotangent per input, in ordinary ops, so a
gradient is a graph like any other and can be differentiated again:

    @rule(ops.mul)
    def _(node, cotangent):
        a, b = node.inputs
        return cotangent * b, cotangent * a

None stands for zero. Reference: Griewank and Walther, Evaluating Derivatives (SIAM 2008), chapter 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ..ir import Node, Op, full, source, topological
from .recompute import Region, regions

Cotangents = Sequence[Node | None]
Rule = Callable[[Node, Node], Cotangents]

RULES: dict[str, Rule] = {}

# Ops without a rule, and why. No gradient flows through them.
NOT_DIFFERENTIABLE: dict[str, str] = {
    "input": "a leaf has no inputs",
    "constant": "a leaf has no inputs",
    "iota": "a leaf has no inputs",
    "random_bits": "its inputs and its result are integers",
    "not": "only takes bools and integers",
    "and": "only takes bools and integers",
    "or": "only takes bools and integers",
    "xor": "only takes bools and integers",
    "shift_left": "only takes integers",
    "shift_right": "only takes integers",
    "eq": "its result is bool",
    "ne": "its result is bool",
    "lt": "its result is bool",
    "le": "its result is bool",
    "argmax": "its result is an integer",
    "argmin": "its result is an integer",
    "bitcast": "reads a number as bits, which is no function of real numbers",
}


def rule(*operations: Op) -> Callable[[Rule], Rule]:
    """Register the decorated function as the gradient rule of `operations`."""

    def register(function: Rule) -> Rule:
        for op in operations:
            RULES[op.name] = function
        return function

    return register


def gradients(outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]) -> list[Node]:
    """The vector-Jacobian product: for each w in `wrt`, the sum over outputs of (d output / d w)^T times its cotangent.

    `cotangents` are of the dtypes and shapes of `outputs`. Where the outputs do not depend on w (or only through
    integers), the result is a zero constant. A node of `wrt` may depend on another; each gets its total derivative.
    Raises ValueError when outputs and cotangents do not match, TypeError when an output or w is not a float.
    """
    _check(outputs, cotangents, wrt)
    if not wrt:
        return []
    # A node is newer than its inputs, so nothing older than every node of `wrt` depends on one of them.
    oldest = min(node.serial for node in wrt)
    order = topological(outputs, stop=lambda node: node.serial < oldest)
    wanted = set(wrt)
    active: set[Node] = set()
    for node in order:
        depends = node.serial >= oldest and any(child in active for child in node.inputs)
        if node.dtype.is_float and (node in wanted or depends):
            active.add(node)
    totals: dict[Node, Node] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if output in active:
            _accumulate(totals, output, cotangent)
    innermost = regions(order, active, gradients)
    for node in reversed(order):
        if node in totals and node in active and any(child in active for child in node.inputs):
            _propagate(node, totals, active, innermost.get(node))
    return [totals[node] if node in totals else full(0, node.dtype, node.shape) for node in wrt]


def _check(outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]) -> None:
    if len(outputs) != len(cotangents):
        raise ValueError(f"vjp.gradients: {len(cotangents)} cotangents given for {len(outputs)} outputs")
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if (output.dtype, output.shape) != (cotangent.dtype, cotangent.shape):
            raise ValueError(
                f"vjp.gradients: a cotangent {cotangent.dtype}{list(cotangent.shape)} was given for an output "
                f"{output.dtype}{list(output.shape)}"
            )
    for node in (*outputs, *wrt):
        if not node.dtype.is_float:
            raise TypeError(f"vjp.gradients: only floats can be differentiated, got {node!r}")


def _propagate(node: Node, totals: dict[Node, Node], active: set[Node], region: Region | None) -> None:
    """Add the cotangents that `node`'s rule gives to the totals of its inputs.

    In a `region` the rule is applied to a copy of the node, on inputs that are computed again.
    """
    function = RULES.get(node.op.name)
    if function is None:
        if node.op.name not in NOT_DIFFERENTIABLE:
            raise NotImplementedError(f"vjp.gradients: {node.op.name} has no gradient rule")
        return
    cotangent = totals[node]
    with source.inherit(dataclasses.replace(node.source, phase="backward")):
        if region is None or node.op.name == "remat":
            contributions = function(node, cotangent)
        else:
            spared = region.spares_gradient(node)
            contributions = region.contributions(node, cotangent, indexing.by_product if spared else function)
        for child, contribution in zip(node.inputs, contributions, strict=True):
            if contribution is not None and child in active:
                _accumulate(totals, child, contribution)


def _accumulate(totals: dict[Node, Node], node: Node, contribution: Node) -> None:
    if contribution.op.name == "constant" and contribution.attributes["value"] == 0:
        return
    totals[node] = totals[node] + contribution if node in totals else contribution


from . import contractions, elementwise, indexing, movement, reductions  # noqa: E402, F401  (they fill RULES)
