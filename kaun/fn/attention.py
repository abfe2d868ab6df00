"""Attention: rotary position embedding, and scaled dot products of queries with keys that weigh values."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kaun import nx
from kaun.compiler.ir.dtypes import bool_
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value

from .dense import dropout as dropout_


@functools.lru_cache(maxsize=64)
def _rotations(length: int, dim: int, theta: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Cosine and sine of position * theta**(-2 i / dim): two float64 arrays of shape (length, dim / 2).

    Made on the host, since float32 angles of far positions would be off by more than the result's precision.
    """
    angles = np.arange(length)[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    tables = np.cos(angles), np.sin(angles)
    for table in tables:
        table.flags.writeable = False
    return tables


def rope(x: Tensor, *, theta: float = 10000.0, seq_dim: int = -2) -> Tensor:
    """Rotary position embedding: pairs of features rotated by angles that grow with the position.

    For x (..., D) at position t along axis `seq_dim`, with a, b = x[..., i], x[..., i + D / 2] and the angle
    t * theta**(-2 i / D), gives a cos - b sin and b cos + a sin in their places (the halves' layout of LLaMA and
    Hugging Face).

    ValueError for fewer than two axes, an odd D, or a `seq_dim` that is out of range or the last axis.
    Su et al., RoFormer, arXiv:2104.09864.
    """
    x = nx.asarray(x)
    if not x.dtype.is_float:
        raise invalid_type("fn.rope", f"got {describe(x._node)}, expected floats")
    if x.ndim < 2 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise invalid_value("fn.rope", f"got {describe(x._node)}, expected (..., T, D) with an even D")
    if not -x.ndim <= seq_dim < x.ndim or seq_dim % x.ndim == x.ndim - 1:
        raise invalid_value("fn.rope", f"got seq_dim={seq_dim} for {describe(x._node)}, expected an axis but the last")
    if not theta > 0.0:
        raise invalid_value("fn.rope", f"got theta={theta}, expected a positive number")
    axis, half = seq_dim % x.ndim, x.shape[-1] // 2
    shape = (*(x.shape[axis] if place == axis else 1 for place in range(x.ndim - 1)), half)
    wide = nx.astype(x, x.dtype.compute)
    cos, sin = (
        nx.reshape(nx.asarray(table.astype(wide.dtype.numpy)), shape)
        for table in _rotations(x.shape[axis], x.shape[-1], float(theta))
    )
    a, b = wide[..., :half], wide[..., half:]
    return nx.astype(nx.concat([a * cos - b * sin, b * cos + a * sin], axis=-1), x.dtype)


def dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q @ k^T * scale) @ v: for each query, the mean of the values weighted by how well their keys fit.

    q (..., H, T, D), k (..., G, S, D), v (..., G, S, E), in which G divides H: each group of H / G query heads shares a
    head of keys and values (the head axis may be missing from all three); the result is (..., H, T, E). `scale` is
    1 / sqrt(D) unless given. `mask` broadcasts to (..., H, T, S): where a bool is False the key is not seen, and a
    query that sees none gives 0; floats are added to the scores. With `is_causal`, query t sees keys 0 to t. `dropout`
    is the rate at which weights are dropped, with keys from the RNG scope.

    ValueError for shapes that do not fit, TypeError for dtypes that differ or are not floats. Vaswani et al.,
    arXiv:1706.03762; Ainslie et al. (grouped heads), arXiv:2305.13245.
    """
    q, k, v = nx.asarray(q), nx.asarray(k), nx.asarray(v)
    groups = _groups(q, k, v)
    scores = _product("...td,...sd->...ts", "...grtd,...gsd->...grts", q, k, groups)
    scores = scores * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    seen, bias = _masks(mask, scores, is_causal)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        # Not -inf: a query that sees no key would get 0 / 0.
        scores = nx.where(seen, scores, nx.full_like(scores, float(nx.finfo(scores.dtype).min) / 2))
    weights = nx.softmax(scores, axis=-1)
    if seen is not None and mask is not None:
        weights = nx.where(seen, weights, nx.zeros_like(weights))
    if dropout:
        weights = dropout_(weights, rate=dropout)
    return _product("...ts,...se->...te", "...grts,...gse->...grte", weights, v, groups)


def _groups(q: Tensor, k: Tensor, v: Tensor) -> int | None:
    """How many heads k and v have if those are fewer than q's, else None. Raises for what does not fit together."""
    function, types = "fn.dot_product_attention", describe(q._node, k._node, v._node)
    if not q.dtype.is_float or k.dtype is not q.dtype or v.dtype is not q.dtype:
        raise invalid_type(function, f"got {types}, expected floats of one dtype")
    fits = q.ndim == k.ndim == v.ndim >= 2 and q.shape[-1] == k.shape[-1] and k.shape[:-1] == v.shape[:-1]
    if not fits or q.shape[-1] == 0 or q.shape[:-3] != k.shape[:-3]:
        raise invalid_value(function, f"got {types}, expected (..., H, T, D), (..., G, S, D) and (..., G, S, E)")
    if q.ndim == 2 or q.shape[-3] == k.shape[-3]:
        return None
    if k.shape[-3] == 0 or q.shape[-3] % k.shape[-3]:
        raise invalid_value(
            function, f"got {q.shape[-3]} heads of queries and {k.shape[-3]} of keys, expected a multiple"
        )
    return int(k.shape[-3])


def _product(plain: str, grouped: str, left: Tensor, right: Tensor, groups: int | None) -> Tensor:
    """The contraction over heads; `left` has them all, `right` one for each group."""
    if groups is None:
        return nx.einsum(plain, left, right)
    *batch, heads, rows, columns = left.shape
    split = nx.reshape(left, (*batch, groups, heads // groups, rows, columns))
    result = nx.einsum(grouped, split, right)
    return nx.reshape(result, (*batch, heads, *result.shape[-2:]))


def _masks(mask: Tensor | None, scores: Tensor, is_causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """(where keys are seen, what is added to the scores)."""
    seen, bias = None, None
    if mask is not None:
        mask = nx.asarray(mask)
        extents = zip(mask.shape[::-1], scores.shape[::-1], strict=False)
        if mask.ndim > scores.ndim or any(n not in (1, m) for n, m in extents):
            raise invalid_value(
                "fn.dot_product_attention",
                f"got mask {describe(mask._node)}, expected a shape that broadcasts to {list(scores.shape)}",
            )
        if mask.dtype is bool_:
            seen = mask
        elif mask.dtype.is_float:
            bias = nx.astype(mask, scores.dtype)
        else:
            raise invalid_type("fn.dot_product_attention", f"got mask {describe(mask._node)}, expected bools or floats")
    if is_causal:
        rows, columns = scores.shape[-2:]
        past = nx.arange(columns)[None, :] <= nx.arange(rows)[:, None]
        seen = past if seen is None else past & seen
    return seen, bias
