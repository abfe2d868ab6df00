"""Times the kernels of a program one by one, each repeated by a native loop on the buffers it has in the program."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Sequence

from kaun.compiler.program import Place
from kaun.runtime import target as targets
from kaun.runtime import threads
from kaun.runtime.buffers import Buffer
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.program import Executable
from kaun.runtime.target import Target

__all__ = ["fork_and_join_seconds", "repeat_kernel", "time_calls", "time_kernel"]

# One measurement lasts about this long, so that neither the clock nor the call from Python shows in it.
_BURST_SECONDS = 1e-3

# Repeats a kernel as a program's entry calls it: through the pool when it has several chunks, whose first word is the
# address of the parallel loop, and directly when it has one.
_REPEAT = """
define void @NAME(i64 %times, ptr %pool, ptr %kernel, ptr %buffers, i64 %chunks, ptr %scratch, i64 %stride) {
entry:
  %parallel_for = load ptr, ptr %pool
  %many = icmp ugt i64 %chunks, 1
  %any = icmp ugt i64 %times, 0
  br i1 %any, label %again, label %done
again:
  %number = phi i64 [ 0, %entry ], [ %next, %repeated ]
  br i1 %many, label %together, label %alone
together:
  call void %parallel_for(ptr %pool, ptr %kernel, ptr %buffers, i64 %chunks, ptr %scratch, i64 %stride)
  br label %repeated
alone:
  call void %kernel(ptr %buffers, i64 0, i64 %chunks, ptr %scratch)
  br label %repeated
repeated:
  %next = add i64 %number, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %again, label %done
done:
  ret void
}
"""
_SYMBOL = "kaun_repeat_" + hashlib.sha256(_REPEAT.encode()).hexdigest()[:16]
_number, _address = ctypes.c_int64, ctypes.c_void_p
_repeat = ctypes.CFUNCTYPE(None, _number, _address, _address, _address, _number, _address, _number)


def repeat_kernel(
    times: int, kernel: int, buffers: Sequence[int], chunks: int, scratch: int, stride: int, target: Target
) -> None:
    """Run the kernel at address `kernel` `times` times on the buffers at these addresses, on the threads of the pool.

    scratch: address of `stride` bytes for each thread.
    """
    slots = (ctypes.c_void_p * max(1, len(buffers)))(*buffers)
    pool = threads.pool().address
    _loop(target)(times, pool, kernel, ctypes.addressof(slots), chunks, scratch, stride)


@functools.lru_cache(maxsize=8)
def _loop(target: Target) -> Callable[..., None]:
    request = KernelRequest(_SYMBOL, _REPEAT, lambda: _REPEAT.replace("@NAME", f"@{_SYMBOL}"))
    (address,) = compile_kernels([request], target)
    return _repeat(address)


def time_kernel(
    kernel: int,
    buffers: Sequence[int],
    chunks: int,
    scratch: int = 0,
    stride: int = 0,
    *,
    seconds: float = 0.05,
    target: Target | None = None,
) -> float:
    """Seconds that one run of a kernel takes, the least over repetitions for about `seconds`; arguments as above.

    The least, because other programs only ever add to it. The data stays in the caches as far as it fits.
    """
    machine = targets.host() if target is None else target

    def burst(times: int) -> float:
        started = time.perf_counter()
        repeat_kernel(times, kernel, buffers, chunks, scratch, stride, machine)
        return (time.perf_counter() - started) / times

    burst(1)  # loads the loop, starts the threads
    times = max(1, math.ceil(_BURST_SECONDS / max(burst(2), 1e-9)))
    least, stop = burst(times), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        least = min(least, burst(times))
    return least


_NOTHING = """
define void @NAME(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
  ret void
}
"""
_NOTHING_SYMBOL = "kaun_nothing_" + hashlib.sha256(_NOTHING.encode()).hexdigest()[:16]


def fork_and_join_seconds(serial_seconds: float = 0.0, *, seconds: float = 0.05) -> float:
    """Seconds that it takes to start a parallel loop and to wait for its end, with 2 chunks of nothing to do.

    serial_seconds: that long one thread works alone before each loop, while the others fall asleep. With 0, loops
        follow each other in native code, which is how small kernels of a program do.
    """
    machine = targets.host()
    request = KernelRequest(_NOTHING_SYMBOL, _NOTHING, lambda: _NOTHING.replace("@NAME", f"@{_NOTHING_SYMBOL}"))
    (kernel,) = compile_kernels([request], machine)
    together, alone = (time_kernel(kernel, [], chunks, seconds=seconds, target=machine) for chunks in (2, 1))
    if not serial_seconds:
        return max(0.0, together - alone)

    def once(chunks: int) -> float:
        started = time.perf_counter()
        while time.perf_counter() - started < serial_seconds:
            pass
        started = time.perf_counter()
        repeat_kernel(1, kernel, [], chunks, 0, 0, machine)
        return time.perf_counter() - started

    count = max(9, math.ceil(seconds / serial_seconds))
    together, alone = (statistics.median(once(chunks) for _ in range(count)) for chunks in (2, 1))
    return max(0.0, together - alone)


def time_calls(
    executable: Executable, inputs: Sequence[int], *, seconds: float = 0.05, target: Target | None = None
) -> list[float]:
    """Seconds that each kernel call of the program takes alone, in the order of `executable.program.calls`.

    inputs: addresses as `Executable.run` takes them. Each call is repeated for about `seconds` after those before it,
    so every kernel sees the values that it sees in the program.
    """
    program = executable.program
    outputs = [Buffer(array.nbytes) for array in program.outputs]
    workspace = Buffer(max(1, program.arena_bytes + threads.pool().threads * program.scratch_bytes))

    def address(place: Place) -> int:
        if place.kind == "arena":
            return workspace.address + place.position
        return inputs[place.position] if place.kind == "input" else outputs[place.position].address

    return [
        time_kernel(
            executable.kernel_addresses[call.kernel],
            [address(place) for place in call.places],
            call.chunks,
            workspace.address + program.arena_bytes,
            program.scratch_bytes,
            seconds=seconds,
            target=target,
        )
        for call in program.calls
    ]
