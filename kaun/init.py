"""Initialisers: functions (shape, dtype) -> Tensor that give a parameter its first value.

Every name here is an initialiser. Called without a shape, it gives the initialiser with other parameters:
`normal((3, 4), kn.float32)` is a tensor, `normal(stddev=0.02)` an initialiser. Random ones draw from the RNG scope.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

from kaun import nx
from kaun.compiler.ir.dtypes import DType, float32
from kaun.compiler.ir.dtypes import of as dtype_of

Shape = tuple[int, ...]
# The standard deviation of a standard normal variable truncated to [-2, 2].
_TRUNCATED_STDDEV = 0.87962566103423978


class Initializer(Protocol):
    """What a layer calls to make a parameter."""

    def __call__(self, shape: Sequence[int], dtype: DType) -> nx.Tensor: ...


class _Named(Protocol):
    @overload
    def __call__(self, shape: Sequence[int], dtype: DType = ..., **parameters: Any) -> nx.Tensor: ...
    @overload
    def __call__(self, **parameters: Any) -> Initializer: ...


def _initializer(draw: Callable[..., nx.Tensor]) -> _Named:
    """Make `draw(shape, dtype, **parameters)` an initialiser that without a shape waits for one."""

    @functools.wraps(draw)
    def call(shape: Sequence[int] | None = None, dtype: DType = float32, **parameters: Any) -> Any:
        if shape is None:
            return functools.partial(call, **parameters)
        dtype = dtype_of(dtype)
        extents = tuple(int(extent) for extent in shape)
        if any(extent < 0 for extent in extents):
            raise ValueError(f"init.{draw.__name__}: got shape {list(extents)}, expected no negative extents")
        if not dtype.is_float and draw.__name__ not in ("zeros", "ones"):
            raise TypeError(f"init.{draw.__name__}: got dtype {dtype}, expected a float dtype")
        return draw(extents, dtype, **parameters)

    return call


@_initializer
def zeros(shape: Shape, dtype: DType) -> nx.Tensor:
    """0 everywhere."""
    return nx.zeros(shape, dtype=dtype)


@_initializer
def ones(shape: Shape, dtype: DType) -> nx.Tensor:
    """1 everywhere."""
    return nx.ones(shape, dtype=dtype)


def constant(value: float) -> Initializer:
    """The initialiser that gives `value` everywhere."""

    def call(shape: Sequence[int], dtype: DType = float32) -> nx.Tensor:
        return nx.full(tuple(shape), value, dtype=dtype)

    return call


@_initializer
def uniform(shape: Shape, dtype: DType, scale: float = 0.01) -> nx.Tensor:
    """Uniform over [0, scale)."""
    return nx.rng.uniform(shape, dtype=dtype) * scale


@_initializer
def normal(shape: Shape, dtype: DType, stddev: float = 0.01) -> nx.Tensor:
    """Normal with mean 0 and standard deviation `stddev`."""
    return nx.rng.normal(shape, dtype=dtype) * stddev


@_initializer
def truncated_normal(shape: Shape, dtype: DType, stddev: float = 0.01) -> nx.Tensor:
    """Normal with mean 0, drawn again beyond two standard deviations; `stddev` is that after truncation."""
    return nx.rng.truncated_normal(shape, dtype=dtype) * (stddev / _TRUNCATED_STDDEV)


def fans(shape: Sequence[int], in_axis: int | None = None, out_axis: int | None = None) -> tuple[float, float]:
    """(fan_in, fan_out): how many inputs reach one output, and how many outputs one input reaches.

    A weight with two axes is (in, out), as in `linear`; with more axes it is (out, in, *window), as in `conv2d`, unless
    the axes are given. The extents of all other axes, the window, multiply both. ValueError for fewer than two axes.
    """
    rank = len(shape)
    if rank < 2:
        raise ValueError(f"init.fans: got shape {list(shape)}, expected at least two axes to tell inputs from outputs")
    in_axis = (0 if rank == 2 else 1) if in_axis is None else in_axis % rank
    out_axis = (1 if rank == 2 else 0) if out_axis is None else out_axis % rank
    window = math.prod(extent for axis, extent in enumerate(shape) if axis not in (in_axis, out_axis))
    return float(shape[in_axis] * window), float(shape[out_axis] * window)


@_initializer
def variance_scaling(
    shape: Shape,
    dtype: DType,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    in_axis: int | None = None,
    out_axis: int | None = None,
) -> nx.Tensor:
    """Mean 0 and variance `scale / n`, with n = fan_in, fan_out or, for "fan_avg", their mean (see `fans`).

    `distribution` is "uniform" (over +-sqrt(3 scale / n)), "normal" or "truncated_normal" (at two standard deviations
    before truncation, widened so that the variance holds after it). ValueError for another mode or distribution, or
    a scale that is not positive.
    """
    fan_in, fan_out = fans(shape, in_axis, out_axis)
    counts = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in counts:
        raise ValueError(f"init.variance_scaling: got mode {mode!r}, expected one of {sorted(counts)}")
    if not scale > 0:
        raise ValueError(f"init.variance_scaling: got scale {scale}, expected a positive number")
    stddev = math.sqrt(scale / max(1.0, counts[mode]))
    if distribution == "uniform":
        bound = math.sqrt(3.0) * stddev
        return nx.rng.uniform(shape, dtype=dtype) * (2 * bound) - bound
    if distribution == "normal":
        return nx.rng.normal(shape, dtype=dtype) * stddev
    if distribution == "truncated_normal":
        return nx.rng.truncated_normal(shape, dtype=dtype) * (stddev / _TRUNCATED_STDDEV)
    expected = ["normal", "truncated_normal", "uniform"]
    raise ValueError(f"init.variance_scaling: got distribution {distribution!r}, expected one of {expected}")


def _scaled(name: str, scale: float, mode: str, distribution: str, text: str) -> _Named:
    def draw(shape: Shape, dtype: DType, in_axis: int | None = None, out_axis: int | None = None) -> nx.Tensor:
        return variance_scaling(
            shape, dtype, scale=scale, mode=mode, distribution=distribution, in_axis=in_axis, out_axis=out_axis
        )

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = f"`variance_scaling` with scale {scale:g}, mode {mode!r}, distribution {distribution!r}. {text}"
    return _initializer(draw)


_GLOROT = "Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks (2010)."
_HE = "He et al., Delving deep into rectifiers, arXiv:1502.01852."
_LECUN = "LeCun et al., Efficient BackProp (1998)."

glorot_uniform = _scaled("glorot_uniform", 1.0, "fan_avg", "uniform", _GLOROT)
glorot_normal = _scaled("glorot_normal", 1.0, "fan_avg", "truncated_normal", _GLOROT)
he_uniform = _scaled("he_uniform", 2.0, "fan_in", "uniform", _HE)
he_normal = _scaled("he_normal", 2.0, "fan_in", "truncated_normal", _HE)
lecun_uniform = _scaled("lecun_uniform", 1.0, "fan_in", "uniform", _LECUN)
lecun_normal = _scaled("lecun_normal", 1.0, "fan_in", "truncated_normal", _LECUN)
