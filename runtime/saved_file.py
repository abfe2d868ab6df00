"""Files of named sections, each with its checksum, written whole or not at all; what is read is checked before use.

All numbers are little-endian.

    0    magic                  8    "KAUN-AOT"
    8    format                 4    1
    12   number of sections     4
    16   length of the file     8
    24   zero                   8
    32   SHA-256                32   of the first 32 bytes and the directory
    64   directory                   for each section
             name               32   ASCII, filled up with zeros
             offset             8    a multiple of 64: right after the section before, or the directory
             stored             8    bytes in the file
             length             8    bytes once unpacked: more than `stored` where zlib packed them, at most 64 times
             zero               8
             SHA-256            32   of the stored bytes
    ...  sections                    zeros in between

There is one way to write given sections, so every byte of a file is checked: those in no section have to be zero.

Trust boundary: the checksums find damage, not malice. Nothing that reading, checking and unpacking a file does depends
on where it comes from, and nothing in it is run by that. Machine code in it is run when its functions are called: do
that only with files from those whose programs you would run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Section", "read", "replace_file", "write"]

MAGIC = b"KAUN-AOT"
FORMAT = 1
_HEADER = struct.Struct("<8sIIQQ32s")
_ENTRY = struct.Struct("<32sQQQQ32s")
_ALIGNMENT = 64
# Where devices are named, and what a process writes to.
_SYSTEM = ("/dev/", "/proc/")
# More sections, and more bytes in a packed one, than any file has that is worth reading.
_MOST_SECTIONS = 1 << 12
_MOST_UNPACKED = 1 << 32
# Texts of programs are packed to a fifth, at best a thirtieth. What could be packed further than this is stored as it
# is, so no file asks for more memory than so many times its size.
_MOST_TIMES = 64

Bytes: TypeAlias = bytes | memoryview


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a file: its stored bytes, in pieces that follow one another, and how many they are once unpacked."""

    stored: tuple[Bytes, ...]
    length: int

    @classmethod
    def raw(cls, *pieces: Bytes) -> Section:
        """Bytes as they are."""
        return cls(pieces, sum(map(_length, pieces)))

    @classmethod
    def packed(cls, content: bytes) -> Section:
        """Bytes that are stored packed, if that makes them fewer, but not so few that reading would refuse them."""
        packed = zlib.compress(content, 6)
        fits = len(packed) < len(content) <= _most_unpacked(len(packed))
        return cls((packed,), len(content)) if fits else cls.raw(content)

    @cached_property
    def stored_length(self) -> int:
        return sum(map(_length, self.stored))

    @cached_property
    def checksum(self) -> bytes:
        digest = hashlib.sha256()
        for piece in self.stored:
            digest.update(piece)
        return digest.digest()

    def content(self) -> bytes:
        """The bytes, unpacked. ValueError if they do not unpack to as many as they should."""
        joined = b"".join(bytes(piece) for piece in self.stored)
        if self.length == len(joined):
            return joined
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(joined, self.length + 1)
        except zlib.error as error:
            raise ValueError(f"saved_file: a section does not unpack: {error}") from None
        if len(content) != self.length or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"saved_file: a section does not unpack to its {self.length} bytes")
        return content


def _most_unpacked(stored: int) -> int:
    """How many bytes so many stored ones may unpack to."""
    return max(stored, min(_MOST_TIMES * stored, _MOST_UNPACKED))


def _length(piece: Bytes) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], sections: Mapping[str, Section]) -> None:
    """Write a file of these sections, in their order; see `replace_file`."""
    replace_file(os.fspath(path), _pieces(sections))


def _pieces(sections: Mapping[str, Section]) -> list[Bytes]:
    entries, pieces = [], []
    offset = _aligned(_HEADER.size + _ENTRY.size * len(sections))
    start = offset
    for name, section in sections.items():
        encoded = name.encode("ascii")
        if not 0 < len(encoded) <= 32:
            raise ValueError(f"saved_file.write: got the name {name!r}, expected 1 to 32 letters")
        entries.append(_ENTRY.pack(encoded, offset, section.stored_length, section.length, 0, section.checksum))
        padding = -section.stored_length % _ALIGNMENT
        pieces += [*section.stored, bytes(padding)]
        offset += section.stored_length + padding
    directory = b"".join(entries)
    begin = _HEADER.pack(MAGIC, FORMAT, len(sections), offset, 0, bytes(32))[:32]
    head = begin + hashlib.sha256(begin + directory).digest() + directory
    return [head + bytes(start - len(head)), *pieces]


def replace_file(path: str, pieces: Iterable[Bytes]) -> None:
    """Make these bytes the content of the file, all or nothing: until the last is on the disk, the old file is there.

    Missing folders are made. OSError if the file cannot be written, such as on a full disk; nothing is left behind.
    A device or a pipe is written to as it is: a file in its place would take it from everybody.
    """
    if os.path.abspath(path).startswith(_SYSTEM) or (os.path.exists(path) and not os.path.isfile(path)):
        try:
            with open(path, "wb") as device:
                for piece in pieces:
                    device.write(piece)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        return
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # it names a file nobody asked for, or none
            raise OSError(error.errno, error.strerror, path) from error
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power failure, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> dict[str, Section]:
    """The sections of a file, whose bytes were all checked; each starts at an address that is a multiple of 64.

    ValueError, which leaves naming the file to who was asked for it, for one that `write` did not write or that is
    damaged; OSError if it cannot be read.
    """
    return _sections(_content(Path(path)))


def _content(path: Path) -> memoryview:
    """The file's bytes, in memory of our own: a file that changes meanwhile is not read twice.

    ValueError before anything of a large file that is no such file is read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_begin(file.read(_HEADER.size), size)
        file.seek(0)
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        content = memory.data[start : start + size]
        done = 0
        while done < size:
            count = file.readinto(content[done:])
            if not count:
                break
            done += count
    return content[:done].toreadonly()


def _check_begin(begin: bytes | memoryview, size: int) -> None:
    """ValueError unless a file of this size begins like one of this format."""
    if len(begin) < _HEADER.size or bytes(begin[:8]) != MAGIC:
        raise ValueError("this is not a file that `save` of a compiled function or step wrote")
    _, form, _, length, _, _ = _HEADER.unpack_from(begin)
    if form != FORMAT:
        raise ValueError(f"the file has format {form}, expected {FORMAT}: another version of Kaun wrote it")
    if length != size:
        raise ValueError(f"the file has {size} bytes, expected {length}: it is cut short or was appended to")


def _sections(content: memoryview) -> dict[str, Section]:
    _check_begin(content, content.nbytes)
    _, _, count, length, zero, checksum = _HEADER.unpack_from(content)
    end = _HEADER.size + _ENTRY.size * count
    if zero or count > _MOST_SECTIONS or end > length:
        raise ValueError("the header is damaged")
    begin, directory = content[:32].tobytes(), content[_HEADER.size : end].tobytes()
    if hashlib.sha256(begin + directory).digest() != checksum:
        raise ValueError("the checksum of the directory does not fit: the file is damaged")
    return _checked(content, end, list(_ENTRY.iter_unpack(directory)))


def _checked(content: memoryview, end: int, entries: Sequence[tuple[Any, ...]]) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for encoded, offset, stored, length, zero, checksum in entries:
        name = _name(encoded)
        place = _aligned(end)
        if name in found or zero or offset != place or stored > content.nbytes - place:
            raise ValueError(f"the section {name!r} does not lie where it should")
        if any(content[end:place]):
            raise ValueError(f"the bytes before the section {name!r} are not zero")
        if length < stored or length > _most_unpacked(stored):
            raise ValueError(f"the section {name!r} is said to be of {length} bytes, stored in {stored}")
        end = place + stored
        found[name] = Section((content[place:end],), length)
        if found[name].checksum != checksum:
            raise ValueError(f"the checksum of the section {name!r} does not fit: the file is damaged")
    if _aligned(end) != content.nbytes or any(content[end:]):
        raise ValueError("the file does not end after its last section")
    return found


def _name(encoded: bytes) -> str:
    name = encoded.rstrip(b"\0")
    if not name or not all(33 <= letter < 127 for letter in name):
        raise ValueError(f"got a section named {name!r}, expected letters")
    return name.decode("ascii")
