"""Rows that are gathered one after the other are asked for before they are read."""

from __future__ import annotations

from kaun.compiler.codegen.kernels import emit_kernel
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.schedule.fusion import fuse

TARGET = VectorTarget(
    vector_bits=256, vector_registers=16, has_fma=True, l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=0
)


def array(name: str, shape: tuple[int, ...], dtype: dtypes.DType = dtypes.float32) -> Node:
    return ops.input_(identity=name, dtype=dtype, shape=shape)


def prefetches(output: Node, *inputs: Node) -> int:
    """How many lines the only kernel of this output asks for in a unit."""
    (scheduled,) = fuse(Graph(inputs, (output,)))
    return emit_kernel(scheduled.kernel, "kernel", TARGET).count('call void @"llvm.prefetch.p0"')


def test_a_unit_asks_for_all_lines_of_a_later_row() -> None:
    table, places = array("table", (5000, 96)), array("places", (300,), dtypes.int32)
    assert prefetches(ops.gather(table, places), table, places) == 96 * 4 // 64


def test_rows_that_are_short_or_very_long_are_left_to_the_processor() -> None:
    places = array("places", (300,), dtypes.int32)
    for columns in (8, 4096):
        table = array("table", (500, columns))
        assert prefetches(ops.gather(table, places), table, places) == 0


def test_rows_of_no_table_are_not_asked_for() -> None:
    x = array("x", (300, 96))
    assert prefetches(ops.exp(x), x) == 0
