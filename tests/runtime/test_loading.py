"""Code of kernels is mapped without LLVM's linker, and what is not simple enough for that goes to the linker."""

from __future__ import annotations

import ctypes
import platform

import pytest
from kaun.runtime import cache as caches
from kaun.runtime import engine, loading
from kaun.runtime.target import host

ELF = pytest.mark.skipif(platform.system() != "Linux", reason="objects of other systems go to the linker")
SIMPLE = """
@table = private constant [4 x i64] [i64 3, i64 5, i64 7, i64 11], align 64
declare ptr @memset(ptr, i32, i64)
define i64 @clear(ptr %to, i64 %which) {
  call ptr @memset(ptr %to, i32 0, i64 16)
  %at = getelementptr [4 x i64], ptr @table, i64 0, i64 %which
  %found = load i64, ptr %at
  ret i64 %found
}
"""
COUNTING = """
@count = internal global i64 40
define i64 @next() {
  %old = load i64, ptr @count
  %new = add i64 %old, 1
  store i64 %new, ptr @count
  ret i64 %new
}
"""


def refuse(*arguments: object) -> None:
    raise AssertionError("LLVM's linker was asked")


@ELF
def test_simple_code_does_not_need_the_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    code = engine.compile_module(SIMPLE, host())
    monkeypatch.setattr(engine, "load", refuse)
    address = loading.load(code, ["clear"])["clear"]
    memory = (ctypes.c_uint8 * 24)(*[9] * 24)
    clear = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(address)
    assert [clear(ctypes.addressof(memory), which) for which in range(4)] == [3, 5, 7, 11]
    assert list(memory) == [0] * 16 + [9] * 8


def test_code_with_data_that_it_writes_is_linked() -> None:
    address = loading.load(engine.compile_module(COUNTING, host()), ["next"])["next"]
    count = ctypes.CFUNCTYPE(ctypes.c_int64)(address)
    assert [count(), count()] == [41, 42]


def test_what_is_no_object_or_lacks_a_name_is_refused() -> None:
    code = engine.compile_module(SIMPLE, host())
    for broken, name in ((code[: len(code) // 2], "clear"), (b"", "clear"), (code, "other")):
        with pytest.raises(ValueError, match="expected an object file"):
            loading.load(broken, [name])


@ELF
def test_kernels_on_disk_run_without_the_linker(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    request = caches.KernelRequest("next", "constant 7", lambda: "define i64 @next() { ret i64 7 }")
    folder = tmp_path / "kernels"  # type: ignore[operator]
    caches.compile_kernels([request], host(), caches.KernelCache(folder))
    monkeypatch.setattr(engine, "load", refuse)
    monkeypatch.setattr(engine, "compile_module", refuse)
    (address,) = caches.compile_kernels([request], host(), caches.KernelCache(folder))
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(address)() == 7
