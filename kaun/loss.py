"""Losses: scalar means over a batch, stable in both tails, differentiable as often as needed.

Each gives a scalar of the dtype of its first argument, or float32 if that is narrower; targets are converted to it.
Shapes that do not match are a ValueError: nothing is broadcast, since a broadcast loss is almost always a mistake.
"""

from __future__ import annotations

import math

from kaun import nx
from kaun.compiler.ir.dtypes import int32, int64
from kaun.fn.activation import log_softmax
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value


def _pair(function: str, first: Tensor, second: Tensor, names: str) -> tuple[Tensor, Tensor]:
    """Both as floats of the dtype to compute in and of equal shape."""
    first, second = nx.asarray(first), nx.asarray(second)
    if not first.dtype.is_float:
        raise invalid_type(f"loss.{function}", f"got {describe(first._node)}, expected floats as the first of {names}")
    if first.shape != second.shape:
        raise invalid_value(
            f"loss.{function}", f"got {names} {describe(first._node, second._node)}, expected equal shapes"
        )
    wide = first.dtype.compute
    return nx.astype(first, wide), nx.astype(second, wide)


def _classes(function: str, logits: Tensor) -> int:
    if not logits.dtype.is_float:
        raise invalid_type(f"loss.{function}", f"got logits {describe(logits._node)}, expected floats")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise invalid_value(f"loss.{function}", f"got logits {describe(logits._node)}, expected (..., C) with C > 0")
    return logits.shape[-1]


def cross_entropy(logits: Tensor, one_hot: Tensor) -> Tensor:
    """-mean over the batch of sum over c of one_hot[..., c] * log_softmax(logits)[..., c].

    logits (..., C), one_hot (..., C): one-hot rows or any distribution over the classes.
    """
    _classes("cross_entropy", nx.asarray(logits))
    logits, one_hot = _pair("cross_entropy", logits, one_hot, "logits and one_hot")
    return -nx.mean(nx.sum(one_hot * log_softmax(logits), axis=-1))


def cross_entropy_sparse(logits: Tensor, class_indices: Tensor) -> Tensor:
    """-mean over the batch of log_softmax(logits)[..., class_indices[...]].

    logits (..., C), class_indices (...) of integers. An index outside [0, C) makes the loss NaN. TypeError for
    indices that are not integers.
    """
    logits, class_indices = nx.asarray(logits), nx.asarray(class_indices)
    classes = _classes("cross_entropy_sparse", logits)
    if not class_indices.dtype.is_integer:
        raise invalid_type(
            "loss.cross_entropy_sparse", f"got class_indices {describe(class_indices._node)}, expected integers"
        )
    if class_indices.shape != logits.shape[:-1]:
        raise invalid_value(
            "loss.cross_entropy_sparse",
            f"got logits {describe(logits._node)} and class_indices {describe(class_indices._node)}, expected "
            f"class_indices of shape {list(logits.shape[:-1])}",
        )
    logits = nx.astype(logits, logits.dtype.compute)
    shifted = logits - nx.stop_gradient(nx.max(logits, axis=-1, keepdims=True))
    normalizer = nx.log(nx.sum(nx.exp(shifted), axis=-1))
    wide = nx.astype(class_indices, int64)
    valid = (wide >= 0) & (wide < classes)
    index = nx.astype(nx.where(valid, wide, nx.zeros_like(wide)), int32)
    # Selecting in the row keeps the whole loss, and its gradient, one pass over it: no gather, no scatter.
    chosen = nx.arange(classes, dtype=int32) == nx.expand_dims(index, axis=-1)
    picked = nx.sum(nx.where(chosen, shifted, nx.zeros_like(shifted)), axis=-1)
    return nx.mean(nx.where(valid, normalizer - picked, nx.full_like(picked, math.nan)))


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """mean of -labels * log(sigmoid(logits)) - (1 - labels) * log(1 - sigmoid(logits)), from raw logits.

    logits and labels of one shape; labels in [0, 1]. Computed as softplus(logits) - labels * logits.
    """
    logits, labels = _pair("binary_cross_entropy", logits, labels, "logits and labels")
    # For a positive logit, softplus(z) - z = softplus(-z) loses its small value to rounding, so sides are kept apart.
    positive = logits >= 0
    weight = nx.where(positive, 1.0 - labels, labels)
    magnitude = nx.where(positive, logits, -logits)
    return nx.mean(nx.log1p(nx.exp(-magnitude)) + weight * magnitude)


def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """mean of (predictions - targets)**2."""
    predictions, targets = _pair("mse", predictions, targets, "predictions and targets")
    difference = predictions - targets
    return nx.mean(difference * difference)


def mae(predictions: Tensor, targets: Tensor) -> Tensor:
    """mean of |predictions - targets|. The gradient is 0 where they are equal."""
    predictions, targets = _pair("mae", predictions, targets, "predictions and targets")
    return nx.mean(nx.abs(predictions - targets))


def huber(predictions: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """mean of d**2 / 2 where |d| <= delta, and delta * (|d| - delta / 2) beyond, with d = predictions - targets.

    ValueError unless delta is positive. Huber, Robust estimation of a location parameter (1964).
    """
    if not delta > 0:
        raise invalid_value("loss.huber", f"got delta={delta}, expected a positive number")
    predictions, targets = _pair("huber", predictions, targets, "predictions and targets")
    difference = predictions - targets
    magnitude = nx.abs(difference)
    quadratic = 0.5 * difference * difference
    return nx.mean(nx.where(magnitude <= delta, quadratic, delta * (magnitude - 0.5 * delta)))
