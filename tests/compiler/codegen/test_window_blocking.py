"""Plans of contractions with an image: their tables find every element, and their boxes hold what a block sees."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.codegen import window_kernel
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.codegen.window_blocking import WindowContraction, WindowPlan, plan_windows, values_along
from kaun.compiler.ir import Graph, dtypes, ops
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.loop_ir import ContractionKernel

TARGETS = {
    "512 bits": VectorTarget(512, 32, True, 49152, 1 << 20, 1 << 25),
    "256 bits": VectorTarget(256, 16, True, 32768, 1 << 20, 1 << 23),
    "tiny caches": VectorTarget(128, 16, False, 1024, 4096, 8192),
    "scalar": VectorTarget(0, 16, False, 0, 0, 0),
}


def planned(target: VectorTarget, seed: int) -> Iterator[tuple[WindowContraction, WindowPlan]]:
    """Plans of a random convolution and its gradients: odd sizes, strides, dilations, groups, padding."""
    source = random.Random(seed)
    groups, height, width = source.choice((1, 1, 2)), source.randint(4, 23), source.randint(4, 37)
    kernel = source.choice((1, 3, 5)), source.choice((1, 2, 3))
    x = ops.input_(identity="x", dtype=dtypes.float32, shape=(source.choice((2, 3)), groups * 8, height, width))
    w = ops.input_(identity="w", dtype=dtypes.float32, shape=(groups * 32, 8, *kernel))
    y = ops.conv_general(
        x, w, groups=groups, strides=(source.choice((1, 1, 2)),) * 2, padding=((4, source.randrange(6)), (4, 1)),
        lhs_dilation=(1, 1), rhs_dilation=(1, source.choice((1, 2))),
    )  # fmt: skip
    cotangent = ops.input_(identity="g", dtype=dtypes.float32, shape=y.shape)
    graph = Graph((x, w, cotangent), (y, *gradients([y], [cotangent], [x, w])))
    for scheduled in Compilation(graph, target).kernels:
        kernel_ = scheduled.kernel
        if isinstance(kernel_, ContractionKernel) and kernel_.image is not None:
            contraction, _ = window_kernel.plan(kernel_, target)
            yield contraction, plan_windows(contraction, target)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_tables_find_every_element_of_every_block_where_it_is(target: VectorTarget) -> None:
    found = 0
    for seed in range(8):
        for contraction, plan in planned(target, seed):
            found += 1
            check(contraction, plan)
    assert found >= 8


def check(contraction: WindowContraction, plan: WindowPlan) -> None:
    blocking, strides = plan.blocking, np.array(plan.strides)
    in_rows = np.array([values_along(place, contraction.rows) for place in contraction.image.places])
    constants = np.array([place.constant for place in contraction.image.places])[:, None]
    in_depth = np.array([values_along(place, contraction.depth) for place in contraction.image.places]) - constants
    extents = np.array([axis.extent for axis in contraction.image.axes])
    for m0 in range(0, contraction.m, blocking.mc):
        block = min(blocking.mc, contraction.m - m0)
        for k0 in range(0, contraction.k, blocking.kc):
            steps = min(blocking.kc, contraction.k - k0)
            places = in_rows[:, m0 : m0 + block, None] + in_depth[:, None, k0 : k0 + steps]
            first = in_rows[:, m0] + in_depth[:, k0]
            start = first + np.array(plan.origin) if plan.box is not None else first
            if plan.box is not None:
                inside = places - start[:, None, None]
                assert (start >= 0).all() and (inside >= 0).all()
                assert (inside < np.array(plan.box)[:, None, None]).all()
            assert (places < extents[:, None, None]).all()
            distances = np.tensordot(strides, places - start[:, None, None], 1)
            expected = tabulated(plan, block)[:, None] + np.array(plan.depth_offsets[:steps])
            assert (distances == plan.first + expected).all()


def tabulated(plan: WindowPlan, block: int) -> np.ndarray:
    """How far each row of a block lies from its first, as the template goes through them."""
    rows, result = plan.blocking.mr, []
    for segment in range(0, block, plan.segment):
        here = min(plan.segment, block - segment)
        for i in range(0, here, rows):
            tile = plan.tile_offsets[segment // plan.segment * plan.tiles_per_segment + i // rows]
            size = min(rows, here - i)
            assert size in plan.tile_sizes
            result += [tile + offset for offset in plan.row_offsets[:size]]
    return np.array(result)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_results_that_lie_together_are_finished_in_parts_that_blocks_are_made_of(target: VectorTarget) -> None:
    for seed in range(8):
        for contraction, plan in planned(target, seed):
            if plan.finish_rows:
                assert contraction.m % plan.finish_rows == 0 and plan.blocking.mc % plan.finish_rows == 0
                assert contraction.finish_rows % plan.finish_rows == 0
