"""Pooling: the maximum or the mean over sliding windows, channels first."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kaun import nx
from kaun.compiler.ir import ops
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type

from .windows import Extents, Padding, Pairs, check_fits, check_rank, extents, pads

# Windows that overlap have gradients that add up: up to this many elements, a chain of elementwise operations over
# strided slices differentiates to fewer passes over memory. Other windows become axes that are reduced.
_LARGEST_CHAIN = 9


@dataclass(frozen=True)
class _Windows:
    """The windows of one call: the input padded, and where each window reads it."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: Pairs
    places: tuple[int, ...]

    @property
    def are_chained(self) -> bool:
        """Whether the positions in a window are combined one after the other rather than reduced."""
        overlapping = any(step < size for step, size in zip(self.strides, self.sizes, strict=True))
        return overlapping and math.prod(self.sizes) <= _LARGEST_CHAIN

    def padded(self, x: Tensor, value: float) -> Tensor:
        """x with `value` around it, cut to what the windows read."""
        zeros = (0, 0)
        low = (*zeros, *(pair[0] for pair in self.padding))
        reach = [
            (place - 1) * stride + (size - 1) * dilation + 1
            for place, stride, size, dilation in zip(
                self.places, self.strides, self.sizes, self.dilations, strict=True
            )
        ]
        extents_after = [n + pair[0] for n, pair in zip(x.shape[2:], self.padding, strict=True)]
        high = (*zeros, *(max(0, need - have) for need, have in zip(reach, extents_after, strict=True)))
        if not any(low) and not any(high):
            return x
        return Tensor(ops.pad(x._node, low=low, high=high, interior=(0,) * x.ndim, value=value))

    def slices(self, padded: Tensor) -> Iterator[Tensor]:
        """For each position in the window, row by row, the elements that all windows have there."""
        for position in itertools.product(*(range(size) for size in self.sizes)):
            starts = [p * dilation for p, dilation in zip(position, self.dilations, strict=True)]
            spans = zip(starts, self.places, self.strides, strict=True)
            yield padded[
                (slice(None), slice(None), *(slice(a, a + (n - 1) * s + 1, s) for a, n, s in spans))
            ]

    def axes(self, padded: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The windows as new last axes, and those axes."""
        count = len(self.sizes)
        spatial = tuple(range(2, 2 + count))
        node = ops.window(
            padded._node, axes=spatial, sizes=self.sizes, strides=self.strides, dilations=self.dilations
        )
        return Tensor(node), tuple(range(2 + count, 2 + 2 * count))


def _windows(
    function: str,
    spatial: int,
    x: Tensor,
    kernel_size: Extents,
    stride: Extents | None,
    dilation: Extents,
    padding: Padding,
    ceil_mode: bool,
) -> _Windows:
    if not x.dtype.is_float:
        raise invalid_type(function, f"got {describe(x._node)}, expected floats")
    check_rank(function, x, spatial)
    sizes = extents(function, "kernel_size", kernel_size, spatial)
    strides = sizes if stride is None else extents(function, "stride", stride, spatial)
    dilations = extents(function, "dilation", dilation, spatial)
    pairs = pads(function, padding, x.shape[2:], sizes, strides, dilations)
    check_fits(function, x, sizes, pairs, dilations)
    places = []
    for n, size, step, spread, (low, high) in zip(x.shape[2:], sizes, strides, dilations, pairs, strict=True):
        room = n + low + high - (size - 1) * spread - 1
        count = (-(-room // step) if ceil_mode else room // step) + 1
        # As in PyTorch, a window that would start beyond the input and its low padding is left out.
        places.append(count - 1 if ceil_mode and (count - 1) * step >= n + low else count)
    return _Windows(sizes, strides, dilations, pairs, tuple(places))


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two, the first of equals, NaN if either is: so the gradient goes to the first maximum."""
    return nx.where((a >= b) | (a != a), a, b)


def _max_pool(
    function: str,
    spatial: int,
    x: Tensor,
    kernel_size: Extents,
    stride: Extents | None,
    dilation: Extents,
    padding: Padding,
    ceil_mode: bool,
) -> Tensor:
    x = nx.asarray(x)
    windows = _windows(function, spatial, x, kernel_size, stride, dilation, padding, ceil_mode)
    padded = windows.padded(x, -math.inf)
    if windows.are_chained:
        return functools.reduce(_larger, windows.slices(padded))
    unfolded, axes = windows.axes(padded)
    return nx.max(unfolded, axis=axes)


def _avg_pool(
    function: str,
    spatial: int,
    x: Tensor,
    kernel_size: Extents,
    stride: Extents | None,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:
    x = nx.asarray(x)
    windows = _windows(function, spatial, x, kernel_size, stride, 1, padding, ceil_mode)
    padded = windows.padded(x, 0.0)
    if windows.are_chained:
        total = functools.reduce(lambda a, b: a + b, windows.slices(padded))
    else:
        unfolded, axes = windows.axes(padded)
        total = nx.sum(unfolded, axis=axes)
    counts = [
        _counts(n, size, step, place, pair, count_include_pad)
        for n, size, step, place, pair in zip(
            x.shape[2:], windows.sizes, windows.strides, windows.places, windows.padding, strict=True
        )
    ]
    if all(count == size for axis, size in zip(counts, windows.sizes, strict=True) for count in axis):
        return total * (1.0 / math.prod(windows.sizes))
    for axis, axis_counts in enumerate(counts):
        factors = nx.asarray([1.0 / count for count in axis_counts], dtype=x.dtype)
        total = total * nx.reshape(factors, (len(axis_counts),) + (1,) * (spatial - 1 - axis))
    return total


def _counts(
    n: int, size: int, stride: int, places: int, padding: tuple[int, int], include_padding: bool
) -> Sequence[int]:
    """How many elements the mean of each window along one axis is taken over."""
    low, high = padding
    first, last = (-low, n + high) if include_padding else (0, n)
    starts = [place * stride - low for place in range(places)]
    return [max(1, min(start + size, last) - max(start, first)) for start in starts]


def max_pool1d(
    x: Tensor,
    *,
    kernel_size: Extents,
    stride: Extents | None = None,
    dilation: Extents = 1,
    padding: Padding = "valid",
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window of x (N, C, L). See `max_pool2d`."""
    return _max_pool("fn.max_pool1d", 1, x, kernel_size, stride, dilation, padding, ceil_mode)


def max_pool2d(
    x: Tensor,
    *,
    kernel_size: Extents,
    stride: Extents | None = None,
    dilation: Extents = 1,
    padding: Padding = "valid",
    ceil_mode: bool = False,
) -> Tensor:
    """y[n, c, i, j] = max of x[n, c, i * stride + k, j * stride + l] over the window; x (N, C, H, W).

    `stride` is the kernel size unless given. Padding counts as -infinity; see `conv2d` for its forms. With
    `ceil_mode`, windows may reach over the end of the input. NaN in a window gives NaN; the gradient goes to the first
    maximum in row-major order. ValueError if the window is larger than the padded input.
    """
    return _max_pool("fn.max_pool2d", 2, x, kernel_size, stride, dilation, padding, ceil_mode)


def avg_pool1d(
    x: Tensor,
    *,
    kernel_size: Extents,
    stride: Extents | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (N, C, L). See `avg_pool2d`."""
    return _avg_pool("fn.avg_pool1d", 1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    x: Tensor,
    *,
    kernel_size: Extents,
    stride: Extents | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """y[n, c, i, j] = mean of x[n, c, i * stride + k, j * stride + l] over the window; x (N, C, H, W).

    `stride` is the kernel size unless given. Padding counts as zeros, included in the number of elements unless
    `count_include_pad` is False; what `ceil_mode` adds beyond the padding is never counted. ValueError if the window
    is larger than the padded input.
    """
    return _avg_pool("fn.avg_pool2d", 2, x, kernel_size, stride, padding, ceil_mode, count_include_pad)
