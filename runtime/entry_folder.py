"""A folder of entries under keys, each with its checksum: complete or not there, bounded in size, shared by processes.

One file per key:

    magic (8) | format (4) | zero (4) | payload length (8) | SHA-256 of key and payload (32) | payload

Trust boundary: an entry may be machine code that will run. The checksum finds damage, not malice: whoever
can write the folder can run code as you. So the folder is made with mode 0700, and one that others own
or that everybody may write is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["EntryFolder", "KaunCacheWarning"]

MAGIC = b"KAUNKERN"
FORMAT = 1
HEADER = struct.Struct("<8sIIQ32s")
SUFFIX = ".kernel"

# An eviction removes down to this share of the limit, so that the next ones are far away.
KEEP_SHARE = 0.75
# A temporary file this old belongs to a process that died while writing.
STALE_SECONDS = 3600.0


class KaunCacheWarning(UserWarning):
    """The kernel cache on disk cannot be used; kernels are compiled again in each process."""


class EntryFolder:
    """Bytes by key, in a folder.

    folder: where entries live; None keeps nothing on disk.
    limit_bytes: bound on the folder's size; the least recently used entries go first. Checked on the first
        write of a process and then each time a sixteenth of it was written, so it may be exceeded by that.

    A folder that cannot be read or written, a full disk, a damaged entry: none of them is an error. The
    first problem with the folder warns once (`KaunCacheWarning`), and it goes on without writing.
    """

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.RLock()
        self._writable: bool | None = None  # not known before the first write
        self._readable: bool | None = None
        self._written_since_scan = 0
        self._scanned = False

    @property
    def folder(self) -> Path | None:
        """Where entries live on disk, None when nothing is kept there."""
        return self._folder

    def lookup(self, key: str) -> bytes | None:
        """The bytes stored on disk under `key`; None when there are none that can be trusted.

        An entry that is truncated, altered, of another format or under another key is deleted.
        """
        if self._folder is None or not self._may_read():
            return None
        path = self._folder / (key + SUFFIX)
        try:
            content = _read(path)
        except OSError:
            # Not there, mostly. An entry that cannot be read is compiled again; storing it may then warn.
            return None
        payload = _unpack(key, content)
        if payload is None:
            self.discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the modification time orders entries by last use
        return payload

    def store(self, key: str, data: bytes) -> None:
        """Keep bytes on disk under `key`: complete or not at all, whatever other processes do meanwhile."""
        if self._folder is None or self._writable is False:
            return
        try:
            if self._writable is None:
                self._prepare_folder()
            try:
                self._write(key, data)
            except FileNotFoundError:  # somebody deleted the folder while we ran
                self._prepare_folder()
                self._write(key, data)
        except OSError as error:
            self._stop_writing(f"cannot write to it ({error})")
            return
        self._account(len(data) + HEADER.size)

    def discard(self, key: str) -> None:
        """Delete the entry of `key` from disk, if there is one."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / (key + SUFFIX)).unlink()

    def clear(self) -> None:
        """Delete every entry."""
        for entry in self._entries():
            with contextlib.suppress(OSError):
                entry.path.unlink()

    def size(self) -> int:
        """Bytes that the entries on disk take."""
        return sum(entry.bytes for entry in self._entries())

    def count(self) -> int:
        """Number of entries on disk."""
        return sum(1 for _ in self._entries())

    def _prepare_folder(self) -> None:
        """Make the folder, and find out whether its content may be trusted. Raises OSError if it cannot be made."""
        assert self._folder is not None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._readable = None
        if self._may_read():
            self._writable = True
        else:
            raise PermissionError(f"{self._folder} is not to be trusted")

    def _write(self, key: str, data: bytes) -> None:
        """Write an entry under a temporary name, then give it its own. Raises OSError, leaving nothing behind."""
        assert self._folder is not None
        handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix="kaun-", dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_pack(key, data))
            os.replace(temporary, self._folder / (key + SUFFIX))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _may_read(self) -> bool:
        """Whether entries in the folder are ours to run. Checked once, when the folder first exists."""
        assert self._folder is not None
        if self._readable is None:
            try:
                status = os.stat(self._folder)
            except OSError:
                return False  # no folder yet: nothing to read
            foreign = status.st_uid not in (os.geteuid(), 0)
            shared = bool(status.st_mode & stat.S_IWOTH)
            self._readable = not (foreign or shared)
            if not self._readable:
                reason = "another user owns it" if foreign else "every user may write to it"
                self._stop_writing(f"{reason}, and its content would run as you")
        return self._readable

    def _stop_writing(self, reason: str) -> None:
        with self._lock:
            first, self._writable = self._writable is not False, False
        if first:
            warnings.warn(
                f"kernel cache {self._folder}: {reason}; continuing without storing kernels there",
                KaunCacheWarning,
                stacklevel=2,
            )

    def _account(self, written: int) -> None:
        """Evict once enough was written since the last look at the folder."""
        with self._lock:
            self._written_since_scan += written
            if self._scanned and self._written_since_scan < self._limit // 16:
                return
            self._written_since_scan = 0
            self._scanned = True
        self._evict()

    def _evict(self) -> None:
        """Delete the least recently used entries if there are too many, and what dead processes left."""
        assert self._folder is not None
        now = time.time()
        for path in self._folder.glob("kaun-*.tmp"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        if total <= self._limit:
            return
        for entry in entries:
            if total <= self._limit * KEEP_SHARE:
                return
            with contextlib.suppress(OSError):  # another process may be evicting too
                entry.path.unlink()
            total -= entry.bytes

    def _entries(self) -> Iterator[_Entry]:
        if self._folder is None:
            return
        try:
            names = [name for name in os.listdir(self._folder) if name.endswith(SUFFIX)]
        except OSError:
            return
        for name in names:
            path = self._folder / name
            try:
                status = path.stat()
            except OSError:
                continue  # evicted meanwhile
            yield _Entry(path, status.st_size, status.st_mtime)


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float


def _checksum(key: str, payload: bytes) -> bytes:
    # The key is part of it, so an entry copied or renamed to another key does not pass.
    return hashlib.sha256(key.encode() + b"\0" + payload).digest()


def _pack(key: str, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, FORMAT, 0, len(payload), _checksum(key, payload)) + payload


def _read(path: Path) -> bytes:
    """What is in an entry's file, nothing unless it is as long as it says. Raises OSError if it cannot be read.

    Opened without waiting: what is in the place of an entry may be a pipe, at which a reader waits for a writer.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return b""
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or status.st_size != HEADER.size + HEADER.unpack(header)[3]:
            return b""
        return header + file.read()


def _unpack(key: str, content: bytes) -> bytes | None:
    """The payload of an entry's file, None unless every part of it is as `_pack` writes it."""
    if len(content) < HEADER.size:
        return None
    magic, form, zero, length, checksum = HEADER.unpack_from(content)
    payload = content[HEADER.size :]
    intact = (magic, form, zero, length) == (MAGIC, FORMAT, 0, len(payload)) and checksum == _checksum(key, payload)
    return payload if intact else None
