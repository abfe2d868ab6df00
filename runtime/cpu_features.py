"""Which processor features code needs, and which of them this machine has, told by its system and without LLVM.

Only features that a code generator uses by itself are listed, under LLVM's names. Code that is saved is compiled
without any other (`checkable`), so that what is not listed cannot be missing.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

from kaun.runtime.target import Target, host, with_vector_bits

__all__ = ["checkable", "missing", "needed", "runs_here", "wrong_machine"]

# LLVM's name to Linux's flag in /proc/cpuinfo, where the two differ.
_LINUX: dict[str, dict[str, str]] = {
    "x86_64": {
        "64bit": "lm", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "lzcnt": "abm", "bmi": "bmi1",
        "sahf": "lahf_lm", "pclmul": "pclmulqdq", "prfchw": "3dnowprefetch", "avx512vbmi2": "avx512_vbmi2",
        "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avxvnni": "avx_vnni",
        "avxvnniint8": "avx_vnni_int8", "avxvnniint16": "avx_vnni_int16", "avxifma": "avx_ifma",
        "avxneconvert": "avx_ne_convert",
    },
    "aarch64": {
        "neon": "asimd", "fp-armv8": "fp", "fullfp16": "asimdhp", "dotprod": "asimddp", "lse": "atomics",
        "crc": "crc32", "rdm": "asimdrdm", "complxnum": "fcma", "jsconv": "jscvt", "rcpc": "lrcpc",
        "rcpc-immo": "ilrcpc", "fp16fml": "asimdfhm", "lse2": "uscat", "altnzcv": "flagm2",
    },
}  # fmt: skip

# LLVM's name to macOS's, where the two differ: words of machdep.cpu.*features, and hw.optional.arm.FEAT_*.
_MACOS: dict[str, dict[str, str]] = {
    "x86_64": {
        "64bit": "em64t", "sse4.1": "sse4.1", "avx": "avx1.0", "lzcnt": "lzcnt", "bmi": "bmi1", "sahf": "lahf",
        "ssse3": "ssse3", "pclmul": "pclmulqdq", "prfchw": "prefetchw",
    },
    "aarch64": {
        "neon": "AdvSIMD", "fp-armv8": "AdvSIMD", "fullfp16": "FP16", "dotprod": "DotProd", "lse": "LSE",
        "crc": "CRC32", "rdm": "RDM", "complxnum": "FCMA", "jsconv": "JSCVT", "rcpc": "LRCPC", "rcpc-immo": "LRCPC2",
        "fp16fml": "FHM", "lse2": "LSE2", "altnzcv": "FlagM2", "bf16": "BF16", "i8mm": "I8MM", "flagm": "FlagM",
        "fptoint": "FRINTTS", "sb": "SB", "bti": "BTI", "sme": "SME", "sme2": "SME2",
    },
}  # fmt: skip

_CHECKED: dict[str, frozenset[str]] = {
    "x86_64": frozenset(_LINUX["x86_64"]) | frozenset(
        "cmov cx8 cx16 sse sse2 ssse3 sse4a popcnt movbe avx avx2 fma fma4 xop tbm f16c bmi2 gfni vpclmulqdq "
        "avx512f avx512cd avx512bw avx512dq avx512vl avx512ifma avx512vbmi".split()
    ),
    "aarch64": frozenset(_LINUX["aarch64"]) | frozenset(
        "sve sve2 bf16 i8mm flagm sb bti".split()
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=64)
def needed(target: Target) -> tuple[str, ...]:
    """The features that code for this target may use, by LLVM's names, sorted; LLVM knows what its processor has."""
    checked = _CHECKED.get(target.architecture)
    if checked is None:
        return ()
    from kaun.runtime import presets  # and with it LLVM

    return tuple(sorted(presets.features_of(target, checked)))


def checkable(target: Target) -> Target:
    """The target without the features of which nothing here can tell whether a machine has them."""
    checked = _CHECKED.get(target.architecture)
    if checked is None:
        return target
    parts = [f"{'+' if on and name in checked else '-'}{name}" for name, on in _features(target)]
    return dataclasses.replace(target, features=",".join(parts))


def missing(architecture: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Which of the wanted features this machine, of that architecture, does not have."""
    had = _host_features(architecture, os.environ.get("KAUN_TARGET_VECTOR_BITS", "").strip())
    return tuple(name for name in wanted if name not in had)


def wrong_machine(architecture: str, system: str) -> str | None:
    """Why code for this architecture and system (`linux`, `macos`, `none`) cannot run here; None if it can."""
    here = _architecture(), _system()
    if (architecture, system) == here:
        return None
    return f"it is for {architecture} and {system}, and this machine is {here[0]} and {here[1]}"


def runs_here(target: Target) -> bool:
    """Whether this machine can run code for the target."""
    if target == host():
        return True
    if wrong_machine(target.architecture, target.system) is not None:
        return False
    return not missing(target.architecture, needed(target))


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _system() -> str:
    return {"Linux": "linux", "Darwin": "macos"}.get(platform.system(), platform.system().lower())


def _features(target: Target) -> list[tuple[str, bool]]:
    return [(part[1:], part[0] == "+") for part in target.features.split(",") if part]


@functools.lru_cache(maxsize=8)
def _host_features(architecture: str, vector_bits: str) -> frozenset[str]:
    """LLVM's names of the features this machine has, as far as they are listed above.

    vector_bits: the machine is taken to have no wider vectors; see `target.host`.
    """
    names = _CHECKED.get(architecture, frozenset())
    if _system() == "macos":
        found = _macos_features(architecture, names, _sysctl_text, _sysctl_number)
    else:
        flags = _linux_flags()
        if not flags:  # no such file here; LLVM asks the processor
            return frozenset(needed(host()))
        found = frozenset(name for name in names if _LINUX[architecture].get(name, name) in flags)
    if not vector_bits.isdecimal() or architecture != "x86_64":
        return found
    text = ",".join(f"+{name}" for name in sorted(found))
    widest = Target("x86_64-unknown-linux-gnu", "", text, 512, 32, True, True, 1, 1, 1)
    narrowed = with_vector_bits(widest, int(vector_bits))
    return found & {name for name, on in _features(narrowed) if on}


def _linux_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the kernel calls the features of the first processor; empty where it does not tell."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _macos_features(
    architecture: str, names: Iterable[str], text: Callable[[str], str], number: Callable[[str], int]
) -> frozenset[str]:
    known = _MACOS.get(architecture, {})
    if architecture == "aarch64":
        present = {apple for apple in known.values() if number(f"hw.optional.arm.FEAT_{apple}")} | {"AdvSIMD"}
        return frozenset(name for name in names if known.get(name) in present)
    words = " ".join(text(f"machdep.cpu.{part}") for part in ("features", "extfeatures", "leaf7_features"))
    had = frozenset(words.lower().split()) | {"cmov", "64bit"}
    return frozenset(name for name in names if name in had or known.get(name) in had)


def _sysctl_number(name: str) -> int:
    """The integer a macOS kernel variable holds, 0 when it does not exist."""
    value, length = ctypes.c_uint64(0), ctypes.c_size_t(8)
    status = ctypes.CDLL(None).sysctlbyname(
        name.encode(), ctypes.byref(value), ctypes.byref(length), None, ctypes.c_size_t(0)
    )
    return 0 if status else int(value.value)


def _sysctl_text(name: str) -> str:
    """The text a macOS kernel variable holds, empty when it does not exist."""
    value, length = ctypes.create_string_buffer(4096), ctypes.c_size_t(4096)
    status = ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(length), None, ctypes.c_size_t(0))
    return "" if status else value.value.decode(errors="replace")
