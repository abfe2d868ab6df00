"""Random well-conditioned graphs with arguments and tolerances, from a seed or from hypothesis.

Each step draws an op that fits the nodes made so far and computes its value with the op's NumPy meaning. Beside the
value it keeps a bound on how far another correct implementation may be off: 0 for inputs and everything computed
exactly (integers, movement, selection), and propagated to first order through float arithmetic. Steps that can jump
(comparisons, rounding, argmax, casts to integers) only take exact operands, and steps whose bound or value would grow
beyond use are dropped, so a comparison within the bound is a sharp test.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, topological

EXTENTS = (0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 16, 17, 33)
FLOATS = (dtypes.float32, dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16)
LARGEST_SIZE = 4096
LARGEST_VALUE = 64.0
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-22, "float64": 2.0**-50}

_identities = itertools.count()


@dataclass(frozen=True)
class Example:
    """A graph, its arguments, and for each output the largest absolute error that a correct result may have."""

    graph: Graph
    arguments: tuple[Any, ...]
    tolerances: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """A node with its value and error bound."""

    node: Node
    value: Any
    error: float

    @property
    def exact(self) -> bool:
        return self.error == 0

    @property
    def largest(self) -> float:
        return float(np.max(np.abs(self.value.astype(np.float64)), initial=0))

    @property
    def smallest(self) -> float:
        """The least magnitude; infinity when empty."""
        return float(np.min(np.abs(self.value.astype(np.float64)), initial=math.inf))

    @property
    def finite(self) -> bool:
        return bool(np.all(np.isfinite(self.value.astype(np.float64))))


class Unfit(Exception):
    """The drawn step does not fit; another is drawn."""


def require(condition: bool) -> None:
    if not condition:
        raise Unfit


class Builder:
    """The nodes made so far, and one method per family of ops that adds one more."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.values = np.random.default_rng(source.getrandbits(32))
        self.entries: list[Entry] = []
        self.inputs: list[Entry] = []
        self.steps: list[Callable[[], None]] = [
            *[self.unary] * 5, *[self.binary] * 6, self.compare, self.where, self.cast,
            self.bitcast, self.reduce, self.reduce, self.argument, self.reshape, self.permute, self.broadcast,
            self.slice, self.flip, self.pad, self.concat, self.window, self.gather, self.scatter_add, self.contract,
            self.convolve, self.leaf, self.bits, self.logic,
        ]  # fmt: skip

    # Drawing.
    def pick(self, suitable: Callable[[Entry], bool] = lambda entry: True) -> Entry:
        """An entry, preferring late ones so that graphs grow deep."""
        choices = [entry for entry in self.entries if suitable(entry)]
        require(bool(choices))
        return choices[max(self.random.randrange(len(choices)), self.random.randrange(len(choices)))]

    def extent(self) -> int:
        return self.random.choice(EXTENTS)

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        shape = tuple(self.extent() for _ in range(self.random.randrange(4) if rank is None else rank))
        require(math.prod(shape) <= LARGEST_SIZE)
        return shape

    def input(self, dtype: dtypes.DType, shape: tuple[int, ...]) -> Entry:
        node = ops.input_(identity=("random", next(_identities)), dtype=dtype, shape=shape)
        entry = Entry(node, self.fill(dtype, shape), 0.0)
        self.entries.append(entry)
        self.inputs.append(entry)
        return entry

    def fill(self, dtype: dtypes.DType, shape: tuple[int, ...]) -> Any:
        draw = self.values
        if dtype.kind == "bool":
            return np.asarray(draw.random(shape) < 0.5)
        if dtype.is_integer:
            low, high = dtypes.value_bounds(dtype)
            if self.random.random() < 0.2:
                return np.asarray(draw.integers(low, high, shape, dtype.numpy, endpoint=True))
            return np.asarray(draw.integers(max(low, -9), 9, shape)).astype(dtype.numpy)
        style = self.random.randrange(5)
        result = draw.uniform(0.5, 2.0, shape) if style < 2 else draw.uniform(-2.0, 2.0, shape)
        if style == 3:
            result = np.round(result * 2) / 2  # ties
        if style == 4 and self.random.random() < 0.3:
            special = draw.choice([np.nan, np.inf, -np.inf, -0.0, 0.0], shape)
            result = np.where(draw.random(shape) < 0.2, special, result)
        return np.asarray(result).astype(dtype.numpy)

    # Adding.
    def add(self, node: Node, operands: list[Entry], error: float = 0.0) -> Entry:
        """A computed entry; `error` is what its operands' errors make of it, the op's own rounding is added here."""
        require(node.size <= LARGEST_SIZE)
        with np.errstate(all="ignore"):
            value = np.asarray(node.op.meaning(*(entry.value for entry in operands), **node.attributes))
        entry = Entry(node, value, error)
        if error > 0:
            require(entry.finite and entry.largest <= LARGEST_VALUE and error <= 0.02 * max(1.0, entry.largest))
        self.entries.append(entry)
        return entry

    def move(self, node: Node, *operands: Entry) -> Entry:
        """An op that copies elements: errors pass through."""
        return self.add(node, list(operands), max((entry.error for entry in operands), default=0.0))

    def compute(self, node: Node, operands: list[Entry], error: float) -> Entry:
        """A float op that rounds; integers are exact."""
        if not node.dtype.is_float:
            return self.add(node, operands)
        require(all(entry.finite for entry in operands))
        with np.errstate(all="ignore"):
            value = np.asarray(node.op.meaning(*(entry.value for entry in operands), **node.attributes))
        largest = float(np.max(np.abs(value.astype(np.float64)), initial=0))
        require(math.isfinite(largest) and math.isfinite(error))
        smallest_normal = 6e-5 if node.dtype is dtypes.float16 else 1e-37
        return self.add(node, operands, error + EPSILON[node.dtype.name] * largest + smallest_normal)

    def matching(self, other: Entry) -> Entry:
        """An entry of the same dtype and shape as `other`, usually by broadcasting."""
        if self.random.random() < 0.15:
            return other
        dtype, shape = other.node.dtype, other.node.shape
        suitable = [e for e in self.entries if e.node.dtype is dtype and _spreads(e.node.shape, shape)]
        if suitable and self.random.random() < 0.6:
            found = self.random.choice(suitable)
        elif self.random.random() < 0.3:
            return self.constant(other.node.dtype, other.node.shape)
        else:
            shape = other.node.shape[self.random.randrange(other.node.rank + 1) :]
            found = self.input(other.node.dtype, tuple(self.random.choice((1, n, n)) for n in shape))
        return self.spread(found, other.node.shape)

    def spread(self, entry: Entry, shape: tuple[int, ...]) -> Entry:
        if entry.node.rank < len(shape):
            padded = (1,) * (len(shape) - entry.node.rank) + entry.node.shape
            entry = self.move(ops.reshape(entry.node, shape=padded), entry)
        return entry if entry.node.shape == shape else self.move(ops.broadcast(entry.node, shape=shape), entry)

    def constant(self, dtype: dtypes.DType, shape: tuple[int, ...]) -> Entry:
        value = self.random.choice((0, 1, 2, 3)) if dtype.kind == "unsigned" else self.random.choice((0, 1, 2, -1, 0.5))
        return self.add(full(value, dtype, shape), [])

    # Elementwise.
    def unary(self) -> None:
        x = self.pick(lambda e: e.node.dtype.kind != "bool")
        if x.node.dtype.is_integer:
            self.add(self.random.choice((ops.neg, ops.abs_, ops.not_))(x.node), [x])
            return
        op = self.random.choice(
            (ops.neg, ops.abs_, ops.floor, ops.ceil, ops.trunc, ops.round_, ops.sqrt, ops.exp, ops.expm1, ops.log,
             ops.log1p, ops.sin, ops.cos, ops.atan, ops.tanh, ops.erf, ops.stop_gradient)
        )  # fmt: skip
        if op in (ops.neg, ops.abs_, ops.stop_gradient):
            self.move(op(x.node), x)
        elif op in (ops.floor, ops.ceil, ops.trunc, ops.round_):
            require(x.exact)
            self.add(op(x.node), [x])
        else:
            least = float(np.min(x.value.astype(np.float64), initial=math.inf))
            require(x.finite and x.largest <= 8)
            if op in (ops.sqrt, ops.log):
                require(least >= 0.2)
            if op is ops.log1p:
                require(least >= -0.8)
            steepness = math.exp(min(x.largest, 8)) if op in (ops.exp, ops.expm1) else 5.0
            self.compute(op(x.node), [x], steepness * x.error)

    def binary(self) -> None:
        a = self.pick(lambda e: e.node.dtype.kind != "bool")
        b = self.matching(a)
        if a.node.dtype.is_integer:
            chosen = (ops.add, ops.sub, ops.mul, ops.div, ops.rem, ops.maximum, ops.minimum)
            self.add(self.random.choice(chosen)(a.node, b.node), [a, b])
            return
        op = self.random.choice(
            (ops.add, ops.sub, ops.mul, ops.div, ops.rem, ops.pow_, ops.maximum, ops.minimum, ops.add, ops.mul)
        )
        if op in (ops.maximum, ops.minimum):
            self.move(op(a.node, b.node), a, b)
            return
        if op in (ops.add, ops.sub):
            error = a.error + b.error
            self.compute(op(a.node, b.node), [a, b], error + EPSILON[a.node.dtype.name] * max(a.largest, b.largest))
            return
        error = a.largest * b.error + b.largest * a.error
        if op is ops.div:
            require(b.smallest >= 0.25)
            error = a.error / b.smallest + a.largest * b.error / b.smallest**2
        elif op is ops.rem:
            require(a.exact and b.exact and b.smallest >= 0.25)
        elif op is ops.pow_:
            require(a.smallest >= 0.25 and a.largest <= 4 and b.largest <= 3 and bool(np.all(a.value > 0)))
            error = 3 * 4.0**3 * 4 * (a.error + b.error) + 64 * EPSILON[a.node.dtype.name]
        self.compute(op(a.node, b.node), [a, b], error)

    def compare(self) -> None:
        a = self.pick(lambda e: e.exact)
        b = self.matching(a)
        require(b.exact)
        self.add(self.random.choice((ops.eq, ops.ne, ops.lt, ops.le))(a.node, b.node), [a, b])

    def where(self) -> None:
        a = self.pick()
        b = self.matching(a)
        fitting = [e for e in self.entries if e.node.dtype.kind == "bool" and _spreads(e.node.shape, a.node.shape)]
        found = self.random.choice(fitting) if fitting else self.input(dtypes.bool_, a.node.shape)
        condition = self.spread(found, a.node.shape)
        self.move(ops.where(condition.node, a.node, b.node), condition, a, b)

    def logic(self) -> None:
        a = self.pick(lambda e: not e.node.dtype.is_float)
        b = self.matching(a)
        chosen = [ops.and_, ops.or_, ops.xor]
        if a.node.dtype.is_integer:
            chosen += [ops.shift_left, ops.shift_right]
        else:
            chosen += [ops.maximum, ops.minimum]
        self.add(self.random.choice(chosen)(a.node, b.node), [a, b])

    def cast(self) -> None:
        x = self.pick()
        dtype = self.random.choice(dtypes.ALL)
        require(x.exact or dtype.is_float)
        node = ops.cast(x.node, dtype=dtype)
        with np.errstate(all="ignore"):
            value = node.op.meaning(x.value, dtype=dtype).astype(np.float64)
        rounding = EPSILON[dtype.name] * float(np.max(np.abs(value), initial=0)) if dtype.is_float else 0.0
        # Large integers may be rounded twice on their way to a narrow float.
        doubtful = dtype.is_float and not x.node.dtype.is_float and x.largest > 2048
        require(not doubtful or math.isfinite(rounding))
        self.add(node, [x], x.error + rounding if x.error or doubtful else 0.0)

    def bitcast(self) -> None:
        x = self.pick(lambda e: e.exact and e.node.dtype.kind != "bool")
        chosen = [d for d in dtypes.ALL if d.bits == x.node.dtype.bits and d.kind != "bool"]
        node = ops.bitcast(x.node, dtype=self.random.choice(chosen))
        with np.errstate(all="ignore"):
            value = ops.bitcast.meaning(x.value, **node.attributes).astype(np.float64)
            # The bits of a NaN may change whenever it moves.
            require(not np.any(np.isnan(value) | np.isnan(x.value.astype(np.float64))))
        self.add(node, [x])

    # Reductions.
    def reduce(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0)
        axes = tuple(axis for axis in range(x.node.rank) if self.random.random() < 0.6)
        op = self.random.choice((ops.reduce_sum, ops.reduce_sum, ops.reduce_max, ops.reduce_min))
        if x.node.dtype.kind == "bool":
            op = ops.reduce_max
        node = op(x.node, axes=axes)
        if op is not ops.reduce_sum:
            self.move(node, x)
            return
        count = math.prod(x.node.shape[axis] for axis in axes)
        rounding = EPSILON.get(x.node.dtype.compute.name, 0.0) * x.largest * count if x.finite else 0.0
        self.compute(node, [x], count * (x.error + rounding))

    def argument(self) -> None:
        x = self.pick(lambda e: e.exact and e.node.rank > 0)
        axis = self.random.randrange(x.node.rank)
        require(x.node.shape[axis] > 0)
        self.add(self.random.choice((ops.argmax, ops.argmin))(x.node, axis=axis), [x])

    # Movement.
    def reshape(self) -> None:
        x = self.pick()
        sizes = list(x.node.shape)
        change = self.random.randrange(3)
        if change == 0:
            sizes.insert(self.random.randrange(len(sizes) + 1), 1)
        elif change == 1 and len(sizes) > 1:
            axis = self.random.randrange(len(sizes) - 1)
            sizes[axis : axis + 2] = [sizes[axis] * sizes[axis + 1]]
        else:
            splits = [(i, d) for i, n in enumerate(sizes) for d in range(2, n) if n % d == 0]
            require(bool(splits))
            axis, divisor = self.random.choice(splits)
            sizes[axis : axis + 1] = [divisor, sizes[axis] // divisor]
        require(len(sizes) <= 6)
        self.move(ops.reshape(x.node, shape=tuple(sizes)), x)

    def permute(self) -> None:
        x = self.pick(lambda e: e.node.rank > 1)
        axes = list(range(x.node.rank))
        self.random.shuffle(axes)
        self.move(ops.permute(x.node, axes=tuple(axes)), x)

    def broadcast(self) -> None:
        x = self.pick(lambda e: 1 in e.node.shape)
        self.move(ops.broadcast(x.node, shape=tuple(self.extent() if n == 1 else n for n in x.node.shape)), x)

    def slice(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0)
        starts = tuple(self.random.randint(0, n) if self.random.random() < 0.5 else 0 for n in x.node.shape)
        stops = tuple(
            self.random.randint(a, n) if self.random.random() < 0.3 else n
            for a, n in zip(starts, x.node.shape, strict=True)
        )
        steps = tuple(self.random.choice((1, 1, 2, 3)) for _ in starts)
        self.move(ops.slice_(x.node, starts=starts, stops=stops, steps=steps), x)

    def flip(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0)
        axes = tuple(axis for axis in range(x.node.rank) if self.random.random() < 0.6)
        self.move(ops.flip(x.node, axes=axes), x)

    def pad(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0)
        low, high, interior = (
            tuple(self.random.choice((0, 0, 1, 2, 3)) for _ in x.node.shape) for _ in range(3)
        )
        value = full(self.random.choice((0, 0, 1, 2)), x.node.dtype).attributes["value"]
        self.move(ops.pad(x.node, low=low, high=high, interior=interior, value=value), x)

    def concat(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0)
        axis = self.random.randrange(x.node.rank)
        parts = [x]
        for _ in range(self.random.randrange(3)):
            shape = tuple(self.extent() if a == axis else n for a, n in enumerate(x.node.shape))
            fitting = [e for e in self.entries if e.node.dtype is x.node.dtype and _fits(e.node.shape, shape, axis)]
            again = fitting and self.random.random() < 0.5
            parts.append(self.random.choice(fitting) if again else self.input(x.node.dtype, shape))
        self.random.shuffle(parts)
        self.move(ops.concat(*(part.node for part in parts), axis=axis), *parts)

    def window(self) -> None:
        x = self.pick(lambda e: 0 < e.node.rank <= 4)
        axes = tuple(axis for axis in range(x.node.rank) if self.random.random() < 0.6)[:2]
        require(bool(axes))
        sizes, strides, dilations = (tuple(self.random.choice((1, 2, 2, 3)) for _ in axes) for _ in range(3))
        self.move(ops.window(x.node, axes=axes, sizes=sizes, strides=strides, dilations=dilations), x)

    # Indexing.
    def indices(self, shape: tuple[int, ...]) -> Entry:
        fitting = [e for e in self.entries if e.node.dtype.is_integer and e.node.shape == shape]
        if fitting and self.random.random() < 0.5:
            return self.random.choice(fitting)
        dtype = self.random.choice((dtypes.int32, dtypes.int64, dtypes.uint8))
        return self.input(dtype, shape)

    def gather(self) -> None:
        x = self.pick(lambda e: e.node.rank > 0 and e.node.shape[0] > 0)
        indices = self.indices(self.shape(self.random.randrange(3)))
        self.move(ops.gather(x.node, indices.node), x, indices)

    def scatter_add(self) -> None:
        updates = self.pick(lambda e: e.node.dtype.kind != "bool")
        indices = self.indices(updates.node.shape[: self.random.randrange(updates.node.rank + 1)])
        node = ops.scatter_add(indices.node, updates.node, size=self.extent())
        count = indices.node.size
        rounding = EPSILON.get(node.dtype.name, 0.0) * updates.largest * count if updates.finite else 0.0
        self.compute(node, [indices, updates], count * (updates.error + rounding))

    # Contractions.
    def contract(self) -> None:
        a = self.pick(lambda e: e.node.dtype.kind != "bool" and e.node.rank > 0)
        axes = list(range(a.node.rank))
        self.random.shuffle(axes)
        batch = axes[: self.random.choice((0, 0, 1))]
        summed = axes[len(batch) : len(batch) + self.random.choice((0, 1, 1, 2))]
        # The right operand has the shared axes and a few of its own, in some order.
        own = [self.extent() for _ in range(self.random.randrange(3))]
        layout = [*((n, None) for n in own), *((a.node.shape[axis], axis) for axis in batch + summed)]
        self.random.shuffle(layout)
        shape = tuple(n for n, _ in layout)
        require(math.prod(shape) <= LARGEST_SIZE)
        fitting = [e for e in self.entries if e.node.dtype is a.node.dtype and e.node.shape == shape]
        b = self.random.choice(fitting) if fitting else self.input(a.node.dtype, shape)
        places = {axis: i for i, (_, axis) in enumerate(layout) if axis is not None}
        node = ops.dot_general(
            a.node, b.node, lhs_batch=tuple(batch), rhs_batch=tuple(places[axis] for axis in batch),
            lhs_contract=tuple(summed), rhs_contract=tuple(places[axis] for axis in summed),
        )  # fmt: skip
        depth = math.prod(a.node.shape[axis] for axis in summed)
        self.multiply_accumulate(node, a, b, depth)

    def multiply_accumulate(self, node: Node, a: Entry, b: Entry, depth: int) -> None:
        if not node.dtype.is_float:
            self.add(node, [a, b])
            return
        require(a.finite and b.finite)
        rounding = EPSILON[node.dtype.compute.name] * a.largest * b.largest * depth
        self.compute(node, [a, b], depth * (a.largest * b.error + b.largest * a.error + rounding))

    def convolve(self) -> None:
        x = self.pick(lambda e: 3 <= e.node.rank <= 4 and e.node.dtype.kind != "bool")
        spatial = x.node.rank - 2
        channels = x.node.shape[1]
        groups = self.random.choice([g for g in range(1, max(2, channels + 1)) if channels % g == 0])
        outputs = groups * self.random.choice((1, 1, 2, 3))
        kernel = tuple(self.random.choice((1, 2, 3)) for _ in range(spatial))
        w = self.input(x.node.dtype, (outputs, channels // groups, *kernel))
        few, pads = (1, 1, 2, 3), (0, 0, 1, 2)
        node = ops.conv_general(
            x.node, w.node,
            strides=tuple(self.random.choice(few) for _ in range(spatial)),
            padding=tuple((self.random.choice(pads), self.random.choice(pads)) for _ in range(spatial)),
            lhs_dilation=tuple(self.random.choice(few) for _ in range(spatial)),
            rhs_dilation=tuple(self.random.choice(few) for _ in range(spatial)),
            groups=groups,
        )  # fmt: skip
        self.multiply_accumulate(node, x, w, w.node.size // max(1, outputs))

    # Leaves.
    def leaf(self) -> None:
        dtype = self.random.choice(dtypes.ALL)
        shape = self.shape()
        if shape and dtype.kind != "bool" and self.random.random() < 0.5:
            self.add(ops.iota(shape=shape, axis=self.random.randrange(len(shape)), dtype=dtype), [])
        else:
            self.constant(dtype, shape)

    def bits(self) -> None:
        key, counter = self.input(dtypes.uint32, (2,)), self.input(dtypes.uint32, ())
        self.add(ops.random_bits(key.node, counter.node, shape=self.shape()), [key, counter])


def _spreads(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether `shape` broadcasts to exactly `target`."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def _fits(shape: tuple[int, ...], like: tuple[int, ...], axis: int) -> bool:
    """Whether the shapes are equal but for `axis`."""
    return len(shape) == len(like) and all(i == axis or shape[i] == like[i] for i in range(len(like)))


def build(source: random.Random, steps: int | None = None) -> Example:
    """A random graph of about `steps` ops (5 to 15 when not given), with one to three outputs."""
    builder = Builder(source)
    wanted = source.randint(5, 15) if steps is None else steps
    for _ in range(source.randint(1, 2)):
        builder.input(source.choice(FLOATS), tuple(source.choice(EXTENTS) for _ in range(source.choice((1, 2, 2)))))
    # Convolutions and image-like windows need more axes than chance provides.
    if source.random() < 0.3:
        image = tuple(source.choice((1, 2, 3, 4, 5)) for _ in range(source.choice((3, 4))))
        builder.input(source.choice(FLOATS), image)
    if source.random() < 0.4:
        builder.input(source.choice(dtypes.ALL), tuple(source.choice(EXTENTS) for _ in range(source.randrange(3))))
    made = 0
    for _ in range(20 * wanted):
        if made >= wanted:
            break
        before = len(builder.entries), len(builder.inputs)
        try:
            source.choice(builder.steps)()
            made += 1
        except Unfit:
            # Operands drawn for a step that came to nothing.
            del builder.entries[before[0] :], builder.inputs[before[1] :]
    outputs = _choose_outputs(builder, source)
    used = set(topological([entry.node for entry in outputs]))
    inputs = [entry for entry in builder.inputs if entry.node in used or source.random() < 0.05]
    graph = Graph(tuple(e.node for e in inputs), tuple(e.node for e in outputs))
    return Example(graph, tuple(e.value for e in inputs), tuple(4 * e.error for e in outputs))


def _choose_outputs(builder: Builder, source: random.Random) -> list[Entry]:
    """Up to four of the results that nothing else reads, and sometimes one that is read as well."""
    read = {child for entry in builder.entries for child in entry.node.inputs}
    computed = {entry.node: entry for entry in builder.entries if entry.node.op is not ops.input_}
    results = [entry for node, entry in computed.items() if node not in read]
    outputs = results[-4:] or builder.entries[-1:]
    inner = [entry for node, entry in computed.items() if node in read]
    if inner and source.random() < 0.3:
        outputs.append(source.choice(inner))
    return outputs


def graph_from_seed(seed: int, steps: int | None = None) -> Example:
    """The same example for the same seed, on every machine."""
    return build(random.Random(seed), steps)


def graphs(steps: int | None = None) -> st.SearchStrategy[Example]:
    """A hypothesis strategy of examples."""
    return st.randoms(use_true_random=False).map(lambda source: build(source, steps))


def assert_outputs_agree(example: Example, results: Any, expected: Any) -> None:
    """Equal dtypes and shapes, integers equal, floats within the example's tolerances, NaNs in the same places."""
    for result, right, tolerance, node in zip(
        results, expected, example.tolerances, example.graph.outputs, strict=True
    ):
        result = np.asarray(result)
        assert result.dtype == right.dtype and result.shape == right.shape, node
        if node.dtype.is_float:
            result, right = result.astype(np.float64), right.astype(np.float64)
            np.testing.assert_allclose(result, right, rtol=0, atol=tolerance, equal_nan=True, err_msg=repr(node))
        else:
            np.testing.assert_array_equal(result, right, err_msg=repr(node))
