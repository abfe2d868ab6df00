"""What the machine can do at most: multiply-adds and copied bytes per second, measured with two small kernels."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from kaun.runtime import threads
from kaun.runtime.buffers import Buffer
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.profile import fork_and_join_seconds, time_kernel
from kaun.runtime.target import Target, function_attributes

# Enough independent sums to hide the latency of a multiply-add (4 or 5 cycles, two a cycle) in 16 vector registers.
_SUMS = 12
_ROUNDS = 10_000
# Bytes that one chunk of the copy moves.
_CHUNK = 32 << 10
_LARGEST_COPY = 256 << 20
# Work on one thread after which the others have fallen asleep.
_SERIAL_SECONDS = 1e-3
# More than any working set.
_UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Peaks:
    """float32 operations a second (a multiply-add is two), and bytes read plus bytes written a second by a copy.

    `bandwidth` has a pair (largest working set in bytes, bytes a second) for each level of memory, the last unbounded.
    """

    flops: float
    bandwidth: list[tuple[int, float]]
    threads: int
    target: str
    # Seconds to start and to end a parallel loop: one after another, and after a millisecond of work on one thread.
    fork_and_join: float
    fork_and_join_after_serial: float


def bandwidth_of(levels: list[tuple[int, float]], working_set: float) -> float:
    """The rate of the first level that holds `working_set` bytes."""
    return next((rate for bound, rate in levels if working_set <= bound), levels[-1][1])


def measure_peaks(target: Target, seconds: float = 0.2) -> Peaks:
    """Measure with as many threads as programs use; each number for about `seconds`."""
    workers = threads.pool().threads
    fma, copy = _kernels(target)
    sums = Buffer(64 * 8 * workers)
    chunks = 8 * workers
    flops = 2 * _SUMS * _ROUNDS * target.lanes(4) * chunks
    levels = []
    for bound, working_set in _levels(target, workers):
        half = max(_CHUNK, working_set // 2 // _CHUNK * _CHUNK)
        source, destination = Buffer(half), Buffer(half)
        for buffer in (source, destination):  # real pages, not the one page of zeros that all start as
            buffer.view(np.uint8, (half,))[...] = 1
        time = time_kernel(
            copy, [source.address, destination.address], half // _CHUNK, seconds=seconds, target=target
        )
        levels.append((bound, 2 * half / time))
    return Peaks(
        flops=flops / time_kernel(fma, [sums.address], chunks, seconds=seconds, target=target),
        bandwidth=levels,
        threads=workers,
        target=target.name,
        fork_and_join=fork_and_join_seconds(seconds=seconds),
        fork_and_join_after_serial=fork_and_join_seconds(_SERIAL_SECONDS, seconds=seconds),
    )


def _levels(target: Target, workers: int) -> list[tuple[int, int]]:
    """(bound of the level, working set to measure it with), from the inside out; the innermost cores share nothing."""
    inner = workers * target.l2_bytes
    levels: list[tuple[int, int]] = [(inner, inner // 2)] if inner else []
    if target.l3_bytes > 2 * inner:
        levels.append((target.l3_bytes, target.l3_bytes // 2))
    outside = min(_LARGEST_COPY, max(32 << 20, 4 * max(target.l3_bytes, inner)))
    return [*levels, (_UNBOUNDED, outside)]


def _kernels(target: Target) -> tuple[int, int]:
    """Addresses of the multiply-add and of the copying kernel."""
    requests = []
    for kind, text in (("fma", _fma_text(target)), ("copy", _copy_text(target))):
        name = f"kaun_peak_{kind}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        requests.append(KernelRequest(name, text, functools.partial(text.replace, "@NAME", f"@{name}")))
    fma, copy = compile_kernels(requests, target)
    return fma, copy


def _splat(number: float, lanes: int) -> str:
    return "<" + ", ".join([f"float {number:e}"] * lanes) + ">"


def _fma_text(target: Target) -> str:
    """for chunk: repeat _ROUNDS times: sum[i] = sum[i] * x + y for all i; then the sums' sum is stored."""
    vector = f"<{target.lanes(4)} x float>"
    function = f"llvm.fma.v{target.lanes(4)}f32"

    def multiply_add(i: int) -> list[str]:
        if target.has_fma:
            return [f"  %n{i} = call {vector} @{function}({vector} %s{i}, {vector} %x, {vector} %y)"]
        return [f"  %p{i} = fmul {vector} %s{i}, %x", f"  %n{i} = fadd {vector} %p{i}, %y"]

    lines = [
        f"declare {vector} @{function}({vector}, {vector}, {vector})" if target.has_fma else "",
        f"define void @NAME(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {function_attributes(target)}",
        "{",
        "start:",
        "  %out = load ptr, ptr %buffers",
        # Unknown to the optimiser, so that nothing can be computed beforehand.
        "  %one = uitofp i64 %begin to float",
        "  %small = fmul float %one, 0x3E112E0BE0000000",
        f"  %x0 = insertelement {vector} zeroinitializer, float %small, i64 0",
        f"  %x = shufflevector {vector} %x0, {vector} poison, <{target.lanes(4)} x i32> zeroinitializer",
        f"  %y = fadd {vector} %x, %x",
        # Sums that start alike would be recognised as one.
        *(f"  %b{i} = fmul {vector} %x, {_splat(i + 2.0, target.lanes(4))}" for i in range(_SUMS)),
        "  br label %chunk",
        "chunk:",
        "  %c = phi i64 [ %begin, %start ], [ %c1, %store ]",
        "  br label %round",
        "round:",
        "  %r = phi i64 [ 0, %chunk ], [ %r1, %round ]",
        *(f"  %s{i} = phi {vector} [ %b{i}, %chunk ], [ %n{i}, %round ]" for i in range(_SUMS)),
        *(line for i in range(_SUMS) for line in multiply_add(i)),
        "  %r1 = add i64 %r, 1",
        f"  %again = icmp ult i64 %r1, {_ROUNDS}",
        "  br i1 %again, label %round, label %store",
        "store:",
        f"  %t0 = fadd {vector} %n0, %n1",
        *(f"  %t{i - 1} = fadd {vector} %t{i - 2}, %n{i}" for i in range(2, _SUMS)),
        "  %place = getelementptr [64 x i8], ptr %out, i64 %c",
        f"  store {vector} %t{_SUMS - 2}, ptr %place, align 4",
        "  %c1 = add i64 %c, 1",
        "  %more = icmp ult i64 %c1, %end",
        "  br i1 %more, label %chunk, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _copy_text(target: Target) -> str:
    """for chunk: for vectors of it, four at a time: destination = source."""
    lanes = target.lanes(4)
    vector, step = f"<{lanes} x float>", 4 * lanes * 4
    moves = []
    for i in range(4):
        offset = f"  %o{i} = add i64 %o, {i * lanes * 4}"
        moves += [
            offset,
            f"  %f{i} = getelementptr i8, ptr %source, i64 %o{i}",
            f"  %t{i} = getelementptr i8, ptr %destination, i64 %o{i}",
            f"  %v{i} = load {vector}, ptr %f{i}, align {4 * lanes}",
            f"  store {vector} %v{i}, ptr %t{i}, align {4 * lanes}",
        ]
    lines = [
        f"define void @NAME(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {function_attributes(target)}",
        "{",
        "start:",
        "  %source = load ptr, ptr %buffers",
        "  %second = getelementptr ptr, ptr %buffers, i64 1",
        "  %destination = load ptr, ptr %second",
        f"  %first = mul i64 %begin, {_CHUNK}",
        f"  %last = mul i64 %end, {_CHUNK}",
        "  br label %move",
        "move:",
        "  %o = phi i64 [ %first, %start ], [ %next, %move ]",
        *moves,
        f"  %next = add i64 %o, {step}",
        "  %more = icmp ult i64 %next, %last",
        "  br i1 %more, label %move, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"
