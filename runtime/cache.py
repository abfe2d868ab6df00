"""Compiled kernels, each made once: in this process, across threads, and across runs through a folder on disk.

A kernel's key is the SHA-256 of its canonical text, the target, the optimisation level, the sources of
the compiler and the versions of llvmlite and LLVM. The folder holds one file per key:

    magic (8) | format (4) | zero (4) | payload length (8) | SHA-256 of key and payload (32) | payload
    payload = symbol name, NUL, object code

Trust boundary: an entry is machine code that will run. The checksum finds damage, not malice: whoever
can write the folder can run code as you. So the folder is made with mode 0700, and one that others own
or that everybody may write is not used.

Environment: KAUN_CACHE_DIR (the folder; otherwise the user's cache folder), KAUN_CACHE_SIZE (bytes, or
with a suffix K, M or G; default 512M), KAUN_CACHE=0 (nothing on disk).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import stat
import struct
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from kaun.runtime import activity
from kaun.runtime.target import Target, usable_cores

__all__ = [
    "CacheStatistics",
    "KaunCacheWarning",
    "KernelCache",
    "KernelRequest",
    "compile_kernels",
    "compiler_version",
    "default_cache",
    "kernel_key",
]

MAGIC = b"KAUNKERN"
FORMAT = 1
HEADER = struct.Struct("<8sIIQ32s")
SUFFIX = ".kernel"
DEFAULT_LIMIT = 512 << 20

# An eviction removes down to this share of the limit, so that the next ones are far away.
KEEP_SHARE = 0.75
# A temporary file this old belongs to a process that died while writing.
STALE_SECONDS = 3600.0


class KaunCacheWarning(UserWarning):
    """The kernel cache on disk cannot be used; kernels are compiled again in each process."""


@dataclasses.dataclass(frozen=True)
class CacheStatistics:
    """What a cache did since it was made or last reset.

    memory_hits: requests answered by a kernel already loaded, or being compiled by another thread.
    disk_hits: kernels loaded from the folder.
    compiled: kernels compiled.
    compile_seconds: wall-clock time spent on compiling them, from emitting LLVM IR to loading.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    compiled: int = 0
    compile_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class KernelRequest:
    """A kernel somebody wants to call.

    name: the symbol that the emitted module defines.
    text_key: canonical text that determines the kernel's behaviour. It should not contain `name`: equal
        texts are compiled once, and all of them get the address of the first.
    emit: makes the LLVM IR text; called only when the kernel is neither in memory nor on disk.
    level: optimisation level, 0 to 3.
    """

    name: str
    text_key: str
    emit: Callable[[], str]
    level: int = 2


class KernelCache:
    """Loaded kernels by key, and their object code in a folder.

    folder: where entries live; None keeps nothing on disk.
    limit_bytes: bound on the folder's size; the least recently used entries go first. Checked on the first
        write of a process and then each time a sixteenth of it was written, so it may be exceeded by that.

    A folder that cannot be read or written, a full disk, a damaged entry: none of them is an error. The
    first problem with the folder warns once (`KaunCacheWarning`), and the cache goes on without writing.
    """

    def __init__(self, folder: Path | None, limit_bytes: int = DEFAULT_LIMIT) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.RLock()
        self._addresses: dict[str, int] = {}
        self._in_flight: dict[str, Future[int]] = {}
        self._statistics = CacheStatistics()
        self._writable: bool | None = None  # not known before the first write
        self._readable: bool | None = None
        self._written_since_scan = 0
        self._scanned = False
        _caches.add(self)

    @classmethod
    def from_environment(cls) -> KernelCache:
        """A cache where the environment variables say.

        Raises ValueError when KAUN_CACHE_SIZE is not a number of bytes.
        """
        if os.environ.get("KAUN_CACHE", "1").strip().lower() in ("0", "false", "no", "off"):
            return cls(None)
        chosen = os.environ.get("KAUN_CACHE_DIR", "").strip()
        folder = Path(chosen).expanduser() if chosen else _user_folder()
        return cls(folder, _parse_size(os.environ.get("KAUN_CACHE_SIZE", "")))

    @property
    def folder(self) -> Path | None:
        """Where entries live on disk, None when nothing is kept there."""
        return self._folder

    @property
    def statistics(self) -> CacheStatistics:
        """A snapshot of the counters."""
        with self._lock:
            return self._statistics

    def reset_statistics(self) -> CacheStatistics:
        """Set the counters to zero; the snapshot from before."""
        with self._lock:
            before, self._statistics = self._statistics, CacheStatistics()
            return before

    def lookup(self, key: str) -> bytes | None:
        """The bytes stored on disk under `key`; None when there are none that can be trusted.

        An entry that is truncated, altered, of another format or under another key is deleted.
        """
        if self._folder is None or not self._may_read():
            return None
        path = self._folder / (key + SUFFIX)
        try:
            with path.open("rb") as file:
                content = file.read()
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
        """Delete every entry on disk and forget what is loaded.

        Code already loaded stays mapped, since programs hold its address; it is only not handed out again.
        """
        with self._lock:
            self._addresses.clear()
        for entry in self._entries():
            with contextlib.suppress(OSError):
                entry.path.unlink()

    def size(self) -> int:
        """Bytes that the entries on disk take."""
        return sum(entry.bytes for entry in self._entries())

    def count(self) -> int:
        """Number of entries on disk."""
        return sum(1 for _ in self._entries())

    # Disk, privately

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

    # Memory, for compile_kernels

    def _claim(self, keys: Sequence[str]) -> tuple[dict[str, int], dict[str, Future[int]], dict[str, Future[int]]]:
        """Sort keys into loaded (address), ours to make, and being made by another thread."""
        loaded: dict[str, int] = {}
        ours: dict[str, Future[int]] = {}
        theirs: dict[str, Future[int]] = {}
        with self._lock:
            for key in keys:
                if key in self._addresses:
                    loaded[key] = self._addresses[key]
                elif key in self._in_flight:
                    theirs[key] = self._in_flight[key]
                else:
                    ours[key] = self._in_flight[key] = Future()
        return loaded, ours, theirs

    def _deliver(self, key: str, address: int) -> None:
        with self._lock:
            self._addresses[key] = address
            future = self._in_flight.pop(key)
        future.set_result(address)

    def _give_up(self, keys: Sequence[str]) -> None:
        """Let go of keys that were claimed and not made: whoever waits for them tries for itself."""
        with self._lock:
            futures = [self._in_flight.pop(key) for key in keys if key in self._in_flight]
        for future in futures:
            future.cancel()

    def _count(self, **amounts: float) -> None:
        with self._lock:
            old = self._statistics
            self._statistics = dataclasses.replace(
                old, **{name: getattr(old, name) + amount for name, amount in amounts.items()}
            )

    def _after_fork(self) -> None:
        """In a forked child: threads that held the lock or were compiling exist no more."""
        self._lock = threading.RLock()
        self._in_flight = {}


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float


def kernel_key(text_key: str, target: Target, level: int = 2) -> str:
    """The key of a kernel: 64 hexadecimal digits; see the top of this file."""
    from kaun.runtime import engine

    digest = hashlib.sha256()
    for part in (text_key, target.key, str(level), compiler_version(), engine.version()):
        encoded = part.encode()
        digest.update(struct.pack("<Q", len(encoded)))
        digest.update(encoded)
    return digest.hexdigest()


@functools.cache
def compiler_version() -> str:
    """A digest of the sources of compiler and runtime: any edit makes new keys, equal installs share them."""
    digest, found = hashlib.sha256(), False
    for package in ("kaun.compiler", "kaun.runtime"):
        specification = importlib.util.find_spec(package)
        for folder in (specification and specification.submodule_search_locations) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
                found = True
    if found:
        return digest.hexdigest()
    from importlib.metadata import version  # slow to import, and needed only where sources are not installed

    return version("kaun")


def default_cache() -> KernelCache:
    """The process's cache, as the environment asked for when it was first needed."""
    with _default_lock:
        if not _default:
            _default.append(KernelCache.from_environment())
        return _default[0]


def compile_kernels(requests: Sequence[KernelRequest], target: Target, cache: KernelCache | None = None) -> list[int]:
    """The address of each requested kernel, in order.

    Each distinct kernel is looked for in memory, then on disk, then emitted and compiled, misses in
    parallel on the usable cores. It is compiled once even if requested twice here, or at the same
    moment from another thread.

    cache: default `default_cache()`.

    Raises what an `emit` raises, and ValueError when one returns text that is not valid LLVM IR.
    """
    cache = default_cache() if cache is None else cache
    keys = [kernel_key(request.text_key, target, request.level) for request in requests]
    distinct = dict(zip(keys, requests, strict=True))
    addresses: dict[str, int] = {}
    made = 0
    while len(addresses) < len(distinct):
        loaded, ours, theirs = cache._claim([key for key in distinct if key not in addresses])
        addresses.update(loaded)
        try:
            # Before waiting for anyone: two threads that hold what the other needs would wait forever.
            addresses.update(_make([(key, distinct[key]) for key in ours], target, cache))
        finally:
            cache._give_up(list(ours))
        made += len(ours)
        for key, future in theirs.items():
            # Cancelled when the other thread failed: then the next round claims the kernel for this one.
            with contextlib.suppress(CancelledError):
                addresses[key] = future.result()
    cache._count(memory_hits=len(requests) - made)
    return [addresses[key] for key in keys]


def _make(wanted: Sequence[tuple[str, KernelRequest]], target: Target, cache: KernelCache) -> dict[str, int]:
    """Load from disk or compile kernels that this thread has claimed; key to address."""
    addresses: dict[str, int] = {}
    for key, _ in wanted:
        if (address := _load_stored(key, cache)) is not None:
            addresses[key] = address
            cache._deliver(key, address)
            cache._count(disk_hits=1)
    misses = [(key, request) for key, request in wanted if key not in addresses]
    if not misses:
        return addresses
    start = time.perf_counter()
    if len(misses) == 1:
        key, request = misses[0]
        activity.now("compiling a kernel")
        addresses[key] = _compile(key, request, request.emit(), target, cache)
    else:
        with ThreadPoolExecutor(min(usable_cores(), len(misses)), "kaun-compile") as workers:
            # Emitting is Python and stays in this thread; LLVM runs in the others, without Python's lock.
            try:
                tasks = {}
                for number, (key, request) in enumerate(misses, 1):
                    activity.now(f"emitting kernel {number} of {len(misses)}")
                    tasks[key] = workers.submit(_compile, key, request, request.emit(), target, cache)
                for number, (key, task) in enumerate(tasks.items(), 1):
                    activity.now(f"compiling kernel {number} of {len(misses)}")
                    addresses[key] = task.result()
            except BaseException:
                workers.shutdown(wait=True, cancel_futures=True)
                raise
    cache._count(compiled=len(misses), compile_seconds=time.perf_counter() - start)
    return addresses


def _compile(key: str, request: KernelRequest, text: str, target: Target, cache: KernelCache) -> int:
    from kaun.runtime import engine  # where LLVM is loaded, which takes longer than many a program

    code = engine.compile_module(text, target, request.level)
    address = engine.load(code, [request.name])[request.name]
    cache.store(key, request.name.encode() + b"\0" + code)
    cache._deliver(key, address)
    return address


def _load_stored(key: str, cache: KernelCache) -> int | None:
    """The address of a kernel from disk; None, with the entry deleted, when it does not link."""
    from kaun.runtime import engine

    payload = cache.lookup(key)
    if payload is None:
        return None
    name, _, code = payload.partition(b"\0")
    try:
        return engine.load(code, [name.decode()])[name.decode()]
    except ValueError:
        cache.discard(key)
        return None


def _checksum(key: str, payload: bytes) -> bytes:
    # The key is part of it, so an entry copied or renamed to another key does not pass.
    return hashlib.sha256(key.encode() + b"\0" + payload).digest()


def _pack(key: str, payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, FORMAT, 0, len(payload), _checksum(key, payload)) + payload


def _unpack(key: str, content: bytes) -> bytes | None:
    """The payload of an entry's file, None unless every part of it is as `_pack` writes it."""
    if len(content) < HEADER.size:
        return None
    magic, form, zero, length, checksum = HEADER.unpack_from(content)
    payload = content[HEADER.size :]
    intact = (magic, form, zero, length) == (MAGIC, FORMAT, 0, len(payload)) and checksum == _checksum(key, payload)
    return payload if intact else None


def _user_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("kaun")


def _parse_size(text: str) -> int:
    """Bytes from `536870912`, `512M` or `2G`; the default from an empty text."""
    size = text.strip().upper().removesuffix("B")
    if not size:
        return DEFAULT_LIMIT
    shift = {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    digits = size[:-1] if shift else size
    if not digits.isdecimal():
        raise ValueError(f"cache.KernelCache: KAUN_CACHE_SIZE is {text!r}, expected bytes as 536870912, 512M or 2G")
    return int(digits) << shift


def _reset_after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for cache in list(_caches):
        cache._after_fork()


_caches: weakref.WeakSet[KernelCache] = weakref.WeakSet()
_default: list[KernelCache] = []
_default_lock = threading.Lock()
os.register_at_fork(after_in_child=_reset_after_fork)
