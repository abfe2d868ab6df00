"""Modules of kernels are short, and leave nothing behind but their text."""

from __future__ import annotations

import gc

from kaun.compiler.codegen.kernels import emit_kernel
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, dtypes, ops
from kaun.compiler.pipeline import Compilation
from llvmlite import ir

TARGET = VectorTarget(256, 16, True, 32768, 1 << 20, 1 << 23)


def instructions() -> int:
    return sum(isinstance(thing, ir.Instruction) for thing in gc.get_objects())


def test_instructions_of_emitted_kernels_are_gone_without_the_garbage_collector() -> None:
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(2, 8, 9, 9))
    w = ops.input_(identity="w", dtype=dtypes.float32, shape=(16, 8, 3, 3))
    convolved = ops.conv_general(
        x, w, groups=1, strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(1, 1), rhs_dilation=(1, 1)
    )
    summed = ops.reduce_sum(ops.exp(x), axes=(1, 3))
    kernels = [scheduled.kernel for scheduled in Compilation(Graph((x, w), (convolved, summed)), TARGET).kernels]
    assert len(kernels) >= 2
    gc.collect()
    gc.disable()
    try:
        before = instructions()
        texts = [emit_kernel(kernel, "kernel", TARGET) for kernel in kernels]
        lines = sum(text.count("\n") for text in texts)
        assert lines > 200
        # What is left hangs on closures that refer to themselves.
        assert instructions() - before < lines / 20
    finally:
        gc.enable()


def test_loops_that_only_clear_an_array_are_not_written_out() -> None:
    def code(rows: int) -> int:
        indices = ops.input_(identity="indices", dtype=dtypes.int32, shape=(5,))
        updates = ops.input_(identity="updates", dtype=dtypes.float32, shape=(5, 48))
        compilation = Compilation(Graph((indices, updates), (ops.scatter_add(indices, updates, size=rows),)), TARGET)
        return len(compilation.stage("llvm"))

    assert code(4099) < code(1031) + 1000
    assert code(1031) < code(101) + 1000
