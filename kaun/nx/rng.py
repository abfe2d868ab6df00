"""Random numbers from counters and keys: the same bits on every machine and on any number of threads.

A key is two 32-bit words. The generator is Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as
easy as 1, 2, 3, SC 2011), which maps a key and a counter to two random words. `run` and `with_key` open a scope, from
whose key every draw takes the next child key; drawing twice gives different numbers, and the same scope gives the same
sequence.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from kaun import execution
from kaun.compiler.ir import Node, dtypes, full, ops
from kaun.compiler.ir.dtypes import DType

from .elementwise import less
from .errors import describe, invalid_type, invalid_value
from .inverse_error import from_tail, inverse_error
from .movement import shape_of
from .operands import NUMBERS, cast, node_of, spread
from .promotion import dtype_of
from .tensor import Tensor, TensorLike, is_traced

Key = tuple[int, int]

# Draws use this counter and child keys the ones below, so that no draw repeats the words of a child key.
_DRAW = 2**32 - 1
_MASK = 2**32 - 1


def threefry2x32(key: Key, counter: Key) -> Key:
    """The two random words of a key and a counter, in Python integers."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x0 = (x0 + x1) & _MASK
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) & _MASK
            x1 ^= x0
        x0 = (x0 + keys[(block + 1) % 3]) & _MASK
        x1 = (x1 + keys[(block + 2) % 3] + block + 1) & _MASK
    return x0, x1


class _Scope:
    """A key and how many child keys it has given. Taking them is atomic: threads may share a scope.

    `first` is the number of its first child, where that is traced.
    """

    def __init__(self, key: Key | Node, first: Node | None = None) -> None:
        self.key = key
        self.first = first
        self.count = 0
        self._lock = threading.Lock()

    def take(self, count: int = 1) -> int:
        """The number of the next child of `count` in a row."""
        with self._lock:
            number = self.count
            self.count += count
            return number


_scope: ContextVar[_Scope | None] = ContextVar("random_scope", default=None)


@contextmanager
def _entered(scope: _Scope) -> Iterator[None]:
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def run(seed: int = 0) -> Iterator[None]:
    """The scope of `seed`: draws inside are a function of the seed and of their order. Scopes nest.

    A new thread starts outside of any scope. ValueError unless 0 <= seed < 2**64.
    """
    value = operator.index(seed)
    if not 0 <= value < 2**64:
        raise invalid_value("nx.rng.run", f"got seed {value}, expected 0 <= seed < 2**64")
    with _entered(_Scope((value & _MASK, value >> 32))):
        yield


@contextmanager
def with_key(key: TensorLike) -> Iterator[None]:
    """The scope of a key (uint32, shape (2,)). A key that is being traced gives traced draws, with the same bits."""
    node = _key_node("nx.rng.with_key", key)
    tensor = Tensor(node)
    scope = _Scope(node if is_traced(tensor) else _words(tensor))
    with _entered(scope):
        yield


def in_scope() -> bool:
    """Whether a random scope is active here, so that draws need no key."""
    return _scope.get() is not None


def next_key() -> Tensor:
    """The next child key of the innermost scope: uint32, shape (2,). ValueError outside of any scope."""
    return _next_key("nx.rng.next_key")


def _next_key(function: str) -> Tensor:
    scope = _scope.get()
    if scope is None:
        raise invalid_value(
            function, "no random scope is active; wrap the call in `with nx.rng.run(seed=...):` or pass a key"
        )
    number = scope.take()
    if isinstance(scope.key, Node):
        return Tensor(_fold_in(scope.key, number, scope.first))
    return _concrete(threefry2x32(scope.key, (0, number)))


@contextmanager
def traced_scope(key: TensorLike, first: TensorLike) -> Iterator[Callable[[], int]]:
    """A scope whose key, and the number of whose first child (uint32), are traced: a function of where `take` stands.

    What it gives is called for how many children were taken.
    """
    node = _key_node("nx.rng.traced_scope", key)
    scope = _Scope(node, node_of("nx.rng.traced_scope", first))
    with _entered(scope):
        yield lambda: scope.count


def take(count: int) -> tuple[Tensor, int]:
    """The key of the innermost scope and the number of its next child; `count` children are taken with it.

    A function traced in `traced_scope` of these two draws what it would have drawn here. ValueError outside of any
    scope, and in one whose key is being traced.
    """
    scope = _scope.get()
    if scope is None or isinstance(scope.key, Node):
        problem = "no random scope is active" if scope is None else "the scope's key is being traced"
        raise invalid_value("nx.rng.take", f"{problem}; wrap the call in `with nx.rng.run(seed=...):`")
    return _concrete(scope.key), scope.take(count)


def key(seed: int) -> Tensor:
    """The key of the scope `run(seed)`."""
    value = operator.index(seed)
    if not 0 <= value < 2**64:
        raise invalid_value("nx.rng.key", f"got seed {value}, expected 0 <= seed < 2**64")
    return _concrete((value & _MASK, value >> 32))


def fold_in(key: TensorLike, number: int) -> Tensor:
    """Child number `number` of a key: a new key. ValueError unless 0 <= number < 2**32 - 1."""
    node = _key_node("nx.rng.fold_in", key)
    position = operator.index(number)
    if not 0 <= position < _DRAW:
        raise invalid_value("nx.rng.fold_in", f"got number {position}, expected 0 <= number < 2**32 - 1")
    tensor = Tensor(node)
    if is_traced(tensor):
        return Tensor(_fold_in(node, position))
    return _concrete(threefry2x32(_words(tensor), (0, position)))


def split(key: TensorLike, count: int = 2) -> list[Tensor]:
    """The first `count` children of a key."""
    return [fold_in(key, number) for number in range(count)]


def _fold_in(key: Node, number: int, first: Node | None = None) -> Node:
    """Child `first` + `number` of a key."""
    counter = full(number, dtypes.uint32)
    return ops.random_bits(key, counter if first is None else first + counter, shape=(2,))


def _concrete(words: Key) -> Tensor:
    array = np.array(words, dtype=np.uint32)
    array.flags.writeable = False
    return Tensor(execution.leaf(array))


def _words(key: Tensor) -> Key:
    first, second = key.numpy().tolist()
    return first, second


def _key_node(function: str, key: TensorLike) -> Node:
    node = node_of(function, key)
    if node.dtype is not dtypes.uint32 or node.shape != (2,):
        raise invalid_type(function, f"got {describe(node)} as key, expected uint32[2]")
    return node


def _bits(function: str, key: TensorLike | None, shape: tuple[int, ...]) -> Node:
    """Random words of `shape` from the key, or from the scope's next."""
    node = _next_key(function)._node if key is None else _key_node(function, key)
    return ops.random_bits(node, full(_DRAW, dtypes.uint32), shape=shape)


def bits(shape: int | Sequence[int], *, key: TensorLike | None = None) -> Tensor:
    """Uniform uint32 words."""
    return Tensor(_bits("nx.rng.bits", key, shape_of("nx.rng.bits", shape)))


def _float_dtype(function: str, dtype: Any) -> DType:
    kind = dtype_of(function, dtype)
    if not kind.is_float:
        raise invalid_type(function, f"got dtype {kind}, expected a float dtype")
    return kind


# Bits of the significand, the hidden one included.
_PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def _two_words(function: str, key: TensorLike | None, shape: tuple[int, ...]) -> Node:
    """Random uint64 numbers of `shape`: the first word of each pair is the low half."""
    words = _bits(function, key, (*shape, 2))
    zeros, steps = (0,) * len(shape), (1,) * (len(shape) + 1)
    low, high = (
        ops.cast(
            ops.reshape(ops.slice_(words, starts=(*zeros, i), stops=(*shape, i + 1), steps=steps), shape=shape),
            dtype=dtypes.uint64,
        )
        for i in (0, 1)
    )
    return ops.or_(low, ops.shift_left(high, high.like(32)))


def _unit(function: str, key: TensorLike | None, shape: tuple[int, ...], kind: DType) -> Node:
    """Uniform in [0, 1): all multiples of 2**-p, p the precision of `kind`, are equally likely."""
    precision = _PRECISION[kind.name]
    words = _two_words(function, key, shape) if kind is dtypes.float64 else _bits(function, key, shape)
    top = ops.shift_right(words, words.like(words.dtype.bits - precision))
    return cast(ops.cast(top, dtype=kind.compute) * 2.0**-precision, kind)


def uniform(
    shape: int | Sequence[int] = (), low: TensorLike = 0.0, high: TensorLike = 1.0, *,
    dtype: Any = dtypes.float32, key: TensorLike | None = None,
) -> Tensor:  # fmt: skip
    """Uniform numbers in [low, high): low + (high - low) * u, with u = (bits >> 8) * 2**-24 in float32.

    float64 takes 53 bits from two words; float16 and bfloat16 take 11 and 8. Rounding of the scaled number may give
    `high`. `low` and `high` broadcast to `shape`.
    """
    extents, kind = shape_of("nx.rng.uniform", shape), _float_dtype("nx.rng.uniform", dtype)
    result = Tensor(_unit("nx.rng.uniform", key, extents, kind))
    return _scaled("nx.rng.uniform", result, low, Tensor(node_of("nx.rng.uniform", high)) - low, high)


def _scaled(function: str, unit: Tensor, offset: TensorLike, factor: TensorLike, end: TensorLike = 0.0) -> Tensor:
    """offset + factor * unit in the dtype and shape of `unit`."""
    node = unit._node
    if isinstance(offset, NUMBERS) and isinstance(end, NUMBERS) and offset == 0 and end == 1:
        return unit
    parts = []
    for value in (factor, offset):
        other = cast(node_of(function, value), node.dtype)
        if len(other.shape) > len(node.shape) or any(
            n not in (1, m) for n, m in zip(other.shape[::-1], node.shape[::-1], strict=False)
        ):
            raise invalid_value(function, f"a parameter {describe(other)} does not fit shape {list(node.shape)}")
        parts.append(spread(other, node.shape))
    return Tensor(node * parts[0] + parts[1])


def normal(
    shape: int | Sequence[int] = (), mean: TensorLike = 0.0, std: TensorLike = 1.0, *,
    dtype: Any = dtypes.float32, key: TensorLike | None = None,
) -> Tensor:  # fmt: skip
    """Normal numbers: mean + std * z, z = sqrt(2) erfinv(1 - 2 p) with a random sign, p uniform in (0, 1/2).

    p has 31 random bits (63 in float64) and a full significand however small it is, so the tails reach 6.2 (9.1)
    standard deviations. `mean` and `std` broadcast to `shape`.
    """
    extents, kind = shape_of("nx.rng.normal", shape), _float_dtype("nx.rng.normal", dtype)
    words = (_two_words if kind is dtypes.float64 else _bits)("nx.rng.normal", key, extents)
    wide, width = kind.compute, words.dtype.bits
    magnitude = ops.and_(words, words.like(2 ** (width - 1) - 1))
    tail = (ops.cast(magnitude, dtype=wide) + 0.5) * 2.0**-width
    size = from_tail(tail) * math.sqrt(2.0)
    negative = ops.ne(ops.shift_right(words, words.like(width - 1)), words.like(0))
    result = Tensor(cast(ops.where(negative, -size, size), kind))
    if isinstance(mean, NUMBERS) and isinstance(std, NUMBERS) and mean == 0 and std == 1:
        return result
    return _scaled("nx.rng.normal", result, mean, std)


def truncated_normal(
    shape: int | Sequence[int] = (), lower: float = -2.0, upper: float = 2.0, *,
    dtype: Any = dtypes.float32, key: TensorLike | None = None,
) -> Tensor:  # fmt: skip
    """Standard normal numbers conditioned on [lower, upper], by inverting the distribution function.

    Bounds beyond 5 on the same side lose accuracy in float32. ValueError unless lower < upper.
    """
    name = "nx.rng.truncated_normal"
    if not lower < upper:
        raise invalid_value(name, f"got bounds {lower} and {upper}, expected lower < upper")
    extents, kind = shape_of(name, shape), _float_dtype(name, dtype)
    unit = cast(_unit(name, key, extents, kind.compute), kind.compute)
    low, high = math.erf(lower / math.sqrt(2.0)), math.erf(upper / math.sqrt(2.0))
    result = inverse_error(unit * (high - low) + low) * math.sqrt(2.0)
    result = ops.minimum(ops.maximum(result, result.like(lower)), result.like(upper))
    return Tensor(cast(result, kind))


def randint(
    shape: int | Sequence[int], low: int, high: int, *, dtype: Any = dtypes.int64, key: TensorLike | None = None
) -> Tensor:
    """Integers in [low, high): low + floor(word * (high - low) / 2**32).

    The probabilities of two integers differ by at most 2**-32. Ranges above 2**32 take a 64-bit word modulo the range
    instead. ValueError unless low < high and `dtype` holds both low and high - 1.
    """
    name = "nx.rng.randint"
    first, last = operator.index(low), operator.index(high)
    extents, kind = shape_of(name, shape), dtype_of(name, dtype)
    if not kind.is_integer:
        raise invalid_type(name, f"got dtype {kind}, expected an integer dtype")
    bounds = dtypes.value_bounds(kind)
    if not bounds[0] <= first < last <= bounds[1] + 1:
        raise invalid_value(name, f"got the range [{first}, {last}), expected low < high within {kind}'s range")
    span = last - first
    if span <= 2**32:
        words = ops.cast(_bits(name, key, extents), dtype=dtypes.uint64)
        result = ops.shift_right(words * span, words.like(32))
    else:
        words = _two_words(name, key, extents)
        result = words if span == 2**64 else ops.rem(words, words.like(span))
    # Both sides wrap, so adding in unsigned arithmetic is right for negative bounds too.
    return Tensor(cast(result + first % 2**64, kind))


def bernoulli(
    shape: int | Sequence[int] = (), p: TensorLike = 0.5, *, key: TensorLike | None = None
) -> Tensor:
    """True with probability p, bool. A Python p is exact to 2**-32, a tensor p (broadcast to `shape`) to 2**-24.

    ValueError unless a Python p is in [0, 1].
    """
    name = "nx.rng.bernoulli"
    extents = shape_of(name, shape)
    if isinstance(p, NUMBERS):
        if not 0 <= p <= 1:
            raise invalid_value(name, f"got probability {p}, expected 0 <= p <= 1")
        words = _bits(name, key, extents)
        threshold = round(p * 2**32)
        if threshold == 2**32:
            return Tensor(full(True, dtypes.bool_, extents))
        return Tensor(ops.lt(words, words.like(threshold)))
    result = less(Tensor(_unit(name, key, extents, dtypes.float32)), p)
    if result.shape != extents:
        raise invalid_value(name, f"probabilities of shape {list(node_of(name, p).shape)} do not fit {list(extents)}")
    return result


def permutation(n: int, *, key: TensorLike | None = None) -> Tensor:
    """The integers 0 to n - 1 in random order, int64: the order of n random words, found on the host.

    ValueError for a key that is being traced.
    """
    count = shape_of("nx.rng.permutation", (n,))
    words = Tensor(_bits("nx.rng.permutation", key, count))
    if is_traced(words):
        raise invalid_value("nx.rng.permutation", "the key is being traced; permutations are drawn on the host")
    order = np.argsort(words.numpy(), kind="stable")
    order.flags.writeable = False
    return Tensor(execution.leaf(order.astype(np.int64, copy=False)))
