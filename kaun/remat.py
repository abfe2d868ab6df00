"""Rematerialisation: functions whose gradients compute intermediate values again instead of keeping them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from kaun import execution, probes
from kaun.compiler.ir import Node, ops, substitute, topological
from kaun.nested import replace_tensors, tensors_in
from kaun.nx import Tensor


def checked_budget(function: str, budget: object) -> int | None:
    """A number of bytes or None. TypeError for what is no integer, ValueError for a negative one."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not hasattr(budget, "__index__"):
        raise TypeError(f"{function}: got a budget of type {type(budget).__name__}, expected a number of bytes")
    number = operator.index(budget)
    if number < 0:
        raise ValueError(f"{function}: got a budget of {number} bytes, expected at least 0")
    return number


def remat(f: Callable[..., Any], *, budget: int | None = None) -> Callable[..., Any]:
    """The same function, for whose gradient nothing is kept of what it computes inside: that is computed again.

    The gradient of `remat(f)(x)` computes f from `x` a second time when it is needed, so that until then the memory of
    what f computes on the way is free. Wrap the repeated part of a deep model: of n blocks, each on values of s bytes
    and with t bytes inside, n * s + t are then alive at most, not n * (s + t), for one more forward pass of work.

        block = kn.remat(lambda params, x: kn.fn.gelu(x @ params["up"]) @ params["down"])

    `budget`: the bytes of intermediate values that may be kept all the same. The compiler chooses which, by a minimum
    cut, so that as few operations as possible are done again: cheap ones on many bytes first, matrix products last.
    With a budget, `remat` may wrap a whole model: values between blocks are then kept before what is inside. A budget
    that cannot be met takes the least memory for which about two more forward passes are enough, and says so.

    `f` takes and returns anything with tensors in tuples, lists, mappings and records. Values are the same: f is
    pure, and random numbers drawn inside are drawn again alike. It composes with `grad`, `vjp`, `jit` and itself, and
    does nothing where no gradient is taken.

    ValueError for a negative budget, TypeError for one that is no integer.

    Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174 (2016).
    """
    bytes_kept = checked_budget("kn.remat", budget)

    @functools.wraps(f)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        actual = [tensor._node for tensor in tensors_in((args, kwargs))]
        if not execution.is_traced(actual):
            return f(*args, **kwargs)
        stand_ins = [execution.placeholder(node.shape, node.dtype) for node in actual]
        args, kwargs = replace_tensors((args, kwargs), map(Tensor, stand_ins))
        with probes.collecting() as seen:
            result = f(*args, **kwargs)
        results = [tensor._node for tensor in tensors_in(result)]
        given = _given(results, stand_ins)
        named = dict(zip(stand_ins, actual, strict=True))
        resolved = substitute([*results, *given, *(probe.node for probe in seen)], named)
        boundary = tuple(dict.fromkeys(resolved[len(results) : len(results) + len(given)]))
        for probe, node in zip(seen, resolved[len(results) + len(given) :], strict=True):
            probes.record(probe.resolved(node))
        marked = (ops.remat(node, *boundary, budget=bytes_kept) for node in resolved[: len(results)])
        return replace_tensors(result, map(Tensor, marked))

    return recomputed


def _given(results: list[Node], stand_ins: list[Node]) -> list[Node]:
    """What the results are computed from: stand-ins, data, and values that there were before them."""
    first = stand_ins[0].serial

    def is_given(node: Node) -> bool:
        older = node.serial < first and bool(node.inputs)
        return older or node.op is ops.input_ or execution.has_value(node)

    return [node for node in topological(results, stop=is_given) if is_given(node)]
