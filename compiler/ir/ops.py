"""The op table: every primitive operation, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import meaning, rules
from .graph import TABLE as TABLE
from .graph import Node, Op


def _declare(
    name: str,
    kind: str,
    arity: int | None,
    infer: Any,
    numpy_meaning: Callable[..., Any],
    attributes: tuple[str, ...] = (),
    flops: int | Callable[[Node], int] = 0,
) -> Op:
    count = flops if callable(flops) else lambda node, n=flops: n * node.size
    op = Op(name, kind, arity, attributes, infer, numpy_meaning, count)
    TABLE[name] = op
    return op


def _unary(name: str, kinds: str, function: Callable[..., Any], flops: int = 1) -> Op:
    return _declare(name, "unary", 1, rules.elementwise(name, kinds), meaning.rounded(function), flops=flops)


def _binary(name: str, kinds: str, function: Callable[..., Any], flops: int = 1) -> Op:
    return _declare(name, "binary", 2, rules.elementwise(name, kinds), meaning.rounded(function), flops=flops)


def _comparison(name: str, function: Callable[..., Any]) -> Op:
    return _declare(name, "binary", 2, rules.comparison(name), meaning.compared(function), flops=1)


def _no_meaning(*arrays: Any, **attributes: Any) -> Any:
    raise ValueError("input: an input has no meaning of its own; its value is given to the graph")


# Leaves. `input` nodes are told apart by `identity`; a `constant` has one value everywhere.
input_ = _declare("input", "leaf", 0, rules.leaf, _no_meaning, ("identity", "dtype", "shape"))
constant = _declare(
    "constant", "leaf", 0, rules.constant,
    lambda *, value, dtype, shape: np.full(shape, value, dtype.numpy), ("value", "dtype", "shape"),
)  # fmt: skip
iota = _declare("iota", "leaf", 0, rules.iota, meaning.iota, ("shape", "axis", "dtype"))
random_bits = _declare(
    "random_bits", "leaf", 2, rules.random_bits, meaning.random_bits, ("shape",), flops=lambda n: 80 * n.size
)

# Elementwise, one input.
neg = _unary("neg", "if", np.negative)
abs_ = _unary("abs", "if", np.abs)
not_ = _unary("not", "bi", np.invert)
floor = _unary("floor", "f", np.floor)
ceil = _unary("ceil", "f", np.ceil)
trunc = _unary("trunc", "f", np.trunc)
round_ = _unary("round", "f", np.rint)
sqrt = _unary("sqrt", "f", np.sqrt)
exp = _unary("exp", "f", np.exp, 12)
expm1 = _unary("expm1", "f", np.expm1, 16)
log = _unary("log", "f", np.log, 16)
log1p = _unary("log1p", "f", np.log1p, 18)
sin = _unary("sin", "f", np.sin, 16)
cos = _unary("cos", "f", np.cos, 16)
atan = _unary("atan", "f", np.arctan, 20)
tanh = _unary("tanh", "f", np.tanh, 20)
erf = _unary("erf", "f", meaning.erf, 20)
stop_gradient = _unary("stop_gradient", "bif", lambda x: x, 0)

# Elementwise, two inputs.
add = _binary("add", "if", np.add)
sub = _binary("sub", "if", np.subtract)
mul = _binary("mul", "if", np.multiply)
div = _binary("div", "if", meaning.divide)
rem = _binary("rem", "if", meaning.remainder, 4)
pow_ = _binary("pow", "f", np.power, 40)
maximum = _binary("maximum", "bif", np.maximum)
minimum = _binary("minimum", "bif", np.minimum)
and_ = _binary("and", "bi", np.bitwise_and)
or_ = _binary("or", "bi", np.bitwise_or)
xor = _binary("xor", "bi", np.bitwise_xor)
shift_left = _binary("shift_left", "i", meaning.shift_left)
shift_right = _binary("shift_right", "i", meaning.shift_right)
eq = _comparison("eq", np.equal)
ne = _comparison("ne", np.not_equal)
lt = _comparison("lt", np.less)
le = _comparison("le", np.less_equal)

where = _declare(
    "where", "select", 3, rules.select, lambda c, a, b: np.asarray(np.where(c, a, b), dtype=a.dtype), flops=1
)
cast = _declare("cast", "convert", 1, rules.cast, meaning.cast, ("dtype",))
bitcast = _declare("bitcast", "convert", 1, rules.bitcast, meaning.bitcast, ("dtype",))

# Reductions remove their axes. Over no elements, sum gives 0, max the lowest value, min the highest.
_per_input: Callable[[Node], int] = lambda node: node.inputs[0].size  # noqa: E731
reduce_sum = _declare(
    "reduce_sum", "reduce", 1, rules.reduction("reduce_sum", "if"), meaning.reduce_sum, ("axes",), _per_input
)
reduce_max = _declare(
    "reduce_max", "reduce", 1, rules.reduction("reduce_max", "bif"), meaning.reduce_max, ("axes",), _per_input
)
reduce_min = _declare(
    "reduce_min", "reduce", 1, rules.reduction("reduce_min", "bif"), meaning.reduce_min, ("axes",), _per_input
)
# The first of equal extrema; a NaN counts as the extremum.
argmax = _declare("argmax", "reduce", 1, rules.arg_reduction("argmax"), meaning.argmax, ("axis",), _per_input)
argmin = _declare("argmin", "reduce", 1, rules.arg_reduction("argmin"), meaning.argmin, ("axis",), _per_input)

# Movement: these never move data by themselves; the kernel that reads them computes other indices.
reshape = _declare("reshape", "movement", 1, rules.reshape, lambda x, *, shape: x.reshape(shape), ("shape",))
permute = _declare("permute", "movement", 1, rules.permute, lambda x, *, axes: np.transpose(x, axes), ("axes",))
broadcast = _declare(
    "broadcast", "movement", 1, rules.broadcast, lambda x, *, shape: np.broadcast_to(x, shape), ("shape",)
)
slice_ = _declare(
    "slice", "movement", 1, rules.slice_,
    lambda x, *, starts, stops, steps: x[tuple(map(slice, starts, stops, steps))], ("starts", "stops", "steps"),
)  # fmt: skip
flip = _declare("flip", "movement", 1, rules.flip, lambda x, *, axes: np.flip(x, axes), ("axes",))
pad = _declare("pad", "movement", 1, rules.pad, meaning.pad, ("low", "high", "interior", "value"))
concat = _declare("concat", "movement", None, rules.concat, lambda *xs, axis: np.concatenate(xs, axis=axis), ("axis",))
# Sliding windows: each axis gets as many places as fit; the positions inside the window become new last axes.
window = _declare("window", "movement", 1, rules.window, meaning.window, ("axes", "sizes", "strides", "dilations"))

# Both are their first input and disappear in code. `remat` marks what lies between the other inputs and the first: if
# its gradient is taken, it keeps at most `budget` bytes of that (None: nothing) and computes the rest again. What is
# computed again reads its inputs through `again`, which makes it other nodes; it waits for the inputs after the first.
# When kernels are made these are left out, and `number` tells apart what waits for different ones.
remat = _declare("remat", "movement", None, rules.first, lambda x, *given, budget: x, ("budget",))
again = _declare("again", "movement", None, rules.first, lambda x, *after, number: x, ("number",))

# Indexing along the first axis. Out-of-range indices are clamped when read and dropped when written.
gather = _declare("gather", "index", 2, rules.gather, meaning.gather)
scatter_add = _declare(
    "scatter_add", "index", 2, rules.scatter_add, meaning.scatter_add, ("size",), lambda n: n.inputs[1].size
)


# Contractions. The result's axes are batch, then the free axes of the left, then of the right.
def _dot_flops(node: Node) -> int:
    depth = 1
    for axis in node.attributes["lhs_contract"]:
        depth *= node.inputs[0].shape[axis]
    return 2 * node.size * depth


def _conv_flops(node: Node) -> int:
    weight = node.inputs[1]
    return 2 * node.size * (weight.size // max(1, weight.shape[0]))


dot_general = _declare(
    "dot_general", "contract", 2, rules.dot_general, meaning.dot_general,
    ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"), _dot_flops,
)  # fmt: skip
conv_general = _declare(
    "conv_general", "contract", 2, rules.conv_general, meaning.conv_general,
    ("strides", "padding", "lhs_dilation", "rhs_dilation", "groups"), _conv_flops,
)  # fmt: skip
