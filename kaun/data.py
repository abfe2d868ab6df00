"""Data pipelines: finite sequences of examples, mapped, shuffled, batched and prefetched, one pass at a time.

A pipeline knows its length and can produce any element of a pass from its index, so shuffling permutes indices and
batching arrays is one gather per batch; nothing is copied until a batch is made. Pipelines are values: every method
returns a new one that starts at its own beginning, and only the position within the current pass ever changes.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Number
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
U = TypeVar("U")
Indices: TypeAlias = npt.NDArray[np.intp]
Stream: TypeAlias = Generator[Any, None, None]
"""A pass under way: a generator, so that ending it early releases what it holds."""

# Compiled kernels want their arrays on a cache line; a batch that starts on one is taken over without a copy.
_ALIGNMENT = 64


class Data(Generic[T]):
    """A pipeline of `len(data)` elements, consumed once per pass.

    Iterating continues the current pass and, at its end, yields nothing more until `reset()` starts the next one.
    Made by `of_array`, `of_tensor`, `of_tensors`, `of_fn`, `repeat` and `prepare`.
    """

    def __init__(self, stage: _Stage) -> None:
        self._stage = stage
        self._pass = 0
        self._elements: Stream | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._elements is None:
            self._elements = self._stage.stream(self._pass)
        return cast(T, next(self._elements))

    def __len__(self) -> int:
        return self._stage.length

    def __repr__(self) -> str:
        return f"Data({self._stage.describe()}, length={self._stage.length})"

    def length(self) -> int:
        """The number of elements in a whole pass, whatever part of it has been consumed."""
        return self._stage.length

    def reset(self) -> None:
        """End the current pass and start the next from the beginning; shuffled pipelines get a new order."""
        elements, self._elements = self._elements, None
        self._pass += 1
        if elements is not None:
            elements.close()

    def map(self, f: Callable[[T], U]) -> Data[U]:
        """The pipeline of `f(element)`."""
        return Data(_Mapped(self._stage, f))

    def batch(self, n: int, drop_last: bool = False) -> Data[Any]:
        """Consecutive groups of `n` elements, each made one by `collate`: tensors gain a leading axis.

        The last group is smaller when `n` does not divide the length; `drop_last` leaves it out. ValueError if n < 1.
        """
        return Data(_Batched(self._stage, _positive("batch", "n", n), bool(drop_last), collate))

    def map_batch(self, n: int, f: Callable[[list[T]], U], drop_last: bool = False) -> Data[U]:
        """`f([element, ...])` over consecutive groups of `n` elements: `batch` with a function of one's own."""
        return Data(_Batched(self._stage, _positive("map_batch", "n", n), bool(drop_last), f))

    def shuffle(self) -> Data[T]:
        """The elements in random order, another one in each pass.

        The key is drawn from the RNG scope here, once; the order of pass p depends on that key, p and the length only.
        Outside a scope this raises the error of `nx.rng.next_key`.
        """
        from kaun import nx

        words = np.asarray(nx.rng.next_key().numpy(), np.uint32).ravel()
        return Data(_Shuffled(self._stage, (int(words[0]), int(words[1]))))

    def prefetch(self, n: int = 2) -> Data[T]:
        """The same elements, up to `n` of them made ahead of time in a background thread.

        An error in the thread is raised where its element would have come. The thread ends with the pass, at `reset()`
        and when the pipeline is dropped. Put it last: `shuffle` asks for elements one by one and leaves the thread
        unused, and functions that draw random numbers do not belong before it: the thread is outside every RNG scope.
        """
        return Data(_Prefetched(self._stage, _positive("prefetch", "n", n)))

    def iter(self, f: Callable[[T], object]) -> None:
        """Call `f(element)` for what remains of the pass."""
        for element in self:
            f(element)

    def iteri(self, f: Callable[[int, T], object]) -> None:
        """Call `f(i, element)` for what remains of the pass, counting from 0."""
        for position, element in enumerate(self):
            f(position, element)

    def fold(self, f: Callable[[U, T], U], init: U) -> U:
        """`f(... f(f(init, e0), e1) ..., eN)` over what remains of the pass."""
        accumulated = init
        for element in self:
            accumulated = f(accumulated, element)
        return accumulated

    def to_array(self) -> list[T]:
        """What remains of the pass, as a list."""
        return list(self)


# --- the stages ----------------------------------------------------------------------------------------------------


class _Stage(ABC):
    """One step of a pipeline: a pure function from (index, pass) to an element."""

    length: int
    # Whether `gather` beats making the elements one by one.
    gathers = False

    @abstractmethod
    def item(self, index: int, number: int) -> Any:
        """Element `index` of pass `number`."""

    def gather(self, indices: Indices, number: int) -> Any:
        """The elements at `indices`, collated."""
        return collate([self.item(int(index), number) for index in indices])

    def stream(self, number: int) -> Stream:
        """The elements of pass `number` in order."""
        return (self.item(index, number) for index in range(self.length))

    def describe(self) -> str:
        return type(self).__name__.lstrip("_").lower()


class _Arrays(_Stage):
    """Slices along the first axis of one or several arrays."""

    gathers = True

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], rebuild: Callable[[list[Any]], Any]) -> None:
        self.arrays = arrays
        self.rebuild = rebuild
        self.length = arrays[0].shape[0]

    def item(self, index: int, number: int) -> Any:
        return self.rebuild([_tensor(array[index, ...]) for array in self.arrays])

    def gather(self, indices: Indices, number: int) -> Any:
        return self.rebuild([_owned(_take(array, indices)) for array in self.arrays])

    def describe(self) -> str:
        return " ".join(f"{array.dtype}{list(array.shape)}" for array in self.arrays)


class _Items(_Stage):
    def __init__(self, length: int, get: Callable[[int], Any]) -> None:
        self.length = length
        self.get = get

    def item(self, index: int, number: int) -> Any:
        return self.get(index)


class _Mapped(_Stage):
    def __init__(self, source: _Stage, f: Callable[[Any], Any]) -> None:
        self.source = source
        self.f = f
        self.length = source.length

    def item(self, index: int, number: int) -> Any:
        return self.f(self.source.item(index, number))

    def stream(self, number: int) -> Stream:
        with contextlib.closing(self.source.stream(number)) as elements:
            for element in elements:
                yield self.f(element)

    def describe(self) -> str:
        return f"{self.source.describe()} | map"


class _Shuffled(_Stage):
    def __init__(self, source: _Stage, key: tuple[int, int]) -> None:
        self.source = source
        self.key = key
        self.length = source.length
        self.gathers = source.gathers

    def item(self, index: int, number: int) -> Any:
        return self.source.item(int(_permutation(self.key, number, self.length)[index]), number)

    def gather(self, indices: Indices, number: int) -> Any:
        return self.source.gather(_permutation(self.key, number, self.length)[indices], number)

    def describe(self) -> str:
        return f"{self.source.describe()} | shuffle"


class _Batched(_Stage):
    def __init__(self, source: _Stage, size: int, drop_last: bool, combine: Callable[[list[Any]], Any]) -> None:
        self.source = source
        self.size = size
        self.combine = combine
        whole, rest = divmod(source.length, size)
        self.length = whole + (1 if rest and not drop_last else 0)
        self.gathers_batches = source.gathers and combine is collate

    def item(self, index: int, number: int) -> Any:
        indices = range(index * self.size, min((index + 1) * self.size, self.source.length))
        if self.gathers_batches:
            return self.source.gather(np.arange(indices.start, indices.stop), number)
        return self.combine([self.source.item(position, number) for position in indices])

    def stream(self, number: int) -> Stream:
        if self.gathers_batches:
            yield from super().stream(number)
            return
        # In order, so that a prefetching or costly source is asked for each element once.
        with contextlib.closing(self.source.stream(number)) as elements:
            for index in range(self.length):
                count = min(self.size, self.source.length - index * self.size)
                yield self.combine([next(elements) for _ in range(count)])

    def describe(self) -> str:
        return f"{self.source.describe()} | batch({self.size})"


class _Prefetched(_Stage):
    def __init__(self, source: _Stage, depth: int) -> None:
        self.source = source
        self.depth = depth
        self.length = source.length

    def item(self, index: int, number: int) -> Any:
        return self.source.item(index, number)

    def stream(self, number: int) -> Stream:
        return _prefetch(self.source.stream(number), self.depth)

    def describe(self) -> str:
        return f"{self.source.describe()} | prefetch({self.depth})"


def _prefetch(elements: Stream, depth: int) -> Stream:
    """The same elements, made by a thread that keeps at most `depth` of them waiting."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def work() -> None:
        # Whoever runs a generator must close it, so the thread does both.
        with contextlib.closing(elements):
            try:
                for element in elements:
                    waiting.put(("element", element))
                    if stopped.is_set():
                        return
                waiting.put(("end", None))
            except BaseException as error:  # the consumer raises it
                waiting.put(("error", error))

    worker = threading.Thread(target=work, name="kaun-prefetch", daemon=True)
    worker.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "element":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        # A consumer that stops early leaves the thread waiting for room: make room until it sees that it is over.
        stopped.set()
        while worker.is_alive():
            with contextlib.suppress(queue.Empty):
                waiting.get_nowait()
            worker.join(timeout=0.01)


# --- arrays and tensors --------------------------------------------------------------------------------------------


def _tensor(array: npt.NDArray[Any]) -> Any:
    from kaun import nx

    return nx.asarray(array)


def _owned(array: npt.NDArray[Any]) -> Any:
    """The tensor over an array made here, which nobody else can write to: it is taken as it is."""
    from kaun import nx

    array.setflags(write=False)
    return nx.asarray(array, copy=False)


def _host(function: str, value: Any) -> npt.NDArray[Any]:
    """The array of a tensor or of anything NumPy takes for one, with at least one axis."""
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"data.{function}: got {type(value).__name__}, expected a tensor or an array of numbers")
    if array.ndim == 0:
        raise ValueError(f"data.{function}: got shape (), expected at least one axis to take examples from")
    return cast("npt.NDArray[Any]", array)


def _take(array: npt.NDArray[Any], indices: Indices) -> npt.NDArray[Any]:
    """`array[indices]` in memory of its own, on a cache line."""
    shape = (len(indices), *array.shape[1:])
    taken = _aligned(shape, array.dtype)
    # The indices are right by construction; "clip" spares NumPy the copy it makes to be able to undo an error.
    return array.take(indices, 0, taken, "clip") if taken.size else taken


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return np.ndarray(shape, dtype, memory, offset)


@lru_cache(maxsize=16)
def _permutation(key: tuple[int, int], number: int, length: int) -> Indices:
    """The order of pass `number`: the ranks of Philox words (Salmon et al., Parallel Random Numbers, SC11).

    Raw words, because their stream is fixed; NumPy may change how its own shuffles use it.
    """
    philox = np.random.Philox(key=np.array([key[0] | key[1] << 32, number], np.uint64))
    order = np.argsort(philox.random_raw(length), kind="stable") if length else np.empty(0, np.intp)
    order.setflags(write=False)
    return order


def collate(elements: Sequence[Any]) -> Any:
    """Several elements as one: tensors, arrays and numbers stack along a new first axis into an `nx.Tensor`.

    Tuples, named tuples, lists and mappings are combined entry by entry; anything else is kept as a list. ValueError
    if tensors differ in shape or dtype, or containers in length or keys.
    """
    first = elements[0]
    kind = type(first)
    if isinstance(first, Mapping):
        if any(not isinstance(element, Mapping) or element.keys() != first.keys() for element in elements):
            raise ValueError(f"data.batch: elements differ in keys, expected {list(first)} in all of them")
        combined = {key: collate([element[key] for element in elements]) for key in first}
        return combined if kind is dict else kind(combined)
    if isinstance(first, (tuple, list)):
        if any(not isinstance(element, (tuple, list)) or len(element) != len(first) for element in elements):
            raise ValueError(f"data.batch: elements differ in length, expected {len(first)} entries in all of them")
        columns = [collate(column) for column in zip(*elements, strict=True)]
        return kind._make(columns) if hasattr(kind, "_make") else kind(columns)
    if hasattr(first, "shape") and hasattr(first, "dtype"):
        return _owned(_stack([element.numpy() if hasattr(element, "numpy") else element for element in elements]))
    if isinstance(first, Number):
        from kaun import nx

        return nx.asarray(list(elements))
    return list(elements)


def _stack(arrays: list[Any]) -> npt.NDArray[Any]:
    first = arrays[0]
    for array in arrays:
        if getattr(array, "shape", None) != first.shape or array.dtype != first.dtype:
            got = f"{array.dtype} {array.shape}" if hasattr(array, "shape") else type(array).__name__
            raise ValueError(f"data.batch: got {got}, expected {first.dtype} {first.shape} as in the batch's first")
    stacked = _aligned((len(arrays), *first.shape), first.dtype)
    return np.stack(arrays, out=stacked)


# --- where pipelines begin -----------------------------------------------------------------------------------------


def _positive(function: str, name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"data.{function}: got {name}={value!r}, expected an int")
    if value < least:
        raise ValueError(f"data.{function}: got {name}={value}, expected at least {least}")
    return int(value)


def _arrays(function: str, tensors: Any) -> _Arrays:
    if not isinstance(tensors, (tuple, list)) or not tensors:
        raise TypeError(f"data.{function}: got {type(tensors).__name__}, expected a tuple of tensors")
    arrays = [_host(function, tensor) for tensor in tensors]
    lengths = [array.shape[0] for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"data.{function}: got first extents {lengths}, expected the same number of examples in all")
    return _Arrays(arrays, tuple)


def of_array(values: Sequence[T]) -> Data[T]:
    """The elements of a sequence. It is copied, so that changing it later changes no pipeline."""
    kept = tuple(values)
    return Data(_Items(len(kept), kept.__getitem__))


def of_tensor(tensor: Any) -> Data[Any]:
    """The slices `tensor[0], tensor[1], ...` of a tensor or array. ValueError if it has no axis."""
    return Data(_Arrays([_host("of_tensor", tensor)], lambda parts: parts[0]))


def of_tensors(tensors: Sequence[Any]) -> Data[tuple[Any, ...]]:
    """The tuples `(x[0], y[0], ...), (x[1], y[1], ...), ...` of tensors or arrays with the same first extent.

    Batched, the tensors are sliced as wholes and never taken apart. ValueError if the first extents differ.
    """
    return Data(_arrays("of_tensors", tensors))


def of_fn(n: int, f: Callable[[int], T]) -> Data[T]:
    """`f(0), f(1), ..., f(n - 1)`, each called when its element is asked for, in every pass anew."""
    return Data(_Items(_positive("of_fn", "n", n, least=0), f))


def repeat(n: int, value: T) -> Data[T]:
    """The same value `n` times."""
    return Data(_Items(_positive("repeat", "n", n, least=0), lambda _: value))


def prepare(tensors: Sequence[Any], *, batch_size: int, shuffle: bool = False, drop_last: bool = True) -> Data[Any]:
    """Batches `(x, y, ...)` of examples from tensors or arrays with the same first extent; usually `(x, y)`.

    `of_tensors`, then `shuffle` if asked (needs an RNG scope, here only), then `batch`. The last batch is left out when
    it is smaller, unless `drop_last=False`. ValueError if the first extents differ or if no batch would be left.
    """
    arrays = _arrays("prepare", tensors)
    size = _positive("prepare", "batch_size", batch_size)
    if drop_last and arrays.length < size:
        raise ValueError(
            f"data.prepare: got batch_size={size} for {arrays.length} examples, which leaves no whole batch; "
            "expected a smaller one or drop_last=False"
        )
    examples: Data[Any] = Data(arrays)
    return (examples.shuffle() if shuffle else examples).batch(size, drop_last=drop_last)
