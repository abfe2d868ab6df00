"""Buffers are aligned, alive as long as anyone looks, and recycled only then."""

import copy
import gc
import itertools
import pickle
import random
import threading
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from kaun.runtime import buffers
from kaun.runtime.buffers import ALIGNMENT, Buffer, from_numpy

SIZES = [0, 1, 63, 64, 65, 1000, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000, 1 << 23]


@pytest.fixture(autouse=True)
def empty_free_lists():
    gc.collect()
    buffers.trim()
    yield
    buffers.trim()


@pytest.mark.parametrize("nbytes", SIZES)
def test_memory_is_aligned_and_all_of_it_writable(nbytes: int) -> None:
    for _ in range(2):  # new, then recycled
        buffer = Buffer(nbytes)
        assert buffer.nbytes == nbytes and buffer.address % ALIGNMENT == 0 and buffer.address > 0
        array = buffer.view(np.uint8, (nbytes,))
        array[...] = 255
        assert int(array.sum(dtype=np.int64)) == 255 * nbytes
        del buffer, array


def test_live_buffers_do_not_overlap() -> None:
    random_sizes = random.Random(0)
    live: list[Buffer] = []
    for _ in range(400):
        live.append(Buffer(random_sizes.choice(SIZES[:7]) + random_sizes.randrange(100)))
        if len(live) > 60:
            del live[random_sizes.randrange(60)]
        spans = sorted((buffer.address, buffer.address + buffer.nbytes) for buffer in live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("nbytes", [1, 100, 4096, 1 << 20, 3 << 20])
def testsize_classes_hold_the_request_and_waste_little(nbytes: int) -> None:
    for size in range(nbytes, nbytes + 300):
        chosen = buffers.size_class(size)
        assert chosen >= size and chosen % ALIGNMENT == 0
        assert chosen - size <= max(ALIGNMENT, size // 8)
        assert buffers.size_class(chosen) == chosen


def test_memory_is_reused_after_the_last_reference() -> None:
    buffer = Buffer(5000)
    address = buffer.address
    assert buffers.retained_bytes() == 0
    del buffer
    assert buffers.retained_bytes() == buffers.size_class(5000)
    assert Buffer(4990).address == address


def test_views_keep_the_memory_alive() -> None:
    buffer = Buffer(4000)
    address, gone = buffer.address, weakref.ref(buffer)
    array = buffer.view(np.float32, (10, 100))
    array[...] = 3
    del buffer
    part = array[2:4].T.reshape(-1)[::2].view(np.int32)
    slice_of_it = array[5]
    del array
    others = [Buffer(4000) for _ in range(20)]
    assert address not in [other.address for other in others] and gone() is not None
    for other in others:
        other.view(np.uint8, (4000,))[...] = 0
    assert (slice_of_it == 3).all() and (part == np.float32(3).view(np.int32)).all()
    del slice_of_it, part
    assert gone() is None
    assert Buffer(4000).address == address


def test_views_have_the_dtype_and_shape_asked_for() -> None:
    buffer = Buffer(96)
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_):
        for shape in ((), (3,), (2, 3), (0, 5), (1, 2, 2)):
            array = buffer.view(dtype, shape)
            assert array.dtype == dtype and array.shape == shape and array.flags.c_contiguous
            assert array.size == 0 or array.ctypes.data == buffer.address


def test_views_share_the_memory() -> None:
    buffer = Buffer(16)
    buffer.view(np.uint32, (4,))[...] = np.array([1.0, -2.0, 0.5, np.inf], np.float32).view(np.uint32)
    np.testing.assert_array_equal(buffer.view(np.float32, (2, 2)), [[1.0, -2.0], [0.5, np.inf]])


def test_read_only_views_refuse_writing() -> None:
    buffer = Buffer(16)
    array = buffer.view(np.float32, (4,), writable=False)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    buffer.view(np.float32, (4,))[0] = 1


def test_a_view_larger_than_the_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 of shape \(4, 2\), 32 bytes, expected at most the buffer's 31"):
        Buffer(31).view(np.float32, (4, 2))


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="got a size of -1 bytes"):
        Buffer(-1)


@pytest.mark.parametrize("nbytes", [1 << 46, 1 << 62, 1 << 70])
def test_what_no_machine_has_is_a_memory_error_that_says_how_much(nbytes: int) -> None:
    with pytest.raises(MemoryError, match=f"refused {nbytes} bytes"):
        Buffer(nbytes)


def test_memory_held_for_reuse_is_given_up_before_failing(monkeypatch) -> None:
    del_me = Buffer(1 << 21)
    del del_me
    assert buffers.retained_bytes() > 0
    real, refused = buffers._map_pages, []

    def tight(size: int):
        if buffers.retained_bytes():
            refused.append(size)
            raise OSError("no room")
        return real(size)

    monkeypatch.setattr(buffers, "_map_pages", tight)
    assert Buffer(1 << 22).address and refused == [1 << 22]


def test_what_is_retained_is_bounded(monkeypatch) -> None:
    many = [Buffer(1000) for _ in range(10_000)]
    del many
    assert buffers.retained_bytes() <= buffers.SMALL_RETAINED + 2048
    buffers.trim()
    monkeypatch.setattr(buffers, "_large_limit", 10 << 20)
    large = [Buffer(3 << 20) for _ in range(8)]
    del large
    assert 0 < buffers.retained_bytes() <= 10 << 20


def test_contiguous_arrays_are_shared_and_kept_alive() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffer = from_numpy(array)
    assert buffer.address == array.ctypes.data and buffer.nbytes == 48
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is not None
    view = buffer.view(np.float32, (3, 4))
    del buffer
    gc.collect()
    np.testing.assert_array_equal(view, np.arange(12).reshape(3, 4))
    del view
    assert gone() is None
    assert buffers.retained_bytes() == 0  # borrowed memory never enters a free list


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(4, 6).T,
        np.arange(24, dtype=np.int16)[::3],
        np.arange(24, dtype=np.float64)[::-1],
        np.broadcast_to(np.float32(3), (4, 5)),
        np.arange(33, dtype=np.uint8)[1:].view(np.float32),
        np.zeros((0, 3), np.float32),
        np.arange(6).astype(ml_dtypes.bfloat16)[::2],
    ],
    ids=["transposed", "strided", "reversed", "broadcast", "misaligned", "empty", "bfloat16"],
)
def test_other_arrays_are_copied_in_c_order(array: np.ndarray) -> None:
    buffer = from_numpy(array, alignment=ALIGNMENT)
    copy = buffer.view(array.dtype, array.shape)
    assert copy.flags.c_contiguous and copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)
    assert not np.shares_memory(copy, array)
    assert buffer.address % ALIGNMENT == 0


def test_sharing_honours_the_alignment_asked_for() -> None:
    memory = Buffer(1024).view(np.float32, (256,))
    for offset in (0, 1, 4, 16):
        array = memory[offset:]
        for alignment in (None, 16, 64):
            buffer = from_numpy(array, alignment=alignment)
            expected = (offset * 4) % (alignment or 4) == 0
            assert (buffer.address == array.ctypes.data) == expected
            assert buffer.address % (alignment or 4) == 0


def test_read_only_arrays_are_shared() -> None:
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    assert from_numpy(array).address == array.ctypes.data


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="got an array of object"):
        from_numpy(np.array([object()]))


def test_threads_never_get_the_same_memory() -> None:
    problems: list[str] = []

    def work(mark: int) -> None:
        rng = random.Random(mark)
        live: list[tuple[np.ndarray, int]] = []
        for step in range(1500):
            size = rng.choice((100, 100, 3000, 1 << 20))
            array = Buffer(size).view(np.uint8, (64,))
            value = (mark * 61 + step) % 251
            array[...] = value
            live.append((array, value))
            if len(live) > 8:
                old, expected = live.pop(rng.randrange(8))
                if not (old == expected).all():
                    problems.append(f"thread {mark} lost its bytes at step {step}")
                    return

    workers = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


def test_buffers_in_reference_cycles_come_back() -> None:
    class Holder:
        pass

    holder = Holder()
    holder.me, holder.buffer = holder, Buffer(2000)
    del holder
    gc.collect()
    assert buffers.retained_bytes() == buffers.size_class(2000)


def test_buffers_cannot_be_copied_or_pickled() -> None:
    # A copy would own the same memory, and free it a second time.
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="to copy or pickle"):
            attempt(Buffer(100))


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs huge pages")
def test_the_end_of_a_large_buffer_takes_no_whole_huge_page():
    """Five megabytes and a bit: of the third huge page little is used, and little is taken."""
    size = 5 << 20
    memory = buffers.Buffer(size)
    memory.view(np.uint8, (size,))[...] = 1
    advised, start = [], memory.address
    with open("/proc/self/smaps") as maps:
        for line in maps:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
            elif first == "VmFlags:" and " hg" in line and low < start + size and start < high:
                advised.append((low, high))
    assert advised, "no part of the buffer is advised"
    assert all(start <= low and high <= start + (4 << 20) for low, high in advised)
