"""A kernel is compiled once, wherever and however often it is asked for, and a bad entry is never run."""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from kaun.runtime import cache as cache_module
from kaun.runtime import entry_folder
from kaun.runtime.cache import (
    CacheStatistics,
    KaunCacheWarning,
    KernelCache,
    KernelRequest,
    compile_kernels,
    kernel_key,
)
from kaun.runtime.target import host, with_vector_bits
from promises import exit_code_in_child


def constant(value: int, name: str = "f") -> str:
    return f"define i64 @{name}() {{ ret i64 {value} }}"


def request(value: int, name: str = "f") -> KernelRequest:
    return KernelRequest(name, f"constant {value}", lambda: constant(value, name))


def call(address: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64)(address)())


def compiled(cache: KernelCache, *values: int) -> list[int]:
    return [call(address) for address in compile_kernels([request(value) for value in values], host(), cache)]


def counts(cache: KernelCache) -> tuple[int, int, int]:
    """Memory hits, disk hits, compiled; and start counting anew."""
    seen = cache.reset_statistics()
    return seen.memory_hits, seen.disk_hits, seen.compiled


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + entry_folder.SUFFIX))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "kernels"


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_kernel_compiles_once_then_comes_from_memory_then_from_disk(folder: Path) -> None:
    cache = KernelCache(folder)
    assert compiled(cache, 1, 2, 1) == [1, 2, 1] and counts(cache) == (1, 0, 2)
    assert compiled(cache, 2, 1) == [2, 1] and counts(cache) == (2, 0, 0)
    later = KernelCache(folder)
    assert compiled(later, 1, 2, 3) == [1, 2, 3] and counts(later) == (0, 2, 1)


def test_equal_kernels_share_code_even_under_another_name(folder: Path) -> None:
    cache = KernelCache(folder)
    first, second = compile_kernels([request(5, "one"), request(5, "two")], host(), cache)
    assert first == second and call(first) == 5 and counts(cache) == (1, 0, 1)
    # What is on disk has the first name, and is found when the second is wanted.
    assert call(compile_kernels([request(5, "two")], host(), KernelCache(folder))[0]) == 5


def test_emit_is_called_only_for_a_miss(folder: Path) -> None:
    calls: list[int] = []

    def emit() -> str:
        calls.append(1)
        return constant(9)

    wanted = KernelRequest("f", "text", emit)
    compile_kernels([wanted, wanted], host(), KernelCache(folder))
    compile_kernels([wanted], host(), KernelCache(folder))
    assert len(calls) == 1


def test_statistics_count_compile_time_and_reset(folder: Path) -> None:
    cache = KernelCache(folder)
    compiled(cache, 1)
    before = cache.reset_statistics()
    assert before.compiled == 1 and before.compile_seconds > 0
    assert cache.statistics == CacheStatistics()


def test_keys_tell_text_target_and_level_apart() -> None:
    machine = host()
    keys = {
        kernel_key("a", machine),
        kernel_key("b", machine),
        kernel_key("a", machine, level=1),
        kernel_key("a", with_vector_bits(machine, 64)),
    }
    assert len(keys) == 4 and kernel_key("a", machine) in keys


def test_an_edit_of_the_compiler_makes_new_keys(monkeypatch) -> None:
    before = kernel_key("a", host())
    monkeypatch.setattr(cache_module, "compiler_version", lambda: "edited")
    assert kernel_key("a", host()) != before


def test_store_and_lookup_round_trip(folder: Path) -> None:
    cache = KernelCache(folder)
    assert cache.lookup("00ff") is None
    for data in (b"", b"x", bytes(range(256)) * 1000):
        cache.store("00ff", data)
        assert KernelCache(folder).lookup("00ff") == data
    assert cache.count() == 1 and cache.size() == entries(folder)[0].stat().st_size


def test_the_folder_and_its_entries_are_private(folder: Path) -> None:
    KernelCache(folder).store("00", b"data")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entries(folder)[0].stat().st_mode) & 0o077 == 0


DAMAGE = {
    "empty": lambda content: b"",
    "truncated header": lambda content: content[:20],
    "truncated payload": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "wrong magic": lambda content: b"NOTKAUN!" + content[8:],
    "other format": lambda content: content[:8] + b"\xff" + content[9:],
    "flipped bit in the checksum": lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "flipped bit in the code": lambda content: content[:-9] + bytes([content[-9] ^ 64]) + content[-8:],
    "foreign file": lambda content: b"#!/bin/sh\necho hello\n" * 50,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_compiled_again_and_replaced(folder: Path, kind: str) -> None:
    compiled(KernelCache(folder), 7)
    (entry,) = entries(folder)
    good = entry.read_bytes()
    entry.write_bytes(DAMAGE[kind](good))
    cache = KernelCache(folder)
    assert compiled(cache, 7) == [7] and counts(cache) == (0, 0, 1)
    assert entry.read_bytes() == good
    again = KernelCache(folder)
    assert compiled(again, 7) == [7] and counts(again) == (0, 1, 0)


def test_a_damaged_entry_is_deleted_when_looked_up(folder: Path) -> None:
    cache = KernelCache(folder)
    cache.store("00", b"data")
    entries(folder)[0].write_bytes(b"junk")
    assert cache.lookup("00") is None and not entries(folder)


def test_an_entry_moved_to_another_key_is_not_trusted(folder: Path) -> None:
    compiled(KernelCache(folder), 1, 2)
    first, second = entries(folder)
    shutil.copyfile(first, second)
    cache = KernelCache(folder)
    assert compiled(cache, 1, 2) == [1, 2] and counts(cache) == (0, 1, 1)


def test_an_intact_entry_that_does_not_link_is_compiled_again(folder: Path) -> None:
    cache = KernelCache(folder)
    cache.store(kernel_key("constant 3", host()), b"f\0this is no object file")
    assert compiled(cache, 3) == [3] and counts(cache) == (0, 0, 1)
    again = KernelCache(folder)
    assert compiled(again, 3) == [3] and counts(again) == (0, 1, 0)


def test_an_unusable_folder_warns_once_and_compiling_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = KernelCache(tmp_path / "file" / "kernels")
    with pytest.warns(KaunCacheWarning, match="continuing without"):
        assert compiled(cache, 1) == [1]
    assert compiled(cache, 2, 3) == [2, 3]
    assert cache.size() == 0 and cache.count() == 0
    cache.clear()


def test_a_folder_deleted_meanwhile_is_made_again(folder: Path) -> None:
    cache = KernelCache(folder)
    compiled(cache, 1)
    shutil.rmtree(folder)
    assert compiled(cache, 1, 2) == [1, 2]
    assert cache.count() == 1 and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_full_disk_warns_once_and_leaves_nothing_behind(folder: Path, monkeypatch) -> None:
    cache = KernelCache(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entry_folder.os, "replace", full)
    with pytest.warns(KaunCacheWarning, match="No space left"):
        assert compiled(cache, 1) == [1]
    assert compiled(cache, 2) == [2]
    assert list(folder.iterdir()) == []


def test_a_read_only_folder_still_serves_its_entries(folder: Path, monkeypatch) -> None:
    compiled(KernelCache(folder), 1)

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(entry_folder.tempfile, "mkstemp", refuse)
    cache = KernelCache(folder)
    with pytest.warns(KaunCacheWarning, match="Permission denied"):
        assert compiled(cache, 2) == [2]
    assert compiled(cache, 1, 3) == [1, 3]
    assert counts(cache) == (0, 1, 2)


def test_a_folder_that_everybody_may_write_is_not_used(folder: Path) -> None:
    compiled(KernelCache(folder), 1)
    folder.chmod(0o777)
    cache = KernelCache(folder)
    with pytest.warns(KaunCacheWarning, match="every user may write"):
        assert compiled(cache, 1) == [1]
    assert counts(cache) == (0, 0, 1)


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch) -> None:
    compiled(KernelCache(folder), 1)
    monkeypatch.setattr(entry_folder.os, "geteuid", lambda: folder.stat().st_uid + 1)
    if folder.stat().st_uid == 0:
        os.chown(folder, 12345, -1)
    cache = KernelCache(folder)
    with pytest.warns(KaunCacheWarning, match="another user owns it"):
        assert compiled(cache, 1) == [1]
    assert counts(cache) == (0, 0, 1)


def test_least_recently_used_entries_are_evicted_and_the_size_is_bounded(folder: Path) -> None:
    limit, block = 100_000, 1000
    KernelCache(folder, limit).store("first", b"x" * block)
    cache = KernelCache(folder, limit)
    old = time.time() - 1000
    for number in range(300):
        cache.store(f"{number:04d}", b"x" * block)
        os.utime(folder / f"{number:04d}.kernel", (old + number, old + number))
        assert cache.lookup("first") is not None  # so it is always the last one used
        assert cache.size() <= limit + limit // 16 + 2 * block
    names = [path.stem for path in entries(folder)]
    assert "first" in names and "0299" in names and "0000" not in names
    assert names[:-1] == sorted(names)[: len(names) - 1] and int(names[0]) > 150


def test_what_dead_processes_left_is_removed(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for name, age in (("kaun-dead.tmp", 1e5), ("kaun-alive.tmp", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    KernelCache(folder).store("00", b"data")
    assert not (folder / "kaun-dead.tmp").exists() and (folder / "kaun-alive.tmp").exists()


def test_clear_forgets_memory_and_disk_but_not_code_in_use(folder: Path) -> None:
    cache = KernelCache(folder)
    (address,) = compile_kernels([request(4)], host(), cache)
    cache.clear()
    assert cache.count() == 0 and call(address) == 4
    assert compiled(cache, 4) == [4] and counts(cache) == (0, 0, 2)


def test_threads_that_want_the_same_kernels_compile_each_once(folder: Path) -> None:
    cache, emitted, lock = KernelCache(folder), [], threading.Lock()
    barrier = threading.Barrier(4)
    results: dict[int, list[int]] = {}

    def slow(value: int) -> KernelRequest:
        def emit() -> str:
            with lock:
                emitted.append(value)
            time.sleep(0.005)
            return constant(value)

        return KernelRequest("f", f"slow {value}", emit)

    def work(number: int) -> None:
        barrier.wait()
        # Different orders: waiting for one another must not become waiting for ever.
        values = list(range(8)) if number % 2 else list(reversed(range(8)))
        addresses = compile_kernels([slow(value) for value in values], host(), cache)
        results[number] = sorted(call(address) for address in addresses)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: list(range(8)) for number in range(4)}
    assert sorted(emitted) == list(range(8))
    assert counts(cache) == (24, 0, 8)


def test_a_failure_reaches_the_one_who_asked_and_others_try_for_themselves(folder: Path) -> None:
    cache = KernelCache(folder)
    entered, failing = threading.Event(), threading.Event()

    def fail() -> str:
        entered.set()
        failing.wait(30)
        raise RuntimeError("emit failed")

    errors: list[BaseException] = []

    def first() -> None:
        try:
            compile_kernels([KernelRequest("f", "shared", fail)], host(), cache)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    assert entered.wait(30)
    threading.Timer(0.05, failing.set).start()
    (address,) = compile_kernels([KernelRequest("f", "shared", lambda: constant(6))], host(), cache)
    thread.join(30)
    assert call(address) == 6 and [str(error) for error in errors] == ["emit failed"]


def test_one_bad_kernel_among_many_leaves_the_cache_usable(folder: Path) -> None:
    cache = KernelCache(folder)
    bad = KernelRequest("f", "bad", lambda: "garbage")
    with pytest.raises(ValueError, match="expected valid LLVM IR"):
        compile_kernels([request(1), bad, request(2), request(3)], host(), cache)
    assert compiled(cache, 1, 2, 3) == [1, 2, 3]


def test_processes_share_a_folder_without_disturbing_each_other(folder: Path) -> None:
    script = f"""
import ctypes, sys, warnings
from pathlib import Path
from kaun.runtime.cache import KernelCache, KernelRequest, compile_kernels
from kaun.runtime.target import host
warnings.simplefilter("error")
for round in range(6):
    cache = KernelCache(Path({str(folder)!r}), limit_bytes=6000)
    texts = [f"define i64 @f() {{{{ ret i64 {{value}} }}}}" for value in range(12)]
    requests = [KernelRequest("f", text, lambda text=text: text) for text in texts]
    found = [ctypes.CFUNCTYPE(ctypes.c_int64)(a)() for a in compile_kernels(requests, host(), cache)]
    assert found == list(range(12)), found
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, problem = process.communicate(timeout=120)
        assert process.returncode == 0, problem
    for entry in entries(folder):
        assert KernelCache(folder).lookup(entry.stem) is not None
    assert not list(folder.glob("*.tmp"))


def test_a_forked_child_is_not_stuck_in_what_a_parents_thread_was_doing(folder: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    cache = KernelCache(folder)
    entered, leave = threading.Event(), threading.Event()

    def emit() -> str:
        entered.set()
        leave.wait(30)
        return constant(8)

    thread = threading.Thread(
        target=lambda: compile_kernels([KernelRequest("f", "forked", emit)], host(), cache), daemon=True
    )
    thread.start()
    assert entered.wait(30)

    def child() -> None:
        (address,) = compile_kernels([KernelRequest("f", "forked", lambda: constant(8))], host(), cache)
        assert call(address) == 8

    code = exit_code_in_child(child)
    leave.set()
    thread.join(30)
    assert code == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_the_place_of_an_entry_is_replaced_and_not_waited_for(folder: Path) -> None:
    KernelCache(folder).store("0" * 64, b"data")
    (entry,) = entries(folder)
    entry.unlink()
    os.mkfifo(entry)
    found: list[bytes | None] = []
    reader = threading.Thread(target=lambda: found.append(KernelCache(folder).lookup("0" * 64)), daemon=True)
    reader.start()
    reader.join(20)
    assert found == [None] and not entry.exists()
    KernelCache(folder).store("0" * 64, b"data")
    assert KernelCache(folder).lookup("0" * 64) == b"data"


def test_an_entry_longer_than_it_says_is_deleted_without_being_read(folder: Path) -> None:
    KernelCache(folder).store("0" * 64, b"data")
    (entry,) = entries(folder)
    os.truncate(entry, 1 << 40)  # sparse: more than there is memory for
    assert KernelCache(folder).lookup("0" * 64) is None and not entry.exists()


def test_environment_chooses_folder_size_and_nothing(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("KAUN_CACHE_DIR", str(folder))
    monkeypatch.setenv("KAUN_CACHE_SIZE", "3M")
    monkeypatch.delenv("KAUN_CACHE", raising=False)
    cache = KernelCache.from_environment()
    assert cache.folder == folder and cache._limit == 3 << 20
    monkeypatch.setenv("KAUN_CACHE", "0")
    cache = KernelCache.from_environment()
    assert cache.folder is None and compiled(cache, 1, 1) == [1, 1]
    assert cache.count() == 0 and not folder.exists()


@pytest.mark.parametrize(("text", "expected"), [("", 512 << 20), ("1000", 1000), ("2K", 2048), ("1gb", 1 << 30)])
def test_sizes_are_bytes_with_a_suffix(text: str, expected: int) -> None:
    assert cache_module._parse_size(text) == expected


def test_a_size_that_is_no_number_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("KAUN_CACHE_SIZE", "plenty")
    monkeypatch.delenv("KAUN_CACHE", raising=False)
    with pytest.raises(ValueError, match="KAUN_CACHE_SIZE is 'plenty'"):
        KernelCache.from_environment()
