"""Processors by name: what they are said to have is what LLVM makes use of, and names that are none are errors."""

import dataclasses
import struct

import pytest
from kaun.runtime import engine
from kaun.runtime.pool_module import pool_module
from kaun.runtime.presets import PRESETS
from kaun.runtime.target import Target, host, named
from promises import fresh_process

KIB = 1024

# Vector bits, registers, fused multiply-add, half conversion; pointer bits, POSIX threads.
EXPECTED = {
    "linux-x86_64-v2": (128, 16, False, False, 64, True),
    "linux-x86_64-v3": (256, 16, True, True, 64, True),
    "linux-x86_64-v4": (512, 32, True, True, 64, True),
    "linux-aarch64": (128, 32, True, True, 64, True),
    "raspberry-pi-4": (128, 32, True, True, 64, True),
    "linux-riscv64": (32, 32, True, False, 64, True),
    "cortex-m7": (32, 32, True, True, 32, False),
    "wasm32": (128, 16, False, False, 32, False),
    # Others than presets
    "linux-riscv64,+v": (128, 32, True, False, 64, True),
    "linux-riscv64,+v,+zvl256b": (256, 32, True, False, 64, True),
    "wasm32,-simd128": (32, 16, False, False, 32, False),
    "riscv64-linux-gnu": (32, 32, True, False, 64, True),
    "aarch64-linux-gnu,cpu=cortex-a76,+dotprod": (128, 32, True, True, 64, True),
    "aarch64-apple-darwin": (128, 32, True, True, 64, True),
    "arm64-apple-macosx,cpu=apple-m1": (128, 32, True, True, 64, True),
    "x86_64-apple-macosx,cpu=haswell": (256, 16, True, True, 64, True),
    "x86_64-linux-gnu,cpu=znver4": (512, 32, True, True, 64, True),
    "x86_64-linux-gnu,cpu=haswell": (256, 16, True, True, 64, True),
    "linux-x86_64-v4,vector=256": (256, 16, True, True, 64, True),
    "linux-x86_64-v3,vector=128": (128, 16, False, False, 64, True),
    "thumbv7em-none-eabihf,cpu=cortex-m4": (32, 32, True, True, 32, False),
    "thumbv7m-none-eabi,cpu=cortex-m3": (32, 32, False, False, 32, False),
}

# ELF's name of the machine, and whether addresses have 64 bits.
ELF_MACHINES = {"x86_64": (62, True), "aarch64": (183, True), "riscv64": (243, True), "arm": (40, False)}

# Adds products: without a fused multiply-add in hardware it must stay two operations.
MULTIPLY_ADD = """
define void @multiply_add(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
  %p = load ptr, ptr %buffers
  %x = load <4 x float>, ptr %p, align 4
  %product = fmul contract <4 x float> %x, %x
  %sum = fadd contract <4 x float> %product, %x
  store <4 x float> %sum, ptr %p, align 4
  ret void
}
"""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_gives_what_the_processor_has(name: str) -> None:
    found = named(name)
    abilities = (found.vector_bits, found.vector_registers, found.has_fma, found.has_f16c)
    assert (*abilities, found.pointer_bits, found.has_pthreads) == EXPECTED[name]
    assert 0 < found.l1_bytes <= found.l2_bytes <= found.l3_bytes


@pytest.mark.parametrize("name", PRESETS)
def test_code_for_a_preset_is_an_object_of_its_machine(name: str) -> None:
    target = named(name)
    code = engine.compile_module(MULTIPLY_ADD, target)
    if target.architecture == "wasm32":
        assert code[:8] == b"\0asm\1\0\0\0"
        return
    machine, wide = ELF_MACHINES[target.architecture]
    assert code[:4] == b"\x7fELF" and code[4] == 1 + wide
    assert struct.unpack_from("<HH", code, 16) == (1, machine)


@pytest.mark.parametrize("name", PRESETS)
def test_code_for_a_preset_calls_no_library(name: str) -> None:
    text = engine.assembly(MULTIPLY_ADD, named(name))
    assert "fmaf" not in text


@pytest.mark.parametrize(
    ("name", "wanted", "unwanted"),
    [
        ("linux-x86_64-v2", "mulps", "vmulps"),
        ("linux-x86_64-v3", "vfmadd", "zmm"),
        ("linux-x86_64-v3,vector=128", "mulps", "vmulps"),
        ("raspberry-pi-4", "fmla", "fmul"),
        ("linux-riscv64", "fmadd.s", "vfmul"),
        ("linux-riscv64,+v", "vfm", "fmadd.s"),
        ("cortex-m7", "vfma.f32", "\tbl\t"),
        ("wasm32", "f32x4.mul", "f32.mul"),
        ("wasm32,-simd128", "f32.mul", "f32x4"),
    ],
)
def test_code_uses_the_instructions_of_the_processor(name: str, wanted: str, unwanted: str) -> None:
    text = engine.assembly(MULTIPLY_ADD, named(name))
    assert wanted in text and unwanted not in text


def test_float64_is_left_to_the_library_on_a_single_precision_processor() -> None:
    text = "define double @twice(double %x) {\n  %y = fadd double %x, %x\n  ret double %y\n}"
    assert "__aeabi_dadd" in engine.assembly(text, named("cortex-m7"))
    assert "vadd.f64" in engine.assembly(text, named("cortex-m7,+fp64"))


@pytest.mark.parametrize("name", [name for name in PRESETS if named(name).has_pthreads])
def test_the_thread_pool_compiles_wherever_there_are_threads(name: str) -> None:
    target = named(name)
    assert engine.compile_module(pool_module(target.architecture), target)[:4] == b"\x7fELF"


def test_only_who_asks_for_another_processor_loads_its_backend() -> None:
    code = """
import llvmlite.binding as llvm
from kaun.runtime import engine
from kaun.runtime.target import host, named
text = "define void @f() { ret void }"
engine.compile_module(text, host())
try:
    llvm.Target.from_triple("wasm32-unknown-unknown")
except RuntimeError:
    print("not there")
print(engine.compile_module(text, named("wasm32"))[:4])
"""
    result = fresh_process(code)
    assert result.stdout.splitlines() == ["not there", repr(b"\0asm")], result.stderr


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("aarch64-linux-gnu", "aarch64-unknown-linux-gnu"),
        ("aarch64-linux", "aarch64-unknown-linux-gnu"),
        ("aarch64-linux-musl", "aarch64-unknown-linux-musl"),
        ("arm64-apple-darwin23.1.0", "arm64-apple-darwin23.1.0"),
        ("thumbv7em-none-eabihf", "thumbv7em-unknown-none-eabihf"),
        ("thumbv7em-unknown-none-eabihf", "thumbv7em-unknown-none-eabihf"),
        ("armv7-linux-gnueabihf", "armv7-unknown-linux-gnueabihf"),
        ("wasm32-unknown-unknown", "wasm32-unknown-unknown"),
        ("wasm32-wasi", "wasm32-unknown-wasi"),
        ("riscv32-unknown-elf", "riscv32-unknown-none-elf"),
    ],
)
def test_parts_left_out_of_a_triple_are_filled_in(short: str, whole: str) -> None:
    assert named(short).triple == whole


def test_floats_are_passed_in_registers_for_floats_where_the_triple_says_so() -> None:
    text = "define float @twice(float %x) {\n  %y = fadd float %x, %x\n  ret float %y\n}"
    assert "vadd.f32\ts0, s0, s0" in engine.assembly(text, named("cortex-m7"))
    assert "vadd.f32\ts0, s0, s0" in engine.assembly(text, named("thumbv7em-none-eabihf,cpu=cortex-m7"))
    assert "r0" in engine.assembly(text, named("thumbv7em-none-eabi,cpu=cortex-m7"))


def test_host_is_the_host() -> None:
    assert named("host") == host()
    assert named(" host , l1=16K").l1_bytes == 16 * KIB


def test_a_mac_keeps_its_vectors_when_settings_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    triple, caches = "arm64-apple-darwin23.1.0", (64 * KIB, 4096 * KIB, 4096 * KIB)
    mac = Target(triple, "apple-m1", "+neon", 128, 32, True, True, *caches, 8)
    monkeypatch.setattr("kaun.runtime.presets.host", lambda: mac)
    assert named("host,cores=4") == dataclasses.replace(mac, cores=4)
    assert named("host,vector=128,+dotprod").vector_bits == 128


def test_settings_change_what_they_name_and_nothing_else() -> None:
    plain = named("raspberry-pi-4")
    assert named("raspberry-pi-4,l1=48K,l2=2M,cores=2") == dataclasses.replace(
        plain, l1_bytes=48 * KIB, l2_bytes=2048 * KIB, l3_bytes=2048 * KIB, cores=2
    )
    assert named("raspberry-pi-4,cpu=cortex-a76").cpu == "cortex-a76"
    assert named("raspberry-pi-4,+dotprod").features == "+neon,+dotprod"


def test_with_vector_bits_is_real_where_the_processors_name_implies_wider_ones() -> None:
    target = named("x86_64-linux-gnu,cpu=haswell,vector=128")
    assert "ymm" not in engine.assembly(MULTIPLY_ADD, target) and "vmulps" not in engine.assembly(MULTIPLY_ADD, target)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raspberry-pi-3", r"did you mean 'raspberry-pi-4'.*linux-x86_64-v2, .*cortex-m7, wasm32, host"),
        ("", "expected one of linux-x86_64-v2"),
        ("sparc-sun-solaris", "architecture is not one of x86_64, aarch64"),
        ("moon-base-alpha", "expected one of linux-x86_64-v2"),
        ("wasm32,+simd", "the feature 'simd' in 'wasm32,\\+simd', which LLVM"),
        ("raspberry-pi-4,cpu=cortex-a999", "the processor 'cortex-a999'"),
        ("wasm32,simd128", r"got 'simd128' in .*, expected cpu=NAME, \+FEATURE"),
        ("wasm32,l1=big", "got l1='big' in 'wasm32,l1=big', expected a number as in l1=32K"),
        ("wasm32,cores=2K", "expected a number as in cores=4"),
        ("wasm32,vector=100", "got vector=100"),
        ("wasm32,vector=256", "at most the 128"),
        ("aarch64-apple-darwin,vector=256", "at most the 128 of aarch64-apple-darwin"),
        ("wasm32,l1=1M,l2=64K", "expected l1 <= l2 <= l3"),
        ("wasm32,,", "got ''"),
        ("aarch64_be-linux-gnu", "got 'aarch64_be-linux-gnu', which is big-endian"),
        ("armebv7-linux-gnueabihf,cpu=cortex-a9", "got 'armebv7-linux-gnueabihf', which is big-endian"),
        ("thumbv7eb-none-eabi", "which is big-endian; code and files are for little-endian processors only"),
        ("x86_64-linux-gnux32", r"got 'x86_64-linux-gnux32', whose addresses have 32 bits .*, expected 64"),
        ("x86_64-linux-muslx32", "whose addresses have 32 bits"),
        ("aarch64-linux-gnu_ilp32", "whose addresses have 32 bits"),
        ("arm64_32-apple-watchos", "whose addresses have 32 bits"),
    ],
)
def test_what_is_no_processor_is_an_error_that_says_why(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(name)


@pytest.mark.parametrize(
    ("triple", "architecture", "system", "pointer_bits", "pthreads"),
    [
        ("arm64-apple-darwin23.1.0", "aarch64", "macos", 64, True),
        ("amd64-unknown-linux-gnu", "x86_64", "linux", 64, True),
        ("armv7-unknown-linux-gnueabihf", "arm", "linux", 32, False),
        ("thumbv7em-none-eabihf", "arm", "none", 32, False),
        ("wasm32-unknown-wasi", "wasm32", "none", 32, False),
    ],
)
def test_triples_say_what_the_code_may_rely_on(
    triple: str, architecture: str, system: str, pointer_bits: int, pthreads: bool
) -> None:
    bare = Target.of(triple)
    found = (bare.architecture, bare.system, bare.pointer_bits, bare.has_pthreads)
    assert found == (architecture, system, pointer_bits, pthreads)
    assert bare.relocation == ("static" if system == "none" else "pic")
