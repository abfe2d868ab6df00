"""What convolutions and pools share: window arguments, padding, and the errors for shapes they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value

Extents: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]


def extents(function: str, name: str, value: Extents, count: int, least: int = 1) -> tuple[int, ...]:
    """`value`, an int for all axes or one int per axis, as a tuple. TypeError or ValueError for anything else."""
    listed = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if not all(isinstance(extent, int) and not isinstance(extent, bool) for extent in listed):
        raise invalid_type(function, f"got {name}={value!r}, expected an int or {count} ints")
    if len(listed) != count or any(extent < least for extent in listed):
        raise invalid_value(function, f"got {name}={value!r}, expected an int or {count} ints of at least {least}")
    return listed


def check_rank(function: str, x: Tensor, spatial: int) -> None:
    """ValueError unless x is (N, C, *S) with `spatial` axes S."""
    if x.ndim != spatial + 2:
        names = ("L",) if spatial == 1 else ("H", "W") if spatial == 2 else ("D", "H", "W")
        raise invalid_value(function, f"got x {describe(x._node)}, expected (N, C, {', '.join(names)})")


def pads(
    function: str,
    padding: Padding,
    shape: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    causal: bool = False,
) -> Pairs:
    """(low, high) padding for each spatial axis of extents `shape`.

    "valid" pads nothing. "same" pads so that the output has ceil(n / stride) places, the odd one at the high end, as
    JAX and TensorFlow do. "causal" (where allowed) pads only the low end, so that place i sees inputs up to i * stride.
    An int pads both ends of every axis; a sequence holds an int or a (low, high) pair for each axis.
    """
    count = len(shape)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    if padding == "valid":
        return ((0, 0),) * count
    if padding == "same":
        totals = [
            max(0, (-(-n // stride) - 1) * stride + span - n)
            for n, stride, span in zip(shape, strides, reach, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    if padding == "causal" and causal:
        return tuple((span - 1, 0) for span in reach)
    if isinstance(padding, str):
        known = ["causal", "same", "valid"] if causal else ["same", "valid"]
        raise invalid_value(function, f"got padding={padding!r}, expected one of {known}, ints or pairs of ints")
    if isinstance(padding, int):
        padding = (padding,) * count
    pairs = tuple((item, item) if isinstance(item, int) else tuple(item) for item in padding)
    if len(pairs) != count or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise invalid_value(function, f"got padding={padding!r}, expected {count} ints or pairs of ints, not negative")
    return tuple((low, high) for low, high in pairs)


def check_fits(
    function: str, x: Tensor, sizes: Sequence[int], padding: Pairs, dilations: Sequence[int]
) -> None:
    """ValueError if the window is larger than the padded input."""
    for n, size, (low, high), dilation in zip(x.shape[2:], sizes, padding, dilations, strict=True):
        if (size - 1) * dilation + 1 > n + low + high:
            raise invalid_value(
                function,
                f"got x {describe(x._node)} padded by {list(padding)}, smaller than the window {list(sizes)} "
                f"dilated by {list(dilations)}",
            )
