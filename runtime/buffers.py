"""Memory for arrays: aligned, recycled through free lists, and shared with NumPy without copies."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "Buffer", "from_numpy", "give_back", "retained_bytes", "size_class", "take", "trim"]

# One cache line, and the widest vector: kernels may use aligned vector loads at offset zero.
ALIGNMENT = 64

# From here on memory comes in whole pages from the system, and in huge ones where it has them: a matrix
# product walks its operands by columns, and 4 KiB pages would miss the translation buffer at every step.
MAPPED_BYTES = 1 << 20
HUGE_PAGE = 2 << 20

# Free blocks of one size kept for reuse when they are small: up to this many bytes, but a few at least.
SMALL_RETAINED = 2 << 20
FEW_BLOCKS = 8


Block: TypeAlias = tuple[int, Any]


class Buffer:
    """`nbytes` bytes of uninitialised memory at `address`, aligned to 64 bytes.

    Its memory returns to a free list when the last reference to the buffer, and to every array that
    `view` made of it, is gone. A buffer of size zero has a valid address too.

    Raises ValueError when `nbytes` is negative, MemoryError when the system refuses.
    """

    __slots__ = ("__weakref__", "_memory", "_owner", "_size", "address", "nbytes")

    address: int
    nbytes: int
    _owner: object  # what keeps the memory alive, for memory that is not ours
    _memory: Any  # our block
    _size: int  # its size class, 0 when the memory is not ours

    def __init__(self, nbytes: int) -> None:
        self._size = 0  # so that __del__ has nothing to return if a later line fails
        size = size_class(nbytes)
        self.address, self._memory = take(size)
        self._size = size
        self._owner = None
        self.nbytes = nbytes

    @property
    def is_ours(self) -> bool:
        """Whether the memory was allocated here, so that only what refers to the buffer can see it."""
        return self._size != 0

    def view(self, dtype: npt.DTypeLike, shape: Sequence[int], *, writable: bool = True) -> npt.NDArray[Any]:
        """The first bytes as a C-contiguous array of `dtype` and `shape`, which keeps the buffer alive.

        writable: False for an array that NumPy refuses to write through.

        Raises ValueError when the array would not fit.
        """
        kind = np.dtype(dtype)
        needed = kind.itemsize * math.prod(shape)
        if needed > self.nbytes:
            raise ValueError(
                f"buffers.Buffer.view: got {kind} of shape {tuple(shape)}, {needed} bytes, "
                f"expected at most the buffer's {self.nbytes}"
            )
        # As bytes first: types beyond NumPy's own, such as bfloat16, have no name in this protocol.
        data = (self.address, not writable)
        window = _Window(self, {"version": 3, "typestr": "|u1", "shape": (needed,), "data": data})
        return np.ndarray(tuple(shape), kind, np.asarray(window))

    def __del__(self) -> None:
        size = self._size
        if size and _free is not None:  # module globals are None while the interpreter ends
            self._size = 0
            give_back(size, (self.address, self._memory))

    def __reduce__(self) -> Any:
        raise TypeError(f"buffers.Buffer: got {self!r} to copy or pickle, expected an array that `view` made of it")

    def __repr__(self) -> str:
        return f"Buffer({self.nbytes} bytes at {self.address:#x})"


def from_numpy(array: npt.NDArray[Any], *, alignment: int | None = None) -> Buffer:
    """A buffer with the array's elements in C order.

    Shares the array's memory, and keeps the array alive, when it is C-contiguous and its address is a
    multiple of `alignment` (default: the element size); otherwise copies. Shared memory shows later
    changes to the array, so share only what nobody writes to. A read-only array may be shared: kernels
    never write to their inputs.

    Raises TypeError when the array holds Python objects.
    """
    if array.dtype.hasobject:
        raise TypeError(f"buffers.from_numpy: got an array of {array.dtype}, expected numbers")
    address = array.ctypes.data
    if array.flags.c_contiguous and array.size and address % (alignment or array.dtype.itemsize) == 0:
        return _borrow(array, address, array.nbytes)
    copy = Buffer(array.nbytes)
    copy.view(array.dtype, array.shape)[...] = array
    return copy


def take(size: int) -> Block:
    """A block of a size class: its aligned address, and the object that owns the memory."""
    blocks = _free.get(size)
    try:
        # Taking from a list is one step for other threads; looking first would be two.
        return blocks.pop() if blocks else _allocate(size)
    except IndexError:
        return _allocate(size)


def give_back(size: int, block: Block) -> None:
    """Keep a block that nobody uses any more for reuse, unless enough of its kind are kept already."""
    blocks = _free.setdefault(size, [])
    if size < MAPPED_BYTES:
        if len(blocks) < FEW_BLOCKS or len(blocks) * size < SMALL_RETAINED:
            blocks.append(block)
    elif size + retained_bytes() <= _large_limit:
        blocks.append(block)


def size_class(nbytes: int) -> int:
    """The size to allocate for a request: eight classes per power of two, so at most an eighth is wasted."""
    if nbytes < 0:
        raise ValueError(f"buffers.Buffer: got a size of {nbytes} bytes, expected zero or more")
    if nbytes <= ALIGNMENT:
        return ALIGNMENT
    quantum = max(ALIGNMENT, 1 << max(0, (nbytes - 1).bit_length() - 4))
    return (nbytes + quantum - 1) & -quantum


def retained_bytes() -> int:
    """Bytes in free lists, held for reuse."""
    return sum(size * len(blocks) for size, blocks in list(_free.items()))


def trim() -> None:
    """Give every free block back to the system, and what the C library holds for reuse where it can be told to."""
    for blocks in list(_free.values()):
        blocks.clear()
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim_heap is not None:
            trim_heap(ctypes.c_size_t(0))


class _Window:
    """What NumPy needs to see to make an array over a buffer's memory, and the reference it will hold."""

    __slots__ = ("__array_interface__", "buffer")

    def __init__(self, buffer: Buffer, interface: dict[str, object]) -> None:
        self.buffer = buffer
        self.__array_interface__ = interface


# Free blocks by size class. Appending to and popping from a list need no lock; a lock would deadlock when
# the collector runs a buffer's __del__ while its own thread holds it.
_free: dict[int, list[Block]] = {}


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 4 << 30


def _retained_limit() -> int:
    """Bytes of large blocks to keep: a training step frees its old state and asks for as much again."""
    text = os.environ.get("KAUN_BUFFER_CACHE", "").strip()
    if text and not text.isdecimal():
        raise ValueError(f"buffers.Buffer: KAUN_BUFFER_CACHE is {text!r}, expected a number of bytes")
    return int(text) if text else _physical_memory() // 4


_large_limit = _retained_limit()


def _allocate(size: int) -> Block:
    try:
        return _map_pages(size) if size >= MAPPED_BYTES else _from_heap(size)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        # What is held for reuse may be what is missing.
        if retained_bytes():
            trim()
            return _allocate(size)
        raise MemoryError(f"buffers.Buffer: the system refused {size} bytes ({error})") from error


def _from_heap(size: int) -> Block:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    return -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT, memory


def _map_pages(size: int) -> Block:
    huge = size >= 2 * HUGE_PAGE
    pages = mmap.mmap(-1, size + (HUGE_PAGE if huge else 0), flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    # The array keeps the mapping open, and ends it with its last reference.
    memory = np.frombuffer(pages, np.uint8)
    step = HUGE_PAGE if huge else ALIGNMENT
    address = -(-memory.ctypes.data // step) * step
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        # Not for the end, which would be a whole huge page too, however little of it is used: requests of this class
        # may be smaller by all but one byte of what its sizes are multiples of.
        smallest = size - (1 << max(0, (size - 1).bit_length() - 4)) + 1
        _advise(pages, address - memory.ctypes.data, smallest // HUGE_PAGE * HUGE_PAGE)
    return address, memory


def _advise(pages: mmap.mmap, start: int, size: int) -> None:
    try:
        pages.madvise(mmap.MADV_HUGEPAGE, start, size)
    except OSError:
        return  # advice only: a kernel built without huge pages refuses it


def _borrow(owner: object, address: int, nbytes: int) -> Buffer:
    """A buffer over memory that something else owns."""
    buffer = Buffer.__new__(Buffer)
    buffer.address, buffer.nbytes = address, nbytes
    buffer._owner, buffer._memory, buffer._size = owner, None, 0
    return buffer
