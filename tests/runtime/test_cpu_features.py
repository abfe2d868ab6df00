"""What code needs of a processor and what this one has, told without LLVM."""

import platform
import subprocess
import sys

import pytest
from kaun.runtime import cpu_features
from kaun.runtime import target as targets


def flags(text):
    return dict(part[1:].split("=") if "=" in part else (part[1:], part[0] == "+") for part in text.split(",") if part)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
@pytest.mark.skipif(targets.host().architecture not in ("x86_64", "aarch64"), reason="no table for this machine")
def test_the_system_tells_what_llvm_finds():
    host = targets.host()
    assert cpu_features.needed(host)
    assert cpu_features.missing(host.architecture, cpu_features.needed(host)) == ()
    absent = [name for name, on in flags(host.features).items() if not on]
    checked = cpu_features._CHECKED[host.architecture]
    assert not [name for name in absent if name in checked and not cpu_features.missing(host.architecture, [name])]
    assert cpu_features.runs_here(host)


def test_it_is_told_without_llvm():
    script = (
        "import sys; from kaun.runtime import cpu_features\n"
        "assert cpu_features.missing('x86_64', ['no-such-feature']) == ('no-such-feature',)\n"
        "assert 'llvmlite' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_code_needs_what_a_generator_uses_and_nothing_else():
    target = targets.Target.of("x86_64-unknown-linux-gnu", "x86-64", "+avx2,-avx512f,+fma,+sgx,+shstk")
    needed = set(cpu_features.needed(target))
    assert {"avx", "avx2", "fma", "sse2", "64bit"} <= needed and not needed & {"avx512f", "sgx", "shstk", "bmi2"}
    assert cpu_features.checkable(target).features == "+avx2,-avx512f,+fma,-sgx,-shstk"
    other = targets.named("linux-riscv64")
    assert cpu_features.needed(other) == () and cpu_features.checkable(other) == other


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("x86_64-linux-gnu,cpu=sapphirerapids", {"avx512f", "avx512fp16", "gfni", "64bit"}, {"sse4a", "xop"}),
        ("x86_64-linux-gnu,cpu=znver4,-avx512bw", {"avx512f", "sse4a"}, {"avx512bw", "avx512vbmi"}),
        ("x86_64-linux-gnu", {"sse2"}, {"sse4.1", "avx"}),
        ("aarch64-linux-gnu,cpu=cortex-a76", {"dotprod", "lse", "neon"}, {"sve", "bf16"}),
        ("raspberry-pi-4", {"crc", "neon"}, {"lse", "dotprod"}),
    ],
)
def test_code_for_a_processor_needs_what_its_name_implies(name, has, lacks):
    needed = set(cpu_features.needed(targets.named(name)))
    assert has <= needed and not needed & lacks


@pytest.mark.skipif(targets.host().architecture != "x86_64", reason="narrower vectors of x86-64")
def test_narrower_vectors_are_a_processor_without_the_wide_ones(monkeypatch):
    monkeypatch.setenv("KAUN_TARGET_VECTOR_BITS", "128")
    assert cpu_features.missing("x86_64", ["sse2", "avx2", "fma", "f16c"]) == ("avx2", "fma", "f16c")
    assert cpu_features.runs_here(targets.named("linux-x86_64-v2"))
    assert not cpu_features.runs_here(targets.named("linux-x86_64-v3"))
    assert not cpu_features.runs_here(targets.named("x86_64-linux-gnu,cpu=haswell"))


def test_the_first_processor_of_a_list_is_read(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd atomics asimddp\n\nprocessor\t: 1\nFeatures\t: fp\n")
    assert cpu_features._linux_flags(file) == {"fp", "asimd", "atomics", "asimddp"}
    assert cpu_features._linux_flags(tmp_path / "missing") == frozenset()


def test_macos_tells_its_features_in_words_and_numbers():
    apple = {"hw.optional.arm.FEAT_LSE", "hw.optional.arm.FEAT_DotProd", "hw.optional.arm.FEAT_BF16"}
    names = ["neon", "lse", "dotprod", "bf16", "sve", "i8mm"]
    found = cpu_features._macos_features("aarch64", names, lambda name: "", lambda name: int(name in apple))
    assert found == {"neon", "lse", "dotprod", "bf16"}
    words = {
        "machdep.cpu.features": "FPU SSE SSE2 SSE3 SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT F16C AVX1.0",
        "machdep.cpu.leaf7_features": "BMI1 AVX2 BMI2",
        "machdep.cpu.extfeatures": "LAHF LZCNT PREFETCHW EM64T",
    }
    names = ["sse4.2", "avx", "avx2", "bmi", "lzcnt", "sahf", "64bit", "avx512f", "gfni"]
    found = cpu_features._macos_features("x86_64", names, lambda name: words.get(name, ""), lambda name: 0)
    assert found == {"sse4.2", "avx", "avx2", "bmi", "lzcnt", "sahf", "64bit"}


@pytest.mark.parametrize(("architecture", "system"), [("riscv64", "linux"), ("x86_64", "none"), ("wasm32", "none")])
def test_another_machine_is_described(architecture, system):
    assert f"it is for {architecture} and {system}" in cpu_features.wrong_machine(architecture, system)
    assert cpu_features.wrong_machine(cpu_features._architecture(), cpu_features._system()) is None
