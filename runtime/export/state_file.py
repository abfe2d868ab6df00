"""A state in a file: what `NAME_save` writes in C, `NAME_load` reads, and Python does both of.

Words of 64 bits, little-endian; then the state as it lies in memory, padding included:

    0   "KAUNSTAT"
    1   the version of this format, 1
    2   bytes of the state
    3   fingerprint of its layout: names, types and offsets of its leaves
    4   the sum of its words, modulo 2**64
    5   the sum of its words times 1, 3, 5, ..., modulo 2**64
    6   zero
    7   zero

The sums find damage, not malice; a state holds numbers only, and no number makes a step touch other memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from kaun.runtime.export.layout import StateLayout

HEADER_BYTES = 64
SUM_WORDS = (4, 5)
_MAGIC = int.from_bytes(b"KAUNSTAT", "little")
_VERSION = 1

Numbers = npt.NDArray[np.generic]


def header_words(state_bytes: int, fingerprint: int, sums: tuple[int, int]) -> tuple[int, ...]:
    """The header."""
    return (_MAGIC, _VERSION, state_bytes, fingerprint, *sums, 0, 0)


def packed(layout: StateLayout, arrays: Sequence[Numbers]) -> bytes:
    """The file for a state with these arrays, one for each leaf."""
    state = bytearray(layout.nbytes)
    for slot, array in zip(layout.slots, arrays, strict=True):
        data = np.ascontiguousarray(array).astype(slot.leaf.dtype.numpy, copy=False).tobytes()
        if len(data) != slot.leaf.nbytes:
            raise ValueError(f"state_file.packed: got {array.dtype}{list(array.shape)}, expected {slot.leaf!r}")
        state[slot.offset : slot.offset + len(data)] = data
    words = header_words(layout.nbytes, layout.fingerprint, _sums(bytes(state)))
    return np.array(words, "<u8").tobytes() + bytes(state)


def unpacked(layout: StateLayout, content: bytes) -> list[Numbers]:
    """The arrays of a state in a file. ValueError unless it is one of this layout, and whole."""
    state = content[HEADER_BYTES:]
    expected = header_words(layout.nbytes, layout.fingerprint, _sums(state[: len(state) // 8 * 8]))
    if len(state) != layout.nbytes or content[:HEADER_BYTES] != np.array(expected, "<u8").tobytes():
        raise ValueError(
            f"got {len(content)} bytes, expected an undamaged state of this step in "
            f"{HEADER_BYTES + layout.nbytes}"
        )
    return [
        np.frombuffer(state, slot.leaf.dtype.numpy, slot.leaf.nbytes // slot.leaf.dtype.itemsize, slot.offset)
        .reshape(slot.leaf.shape)
        .copy()
        for slot in layout.slots
    ]


def _sums(state: bytes) -> tuple[int, int]:
    words = np.frombuffer(state, "<u8")
    weights = 2 * np.arange(words.size, dtype=np.uint64) + 1
    return int(words.sum(dtype=np.uint64)), int((words * weights).sum(dtype=np.uint64))
