"""Flat images in memory: mapped, filled in, protected, and there until the process ends."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

from kaun.runtime.flat_image import SEGMENT_ALIGNMENT, FlatImage

__all__ = ["map_image"]


def map_image(image: FlatImage) -> int:
    """Map an image that was checked; its address.

    Pages are never writable and executable at once. The memory is not given back: programs hold bare addresses, and a
    sleeping worker may stand in this code even while the process ends.

    ValueError for a function of the C library that this process does not have, OSError if the system refuses.
    """
    functions = {name: _address_of(name) for _, name in image.imports}
    base = _mapped(image.size + SEGMENT_ALIGNMENT)
    base = -(-base // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT
    ctypes.memmove(base, image.code, len(image.code))
    ctypes.memmove(base + image.data_offset, image.data, len(image.data))
    for offset, place in image.rebases:
        ctypes.c_uint64.from_address(base + offset).value = base + place
    for offset, name in image.imports:
        ctypes.c_uint64.from_address(base + offset).value = functions[name]
    if image.data:
        _protect(base + image.data_offset, len(image.data), mmap.PROT_READ)
    _protect(base, len(image.code), mmap.PROT_READ | mmap.PROT_EXEC)
    if sys.platform == "darwin":
        # Linux does this when pages become executable.
        _library.sys_icache_invalidate(ctypes.c_void_p(base), ctypes.c_size_t(len(image.code)))
    return base


_library = ctypes.CDLL(None, use_errno=True)


def _address_of(name: str) -> int:
    try:
        address = ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    except AttributeError:
        address = None
    if not address:
        raise ValueError(f"mapped_image: this process has no function {name}, which the code needs")
    return address


def _mapped(size: int) -> int:
    """New memory in whole pages. OSError if the system refuses."""
    function = _library.mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANON
    address: int | None = function(None, size, protection, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise _error("map memory for machine code")
    return address


def _protect(address: int, size: int, protection: int) -> None:
    if _library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(protection)):
        raise _error("make machine code executable")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"mapped_image: the system does not let this process {what}: {os.strerror(number)}")
