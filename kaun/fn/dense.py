"""Affine maps, table look-up, and dropout."""

from __future__ import annotations

import math

from kaun import nx
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias: x (..., I), weight (I, O), bias (O,); the result is (..., O).

    ValueError for shapes, TypeError for dtypes that do not fit together.
    """
    x, weight = nx.asarray(x), nx.asarray(weight)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise invalid_value(
            "fn.linear",
            f"got x {describe(x._node)} and weight {describe(weight._node)}, expected (..., I) and (I, O)",
        )
    if x.dtype is not weight.dtype or not x.dtype.is_float:
        raise invalid_type("fn.linear", f"got {describe(x._node, weight._node)}, expected floats of one dtype")
    result = x @ weight
    if bias is None:
        return result
    if bias.shape != weight.shape[1:]:
        raise invalid_value("fn.linear", f"got bias {describe(bias._node)}, expected shape {[weight.shape[1]]}")
    return result + bias


def embedding(indices: Tensor, embedding: Tensor, *, scale: bool = True) -> Tensor:
    """Rows of a table: y[..., :] = embedding[indices[...], :], times sqrt(D) with `scale`.

    indices (...) of integers in [0, V), embedding (V, D); the result is (..., D). An index outside reads the nearest
    row. TypeError for indices that are not integers, ValueError for a table that is not (V, D) with V > 0.
    The scaling is that of Vaswani et al., arXiv:1706.03762, section 3.4.
    """
    indices, embedding = nx.asarray(indices), nx.asarray(embedding)
    if not indices.dtype.is_integer:
        raise invalid_type("fn.embedding", f"got indices {describe(indices._node)}, expected integers")
    if embedding.ndim != 2 or embedding.shape[0] == 0:
        raise invalid_value("fn.embedding", f"got embedding {describe(embedding._node)}, expected (V, D), V > 0")
    rows = nx.take(embedding, indices, axis=0)
    return rows * math.sqrt(embedding.shape[1]) if scale else rows


def dropout(x: Tensor, *, rate: float) -> Tensor:
    """Each element is 0 with probability `rate`, else x / (1 - rate), so that the mean stays.

    Draws from the RNG scope (an error outside one) unless `rate` is 0. ValueError unless 0 <= rate < 1.
    Srivastava et al., Dropout (2014).
    """
    x = nx.asarray(x)
    if not x.dtype.is_float:
        raise invalid_type("fn.dropout", f"got {describe(x._node)}, expected floats")
    if not 0.0 <= rate < 1.0:
        raise invalid_value("fn.dropout", f"got rate={rate}, expected 0 <= rate < 1")
    if rate == 0.0:
        return x
    kept = nx.rng.bernoulli(x.shape, p=1.0 - rate)
    return nx.where(kept, x * (1.0 / (1.0 - rate)), nx.zeros_like(x))
