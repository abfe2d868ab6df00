"""Processors by name: presets, and any other that LLVM knows as a triple with its processor and features.

    raspberry-pi-4                                a preset
    wasm32,-simd128                               a preset, changed
    aarch64-linux-gnu,cpu=cortex-a76,+dotprod     a triple with what is to be known of it

One syntax for both: first a preset, a triple or `host`, then, separated by commas, any of

    cpu=NAME             LLVM's name of the processor
    +NAME, -NAME         a feature switched on or off, by LLVM's name
    vector=BITS          narrower vectors than the processor allows (see `target.with_vector_bits`)
    l1=, l2=, l3=SIZE    data caches: `48K`, `1M`
    cores=COUNT          how many cores the machine has

Vectors, fused multiply-adds and half conversion are not taken from a table: LLVM compiles a few lines for the
processor, and what came out says what it has.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass

from kaun.runtime.target import FALLBACK_CACHES, KIB, VECTOR_BITS, Target, host, with_vector_bits

__all__ = ["PRESETS", "Preset", "features_of", "named"]


@dataclass(frozen=True)
class Preset:
    """A kind of machine: LLVM's names, data caches in bytes (`Target.l1_bytes` and the others), cores, and a remark."""

    triple: str
    cpu: str
    features: str
    caches: tuple[int, int, int]
    cores: int
    remark: str


# What the levels of the x86-64 psABI promise, written out: whoever loads the code compares it with a processor's list.
_V2 = "+cx16,+popcnt,+sahf,+sse3,+sse4.1,+sse4.2,+ssse3"
_V3 = f"{_V2},+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+xsave"
_V4 = f"{_V3},+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl"

_RV64GC = "+m,+a,+f,+d,+c"

# All engines since 2021 (and all browsers since 2023) know these; the base is the first version of WebAssembly.
_WASM = "+bulk-memory,+mutable-globals,+nontrapping-fptoint,+sign-ext,+simd128"

PRESETS: dict[str, Preset] = {
    "linux-x86_64-v2": Preset(
        "x86_64-unknown-linux-gnu", "x86-64-v2", _V2, (32 * KIB, 256 * KIB, 8192 * KIB), 0, "SSE4.2: since 2009"
    ),
    "linux-x86_64-v3": Preset(
        "x86_64-unknown-linux-gnu", "x86-64-v3", _V3, (32 * KIB, 256 * KIB, 8192 * KIB), 0, "AVX2 and FMA: since 2013"
    ),
    "linux-x86_64-v4": Preset(
        "x86_64-unknown-linux-gnu", "x86-64-v4", _V4, (32 * KIB, 1024 * KIB, 16384 * KIB), 0, "AVX-512: servers, Zen 4"
    ),
    "linux-aarch64": Preset(
        "aarch64-unknown-linux-gnu", "generic", "+neon", (32 * KIB, 512 * KIB, 2048 * KIB), 0, "any 64-bit Arm"
    ),
    "raspberry-pi-4": Preset(
        "aarch64-unknown-linux-gnu", "cortex-a72", "+neon", (32 * KIB, 1024 * KIB, 1024 * KIB), 4, "64-bit system"
    ),
    "linux-riscv64": Preset(
        "riscv64-unknown-linux-gnu", "generic-rv64", _RV64GC, (32 * KIB, 256 * KIB, 2048 * KIB), 0,
        "RV64GC, scalar; `,+v` for vectors of 128 bits",
    ),
    "cortex-m7": Preset(
        "thumbv7em-unknown-none-eabihf", "cortex-m7", "-fp64", (16 * KIB, 16 * KIB, 16 * KIB), 1,
        "no system, no heap; float32 in hardware, float64 by library; `,+fp64` where that is in hardware too",
    ),
    "wasm32": Preset(
        "wasm32-unknown-unknown", "mvp", _WASM, (32 * KIB, 256 * KIB, 4096 * KIB), 1,
        "Node.js and browsers; `,-simd128` without vectors",
    ),
}  # fmt: skip

# Vector registers a register tile may use: without and with vectors of 512 bits. WebAssembly has no registers, but what
# runs it has 16 or 32; a Cortex-M has 32 for float32.
_REGISTERS = {
    "x86_64": (16, 32), "aarch64": (32, 32), "riscv64": (32, 32), "riscv32": (32, 32), "arm": (16, 16),
    "wasm32": (16, 16),
}  # fmt: skip
_SCALAR_REGISTERS = {"arm": 32}

_SIZE = re.compile(r"([1-9][0-9]{0,8})([KM]?)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def named(text: str) -> Target:
    """The processor that `text` names; see the top of this file, or `target.named`."""
    first, *settings = (part.strip() for part in text.split(","))
    preset, changed = _preset(first), {"l1": 0, "l2": 0, "l3": 0, "cores": 0, "vector": 0}
    if first == "host" and not settings:
        return host()
    cpu, features, asked = preset.cpu, [preset.features] if preset.features else [], False
    for setting in settings:
        name, equals, value = setting.partition("=")
        if setting[:1] in ("+", "-") and _NAME.fullmatch(setting[1:]):
            features.append(setting)
            asked = True
        elif name == "cpu" and _NAME.fullmatch(value):
            cpu, asked = value, True
        elif equals and name in changed:
            changed[name] = _count(text, name, value)
        else:
            raise ValueError(
                f"target.named: got {setting!r} in {text!r}, expected cpu=NAME, +FEATURE, -FEATURE, vector=BITS, "
                "l1=SIZE, l2=SIZE, l3=SIZE or cores=COUNT"
            )
    if asked:
        _check_names(text, preset.triple, cpu, ",".join(features))
    found = described(preset.triple, cpu, ",".join(features))
    l1, l2, l3 = (changed[level] or size for level, size in zip(("l1", "l2", "l3"), preset.caches, strict=True))
    l2 = max(l1, l2) if not changed["l2"] else l2
    l3 = max(l2, l3) if not changed["l3"] else l3
    if not l1 <= l2 <= l3:
        raise ValueError(f"target.named: got caches of {l1}, {l2} and {l3} bytes in {text!r}, expected l1 <= l2 <= l3")
    cores = changed["cores"] or preset.cores
    found = dataclasses.replace(found, l1_bytes=l1, l2_bytes=l2, l3_bytes=l3, cores=cores)
    return with_vector_bits(found, changed["vector"]) if changed["vector"] else found


def _preset(first: str) -> Preset:
    """The preset of this name, or what a bare triple says, or this machine."""
    if first in PRESETS:
        return PRESETS[first]
    if first == "host":
        machine = host()
        caches = machine.l1_bytes, machine.l2_bytes, machine.l3_bytes
        return Preset(machine.triple, machine.cpu, machine.features, caches, machine.cores, "this machine")
    if first.count("-") < 1 or not _NAME.fullmatch(first):
        raise _unknown(first)
    import llvmlite.binding as llvm
    from kaun.runtime import engine

    engine.initialise_all()
    triple = _whole_triple(first)
    try:
        llvm.Target.from_triple(triple)
    except RuntimeError:
        raise _unknown(first) from None
    bare = Target.of(triple)
    if bare.architecture not in _REGISTERS:
        known = ", ".join(_REGISTERS)
        raise ValueError(f"target.named: got {first!r}, whose architecture is not one of {known}")
    _check_layout(first, bare, str(llvm.Target.from_triple(triple).create_target_machine().target_data))
    # Where LLVM assumes a processor without floats, though no distribution supports one.
    features = _RV64GC if (bare.architecture, bare.system) == ("riscv64", "linux") else ""
    return Preset(triple, "", features, FALLBACK_CACHES, 0, "")


def _check_layout(first: str, bare: Target, layout: str) -> None:
    """ValueError for a triple by which LLVM lays out numbers or addresses otherwise than code and files expect."""
    if layout.startswith("E"):
        raise ValueError(
            f"target.named: got {first!r}, which is big-endian; code and files are for little-endian processors only"
        )
    found = re.search(r"-p:(\d+)", layout)
    bits = int(found[1]) if found else 64
    if bits != bare.pointer_bits:
        raise ValueError(
            f"target.named: got {first!r}, whose addresses have {bits} bits (as in x32 and ILP32), expected "
            f"{bare.pointer_bits}, as other systems have them on {bare.architecture}"
        )


_SYSTEMS = ("linux", "darwin", "macos", "ios", "watchos", "freebsd", "none", "wasi", "windows")
_ENVIRONMENTS = ("gnu", "musl", "eabi", "android", "elf")


def _whole_triple(text: str) -> str:
    """The triple with none of its four parts left out.

    LLVM's library, unlike its tools, reads the parts by position: in `aarch64-linux-gnu` it sees a vendor `linux`, and
    in `thumbv7em-none-eabihf` no convention for calls, so that floats would go through integer registers.
    """
    architecture, *rest = text.split("-")
    system = next((part for part in rest if part.startswith(_SYSTEMS)), "")
    environment = next((part for part in rest if part.startswith(_ENVIRONMENTS)), "")
    vendors = [part for part in rest if part not in (system, environment)]
    if not environment and system == "linux" and Target.of(text).pointer_bits == 64:
        environment = "gnu"
    if not system:
        system = "none" if environment else "unknown"
    vendor = vendors[0] if vendors else "unknown"
    return "-".join(part for part in (architecture, vendor, system, environment) if part)


def _unknown(first: str) -> ValueError:
    close = difflib.get_close_matches(first, [*PRESETS, "host"], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    known = ", ".join([*PRESETS, "host"])
    return ValueError(f"target.named: got {first!r}{hint}, expected one of {known}, or an LLVM triple")


def _count(text: str, name: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    if not match or (match[2] and name in ("cores", "vector")):
        example = {"cores": "cores=4", "vector": "vector=128"}.get(name, f"{name}=32K")
        raise ValueError(f"target.named: got {name}={value!r} in {text!r}, expected a number as in {example}")
    number = int(match[1]) * {"": 1, "K": KIB, "M": KIB * KIB}[match[2]]
    if name == "vector" and number not in VECTOR_BITS:
        raise ValueError(f"target.named: got vector={value} in {text!r}, expected one of {VECTOR_BITS}")
    return number


# LLVM says on standard error that it does not know a name, and goes on without: it is asked in a process of its own.
_ASK = """
import sys
import llvmlite.binding as llvm
from kaun.runtime import engine
engine.initialise_all()
triple, cpu, features = sys.argv[1:]
llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
"""


@functools.lru_cache(maxsize=64)
def _check_names(text: str, triple: str, cpu: str, features: str) -> None:
    """ValueError if LLVM does not know the processor or one of the features."""
    import llvmlite.binding as llvm
    from kaun.runtime import engine

    engine.initialise_all()
    command = [sys.executable, "-c", _ASK, triple, cpu, features]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    unknown = re.findall(r"'(\S+)' is not a recognized (processor|feature)", told.stderr)
    if unknown:
        names = " and ".join(f"the {kind} {name.lstrip('+-')!r}" for name, kind in dict.fromkeys(unknown))
        version = ".".join(map(str, llvm.llvm_version_info))
        raise ValueError(f"target.named: got {names} in {text!r}, which LLVM {version} does not know for {triple}")
    if told.returncode:
        raise ValueError(f"target.named: LLVM could not make code for {text!r}: {told.stderr.strip() or 'no reason'}")


_PROBES = """
declare float @llvm.fma.f32(float, float, float)
define float @fused(float %a, float %b, float %c) {
  %d = call float @llvm.fma.f32(float %a, float %b, float %c)
  ret float %d
}
define float @half(ptr %p) {
  %h = load half, ptr %p
  %f = fpext half %h to float
  ret float %f
}
define void @floats(ptr %a, ptr %b) "prefer-vector-width"="512" {
  %x = load <16 x float>, ptr %a
  %y = load <16 x float>, ptr %b
  %z = fadd <16 x float> %x, %y
  store <16 x float> %z, ptr %a
  ret void
}
define void @bytes(ptr %a, ptr %b) "prefer-vector-width"="512" {
  %x = load <64 x i8>, ptr %a
  %y = load <64 x i8>, ptr %b
  %z = add <64 x i8> %x, %y
  store <64 x i8> %z, ptr %a
  ret void
}
"""


@functools.lru_cache(maxsize=64)
def described(triple: str, cpu: str, features: str) -> Target:
    """The processor with what LLVM makes use of; its caches are the smallest that are usual."""
    from kaun.runtime import engine

    bare = Target.of(triple, cpu, features)
    scalars, floats, bytes_ = re.split(r"\n_?(?:floats|bytes):", engine.assembly(_PROBES, bare))
    bits = _vector_bits(bare.architecture, floats, bytes_)
    narrow, wide = _REGISTERS[bare.architecture]
    registers = wide if bits == 512 else narrow if bits >= 128 else _SCALAR_REGISTERS.get(bare.architecture, narrow)
    return dataclasses.replace(
        bare,
        vector_bits=bits,
        vector_registers=registers,
        has_fma="fmaf" not in scalars,
        # The library function's name has an h in either convention: __extendhfsf2, __aeabi_h2f, __gnu_h2f_ieee.
        has_f16c=not re.search(r"__extendhfsf2|_h2f", scalars),
    )


def _vector_bits(architecture: str, floats: str, bytes_: str) -> int:
    """Width of the vectors in the code that adds 16 floats; 512 only where bytes have such vectors too."""
    if architecture == "x86_64":
        return 512 if "zmm" in floats and "zmm" in bytes_ else 256 if "ymm" in floats or "zmm" in floats else 128
    if architecture in ("riscv64", "riscv32"):
        # `vsetivli zero, 16, e32, m4`: 16 elements of 32 bits in four registers.
        group = re.search(r"vset\S+\s+\S+ \S+ e32, m([1248])", floats)
        return max(32, min(512, 512 // int(group[1]))) if group else 32
    # Apple's syntax has the arrangement in the instruction's name: `fadd.4s v0, v1, v0`.
    aarch64 = r"fadd(\.4s\s+v\d+|\s+v\d+\.4s)"
    pattern = {"aarch64": aarch64, "arm": r"vadd\.f32\s+q\d", "wasm32": r"f32x4\.add"}[architecture]
    return 128 if re.search(pattern, floats) else 32


# A function that may use one feature beside all of the target's, and a caller that may use those of the target.
_INLINED = """
define internal void @feature{number}() "target-cpu"="{cpu}" "target-features"="{features}+{name}" {{
  call void asm sideeffect "", ""()
  ret void
}}
define void @target{number}() "target-cpu"="{cpu}" "target-features"="{features}" {{
  call void @feature{number}()
  ret void
}}
"""


def features_of(target: Target, names: Collection[str]) -> frozenset[str]:
    """Which of these features, by LLVM's names, code for the target may use; its processor's name implies some.

    LLVM has no list to ask for. But it inlines a function only where the caller has all the features that it may use.
    """
    import llvmlite.binding as llvm
    from kaun.runtime import engine

    engine.initialise_all()
    ordered = sorted(names)
    text = "".join(
        _INLINED.format(number=number, name=name, cpu=target.cpu, features=f"{target.features},".lstrip(","))
        for number, name in enumerate(ordered)
    )
    machine = llvm.Target.from_triple(target.triple).create_target_machine()
    with llvm.create_context() as context:
        module = llvm.parse_assembly(f'target triple = "{target.triple}"\n{text}', context)
        with module:
            builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
            builder.getModulePassManager().run(module, builder)
            bodies = {function.name: str(function) for function in module.functions}
    return frozenset(name for number, name in enumerate(ordered) if " asm " in bodies[f"target{number}"])
