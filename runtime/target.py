"""What the compiler needs to know about a processor: vectors, registers, caches, and its LLVM name."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Target", "function_attributes", "host", "named", "usable_cores", "with_vector_bits"]

KIB = 1024

# Used when the operating system does not tell: small enough to be right, if not best, on anything since 2012.
FALLBACK_CACHES = (32 * KIB, 256 * KIB, 4096 * KIB)

# 32-bit "vectors" are scalars for float32 and 64-bit ones for float64; neither switches instructions off.
VECTOR_BITS = (32, 64, 128, 256, 512)

# What a 512-bit kernel may use; without all four, byte, word and masked 256-bit operations are missing.
AVX512 = ("avx512f", "avx512vl", "avx512dq", "avx512bw")

# x86 features that need 256-bit registers although their name does not begin with "avx".
NEEDS_AVX = frozenset({"f16c", "fma", "fma4", "sha512", "sm3", "sm4", "vaes", "vpclmulqdq", "xop"})


@dataclasses.dataclass(frozen=True)
class Target:
    """A processor as the compiler sees it.

    triple: LLVM's name for the architecture and operating system, `x86_64-unknown-linux-gnu`.
    cpu: LLVM's name for the processor, `znver4`.
    features: LLVM's feature string, `+avx2,-avx512f,...`; empty means "what `cpu` implies".
    vector_bits: width of the vectors to emit: 512, 256, 128, or 64 and 32 for scalar code.
    vector_registers: how many vector registers a register tile may occupy at most.
    has_fma: a fused multiply-add is one instruction.
    has_f16c: conversion between float16 and float32 is one instruction.
    l1_bytes, l2_bytes, l3_bytes: data caches of one core, the last level shared between cores. A machine
        without a third level reports its second level there, so `l3_bytes >= l2_bytes >= l1_bytes > 0`.
    cores: how many the machine has, whatever this process may use of them; 0 if unknown. It steers into how many
        chunks contractions are cut, which changes no result.
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int
    vector_registers: int
    has_fma: bool
    has_f16c: bool
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int = 0

    @staticmethod
    def of(triple: str, cpu: str = "", features: str = "") -> Target:
        """A processor of which only the names are known: scalar code, the smallest caches that are usual."""
        return Target(triple, cpu, features, 32, 16, False, False, *FALLBACK_CACHES)

    @property
    def architecture(self) -> str:
        """`x86_64`, `aarch64`, `riscv64`, `arm`, `wasm32`: the first part of the triple, spelled one way for all."""
        first = self.triple.split("-", 1)[0]
        if first == "amd64":
            return "x86_64"
        if first.startswith(("aarch64", "arm64")):
            return "aarch64"
        return "arm" if first.startswith(("arm", "thumb")) else first

    @property
    def system(self) -> str:
        """`linux`, `macos` or `none`: what the code can ask for more than memory."""
        if "linux" in self.triple:
            return "linux"
        return "macos" if re.search("-(darwin|macos)", self.triple) else "none"

    @property
    def pointer_bits(self) -> int:
        """Width of an address."""
        return 64 if self.architecture.endswith("64") else 32

    @property
    def has_pthreads(self) -> bool:
        """Whether parallel loops can run on the threads of `threads.py`, which is written for 64-bit addresses."""
        return self.system != "none" and self.pointer_bits == 64

    @property
    def relocation(self) -> str:
        """LLVM's relocation model: code for a system can be loaded anywhere, other code is linked to a place."""
        return "static" if self.system == "none" else "pic"

    @property
    def code_model(self) -> str:
        """LLVM's code model: code and constants of a program are far smaller than 2 GiB."""
        return "small"

    @property
    def name(self) -> str:
        """A short name for people: `x86_64-znver4-512`."""
        return f"{self.architecture}-{self.cpu or 'generic'}-{self.vector_bits}"

    @functools.cached_property
    def key(self) -> str:
        """The name plus a digest of every field: equal exactly when two targets are equal."""
        fields = repr(dataclasses.astuple(self)).encode()
        return f"{self.name}-{hashlib.sha256(fields).hexdigest()[:16]}"

    def lanes(self, itemsize: int) -> int:
        """Number of elements of `itemsize` bytes in one vector, at least one."""
        return max(1, self.vector_bits // (8 * itemsize))

    def has(self, feature: str) -> bool:
        """Whether LLVM's feature string switches `feature` on explicitly, as in `has("avx512bf16")`."""
        return f"+{feature}" in self.features.split(",")


def host() -> Target:
    """The processor this process runs on.

    Detected once. The environment variable KAUN_TARGET_VECTOR_BITS (512, 256, 128, 64 or 32) asks for
    narrower code than the processor allows, to test what other machines will run; see `with_vector_bits`.

    Raises ValueError when the variable is not one of these or is wider than the processor's vectors.
    """
    override = os.environ.get("KAUN_TARGET_VECTOR_BITS", "").strip()
    if not override:
        return _detected()
    if not override.isdecimal() or int(override) not in VECTOR_BITS:
        raise ValueError(f"target.host: KAUN_TARGET_VECTOR_BITS is {override!r}, expected one of {VECTOR_BITS}")
    return with_vector_bits(_detected(), int(override))


def named(text: str) -> Target:
    """The processor that `text` names.

    text: a preset (`raspberry-pi-4`, `cortex-m7`, `wasm32`, ...; `presets.PRESETS` and `kaun aot targets` list them),
        `host`, or an LLVM triple, and then, separated by commas, what is to be changed or known of it:
        `aarch64-linux-gnu,cpu=cortex-a76,+dotprod`. The top of `presets.py` has the whole syntax.

    Raises ValueError, which lists the presets, for a name that is none, and for processors, features and numbers that
    make no sense.
    """
    from kaun.runtime import presets  # which asks LLVM what the processor has

    return presets.named(text)


def with_vector_bits(target: Target, bits: int) -> Target:
    """The same machine restricted to vectors of `bits`, as though it had no wider ones.

    On x86-64, 256 switches AVX-512 off and 128 switches everything from AVX up off (so also fused
    multiply-add and float16 conversion): LLVM then really emits what such a processor runs. 64 and 32
    emit scalars with the instructions of 128.

    Raises ValueError when `bits` is not one of 512, 256, 128, 64, 32 or exceeds `target.vector_bits`.
    """
    if bits not in VECTOR_BITS or bits > target.vector_bits:
        raise ValueError(
            f"target.with_vector_bits: got {bits} bits, expected one of {VECTOR_BITS} "
            f"and at most the {target.vector_bits} of {target.cpu or target.triple}"
        )
    if bits == target.vector_bits:
        return target
    if target.architecture != "x86_64":
        return dataclasses.replace(target, vector_bits=bits)
    narrowed = _without_wide_vectors(_parse_features(target.features), max(bits, 128))
    return dataclasses.replace(
        target,
        features=_format_features(narrowed),
        vector_bits=bits,
        vector_registers=16,
        has_fma=target.has_fma and bits >= 256,
        has_f16c=target.has_f16c and bits >= 256,
    )


def function_attributes(target: Target) -> str:
    """LLVM attributes for every kernel's `define` line.

    `prefer-vector-width`: on processors LLVM thinks slow at full width it would otherwise split, for
    example, an inlined memcpy into 256-bit halves. `nounwind`: no kernel throws, so no unwind tables.
    """
    if target.vector_bits < 128 or target.architecture != "x86_64":
        return "nounwind"
    return f'nounwind "prefer-vector-width"="{target.vector_bits}"'


def usable_cores() -> int:
    """Number of physical cores this process may keep busy, at least one.

    Cores in the affinity mask, counting the hardware threads of a core once (they share the units that
    multiply), and no more than the processor time a Linux control group allows.
    """
    if platform.system() == "Darwin":
        return _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_siblings(index) for index in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _processor_quota()))


@functools.cache
def _detected() -> Target:
    import llvmlite.binding as llvm  # 60 ms: whoever only imports the package does not pay them

    triple = llvm.get_process_triple()
    features = dict(llvm.get_host_cpu_features())
    cpu = llvm.get_host_cpu_name()
    l1, l2, l3 = _cache_sizes()
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        # NEON, fused multiply-add and half conversion belong to the base of the 64-bit architecture.
        bits, registers, fma, f16c = 128, 32, True, True
    elif machine in ("x86_64", "amd64"):
        wide = all(features.get(name, False) for name in AVX512)
        bits = 512 if wide else 256 if features.get("avx", False) else 128
        registers = 32 if wide else 16
        fma, f16c = features.get("fma", False), features.get("f16c", False)
    else:
        bits, registers, fma, f16c = 128, 16, False, False
    return Target(triple, cpu, _format_features(features), bits, registers, fma, f16c, l1, l2, l3, os.cpu_count() or 0)


def _parse_features(text: str) -> dict[str, bool]:
    return {item[1:]: item[0] == "+" for item in text.split(",") if item}


def _format_features(features: Mapping[str, bool]) -> str:
    return ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))


def _without_wide_vectors(features: Mapping[str, bool], bits: int) -> dict[str, bool]:
    """The x86 features with everything switched off that needs registers wider than `bits`."""

    def too_wide(name: str) -> bool:
        if bits >= 512:
            return False
        if name.startswith(("avx512", "avx10", "amx-avx512")):
            return True
        return bits < 256 and (name.startswith("avx") or name in NEEDS_AVX)

    # Explicit even where the features did not list it: the processor's name implies it for LLVM.
    implied = (*AVX512, "avx") if bits < 256 else AVX512
    explicit = {**dict.fromkeys(implied, False), **features}
    return {name: on and not too_wide(name) for name, on in explicit.items()}


def _cache_sizes() -> tuple[int, int, int]:
    """Bytes of the first, second and last level data cache."""
    system = platform.system()
    found = _linux_caches() if system == "Linux" else _macos_caches() if system == "Darwin" else {}
    l1 = found.get(1) or FALLBACK_CACHES[0]
    l2 = max(found.get(2) or FALLBACK_CACHES[1], l1)
    # With a measured second level but no third, the second is the last; with neither, assume both.
    l3 = found.get(3) or (l2 if found.get(2) else FALLBACK_CACHES[2])
    return l1, l2, max(l3, l2)


def _linux_caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[int, int]:
    """Level to bytes, from the kernel's description of the first core; empty where it gives none."""
    found: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            factor = {"K": KIB, "M": KIB * KIB}.get(size[-1:], 1)
            count = int(size.rstrip("KM")) * factor
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified"):
            found[level] = count
    return found


def _siblings(processor: int) -> str:
    """The hardware threads of the core that a logical processor belongs to, as the kernel writes them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _processor_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors' worth of time that a version 2 control group grants, rounded up."""
    try:
        quota, period = file.read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return os.cpu_count() or 1


def _macos_caches() -> dict[int, int]:
    """Level to bytes, from sysctl; `perflevel0` is the fast cores where there are two kinds."""
    names = {
        1: ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize"),
        2: ("hw.perflevel0.l2cachesize", "hw.l2cachesize"),
        3: ("hw.perflevel0.l3cachesize", "hw.l3cachesize"),
    }
    return {level: size for level, choices in names.items() if (size := next(filter(None, map(_sysctl, choices)), 0))}


def _sysctl(name: str) -> int:
    """The integer a macOS kernel variable holds, 0 when it does not exist."""
    library = ctypes.CDLL(None)
    value = ctypes.c_uint64(0)
    length = ctypes.c_size_t(ctypes.sizeof(value))
    status = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(length), None, ctypes.c_size_t(0))
    return 0 if status else int(value.value)
