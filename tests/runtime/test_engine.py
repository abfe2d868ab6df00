"""LLVM IR becomes functions that compute what they say, and what cannot be compiled is an error."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kaun.runtime import engine
from kaun.runtime.target import host, with_vector_bits


def scale_kernel(name: str, factor: int) -> str:
    """Multiply chunks of four float32 in buffer 0 by a factor."""
    return f"""
define void @{name}(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {{
entry:
  %array = load ptr, ptr %buffers, align 8
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %p = getelementptr <4 x float>, ptr %array, i64 %i
  %v = load <4 x float>, ptr %p, align 4
  %w = fmul <4 x float> %v, splat (float {float(factor):e})
  store <4 x float> %w, ptr %p, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def call_kernel(address: int, array: np.ndarray, begin: int, end: int) -> None:
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    buffers = (ctypes.c_void_p * 1)(array.ctypes.data)
    signature(address)(ctypes.addressof(buffers), begin, end, None)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_kernel_computes_its_chunks_at_every_level(level: int) -> None:
    code = engine.compile_module(scale_kernel("scale", 3), host(), level)
    array = np.arange(40, dtype=np.float32)
    expected = array.copy()
    expected[8:28] *= 3
    call_kernel(engine.load(code, ["scale"])["scale"], array, 2, 7)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("bits", [256, 128, 64])
def test_code_for_narrower_targets_computes_the_same(bits: int) -> None:
    if bits > host().vector_bits:
        pytest.skip("wider than this processor")
    code = engine.compile_module(scale_kernel("scale", 3), with_vector_bits(host(), bits))
    array = np.arange(40, dtype=np.float32)
    call_kernel(engine.load(code, ["scale"])["scale"], array, 0, 10)
    np.testing.assert_array_equal(array, np.arange(40, dtype=np.float32) * 3)


def test_equal_names_in_different_objects_do_not_collide() -> None:
    first, second = (
        engine.load(engine.compile_module(scale_kernel("scale", factor), host()), ["scale"])["scale"]
        for factor in (2, 5)
    )
    array = np.ones(4, np.float32)
    call_kernel(first, array, 0, 1)
    call_kernel(second, array, 0, 1)
    np.testing.assert_array_equal(array, np.full(4, 10, np.float32))


def test_compilation_is_deterministic() -> None:
    text = scale_kernel("scale", 7)
    assert engine.compile_module(text, host()) == engine.compile_module(text, host())


def test_library_calls_that_llvm_invents_resolve() -> None:
    # A loop of byte stores, which the optimiser turns into a call of memset (LLVM's own pipeline does).
    text = """
define void @clear(ptr %p, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %q = getelementptr i8, ptr %p, i64 %i
  store i8 7, ptr %q, align 1
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
    assert "memset" in engine.optimised(text, host(), level=3)
    address = engine.load(engine.compile_module(text, host(), level=3), ["clear"])["clear"]
    array = np.zeros(5000, np.uint8)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)(array.ctypes.data, 4999)
    assert (array[:4999] == 7).all() and array[4999] == 0


def test_big_constants_are_within_reach() -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 1 << 18)
    table = ", ".join(f"i32 {value}" for value in values)
    text = f"""
@table = internal constant [{values.size} x i32] [{table}]
define i32 @at(i64 %i) {{
  %p = getelementptr [{values.size} x i32], ptr @table, i64 0, i64 %i
  %v = load i32, ptr %p, align 4
  ret i32 %v
}}
"""
    at = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(
        engine.load(engine.compile_module(text, host()), ["at"])["at"]
    )
    for index in (0, 1, values.size // 2, values.size - 1):
        assert at(index) == values[index]


def test_target_lines_of_the_text_give_way_to_the_target() -> None:
    text = 'target triple = "unknown-unknown-unknown"\ntarget datalayout = ""\n' + scale_kernel("scale", 2)
    assert f'target triple = "{host().triple}"' in engine.optimised(text, host())


def test_inline_assembly_is_understood() -> None:
    text = 'define i64 @one() {\n call void asm sideeffect "nop", ""()\n ret i64 1\n}'
    address = engine.load(engine.compile_module(text, host()), ["one"])["one"]
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(address)() == 1


def test_threads_compile_at_once_and_correctly() -> None:
    def factor_of(factor: int) -> float:
        code = engine.compile_module(scale_kernel(f"scale{factor}", factor), host())
        array = np.ones(4, np.float32)
        call_kernel(engine.load(code, [f"scale{factor}"])[f"scale{factor}"], array, 0, 1)
        return float(array[3])

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(factor_of, range(1, 33))) == [float(factor) for factor in range(1, 33)]


def test_assembly_shows_the_symbol() -> None:
    assert "scale:" in engine.assembly(scale_kernel("scale", 2), host())


@pytest.mark.parametrize("text", ["garbage", "define i32 @f() { ret void }", "define i32 @f() { ret i32 %missing }"])
@pytest.mark.parametrize("function", [engine.compile_module, engine.optimised, engine.assembly])
def test_invalid_text_is_refused(function, text: str) -> None:
    with pytest.raises(ValueError, match=f"engine.{function.__name__}: expected valid LLVM IR"):
        function(text, host())


def test_text_that_parses_but_does_not_verify_is_refused() -> None:
    text = "define void @f() {\nentry:\n  %a = add i32 %b, 1\n  %b = add i32 1, 1\n  ret void\n}"
    with pytest.raises(ValueError, match="dominate"):
        engine.compile_module(text, host())


def test_levels_outside_the_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got level 4"):
        engine.compile_module(scale_kernel("scale", 2), host(), 4)


def test_bytes_that_are_no_object_file_are_refused() -> None:
    code = engine.compile_module(scale_kernel("scale", 2), host())
    for broken in (b"", b"not code", code[: len(code) // 2]):
        with pytest.raises(ValueError, match=r"engine\.load: got"):
            engine.load(broken, ["scale"])


def test_missing_symbols_are_refused() -> None:
    code = engine.compile_module(scale_kernel("scale", 2), host())
    with pytest.raises(ValueError, match="expected an object file defining"):
        engine.load(code, ["other"])
    code = engine.compile_module(
        "declare void @kaun_no_such()\ndefine void @f() { call void @kaun_no_such() ret void }", host()
    )
    with pytest.raises(ValueError, match="expected an object file defining"):
        engine.load(code, ["f"])
