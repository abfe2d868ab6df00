"""Scatters of large results run block of rows by block of rows; small ones column by column."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler.codegen import loops
from kaun.compiler.ir import Graph, dtypes, ops
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.schedule.collapse import collapse
from kaun.compiler.schedule.fusion import fuse
from kaun.compiler.schedule.loop_ir import LoopKernel
from kaun.compiler.schedule.run import run_kernel
from kaun.compiler.schedule.text import print_kernel
from kaun.compiler.schedule.verify import verify_kernel
from schedule_examples import TARGET


def scattered(rows: int, columns: int, count: int) -> tuple[Graph, LoopKernel]:
    indices = ops.input_(identity="indices", dtype=dtypes.int32, shape=(count,))
    updates = ops.input_(identity="updates", dtype=dtypes.float32, shape=(count, columns))
    graph = Graph((indices, updates), (ops.scatter_add(indices, updates, size=rows),))
    (scheduled,) = fuse(graph)
    assert isinstance(scheduled.kernel, LoopKernel)
    return graph, scheduled.kernel


def test_a_small_result_is_divided_by_columns_and_a_large_one_by_rows() -> None:
    assert [v.extent for v in scattered(512, 256, 9)[1].outer] == [256]
    assert [v.extent for v in scattered(32_000, 256, 9)[1].outer] == [32]


def test_narrow_rows_are_not_divided() -> None:
    """Every block would look at all updates, which costs more than adding them."""
    assert [v.extent for v in scattered(1_000_000, 2, 9)[1].outer] == [2]


def test_lanes_run_along_a_row_and_never_over_updates() -> None:
    chosen = loops.plan(collapse(scattered(32_000, 256, 9)[1]), TARGET)
    assert chosen.vector is None and min(chosen.lanes) > 1
    single = collapse(scattered(32_000, 1, 9)[1])
    assert loops.plan(single, TARGET).lanes[-1] == 1


@pytest.mark.parametrize("rows", [4096, 4099])
def test_blocks_are_accepted_by_the_verifier_and_add_what_the_op_means(rows: int) -> None:
    graph, kernel = scattered(rows, 64, 11)
    places = np.array([0, 5, 5, -1, rows - 1, rows, 1024, 1025, 5, 3071, -7], np.int32)
    updates = np.random.default_rng(0).integers(-9, 9, (11, 64)).astype(np.float32)
    (expected,) = evaluate(graph, [places, updates])
    for each in (kernel, collapse(kernel)):
        verify_kernel(each)
        result = np.full(rows * 64, np.nan, np.float32)
        run_kernel(each, [places, updates.ravel(), result])
        np.testing.assert_array_equal(result.reshape(rows, 64), expected, err_msg=print_kernel(each))
