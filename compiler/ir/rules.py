"""Type rules: what dtype and shape each kind of primitive op gives, and the errors for inputs it does not take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import dtypes
from .graph import Inferred, Node, Shape

Inputs = Sequence[Node]
Attributes = Mapping[str, Any]


def _describe(inputs: Inputs) -> str:
    return " and ".join(f"{n.dtype}{list(n.shape)}" for n in inputs)


def check_shape(name: str, shape: Sequence[int]) -> Shape:
    """The shape as a tuple; ValueError if an extent is negative or the size is beyond 2**62 elements."""
    shape = tuple(int(extent) for extent in shape)
    if any(extent < 0 for extent in shape):
        raise ValueError(f"{name}: negative extent in shape {list(shape)}")
    if math.prod(shape) >= 2**62:
        raise ValueError(f"{name}: shape {list(shape)} has too many elements")
    return shape


def _require(condition: bool, name: str, inputs: Inputs, expected: str) -> None:
    if not condition:
        raise TypeError(f"{name}: got {_describe(inputs)}, expected {expected}")


def _same(name: str, inputs: Inputs) -> None:
    first = inputs[0]
    for other in inputs[1:]:
        if other.dtype is not first.dtype:
            raise TypeError(f"{name}: got {_describe(inputs)}, expected equal dtypes")
        if other.shape != first.shape:
            raise ValueError(f"{name}: got {_describe(inputs)}, expected equal shapes")


def elementwise(name: str, kinds: str) -> Any:
    """Equal shapes and dtypes in and out; `kinds` holds the letters b(ool), i(nteger), f(loat) it takes."""

    def infer(inputs: Inputs, attributes: Attributes) -> Inferred:
        _same(name, inputs)
        dtype = inputs[0].dtype
        letter = "f" if dtype.is_float else "i" if dtype.is_integer else "b"
        words = {"b": "bool", "i": "integers", "f": "floats"}
        _require(letter in kinds, name, inputs, " or ".join(words[k] for k in kinds))
        return dtype, inputs[0].shape

    return infer


def comparison(name: str) -> Any:
    def infer(inputs: Inputs, attributes: Attributes) -> Inferred:
        _same(name, inputs)
        return dtypes.bool_, inputs[0].shape

    return infer


def first(inputs: Inputs, attributes: Attributes) -> Inferred:
    """The type of the first input."""
    return inputs[0].dtype, inputs[0].shape


def select(inputs: Inputs, attributes: Attributes) -> Inferred:
    condition, *branches = inputs
    _same("where", branches)
    _require(condition.dtype is dtypes.bool_, "where", inputs, "a bool condition")
    if condition.shape != branches[0].shape:
        raise ValueError(f"where: got {_describe(inputs)}, expected equal shapes")
    return branches[0].dtype, branches[0].shape


def leaf(inputs: Inputs, attributes: Attributes) -> Inferred:
    return dtypes.of(attributes["dtype"]), check_shape("input", attributes["shape"])


def constant(inputs: Inputs, attributes: Attributes) -> Inferred:
    return dtypes.of(attributes["dtype"]), check_shape("constant", attributes["shape"])


def iota(inputs: Inputs, attributes: Attributes) -> Inferred:
    shape = check_shape("iota", attributes["shape"])
    if not 0 <= attributes["axis"] < len(shape):
        raise ValueError(f"iota: axis {attributes['axis']} is out of range for shape {list(shape)}")
    dtype = dtypes.of(attributes["dtype"])
    if dtype is dtypes.bool_:
        raise TypeError("iota: got dtype bool, expected a number type")
    return dtype, shape


def random_bits(inputs: Inputs, attributes: Attributes) -> Inferred:
    key, counter = inputs
    _require(key.dtype is dtypes.uint32 and key.shape == (2,), "random_bits", inputs, "a uint32[2] key")
    _require(counter.dtype is dtypes.uint32 and counter.shape == (), "random_bits", inputs, "a uint32[] counter")
    shape = check_shape("random_bits", attributes["shape"])
    if math.prod(shape) > 2**33:
        raise ValueError(f"random_bits: shape {list(shape)} needs more than the 2**33 words of one key and counter")
    return dtypes.uint32, shape


def cast(inputs: Inputs, attributes: Attributes) -> Inferred:
    return dtypes.of(attributes["dtype"]), inputs[0].shape


def bitcast(inputs: Inputs, attributes: Attributes) -> Inferred:
    dtype = dtypes.of(attributes["dtype"])
    source = inputs[0].dtype
    if dtype.bits != source.bits or dtypes.bool_ in (dtype, source):
        raise TypeError(f"bitcast: got {source} to {dtype}, expected number types of equal size")
    return dtype, inputs[0].shape


def _axes(name: str, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    if len(set(axes)) != len(axes) or any(not 0 <= a < rank for a in axes):
        raise ValueError(f"{name}: axes {tuple(axes)} are not distinct axes of a rank {rank} tensor")
    return tuple(axes)


def reduction(name: str, kinds: str) -> Any:
    check = elementwise(name, kinds)

    def infer(inputs: Inputs, attributes: Attributes) -> Inferred:
        dtype, shape = check(inputs, attributes)
        axes = _axes(name, attributes["axes"], len(shape))
        return dtype, tuple(n for a, n in enumerate(shape) if a not in axes)

    return infer


def arg_reduction(name: str) -> Any:
    def infer(inputs: Inputs, attributes: Attributes) -> Inferred:
        shape, axis = inputs[0].shape, attributes["axis"]
        _axes(name, (axis,), len(shape))
        if shape[axis] == 0:
            raise ValueError(f"{name}: axis {axis} of shape {list(shape)} is empty")
        return dtypes.int64, shape[:axis] + shape[axis + 1 :]

    return infer


def reshape(inputs: Inputs, attributes: Attributes) -> Inferred:
    shape = check_shape("reshape", attributes["shape"])
    if math.prod(shape) != inputs[0].size:
        raise ValueError(f"reshape: cannot reshape {_describe(inputs)} to {list(shape)}")
    return inputs[0].dtype, shape


def permute(inputs: Inputs, attributes: Attributes) -> Inferred:
    axes = _axes("permute", attributes["axes"], inputs[0].rank)
    if len(axes) != inputs[0].rank:
        raise ValueError(f"permute: axes {axes} do not cover {_describe(inputs)}")
    return inputs[0].dtype, tuple(inputs[0].shape[a] for a in axes)


def broadcast(inputs: Inputs, attributes: Attributes) -> Inferred:
    shape = check_shape("broadcast", attributes["shape"])
    old = inputs[0].shape
    if len(old) != len(shape) or any(a not in (1, b) for a, b in zip(old, shape, strict=True)):
        raise ValueError(f"broadcast: cannot broadcast {_describe(inputs)} to {list(shape)}")
    return inputs[0].dtype, shape


def slice_(inputs: Inputs, attributes: Attributes) -> Inferred:
    starts, stops, steps = attributes["starts"], attributes["stops"], attributes["steps"]
    shape = inputs[0].shape
    if not len(starts) == len(stops) == len(steps) == len(shape):
        raise ValueError(f"slice: starts {starts}, stops {stops}, steps {steps} do not match {_describe(inputs)}")
    for start, stop, step, extent in zip(starts, stops, steps, shape, strict=True):
        if not (0 <= start <= stop <= extent and step >= 1):
            raise ValueError(f"slice: starts {starts}, stops {stops}, steps {steps} are outside {_describe(inputs)}")
    extents = (max(0, -(-(b - a) // s)) for a, b, s in zip(starts, stops, steps, strict=True))
    return inputs[0].dtype, tuple(extents)


def flip(inputs: Inputs, attributes: Attributes) -> Inferred:
    _axes("flip", attributes["axes"], inputs[0].rank)
    return inputs[0].dtype, inputs[0].shape


def pad(inputs: Inputs, attributes: Attributes) -> Inferred:
    low, high, interior = attributes["low"], attributes["high"], attributes["interior"]
    shape = inputs[0].shape
    if not len(low) == len(high) == len(interior) == len(shape):
        raise ValueError(f"pad: low {low}, high {high}, interior {interior} do not match {_describe(inputs)}")
    if min((*low, *high, *interior), default=0) < 0:
        raise ValueError(f"pad: low {low}, high {high}, interior {interior} must not be negative")
    padded = (a + n + max(0, n - 1) * i + b for a, b, i, n in zip(low, high, interior, shape, strict=True))
    return inputs[0].dtype, check_shape("pad", tuple(padded))


def concat(inputs: Inputs, attributes: Attributes) -> Inferred:
    axis, first = attributes["axis"], inputs[0]
    _axes("concat", (axis,), first.rank)
    for other in inputs[1:]:
        _require(other.dtype is first.dtype, "concat", inputs, "equal dtypes")
        if other.rank != first.rank or any(
            a != b for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if i != axis
        ):
            raise ValueError(f"concat: got {_describe(inputs)}, expected equal shapes but for axis {axis}")
    total = sum(node.shape[axis] for node in inputs)
    return first.dtype, check_shape("concat", (*first.shape[:axis], total, *first.shape[axis + 1 :]))


def window(inputs: Inputs, attributes: Attributes) -> Inferred:
    axes = _axes("window", attributes["axes"], inputs[0].rank)
    sizes, strides, dilations = attributes["sizes"], attributes["strides"], attributes["dilations"]
    shape = list(inputs[0].shape)
    for axis, size, stride, dilation in zip(axes, sizes, strides, dilations, strict=True):
        if min(size, stride, dilation) < 1:
            raise ValueError(f"window: sizes {sizes}, strides {strides}, dilations {dilations} must be positive")
        shape[axis] = max(0, (shape[axis] - (size - 1) * dilation - 1) // stride + 1)
    return inputs[0].dtype, check_shape("window", (*shape, *sizes))


def _index_input(name: str, inputs: Inputs, indices: Node) -> None:
    _require(indices.dtype.is_integer, name, inputs, "integer indices")


def gather(inputs: Inputs, attributes: Attributes) -> Inferred:
    operand, indices = inputs
    _index_input("gather", inputs, indices)
    if operand.rank == 0:
        raise ValueError(f"gather: got {_describe(inputs)}, expected an operand with an axis to index")
    if operand.shape[0] == 0 and indices.size:
        raise ValueError(f"gather: got {_describe(inputs)}: cannot index an empty axis")
    return operand.dtype, indices.shape + operand.shape[1:]


def scatter_add(inputs: Inputs, attributes: Attributes) -> Inferred:
    indices, updates = inputs
    _index_input("scatter_add", inputs, indices)
    _require(updates.dtype is not dtypes.bool_, "scatter_add", inputs, "number updates")
    if updates.shape[: indices.rank] != indices.shape:
        raise ValueError(f"scatter_add: got {_describe(inputs)}, expected updates to start with the indices' shape")
    return updates.dtype, check_shape("scatter_add", (attributes["size"], *updates.shape[indices.rank :]))


def dot_general(inputs: Inputs, attributes: Attributes) -> Inferred:
    lhs, rhs = inputs
    lb, rb = attributes["lhs_batch"], attributes["rhs_batch"]
    lc, rc = attributes["lhs_contract"], attributes["rhs_contract"]
    _axes("dot_general", (*lb, *lc), lhs.rank)
    _axes("dot_general", (*rb, *rc), rhs.rank)
    _require(lhs.dtype is rhs.dtype and lhs.dtype is not dtypes.bool_, "dot_general", inputs, "equal number dtypes")
    pairs = [*zip(lb, rb, strict=True), *zip(lc, rc, strict=True)]
    for a, b in pairs:
        if lhs.shape[a] != rhs.shape[b]:
            raise ValueError(
                f"dot_general: got {_describe(inputs)}: axis {a} of the left ({lhs.shape[a]}) and axis {b} of the "
                f"right ({rhs.shape[b]}) differ"
            )
    batch = tuple(lhs.shape[a] for a in lb)
    rows = tuple(n for a, n in enumerate(lhs.shape) if a not in lb and a not in lc)
    columns = tuple(n for a, n in enumerate(rhs.shape) if a not in rb and a not in rc)
    return lhs.dtype, check_shape("dot_general", batch + rows + columns)


def conv_general(inputs: Inputs, attributes: Attributes) -> Inferred:
    x, w = inputs
    strides, padding, groups = attributes["strides"], attributes["padding"], attributes["groups"]
    lhs_dilation, rhs_dilation = attributes["lhs_dilation"], attributes["rhs_dilation"]
    _require(x.dtype is w.dtype and x.dtype is not dtypes.bool_, "conv_general", inputs, "equal number dtypes")
    spatial = x.rank - 2
    if spatial < 1 or w.rank != x.rank:
        raise ValueError(f"conv_general: got {_describe(inputs)}, expected (N, C, *S) and (O, C/groups, *K)")
    for values in (strides, padding, lhs_dilation, rhs_dilation):
        if len(values) != spatial:
            raise ValueError(f"conv_general: {values} does not match {spatial} spatial axes of {_describe(inputs)}")
    if groups < 1 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(
            f"conv_general: got {_describe(inputs)} with {groups} groups: channels {x.shape[1]} must be "
            f"{w.shape[1]} * groups, and output channels {w.shape[0]} a multiple of groups"
        )
    extents = []
    for n, k, s, (low, high), ld, rd in zip(
        x.shape[2:], w.shape[2:], strides, padding, lhs_dilation, rhs_dilation, strict=True
    ):
        if min(s, ld, rd) < 1 or min(low, high) < 0:
            raise ValueError("conv_general: strides and dilations must be positive, padding not negative")
        padded = low + high + (0 if n == 0 else (n - 1) * ld + 1)
        extents.append(max(0, (padded - (k - 1) * rd - 1) // s + 1) if k else 0)
    return x.dtype, check_shape("conv_general", (x.shape[0], w.shape[0], *extents))
