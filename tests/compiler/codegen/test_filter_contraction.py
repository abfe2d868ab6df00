"""Minimal filtering: which contractions take it, that its tables miss nothing, and how good its sums are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.codegen import filter_blocking, window_kernel
from kaun.compiler.codegen.filter_blocking import FilterPlan, plan_filter
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.codegen.window_blocking import WindowContraction, WindowPlan
from kaun.compiler.ir import Graph, dtypes, ops
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.loop_ir import ContractionKernel

import kaun as kn
from kaun import fn, nx

TARGETS = {
    "512 bits": VectorTarget(512, 32, True, 49152, 1 << 20, 1 << 25),
    "256 bits": VectorTarget(256, 16, True, 32768, 1 << 20, 1 << 23),
    "tiny caches": VectorTarget(128, 16, False, 1024, 4096, 8192),
    "scalar": VectorTarget(0, 16, False, 0, 0, 0),
}
Plan = tuple[WindowContraction, Any]


def plans(
    target: VectorTarget, size: tuple[int, int], kernel: tuple[int, int] = (3, 3), channels: int = 64,
    dtype: dtypes.DType = dtypes.float32, **attributes: Any,
) -> Iterator[Plan]:  # fmt: skip
    """Plans of a convolution and both its gradients, of those contractions that read an image."""
    x = ops.input_(identity="x", dtype=dtype, shape=(4, channels, *size))
    w = ops.input_(identity="w", dtype=dtype, shape=(64, channels, *kernel))
    usual = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    y = ops.conv_general(x, w, groups=1, **{**usual, **attributes})
    cotangent = ops.input_(identity="g", dtype=dtype, shape=y.shape)
    graph = Graph((x, w, cotangent), (y, *gradients([y], [cotangent], [x, w])))
    for scheduled in Compilation(graph, target).kernels:
        kernel_ = scheduled.kernel
        if isinstance(kernel_, ContractionKernel) and kernel_.image is not None:
            yield window_kernel.plan(kernel_, target)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_windows_of_3_by_3_that_move_by_one_are_filtered_forward_and_in_both_gradients(
    target: VectorTarget, dtype: dtypes.DType
) -> None:
    kinds = [type(plan) for _, plan in plans(target, (16, 16), dtype=dtype)]
    assert kinds == [FilterPlan] * 3


@pytest.mark.parametrize(
    "changed",
    [
        {"kernel": (5, 5), "padding": ((2, 2), (2, 2))},
        {"kernel": (1, 3), "padding": ((0, 0), (1, 1))},
        {"strides": (2, 2)},
        {"rhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))},
    ],
    ids=["5x5", "1x3", "moves by two", "dilated"],
)
def test_other_windows_are_not_filtered(changed: dict[str, Any]) -> None:
    found = list(plans(TARGETS["512 bits"], (16, 16), **changed))
    assert found
    assert not any(isinstance(plan, FilterPlan) for _, plan in found)


def test_integers_are_not_filtered() -> None:
    for contraction, _ in plans(TARGETS["512 bits"], (16, 16)):
        assert plan_filter(contraction, TARGETS["512 bits"]) is not None
        assert plan_filter(dataclasses.replace(contraction, element="int32"), TARGETS["512 bits"]) is None


def test_tables_are_not_made_for_a_plan_that_costs_too_much() -> None:
    target = TARGETS["512 bits"]
    for contraction, chosen in plans(target, (16, 16)):
        assert plan_filter(contraction, target, chosen.slots) is None
        assert plan_filter(contraction, target, chosen.slots * 1.001) == chosen
    # All of an image with an odd number of rows is one block: a million tiles in tables would take seconds.
    with mock.patch.object(filter_blocking, "_plan", side_effect=AssertionError):
        kinds = [type(plan) for _, plan in plans(target, (511, 511))]
    assert kinds == [WindowPlan] * 3


def test_few_channels_are_not_filtered() -> None:
    forward, *_ = plans(TARGETS["512 bits"], (16, 16), channels=3)
    assert not isinstance(forward[1], FilterPlan)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_each_place_of_a_block_is_in_one_tile_and_its_window_in_the_patch_of_that(target: VectorTarget) -> None:
    sizes = ((16, 16), (7, 7), (6, 9), (9, 6), (4, 4), (2, 33))
    found = [(size, plan) for size in sizes for _, plan in plans(target, size) if isinstance(plan, FilterPlan)]
    assert len(found) >= 6
    for size, plan in found:
        mc, kc, lanes = plan.blocking.mc, plan.blocking.kc, plan.blocking.lanes
        tiles, missing = (plan.results, mc + lanes) if plan.by_places else (plan.taps, kc)
        places = [place for tile in tiles for place in tile if place != missing]
        assert sorted(places) == list(range(mc if plan.by_places else kc))
        channels = plan.taps if plan.by_places else plan.results
        taps = [tap for channel in channels for tap in channel]
        assert taps == list(range(kc if plan.by_places else mc))
        down, across = plan.window
        height, width = size
        for tile, patch in zip(tiles, plan.patches, strict=True):
            y, x = divmod(tile[0] % (height * width), width)
            number = tile[0] // (height * width)
            entries = [stride for axis, stride in enumerate(plan.strides) if stride not in (1, down, across)]
            assert patch == down * y + across * x + number * (entries[0] if entries else 0)


def reference(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The convolution with padding 1, products added one by one in the precision of the arguments."""
    count, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    result = np.zeros((count, len(w), height, width), x.dtype)
    for c in range(channels):
        for i in range(3):
            for j in range(3):
                part = padded[:, c, i : i + height, j : j + width]
                result += w[None, :, c, i, j, None, None] * part[:, None]
    return result


def convolved(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    compiled = kn.jit(lambda x, w: fn.conv2d(x, w, padding=1))
    result: np.ndarray[Any, Any] = compiled(nx.asarray(x), nx.asarray(w)).numpy()
    return result


@pytest.mark.parametrize(("channels", "side"), [(64, 16), (256, 8)])
def test_sums_are_as_accurate_as_if_products_were_added_one_by_one(channels: int, side: int) -> None:
    draw = np.random.default_rng(0)
    x = np.maximum(draw.standard_normal((4, channels, side, side)), 0).astype(np.float32)
    w = (draw.standard_normal((64, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5).astype(np.float32)
    exact = reference(x.astype(np.float64), w.astype(np.float64))

    def error(value: np.ndarray[Any, Any]) -> float:
        return float(np.sqrt(np.mean((value - exact) ** 2)))

    assert error(convolved(x, w)) < error(reference(x, w))
    assert error(convolved(x, w)) < 1e-6 * float(np.sqrt(np.mean(exact**2)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
def test_what_is_not_finite_shows_in_every_result_that_reads_it_and_not_beyond_its_tiles(value: float) -> None:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((4, 64, 16, 16)).astype(np.float32)
    w = draw.standard_normal((64, 64, 3, 3)).astype(np.float32)
    usual = convolved(x, w)
    x[2, 5, 7, 10] = value
    result = convolved(x, w)
    assert not np.isfinite(result[2, :, 6:9, 9:12]).any()
    near = np.zeros(result.shape, bool)
    near[2, :, 4:11, 7:14] = True
    assert result[~near].tobytes() == usual[~near].tobytes()
