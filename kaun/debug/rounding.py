"""How far two computations of a graph may differ by rounding alone: tolerances from shaken evaluations.

Fixed tolerances are too wide for a copy and too narrow for a sum that cancels. Instead the interpreter runs a graph a
few times more with every result that is rounded changed by a few units in the last place at random. Where the results
scatter, rounding decides, and where they do not, it does not. (Parker, Monte Carlo arithmetic, 1997.)

Inputs are what they are, and so is what is copied, chosen or compared: ties of them stay ties, and what is computed
without any rounding has to be right to the last bit. Narrow floats are computed in float32, and a compiler may or may
not round them in between: so do the shaken evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.ir.interpreter import evaluate

Array = np.ndarray[Any, np.dtype[Any]]

# Shaken evaluations; and so many more before anything is called wrong.
SAMPLES, MORE_SAMPLES = 4, 24
# Units in the last place by which a number is shaken, and how many times the largest scatter is still rounding.
_UNITS, _FACTOR = 8.0, 4.0
# The distance of 1 to the next number, and the smallest number with all its bits.
_EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
_SMALLEST = {"bfloat16": 2.0**-126, "float16": 2.0**-14, "float32": 2.0**-126, "float64": 2.0**-1022}
_SUMS = (ops.reduce_sum, ops.dot_general, ops.conv_general, ops.scatter_add)
# What gives one of the numbers it is given, or a number that has no other roundings.
_EXACT = (
    ops.neg, ops.abs_, ops.floor, ops.ceil, ops.trunc, ops.round_, ops.stop_gradient, ops.maximum, ops.minimum,
    ops.where, ops.reduce_max, ops.reduce_min, ops.cast, ops.bitcast, ops.gather,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How an array differs from what was expected: the element that is furthest off, and how many are."""

    wrong: int
    size: int
    index: tuple[int, ...]
    found: float
    expected: float
    allowed: float

    def __str__(self) -> str:
        place = f" at {list(self.index)}" if self.index else ""
        return (
            f"found {self.found:.9g}, expected {self.expected:.9g}{place} (rounding explains {self.allowed:.2g}); "
            f"{self.wrong:,} of {self.size:,} {'element is' if self.size == 1 else 'elements are'} off"
        )


class Expected:
    """What a graph's outputs should be, and what they are when everything on the way is shaken."""

    def __init__(self, graph: Graph, arguments: Sequence[Array]):
        self._graph, self._arguments = graph, tuple(arguments)
        self.values = tuple(evaluate(graph, self._arguments))
        self._exact = _exact_nodes(graph)
        self._samples: list[tuple[Array, ...]] = []

    def difference(self, position: int, found: Array) -> Difference | None:
        """How an array differs from output `position`; None where rounding explains all."""
        expected = self.values[position]
        found = found.reshape(expected.shape)
        result = exact_difference(found, expected)
        if result is None or self._graph.outputs[position] in self._exact:
            return result
        # An element that hangs by a thread, such as a quotient of two sums that cancel, needs many samples to show it.
        for count in (SAMPLES, SAMPLES + MORE_SAMPLES):
            samples = [sample[position] for sample in self._shaken(count)]
            result = _difference(found, expected, samples)
            if result is None:
                return None
        return result

    def explains(self, position: int, other: Expected) -> bool:
        """Whether what another graph gives for a narrow float may be what rounding makes of this one's."""
        dtype = self._graph.outputs[position].dtype
        return dtype.compute is not dtype and self.difference(position, other.values[position]) is None

    def _shaken(self, count: int) -> list[tuple[Array, ...]]:
        for number in range(len(self._samples), count):
            self._samples.append(_run_shaken(self._graph, self._arguments, self._exact, number))
        return self._samples[:count]


def expect(graph: Graph, arguments: Sequence[Array]) -> Expected:
    """Run a graph on the interpreter, as it is and shaken."""
    return Expected(graph, arguments)


def _exact_nodes(graph: Graph) -> set[Node]:
    """The nodes that are the same however often, and in which order, what is computed is rounded."""
    exact = set(graph.inputs)
    for node in graph.nodes[len(graph.inputs) :]:
        copied = node.op in _EXACT or node.op.kind in ("leaf", "movement") or not node.dtype.is_float
        if copied and all(child in exact for child in node.inputs):
            exact.add(node)
    return exact


def _run_shaken(
    graph: Graph, arguments: Sequence[Array], exact: Set[Node], number: int
) -> tuple[Array, ...]:
    """The outputs of one shaken evaluation; the first rounds every narrow float, the second none, others some."""
    draw = np.random.default_rng((7, number))
    values: dict[Node, Array] = {
        node: _wide(np.asarray(argument), node.dtype) for node, argument in zip(graph.inputs, arguments, strict=True)
    }
    for node in graph.nodes[len(graph.inputs) :]:
        given = [values[child] for child in node.inputs]
        if node.op is ops.bitcast:
            given = [array.astype(child.dtype.numpy) for array, child in zip(given, node.inputs, strict=True)]
        value = np.asarray(node.op.meaning(*given, **node.attributes))
        if node.op in (ops.eq, ops.ne) and node.inputs[0].dtype.is_float:
            value = _undecided(value, given, node.inputs[0].dtype, draw) if node not in exact else value
        is_narrow = node.dtype.compute is not node.dtype
        if node.op is ops.cast or not node.dtype.is_float:
            value = value.astype(node.dtype.numpy)
        value = _wide(value, node.dtype)
        if node.op not in _EXACT and node.op.kind not in ("leaf", "movement"):
            if node.op in _SUMS and node.dtype.is_float:
                value = _shaken_sum(value, node, given, draw)
            value = _shaken(value, node.dtype.compute, draw)
            if is_narrow and (number == 0 or (number > 1 and draw.random() < 0.5)):
                value = _wide(_rounded(value, node.dtype), node.dtype)
        values[node] = value
        for dead in graph.dying.get(node, ()):
            del values[dead]
    return tuple(_rounded(values[node], node.dtype) for node in graph.outputs)


def _undecided(equal: Array, given: Sequence[Array], dtype: dtypes.DType, draw: np.random.Generator) -> Array:
    """Whether two numbers are equal; of those that are as good as equal either may be said, as none is by chance."""
    one, other = (array.astype(np.float64) for array in given)
    reach = 2 * _UNITS * _epsilon(dtype.compute) + (0.0 if dtype.compute is dtype else _epsilon(dtype))
    with np.errstate(all="ignore"):
        near = (one != other) & (np.abs(one - other) <= reach * np.maximum(np.abs(one), np.abs(other)))
    return np.where(near, draw.random(equal.shape) < 0.5, equal)


def _wide(value: Array, dtype: dtypes.DType) -> Array:
    return value.astype(dtype.compute.numpy, copy=False) if dtype.is_float else value


def _rounded(value: Array, dtype: dtypes.DType) -> Array:
    with np.errstate(all="ignore"):
        return value.astype(dtype.numpy, copy=False)


def _shaken(value: Array, dtype: dtypes.DType, draw: np.random.Generator) -> Array:
    """Floats times one plus a few units in the last place."""
    if not dtype.is_float or not value.size:
        return value
    noise = draw.uniform(-_UNITS, _UNITS, value.shape) * _epsilon(dtype)
    with np.errstate(all="ignore"):
        return np.asarray(value.astype(np.float64) * (1 + noise)).astype(value.dtype)


def _shaken_sum(value: Array, node: Node, given: Sequence[Array], draw: np.random.Generator) -> Array:
    """A sum, changed by what adding its terms in another order may change."""
    terms = max(1.0, sum(array.size for array in given) / max(1, value.size))
    sizes = [np.abs(array) if array.dtype.kind not in "iub" else array for array in given]
    with np.errstate(all="ignore"):
        total = np.asarray(node.op.meaning(*sizes, **node.attributes)).astype(np.float64)
        noise = draw.uniform(-1, 1, value.shape) * _epsilon(node.dtype.compute) * (1 + np.sqrt(terms) / 16)
        return np.asarray(value.astype(np.float64) + np.where(np.isfinite(total), total * noise, 0)).astype(value.dtype)


def _epsilon(dtype: dtypes.DType) -> float:
    return _EPSILON[dtype.name]


def exact_difference(found: Array, expected: Array) -> Difference | None:
    """How an array differs from one that it should equal, NaN being equal to NaN; None if it does not."""
    wrong = found != expected
    if dtypes.of(expected.dtype).is_float:
        wrong &= ~(np.isnan(found.astype(np.float64)) & np.isnan(expected.astype(np.float64)))
    return _worst(found, expected, np.asarray(wrong), np.zeros(expected.shape))


def _difference(found: Array, expected: Array, samples: Sequence[Array]) -> Difference | None:
    if not expected.size:
        return None
    if dtypes.of(expected.dtype).is_float:
        return _worst(found, expected, *_float_difference(found, expected, samples))
    wrong = found != expected
    for sample in samples:
        wrong &= sample == expected
    return _worst(found, expected, wrong, np.zeros(expected.shape))


def _worst(found: Array, expected: Array, wrong: Array, allowed: Array) -> Difference | None:
    """The element that is furthest off, of those that are wrong; None if none is."""
    if not wrong.any():
        return None
    one, other = (np.asarray(array).astype(np.float64) for array in (found, expected))
    with np.errstate(all="ignore"):
        distance = np.where(wrong, np.nan_to_num(np.abs(one - other), nan=np.inf), -1.0)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(distance)), expected.shape))
    count = int(np.count_nonzero(wrong))
    return Difference(count, expected.size, index, float(one[index]), float(other[index]), float(allowed[index]))


def _float_difference(found: Array, expected: Array, samples: Sequence[Array]) -> tuple[Array, Array]:
    """Which elements are off, and how far each may be."""
    dtype = dtypes.of(expected.dtype)
    one, other = found.astype(np.float64), expected.astype(np.float64)
    unsure = np.zeros(expected.shape, np.bool_)
    scatter = np.zeros(expected.shape)
    with np.errstate(all="ignore"):
        for sample in samples:
            wide = sample.astype(np.float64)
            same_kind = np.isfinite(wide) == np.isfinite(other)
            unsure |= ~(same_kind & (np.isnan(wide) == np.isnan(other)))
            scatter = np.maximum(scatter, np.nan_to_num(np.abs(wide - other), nan=0.0, posinf=0.0))
        typical = np.sqrt(np.mean(np.square(scatter)))
        smallest = 8 * _SMALLEST[dtype.compute.name] + _SMALLEST[dtype.name] * _epsilon(dtype)
        units = _UNITS if dtype.compute is dtype else 1.0  # a narrow float is rounded once where it is stored
        allowed = _FACTOR * scatter + typical + units * _epsilon(dtype) * np.abs(other) + smallest
        close = np.abs(one - other) <= allowed
        same = (one == other) | (np.isnan(one) & np.isnan(other)) | close
    return ~(same | unsure), np.nan_to_num(allowed, nan=0.0, posinf=0.0)
