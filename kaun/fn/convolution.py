"""Convolutions of signals and images, channels first."""

from __future__ import annotations

from kaun import nx
from kaun.compiler.ir import ops
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value

from .windows import Extents, Padding, check_fits, check_rank, extents, pads


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Extents = 1,
    dilation: Extents = 1,
    padding: Padding = "valid",
    groups: int = 1,
) -> Tensor:
    """y[n, o, i] = bias[o] + sum over c, k of weight[o, c, k] * x[n, c, i * stride + k * dilation - low].

    x (N, C, L), weight (O, C / groups, K), bias (O,); y (N, O, L'). `padding` is "valid", "same" (L' is L / stride
    rounded up, the odd zero at the end), "causal" (zeros at the start only), an int or a (low, high) pair in a list.
    With groups, output channels see only their own C / groups input channels. ValueError for shapes that do not fit,
    TypeError for dtypes that differ or are not floats.
    """
    return _convolve("fn.conv1d", 1, x, weight, bias, stride, dilation, padding, groups, causal=True)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Extents = 1,
    dilation: Extents = 1,
    padding: Padding = "valid",
    groups: int = 1,
) -> Tensor:
    """As `conv1d` with two spatial axes: x (N, C, H, W), weight (O, C / groups, KH, KW), bias (O,); y (N, O, H', W').

    `stride` and `dilation` are an int or (vertical, horizontal); `padding` "valid", "same", an int, or for each axis
    an int or a (low, high) pair.
    """
    return _convolve("fn.conv2d", 2, x, weight, bias, stride, dilation, padding, groups, causal=False)


def _convolve(
    function: str,
    spatial: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Extents,
    dilation: Extents,
    padding: Padding,
    groups: int,
    causal: bool,
) -> Tensor:
    x, weight = nx.asarray(x), nx.asarray(weight)
    check_rank(function, x, spatial)
    if weight.ndim != spatial + 2:
        raise invalid_value(function, f"got weight {describe(weight._node)}, expected {spatial + 2} axes (O, C, ...)")
    if x.dtype is not weight.dtype or not x.dtype.is_float:
        raise invalid_type(function, f"got {describe(x._node, weight._node)}, expected floats of one dtype")
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise invalid_value(
            function,
            f"got x {list(x.shape)} and weight {list(weight.shape)} with {groups} groups, expected "
            f"{weight.shape[1] * groups} input channels and output channels that are a multiple of the groups",
        )
    strides, dilations = extents(function, "stride", stride, spatial), extents(function, "dilation", dilation, spatial)
    sizes = weight.shape[2:]
    padded = pads(function, padding, x.shape[2:], sizes, strides, dilations, causal)
    check_fits(function, x, sizes, padded, dilations)
    node = ops.conv_general(
        x._node, weight._node,
        strides=strides, padding=padded, lhs_dilation=(1,) * spatial, rhs_dilation=dilations, groups=groups,
    )  # fmt: skip
    result = Tensor(node)
    if bias is None:
        return result
    if bias.shape != weight.shape[:1]:
        raise invalid_value(function, f"got bias {describe(bias._node)}, expected shape {[weight.shape[0]]}")
    return result + nx.reshape(bias, (weight.shape[0],) + (1,) * spatial)
