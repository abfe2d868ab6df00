"""Timing a kernel runs it as a program does, as often as asked, and disturbs nothing."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from kaun.runtime import target as targets
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.profile import repeat_kernel, time_calls, time_kernel

import kaun as kn
from kaun.execution import Storage

# Adds one to the counter of each of its chunks.
COUNT = """
define void @count_chunks(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
start:
  %counters = load ptr, ptr %buffers
  br label %next
next:
  %chunk = phi i64 [ %begin, %start ], [ %following, %next ]
  %place = getelementptr i64, ptr %counters, i64 %chunk
  %old = load i64, ptr %place
  %new = add i64 %old, 1
  store i64 %new, ptr %place
  %following = add i64 %chunk, 1
  %more = icmp ult i64 %following, %end
  br i1 %more, label %next, label %done
done:
  ret void
}
"""


@pytest.mark.parametrize("chunks", [1, 2, 7])
@pytest.mark.parametrize("times", [0, 1, 5])
def test_a_kernel_runs_every_chunk_as_often_as_asked(times: int, chunks: int) -> None:
    (kernel,) = compile_kernels([KernelRequest("count_chunks", COUNT, lambda: COUNT)], targets.host())
    counters = np.zeros(chunks, np.int64)
    repeat_kernel(times, kernel, [counters.ctypes.data], chunks, 0, 0, targets.host())
    assert counters.tolist() == [times] * chunks
    assert 0 < time_kernel(kernel, [counters.ctypes.data], chunks, seconds=0.001) < math.inf


def test_calls_are_timed_on_real_buffers_and_inputs_stay_as_they_were() -> None:
    @kn.jit
    def function(x: kn.nx.Tensor, y: kn.nx.Tensor) -> kn.nx.Tensor:
        return kn.nx.tanh(kn.nx.matmul(x, y)).sum(axis=0)

    x, y = (kn.nx.asarray(np.full((40, 40), value, np.float32)) for value in (0.5, 0.25))
    expected = function(x, y).numpy().copy()
    executable = function.compiled.specialise(x, y).compiled.executable
    inputs = [Storage.of(tensor.numpy()) for tensor in (x, y)]
    times = time_calls(executable, [storage.address for storage in inputs], seconds=0.001)
    assert len(times) == len(executable.program.calls) and all(time > 0 for time in times)
    assert (x.numpy() == 0.5).all() and (y.numpy() == 0.25).all()
    (output,) = executable.run([storage.address for storage in inputs])
    computed = np.frombuffer((ctypes.c_float * 40).from_address(output.address), np.float32)
    np.testing.assert_array_equal(computed, expected)
