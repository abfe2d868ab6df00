"""Compiled kernels, each made once: in this process, across threads, and across runs through a folder on disk.

A kernel's key is the SHA-256 of its canonical text, the target, the optimisation level, the sources of
the compiler and the versions of llvmlite and LLVM. Its entry in the folder (`entry_folder.py`, which says
whom it trusts) is: symbol name, NUL, object code.

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
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from kaun.runtime import activity, loading
from kaun.runtime.entry_folder import EntryFolder, KaunCacheWarning
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

DEFAULT_LIMIT = 512 << 20


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


class KernelCache(EntryFolder):
    """Loaded kernels by key, and their object code in a folder; see `EntryFolder` for its arguments."""

    def __init__(self, folder: Path | None, limit_bytes: int = DEFAULT_LIMIT) -> None:
        super().__init__(folder, limit_bytes)
        self._addresses: dict[str, int] = {}
        self._in_flight: dict[str, Future[int]] = {}
        self._statistics = CacheStatistics()
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
    def statistics(self) -> CacheStatistics:
        """A snapshot of the counters."""
        with self._lock:
            return self._statistics

    def reset_statistics(self) -> CacheStatistics:
        """Set the counters to zero; the snapshot from before."""
        with self._lock:
            before, self._statistics = self._statistics, CacheStatistics()
            return before

    def clear(self) -> None:
        """Delete every entry on disk and forget what is loaded.

        Code already loaded stays mapped, since programs hold its address; it is only not handed out again.
        """
        with self._lock:
            self._addresses.clear()
        super().clear()

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
    address = loading.load(code, [request.name])[request.name]
    cache.store(key, request.name.encode() + b"\0" + code)
    cache._deliver(key, address)
    return address


def _load_stored(key: str, cache: KernelCache) -> int | None:
    """The address of a kernel from disk; None, with the entry deleted, when it does not link."""
    payload = cache.lookup(key)
    if payload is None:
        return None
    name, _, code = payload.partition(b"\0")
    try:
        return loading.load(code, [name.decode()])[name.decode()]
    except ValueError:
        cache.discard(key)
        return None


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
