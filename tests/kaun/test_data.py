"""Data pipelines: order, batching, shuffling, single passes, prefetching threads."""

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

nx = pytest.importorskip("kaun.nx")

from kaun import data  # noqa: E402


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert not prefetch_threads()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kaun-prefetch"]


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    return x, np.arange(count, dtype=np.int32)


def values(pipeline: data.Data[Any]) -> list[Any]:
    """A pass as NumPy arrays."""

    def host(element: Any) -> Any:
        if isinstance(element, tuple):
            return tuple(host(part) for part in element)
        return element.numpy() if hasattr(element, "numpy") else element

    return [host(element) for element in pipeline]


@given(st.integers(0, 40), st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=50)
def test_batches_are_the_slices_of_the_whole(count: int, size: int, drop_last: bool) -> None:
    x, y = examples(count)
    whole = count // size * size
    starts = range(0, whole if drop_last else count, size)
    pipeline = data.of_tensors((x, y)).batch(size, drop_last=drop_last)
    batches = values(pipeline)
    assert len(batches) == pipeline.length() == len(pipeline) == len(starts)
    for start, (x_batch, y_batch) in zip(starts, batches, strict=True):
        np.testing.assert_array_equal(x_batch, x[start : start + size])
        np.testing.assert_array_equal(y_batch, y[start : start + size])
        assert (x_batch.dtype, y_batch.dtype) == (np.float32, np.int32)


def test_batches_of_tensors_and_of_their_slices_agree() -> None:
    x, y = examples(11)
    gathered = values(data.of_tensors((x, y)).batch(4))
    collated = values(data.of_tensors((x, y)).map(lambda pair: pair).batch(4))
    for left, right in zip(gathered, collated, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_prepare_gives_tensors_from_tensors_and_from_arrays() -> None:
    x, y = examples(10)
    for given_x, given_y in ((x, y), (nx.asarray(x), nx.asarray(y))):
        batches = list(data.prepare((given_x, given_y), batch_size=4))
        assert [x_batch.shape for x_batch, _ in batches] == [(4, 2, 3), (4, 2, 3)]
        assert all(isinstance(part, nx.Tensor) for batch in batches for part in batch)
        np.testing.assert_array_equal(batches[1][1].numpy(), y[4:8])
    assert data.prepare((x, y), batch_size=4, drop_last=False).length() == 3


def test_changing_an_array_does_not_change_a_batch_made_from_it() -> None:
    x, y = examples(8)
    x_batch, _ = next(data.prepare((x, y), batch_size=4))
    x[:] = -1
    assert x_batch.numpy().min() == 0


def test_shuffling_is_a_permutation_that_keeps_examples_together() -> None:
    x, y = examples(50)
    with nx.rng.run(seed=3):
        pipeline = data.prepare((x, y), batch_size=10, shuffle=True)
    batches = values(pipeline)
    seen = np.concatenate([y_batch for _, y_batch in batches])
    assert sorted(seen) == list(range(50)) and list(seen) != list(range(50))
    for x_batch, y_batch in batches:
        np.testing.assert_array_equal(x_batch, x[y_batch])


def orders(seed: int, passes: int, count: int = 40) -> list[list[int]]:
    with nx.rng.run(seed=seed):
        pipeline = data.of_array(range(count)).shuffle()
    taken = []
    for _ in range(passes):
        taken.append(pipeline.to_array())
        pipeline.reset()
    return taken


def test_the_seed_decides_every_order_and_each_pass_has_its_own() -> None:
    first = orders(seed=7, passes=3)
    assert first == orders(seed=7, passes=3)
    assert len({tuple(order) for order in first + orders(seed=8, passes=3)}) == 6


def test_two_shuffles_in_one_scope_differ() -> None:
    with nx.rng.run(seed=0):
        first, second = data.of_array(range(30)).shuffle(), data.of_array(range(30)).shuffle()
    assert first.to_array() != second.to_array()


def test_the_order_does_not_depend_on_what_follows_the_shuffle() -> None:
    def made(finish: Any) -> list[Any]:
        with nx.rng.run(seed=5):
            return list(finish(data.of_array(range(25)).shuffle()))

    plain = made(lambda pipeline: pipeline)
    assert made(lambda pipeline: pipeline.prefetch(3)) == plain
    assert [k for group in made(lambda pipeline: pipeline.map_batch(4, list)) for k in group] == plain
    assert [-k for k in made(lambda pipeline: pipeline.map(lambda j: -j))] == plain


def test_positions_are_evenly_likely() -> None:
    # 600 passes over 6 elements: each element is expected 100 times at each place; the statistic is chi-squared with
    # 25 degrees of freedom, whose 1e-6 tail begins at 77.
    counts = np.zeros((6, 6))
    for order in orders(seed=1, passes=600, count=6):
        counts[np.arange(6), order] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 77


def test_shuffling_needs_an_rng_scope() -> None:
    with pytest.raises(Exception, match=r"nx\.rng"):
        data.of_array([1, 2, 3]).shuffle()


def test_a_pass_is_consumed_once_until_reset() -> None:
    pipeline = data.of_array("abc").map(str.upper)
    assert next(pipeline) == "A"
    assert pipeline.to_array() == ["B", "C"]
    assert pipeline.to_array() == [] and pipeline.length() == 3
    pipeline.reset()
    assert list(pipeline) == ["A", "B", "C"]


def test_deriving_a_pipeline_leaves_the_original_where_it_was() -> None:
    original = data.of_array([1, 2, 3])
    next(original)
    doubled = original.map(lambda k: 2 * k)
    assert doubled.to_array() == [2, 4, 6] and original.to_array() == [2, 3]


def test_of_array_keeps_its_own_copy() -> None:
    given = [1, 2]
    pipeline = data.of_array(given)
    given.append(3)
    assert pipeline.to_array() == [1, 2]


def test_of_fn_calls_once_per_element_and_only_when_asked() -> None:
    calls: list[int] = []

    def make(index: int) -> int:
        calls.append(index)
        return index * index

    pipeline = data.of_fn(5, make).map_batch(2, sum)
    assert calls == []
    assert next(pipeline) == 1 and calls == [0, 1]
    assert pipeline.to_array() == [4 + 9, 16] and calls == [0, 1, 2, 3, 4]


def test_repeat_and_consumers() -> None:
    pipeline = data.repeat(3, "x")
    assert pipeline.fold(lambda text, part: text + part, "") == "xxx"
    pipeline.reset()
    pairs: list[tuple[int, str]] = []
    pipeline.iteri(lambda position, element: pairs.append((position, element)))
    assert pairs == [(0, "x"), (1, "x"), (2, "x")]
    pipeline.reset()
    seen: list[str] = []
    pipeline.iter(seen.append)
    assert seen == ["x"] * 3


class Example(NamedTuple):
    image: Any
    label: Any


def test_batch_combines_nested_examples_entry_by_entry() -> None:
    def make(index: int) -> Any:
        return {"pair": Example(np.full(2, index, np.float32), index), "name": f"no. {index}"}

    batch = next(data.of_fn(3, make).batch(3))
    assert type(batch["pair"]) is Example and batch["name"] == ["no. 0", "no. 1", "no. 2"]
    np.testing.assert_array_equal(batch["pair"].image.numpy(), [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(batch["pair"].label.numpy(), [0, 1, 2])


def test_map_can_attach_a_loss_to_each_batch() -> None:
    x, y = examples(4)

    def with_loss(pair: Any) -> Any:
        x_batch, y_batch = pair
        return x_batch, lambda output: (output, y_batch)

    x_batch, loss = next(data.prepare((x, y), batch_size=2).map(with_loss))
    np.testing.assert_array_equal(loss(x_batch)[1].numpy(), [0, 1])


def test_prefetching_gives_the_same_elements_in_every_pass() -> None:
    pipeline = data.of_fn(50, lambda index: index).prefetch(4).map(lambda k: k + 1).batch(7).prefetch(2)
    for _ in range(3):
        flat = [int(k) for batch in pipeline for k in batch.numpy()]
        assert flat == list(range(1, 51))
        pipeline.reset()


def test_prefetching_makes_elements_in_another_thread_and_not_too_many() -> None:
    made: list[str] = []
    pipeline = data.of_fn(100, lambda index: made.append(threading.current_thread().name) or index).prefetch(3)
    assert next(pipeline) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    # One taken, three waiting in the queue and one in the thread's hands.
    assert len(made) == 5 and set(made) == {"kaun-prefetch"}
    pipeline.reset()
    assert not prefetch_threads()


def test_an_error_while_prefetching_comes_in_its_place() -> None:
    def make(index: int) -> int:
        if index == 3:
            raise KeyError("broken example")
        return index

    pipeline = data.of_fn(10, make).prefetch(2)
    taken = []
    with pytest.raises(KeyError, match="broken example"):
        for element in pipeline:
            taken.append(element)
    assert taken == [0, 1, 2] and not prefetch_threads()


@pytest.mark.parametrize("taken", [1, 5, 10])
def test_stopping_early_ends_the_thread(taken: int) -> None:
    pipeline = data.of_fn(10, lambda index: index).prefetch(2)
    for _ in range(taken):
        next(pipeline)
    pipeline.reset()
    assert not prefetch_threads() and next(pipeline) == 0
    del pipeline
    gc.collect()
    assert not prefetch_threads()


def test_ending_a_pass_early_ends_nested_prefetching_too() -> None:
    pipeline = data.of_fn(100, lambda index: index).prefetch(2).map(lambda k: k).map_batch(3, list).prefetch(2)
    assert next(pipeline) == [0, 1, 2]
    assert len(prefetch_threads()) == 2
    pipeline.reset()
    assert not prefetch_threads()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: data.prepare((np.zeros(3), np.zeros(4)), batch_size=2), ValueError, r"prepare: got first .* \[3, 4\]"),
        (lambda: data.prepare((np.zeros(3), np.zeros(3)), batch_size=0), ValueError, "prepare: got batch_size=0"),
        (lambda: data.prepare((np.zeros(3), np.zeros(3)), batch_size=4), ValueError, "leaves no whole batch"),
        (lambda: data.prepare(np.zeros(3), batch_size=1), TypeError, "prepare: got ndarray, expected a tuple"),
        (lambda: data.of_tensor(np.float32(1)), ValueError, r"of_tensor: got shape \(\)"),
        (lambda: data.of_tensor(["a", None]), TypeError, "of_tensor: got list, expected a tensor"),
        (lambda: data.of_array([1]).batch(2.5), TypeError, "batch: got n=2.5, expected an int"),
        (lambda: data.of_array([1]).prefetch(0), ValueError, "prefetch: got n=0"),
        (lambda: data.repeat(-1, 0), ValueError, "repeat: got n=-1"),
        (lambda: next(data.of_array([np.zeros(2), np.zeros(3)]).batch(2)), ValueError, r"batch: got float64 \(3,\)"),
        (lambda: next(data.of_array([(1, 2), (1,)]).batch(2)), ValueError, "batch: elements differ in length"),
        (lambda: next(data.of_array([{"a": 1}, {"b": 1}]).batch(2)), ValueError, "batch: elements differ in keys"),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^data\..*{message}|^data\.{message}"):
        make()
