"""Lowered convolutions compute the same, and take the form each kind is meant to take."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from kaun.compiler import passes
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, verify
from kaun.compiler.ir.interpreter import evaluate


def convolution(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: dtypes.DType = dtypes.float64, **attributes: Any
) -> tuple[Node, Node, Node]:
    """(x, w, conv), with no padding, unit strides and dilations and one group unless given."""
    spatial = len(x_shape) - 2
    x = ops.input_(identity=("lower", "x"), dtype=dtype, shape=x_shape)
    w = ops.input_(identity=("lower", "w"), dtype=dtype, shape=w_shape)
    ones = (1,) * spatial
    default = {"strides": ones, "padding": ((0, 0),) * spatial, "lhs_dilation": ones, "rhs_dilation": ones, "groups": 1}
    return x, w, ops.conv_general(x, w, **{**default, **attributes})


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes if node.op is not ops.input_]


def test_random_convolutions_and_their_gradients_keep_their_values() -> None:
    chooser = random.Random(0)
    for _ in range(60):
        spatial, groups = chooser.choice((1, 2)), chooser.choice((1, 1, 2, 3))
        inner, outer = chooser.choice((1, 2)), chooser.choice((1, 2))
        few = lambda low, high, n=spatial: tuple(chooser.randint(low, high) for _ in range(n))  # noqa: E731
        x, w, y = convolution(
            (chooser.choice((1, 2)), groups * inner, *few(1, 7)), (groups * outer, inner, *few(1, 3)),
            strides=few(1, 3), padding=tuple(zip(few(0, 4), few(0, 4), strict=True)), lhs_dilation=few(1, 3),
            rhs_dilation=few(1, 3), groups=groups,
        )  # fmt: skip
        graph = Graph((x, w), (y, *gradients([y * y], [full(1, y.dtype, y.shape)], [x, w])))
        lowered = passes.lower_convolutions(graph)
        verify(lowered)
        assert "conv_general" not in names(lowered)
        values = np.random.default_rng(0)
        arguments = values.normal(size=x.shape), values.normal(size=w.shape)
        for before, after in zip(evaluate(graph, arguments), evaluate(lowered, arguments), strict=True):
            np.testing.assert_allclose(before, after, atol=1e-11)


def test_a_pointwise_convolution_is_a_contraction_without_windows() -> None:
    x, w, y = convolution((2, 3, 5, 5), (4, 3, 1, 1))
    result = names(passes.run(Graph((x, w), (y,))))
    assert sorted(result) == ["dot_general", "permute", "reshape"]


def test_a_strided_pointwise_convolution_slices_instead_of_windowing() -> None:
    x, w, y = convolution((2, 3, 5, 5), (4, 3, 1, 1), strides=(2, 2))
    result = names(passes.run(Graph((x, w), (y,))))
    assert "slice" in result and "window" not in result and "dot_general" in result


def test_one_group_needs_no_batch_axis() -> None:
    x, w, y = convolution((2, 3, 5, 5), (4, 3, 3, 3))
    (dot,) = (node for node in passes.run(Graph((x, w), (y,))).nodes if node.op is ops.dot_general)
    assert dot.attributes["lhs_batch"] == ()
    assert names(passes.run(Graph((x, w), (y,)))) == ["window", "dot_general", "permute"]


def test_groups_are_a_batch_of_contractions() -> None:
    x, w, y = convolution((2, 6, 5, 5), (4, 3, 3, 3), groups=2)
    (dot,) = (node for node in passes.run(Graph((x, w), (y,))).nodes if node.op is ops.dot_general)
    assert (dot.attributes["lhs_batch"], dot.shape[:2]) == ((0,), (2, 2))


@pytest.mark.parametrize("which", ("forward", "input", "weight"))
def test_depthwise_convolutions_and_their_gradients_multiply_and_sum(which: str) -> None:
    x, w, y = convolution((2, 6, 5, 5), (6, 1, 3, 3), groups=6)
    dx, dw = gradients([y], [ops.input_(identity=("lower", "g"), dtype=y.dtype, shape=y.shape)], [x, w])
    node = {"forward": y, "input": dx, "weight": dw}[which]
    inputs = tuple(n for n in Graph((), (node,)).nodes if n.op is ops.input_)
    result = names(passes.run(Graph(inputs, (node,))))
    assert "dot_general" not in result and "reduce_sum" in result


def test_an_image_with_gaps_is_convolved_phase_by_phase() -> None:
    x, _, y = convolution((2, 3, 8, 8), (4, 3, 3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    (dx,) = gradients([y], [ops.input_(identity=("lower", "g"), dtype=y.dtype, shape=y.shape)], [x])
    graph = passes.lower_convolutions(Graph(tuple(n for n in Graph((), (dx,)).nodes if n.op is ops.input_), (dx,)))
    dots = [node for node in graph.nodes if node.op is ops.dot_general]
    # Even and odd rows and columns see 1 or 2 of the kernel's 3 rows and columns: 9 products for 4 elements, not 36.
    products = sorted(node.op.flops(node) // (2 * 4 * node.size) for node in dots)
    assert products == [1, 2, 2, 4]
    assert not any(any(node.attributes["interior"]) for node in graph.nodes if node.op is ops.pad)


@pytest.mark.parametrize("gap", (2, 3, 4, 6))
def test_phases_of_any_gap_and_dilation_keep_their_values(gap: int) -> None:
    for dilation, low, high, size in ((1, 0, 5, 4), (2, 7, 1, 3), (3, 1, 0, 2), (4, 3, 20, 2), (6, 12, 9, 3)):
        x, w, y = convolution(
            (1, 2, 3), (2, 2, size), padding=((low, high + dilation * size),), lhs_dilation=(gap,),
            rhs_dilation=(dilation,),
        )  # fmt: skip
        graph = Graph((x, w), (y,))
        lowered = passes.lower_convolutions(graph)
        verify(lowered)
        values = np.random.default_rng(0)
        arguments = values.normal(size=x.shape), values.normal(size=w.shape)
        np.testing.assert_allclose(evaluate(graph, arguments)[0], evaluate(lowered, arguments)[0], atol=1e-11)


@pytest.mark.parametrize("dtype, split", ((dtypes.float32, True), (dtypes.bfloat16, False)))
def test_a_weight_gradient_is_summed_in_parts_of_the_examples_unless_that_would_round(
    dtype: dtypes.DType, split: bool
) -> None:
    x, w, y = convolution((32, 8, 32, 32), (16, 8, 3, 3), dtype, padding=((1, 1), (1, 1)))
    cotangent = ops.input_(identity=("lower", "g"), dtype=dtype, shape=y.shape)
    (dw,) = gradients([y], [cotangent], [w])
    result = names(passes.lower_convolutions(Graph((x, cotangent), (dw,))))
    assert result.count("dot_general") == 1 and ("reduce_sum" in result) is split
