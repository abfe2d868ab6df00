"""Normalisations: shift and scale to mean 0 and variance 1 over some axes, then apply learned scales and offsets.

Statistics are computed in float32 for narrower floats; the result has the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kaun import nx
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value


def _wide(function: str, x: Tensor) -> Tensor:
    tensor = nx.asarray(x)
    if not tensor.dtype.is_float:
        raise invalid_type(f"fn.{function}", f"got {describe(tensor._node)}, expected floats")
    return nx.astype(tensor, tensor.dtype.compute)


def _last_axes(function: str, x: Tensor, axes: int | Sequence[int], **parameters: Tensor | None) -> tuple[int, ...]:
    """The axes counted from the front; every parameter must have their extents."""
    listed = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -x.ndim <= axis < x.ndim for axis in listed) or len({axis % x.ndim for axis in listed}) < len(listed):
        raise invalid_value(f"fn.{function}", f"got {describe(x._node)} and axes {listed}, expected distinct axes of x")
    positions = tuple(sorted(axis % x.ndim for axis in listed))
    extents = tuple(x.shape[axis] for axis in positions)
    for name, parameter in parameters.items():
        if parameter is not None and parameter.shape != extents:
            raise invalid_value(
                f"fn.{function}",
                f"got x of shape {list(x.shape)} and {name} of shape {list(parameter.shape)}, "
                f"expected {name} of shape {list(extents)}",
            )
    return positions


def _along(parameter: Tensor, x: Tensor, axes: Sequence[int]) -> Tensor:
    """The parameter, one extent per axis in `axes`, shaped to broadcast against x."""
    shape = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
    return nx.astype(nx.reshape(parameter, shape), x.dtype)


def layer_norm(
    x: Tensor,
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    axes: int | Sequence[int] = -1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gamma + beta, with the mean and the biased variance over `axes`.

    `gamma` and `beta` have the extents of `axes`; without them nothing is scaled or added. ValueError for other
    shapes. Ba et al., Layer normalization, arXiv:1607.06450.
    """
    wide = _wide("layer_norm", x)
    positions = _last_axes("layer_norm", wide, axes, gamma=gamma, beta=beta)
    centred = wide - nx.mean(wide, axis=positions, keepdims=True)
    variance = nx.mean(centred * centred, axis=positions, keepdims=True)
    result = centred * (1.0 / nx.sqrt(variance + eps))
    if gamma is not None:
        result = result * _along(gamma, wide, positions)
    if beta is not None:
        result = result + _along(beta, wide, positions)
    return nx.astype(result, x.dtype)


def rms_norm(
    x: Tensor, *, scale: Tensor | None = None, axes: int | Sequence[int] = -1, eps: float = 1e-6
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * scale, with the mean over `axes`, whose extents `scale` has.

    ValueError for a scale of another shape. Zhang and Sennrich, arXiv:1910.07467.
    """
    wide = _wide("rms_norm", x)
    positions = _last_axes("rms_norm", wide, axes, scale=scale)
    result = wide * (1.0 / nx.sqrt(nx.mean(wide * wide, axis=positions, keepdims=True) + eps))
    if scale is not None:
        result = result * _along(scale, wide, positions)
    return nx.astype(result, x.dtype)


def _feature_axis(function: str, x: Tensor) -> int:
    """Features are the last axis of (N, C) and the second of (N, C, *S)."""
    if x.ndim < 2:
        raise invalid_value(f"fn.{function}", f"got {describe(x._node)}, expected (N, C) or (N, C, *S)")
    return 1


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each feature of x (N, C) or (N, C, *S): two tensors of shape (C,).

    ValueError if there is nothing to take statistics of.
    """
    wide = _wide("batch_statistics", x)
    feature = _feature_axis("batch_statistics", wide)
    axes = tuple(axis for axis in range(wide.ndim) if axis != feature)
    if math.prod(wide.shape[axis] for axis in axes) == 0:
        raise invalid_value("fn.batch_statistics", f"got {describe(wide._node)}, expected at least one example")
    # One pass over x: sums of the distance from a value of the data itself, so that nothing cancels when the mean is
    # large beside the deviation. Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983).
    origin = nx.stop_gradient(wide[tuple(slice(None) if axis == feature else slice(0, 1) for axis in range(wide.ndim))])
    distance = wide - origin
    offset = nx.mean(distance, axis=axes)
    variance = nx.mean(distance * distance, axis=axes) - offset * offset
    mean = nx.reshape(origin, (wide.shape[feature],)) + offset
    return mean, nx.where(variance < 0, nx.zeros_like(variance), variance)


def batch_norm(
    x: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * scale + bias for each feature of x (N, C) or (N, C, *S).

    `mean` and `variance` are those of the batch unless given; all four have shape (C,), or it is a ValueError.
    Ioffe and Szegedy, arXiv:1502.03167.
    """
    wide = _wide("batch_norm", x)
    feature = _feature_axis("batch_norm", wide)
    if (mean is None) != (variance is None):
        raise invalid_value("fn.batch_norm", "got one of mean and variance, expected both or neither")
    if mean is None or variance is None:
        mean, variance = batch_statistics(x)
    _last_axes("batch_norm", wide, feature, scale=scale, bias=bias, mean=mean, variance=variance)
    factor = nx.astype(scale, wide.dtype) / nx.sqrt(nx.astype(variance, wide.dtype) + eps)
    centred = wide - _along(mean, wide, (feature,))
    return nx.astype(centred * _along(factor, wide, (feature,)) + _along(bias, wide, (feature,)), x.dtype)
