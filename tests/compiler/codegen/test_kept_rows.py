"""Values that several passes of a row need are kept in scratch memory if computing them again costs more."""

from __future__ import annotations

import dataclasses

from kaun.compiler.codegen import loops
from kaun.compiler.codegen.kernels import launch
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.schedule.collapse import collapse
from kaun.compiler.schedule.fusion import fuse
from kaun.compiler.schedule.loop_ir import Apply, LoopKernel

TARGET = VectorTarget(
    vector_bits=256, vector_registers=16, has_fma=True, l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=0
)


def summed(x: Node, value: Node) -> Node:
    """value / (the sum of its rows)."""
    total = ops.reshape(ops.reduce_sum(value, axes=(1,)), shape=(x.shape[0], 1))
    return ops.div(value, ops.broadcast(total, shape=x.shape))


def kernel_of(rows: int, columns: int, name: str) -> LoopKernel:
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(rows, columns))
    (scheduled,) = fuse(Graph((x,), (summed(x, getattr(ops, name)(x)),)))
    assert isinstance(scheduled.kernel, LoopKernel)
    return collapse(scheduled.kernel)


def kept_names(kernel: LoopKernel, target: VectorTarget = TARGET) -> list[str]:
    return [row.value.name for row in loops.plan(kernel, target).kept if isinstance(row.value, Apply)]


def test_a_function_that_two_passes_need_is_computed_once() -> None:
    assert kept_names(kernel_of(64, 300, "exp")) == ["exp"]


def test_a_cheap_value_is_computed_again() -> None:
    assert kept_names(kernel_of(64, 300, "abs_")) == []


def test_a_row_that_does_not_fit_the_cache_is_computed_again() -> None:
    kernel = kernel_of(16, 40_000, "exp")
    assert kept_names(kernel) == ["exp"]
    assert kept_names(kernel, dataclasses.replace(TARGET, l2_bytes=256 << 10)) == []


def test_scratch_holds_whole_vectors_for_every_row_that_is_worked_on() -> None:
    kernel = kernel_of(64, 301, "exp")
    along = loops.plan(kernel, TARGET)
    assert along.vector is None
    assert launch(kernel, TARGET).scratch_bytes >= 4 * (301 + max(along.lanes) - 1)
    narrow = kernel_of(4096, 3, "exp")
    across = loops.plan(narrow, TARGET)
    assert across.vector is not None
    assert launch(narrow, TARGET).scratch_bytes >= 4 * 3 * across.lanes[0]
