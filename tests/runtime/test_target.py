"""The description of the processor agrees with what others say of it, and narrowing it is real."""

import dataclasses
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from kaun.runtime import engine, target

X86 = platform.machine().lower() in ("x86_64", "amd64")
only_x86 = pytest.mark.skipif(not X86, reason="register names of x86")

MULTIPLY_16 = """
define <16 x float> @multiply(<16 x float> %a, <16 x float> %b) {
  %c = fmul <16 x float> %a, %b
  ret <16 x float> %c
}
"""


@only_x86
def test_host_features_agree_with_numpy() -> None:
    known = np._core._multiarray_umath.__cpu_features__
    found = target._detected()
    assert found.has_fma == known["FMA3"]
    assert found.has_f16c == known["F16C"]
    expected = 512 if known["AVX512_SKX"] else 256 if known["AVX"] else 128
    assert found.vector_bits == expected
    assert found.vector_registers == (32 if expected == 512 else 16)


def test_cache_sizes_agree_with_the_c_library() -> None:
    found = target._detected()
    assert 0 < found.l1_bytes <= found.l2_bytes <= found.l3_bytes
    for level, size in (("LEVEL1_DCACHE", found.l1_bytes), ("LEVEL2_CACHE", found.l2_bytes)):
        name = f"SC_{level}_SIZE"
        told = os.sysconf(name) if name in os.sysconf_names else 0
        if told > 0:
            assert size == told


def test_unknown_caches_fall_back_to_documented_sizes(tmp_path, monkeypatch) -> None:
    assert target._linux_caches(tmp_path) == {}
    monkeypatch.setattr(target, "_linux_caches", dict)
    monkeypatch.setattr(target.platform, "system", lambda: "Linux")
    assert target._cache_sizes() == target.FALLBACK_CACHES


def test_linux_caches_skip_instructions_and_unreadable_entries(tmp_path) -> None:
    rows = {
        "index0": ("Data", "1", "48K"),
        "index1": ("Instruction", "1", "32K"),
        "index2": ("Unified", "2", "2M"),
        "index3": ("Unified", "3", "broken"),
    }
    for name, (kind, level, size) in rows.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "type").write_text(kind + "\n")
        (folder / "level").write_text(level + "\n")
        (folder / "size").write_text(size + "\n")
    assert target._linux_caches(tmp_path) == {1: 48 * 1024, 2: 2 * 1024 * 1024}


def test_without_a_third_level_the_second_is_the_last(monkeypatch) -> None:
    monkeypatch.setattr(target.platform, "system", lambda: "Linux")
    monkeypatch.setattr(target, "_linux_caches", lambda: {1: 1 << 16, 2: 1 << 22})
    assert target._cache_sizes() == (1 << 16, 1 << 22, 1 << 22)


@only_x86
@pytest.mark.parametrize("bits", [512, 256, 128])
def test_code_for_narrow_targets_uses_no_wider_register(bits: int) -> None:
    machine = target._detected()
    if bits > machine.vector_bits:
        pytest.skip("wider than this processor")
    text = engine.assembly(MULTIPLY_16, target.with_vector_bits(machine, bits))
    registers = {512: "zmm", 256: "ymm", 128: "xmm"}
    assert registers[bits] in text
    assert not any(name in text for width, name in registers.items() if width > bits)
    assert ("vmulps" in text) == (bits > 128)


@only_x86
def test_128_bits_mean_no_fused_multiply_add_and_no_half_conversion() -> None:
    narrow = target.with_vector_bits(target._detected(), 128)
    assert not narrow.has_fma and not narrow.has_f16c and narrow.vector_registers == 16
    assert not narrow.has("avx2") and not narrow.has("fma") and not narrow.has("f16c")


def test_scalar_targets_have_one_lane() -> None:
    scalar = target.with_vector_bits(target._detected(), 32)
    assert [scalar.lanes(size) for size in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert target.with_vector_bits(target._detected(), 128).lanes(4) == 4


@pytest.mark.parametrize("bits", [0, 96, 1024])
def test_impossible_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"target.with_vector_bits: got {bits} bits"):
        target.with_vector_bits(target._detected(), bits)


def test_widening_is_refused() -> None:
    narrow = target.with_vector_bits(target._detected(), 64)
    with pytest.raises(ValueError, match="at most the 64"):
        target.with_vector_bits(narrow, 128)


def test_environment_narrows_the_host(monkeypatch) -> None:
    monkeypatch.setenv("KAUN_TARGET_VECTOR_BITS", "128")
    assert target.host() == target.with_vector_bits(target._detected(), 128)
    monkeypatch.setenv("KAUN_TARGET_VECTOR_BITS", "")
    assert target.host() is target._detected()
    monkeypatch.setenv("KAUN_TARGET_VECTOR_BITS", "wide")
    with pytest.raises(ValueError, match="KAUN_TARGET_VECTOR_BITS is 'wide'"):
        target.host()


def test_keys_differ_when_any_field_differs() -> None:
    machine = target._detected()
    assert dataclasses.replace(machine).key == machine.key
    changed = {"triple": "aarch64-apple-darwin", "cpu": "other", "features": "+none", "has_fma": not machine.has_fma}
    for field in dataclasses.fields(machine):
        value = changed.get(field.name, not getattr(machine, field.name))
        if isinstance(getattr(machine, field.name), int) and not isinstance(getattr(machine, field.name), bool):
            value = getattr(machine, field.name) + 1
        assert dataclasses.replace(machine, **{field.name: value}).key != machine.key, field.name


def test_apple_and_linux_names_of_arm_are_one_architecture() -> None:
    machine = target._detected()
    for triple in ("arm64-apple-darwin23.1.0", "aarch64-unknown-linux-gnu"):
        assert dataclasses.replace(machine, triple=triple).architecture == "aarch64"


def test_function_attributes_are_llvm_syntax() -> None:
    machine = target._detected()
    for bits in (machine.vector_bits, 128, 32):
        narrowed = target.with_vector_bits(machine, bits)
        text = f"define void @f() {target.function_attributes(narrowed)} {{ ret void }}"
        assert engine.optimised(text, narrowed)


def test_usable_cores_follow_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity masks here")
    assert 1 <= target.usable_cores() <= len(os.sched_getaffinity(0))
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from kaun.runtime.target import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(("text", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_control_group_quota_rounds_up(tmp_path, text: str, expected: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text + "\n")
    assert target._processor_quota(file) == (expected or os.cpu_count())
