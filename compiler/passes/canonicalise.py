"""One way to write each thing: movement composed and without identities, nothing empty, constants in plain sight.

The normal form: no stop_gradient and no remat; no op with an empty result or an empty input; adjacent movement ops of
one kind are one; movement that only touches extent-1 axes is a reshape; movement of a constant is a constant;
reductions and contractions run over axes longer than 1, listed in increasing order; a constant operand of a commutative
op stands on the right.
"""

from __future__ import annotations

from ..ir import Graph, Node, dtypes, full, ops
from ..ir.graph import TABLE as OPS
from . import canonicalise_movement
from .rules import RuleTable, is_uniform, merged, normalise, spread, zeros

TABLE = RuleTable()
COMMUTATIVE = (
    ops.add, ops.mul, ops.maximum, ops.minimum, ops.and_, ops.or_, ops.xor, ops.eq, ops.ne,
)  # fmt: skip


def canonicalise(graph: Graph) -> Graph:
    """The graph in normal form (see the top of this file)."""
    return normalise(graph, TABLE)


@TABLE.rule(*(op for op in OPS.values() if op not in (ops.input_, ops.constant)))
def empty_result(node: Node) -> Node | None:
    """A tensor without elements is a constant, whatever computes it."""
    return zeros(node) if node.size == 0 else None


TABLE = merged(TABLE, canonicalise_movement.TABLE)  # from here on emptiness has been dealt with


@TABLE.rule(ops.constant)
def constant_of_its_type(node: Node) -> Node | None:
    """The value as the Python type that fits the dtype, so that 1 and 1.0 are one float constant."""
    return full(0 if node.size == 0 else node.attributes["value"], node.dtype, node.shape)


@TABLE.rule(ops.stop_gradient)
def stopped(node: Node) -> Node | None:
    """Once gradients have been taken it is the identity."""
    return node.inputs[0]


@TABLE.rule(ops.remat)
def marked(node: Node) -> Node | None:
    """A mark for gradients, which have been taken."""
    return node.inputs[0]


@TABLE.rule(ops.again)
def constant_again(node: Node) -> Node | None:
    return node.inputs[0] if node.inputs[0].op is ops.constant else None


@TABLE.rule(*COMMUTATIVE)
def constant_on_the_right(node: Node) -> Node | None:
    a, b = node.inputs
    return node.op(b, a) if a.op is ops.constant and b.op is not ops.constant else None


@TABLE.rule(ops.iota)
def iota_of_one(node: Node) -> Node | None:
    return zeros(node) if node.shape[node.attributes["axis"]] == 1 else None


@TABLE.rule(ops.cast)
def cast_cast(node: Node) -> Node | None:
    """One cast where the first loses nothing that the second would keep."""
    (x,), target = node.inputs, node.dtype
    if target is x.dtype:
        return x
    if x.op is not ops.cast:
        return None
    origin, middle = x.inputs[0].dtype, x.dtype
    return ops.cast(x.inputs[0], dtype=target) if _skippable(origin, middle, target) else None


def _skippable(origin: dtypes.DType, middle: dtypes.DType, target: dtypes.DType) -> bool:
    """Whether origin -> middle -> target equals origin -> target for every value."""
    if origin.is_integer and middle.is_integer and target.is_integer and target.bits <= middle.bits:
        return True  # integers wrap: the low bits stay the same
    if not holds(middle, origin):
        return False
    if middle.is_float and target.is_integer and not origin.is_float:
        return holds(target, origin)  # a float saturates where an integer wraps
    return True


def holds(wide: dtypes.DType, narrow: dtypes.DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if wide is narrow or narrow.kind == "bool":
        return True
    if wide.kind == "bool":
        return False
    if wide.is_float:
        digits, exponents = _precision(wide)
        if narrow.is_float:
            fewer, smaller = _precision(narrow)
            return digits >= fewer and exponents >= smaller
        magnitude = narrow.bits - (narrow.kind == "signed")
        return digits >= magnitude and exponents > magnitude
    if narrow.is_float:
        return False
    if wide.kind == narrow.kind:
        return wide.bits >= narrow.bits
    return wide.kind == "signed" and wide.bits > narrow.bits


def _precision(dtype: dtypes.DType) -> tuple[int, int]:
    """(bits of significand, largest exponent of two)."""
    return {"float16": (11, 15), "bfloat16": (8, 127), "float32": (24, 127), "float64": (53, 1023)}[dtype.name]


@TABLE.rule(ops.bitcast)
def bitcast_bitcast(node: Node) -> Node | None:
    (x,) = node.inputs
    if node.dtype is x.dtype:
        return x
    return ops.bitcast(x.inputs[0], dtype=node.dtype) if x.op is ops.bitcast else None


@TABLE.rule(ops.reduce_sum, ops.reduce_max, ops.reduce_min)
def reduce_real_axes(node: Node) -> Node | None:
    """Over no axes: the input. Over nothing: the identity. Axes of extent 1 are reshaped away."""
    (x,), axes = node.inputs, node.attributes["axes"]
    if not axes:
        return x
    if x.size == 0:
        lowest, highest = dtypes.value_bounds(node.dtype)
        identity = {"reduce_sum": 0, "reduce_max": lowest, "reduce_min": highest}[node.op.name]
        return full(identity, node.dtype, node.shape)
    real = tuple(sorted(axis for axis in axes if x.shape[axis] != 1))
    if real == axes:
        return None
    if len(real) == len(axes):
        return node.op(x, axes=real)
    unit = [axis for axis in axes if x.shape[axis] == 1]
    kept = [axis for axis in range(x.rank) if axis not in unit]
    smaller = ops.reshape(x, shape=tuple(x.shape[axis] for axis in kept))
    return node.op(smaller, axes=tuple(kept.index(axis) for axis in real))


@TABLE.rule(ops.argmax, ops.argmin)
def extremum_of_one(node: Node) -> Node | None:
    """All equal, or only one: the first."""
    (x,) = node.inputs
    return zeros(node) if x.shape[node.attributes["axis"]] == 1 or x.op is ops.constant else None


@TABLE.rule(ops.gather)
def gather_constant(node: Node) -> Node | None:
    operand, _ = node.inputs
    return spread(operand, node.shape) if operand.op is ops.constant else None


@TABLE.rule(ops.scatter_add)
def scatter_nothing(node: Node) -> Node | None:
    _, updates = node.inputs
    return zeros(node) if updates.size == 0 or is_uniform(updates, 0) else None


@TABLE.rule(ops.dot_general)
def contract_real_axes(node: Node) -> Node | None:
    """An empty contraction is zero, one without depth a product of every pair; axes of extent 1 need not be summed,
    and the others are listed in order."""
    lhs, rhs = node.inputs
    if lhs.size == 0 or rhs.size == 0:
        return zeros(node)
    pairs = list(zip(node.attributes["lhs_contract"], node.attributes["rhs_contract"], strict=True))
    if all(lhs.shape[a] == 1 for a, _ in pairs):
        return _outer_product(node)
    if any(lhs.shape[a] == 1 for a, _ in pairs):
        return _without_unit_axes(node, [pair for pair in pairs if lhs.shape[pair[0]] == 1])
    ordered = sorted(pairs)
    if pairs == ordered:
        return None
    left, right = zip(*ordered, strict=True)
    return ops.dot_general(lhs, rhs, **{**node.attributes, "lhs_contract": left, "rhs_contract": right})


def _without_unit_axes(node: Node, unit: list[tuple[int, int]]) -> Node:
    """The contraction of the operands without these contracted axes."""
    operands, attributes = [], {}
    for side, operand, dropped in zip(("lhs", "rhs"), node.inputs, zip(*unit, strict=True), strict=True):
        kept = [axis for axis in range(operand.rank) if axis not in dropped]
        operands.append(ops.reshape(operand, shape=tuple(operand.shape[axis] for axis in kept)))
        for name in (f"{side}_batch", f"{side}_contract"):
            attributes[name] = tuple(kept.index(axis) for axis in node.attributes[name] if axis not in dropped)
    return ops.dot_general(*operands, **attributes)


def _outer_product(node: Node) -> Node:
    """Nothing is summed, so it is a broadcast multiplication, which fuses with its neighbours."""
    (lhs, rhs), attributes = node.inputs, node.attributes
    batch = len(attributes["lhs_batch"])
    factors = []
    for side, operand, begin in (("lhs", lhs, batch), ("rhs", rhs, node.rank)):
        own, contracted = attributes[f"{side}_batch"], attributes[f"{side}_contract"]
        free = [axis for axis in range(operand.rank) if axis not in own and axis not in contracted]
        moved = ops.permute(operand, axes=(*own, *free, *contracted))
        extents = [1] * node.rank
        extents[:batch] = node.shape[:batch]
        first = begin if side == "lhs" else begin - len(free)
        extents[first : first + len(free)] = [operand.shape[axis] for axis in free]
        factors.append(ops.broadcast(ops.reshape(moved, shape=tuple(extents)), shape=node.shape))
    return factors[0] * factors[1]


@TABLE.rule(ops.conv_general)
def convolve_nothing(node: Node) -> Node | None:
    """Nothing but padding, or no channels."""
    x, w = node.inputs
    return zeros(node) if x.size == 0 or w.size == 0 else None
