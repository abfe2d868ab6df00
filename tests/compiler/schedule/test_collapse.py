"""Collapsing loops changes how many there are, and nothing that is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_strategies import assert_outputs_agree, graph_from_seed
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.collapse import collapse
from kaun.compiler.schedule.loop_ir import LoopKernel
from kaun.compiler.schedule.verify import verify_kernel
from schedule_examples import TARGET, collapsed, run_kernels, trace

from kaun import nx


def extents(variables):
    return [v.extent for v in variables]


def only_kernel(function, *arrays) -> LoopKernel:
    (scheduled,) = trace(function, *arrays).compilation.kernels
    assert isinstance(scheduled.kernel, LoopKernel)
    kernel = collapse(scheduled.kernel)
    verify_kernel(kernel)
    return kernel


@pytest.mark.parametrize("ten", range(10))
def test_collapsed_kernels_of_random_graphs_compute_the_same(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        example = graph_from_seed(seed)
        compilation = Compilation(example.graph, TARGET)
        for scheduled in compilation.kernels:
            if isinstance(scheduled.kernel, LoopKernel):
                loops, fewer = scheduled.kernel, collapse(scheduled.kernel)
                assert math.prod(extents(loops.outer)) == math.prod(extents(fewer.outer))
                assert len(fewer.outer) <= len(loops.outer)
        results = run_kernels(compilation, example.arguments, collapsed)
        assert_outputs_agree(example, results, evaluate(example.graph, example.arguments))


X = np.zeros((3, 4, 5), np.float32)


def test_loops_over_contiguous_arrays_become_one():
    assert extents(only_kernel(lambda x: nx.exp(x) + x, X).outer) == [60]


def test_a_transposed_read_keeps_the_loops_it_tells_apart():
    kernel = only_kernel(lambda x: nx.exp(nx.permute_dims(x, (1, 0, 2))), X)
    assert extents(kernel.outer) == [4, 3, 5]
    kernel = only_kernel(lambda x: nx.exp(nx.permute_dims(x, (2, 0, 1))), X)
    assert extents(kernel.outer) == [5, 12]


def test_a_broadcast_operand_keeps_the_axis_it_lacks_apart():
    kernel = only_kernel(lambda x, b: x + b, X, np.zeros(5, np.float32))
    assert extents(kernel.outer) == [12, 5]


def test_a_reduction_keeps_its_loops_apart_from_the_outer_ones():
    kernel = only_kernel(lambda x: nx.sum(x, axis=(1, 2)), X)
    assert extents(kernel.outer) == [3]
    assert [extents(p.variables) for p in kernel.passes] == [[20], []]


def test_a_padded_axis_stays_its_own_loop():
    kernel = only_kernel(lambda x: nx.pad(x, ((0, 0), (1, 0), (0, 0))), X)
    assert extents(kernel.outer) in ([3, 5, 5], [3, 25])
