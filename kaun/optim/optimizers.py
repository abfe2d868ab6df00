"""The optimizers, each a chain of transformations."""

from __future__ import annotations

from .schedule import ScheduleLike
from .transformation import (
    Transformation,
    add_decayed_weights,
    chain,
    scale_by_adam,
    scale_by_learning_rate,
    trace,
)


def sgd(lr: ScheduleLike, *, momentum: float = 0.0, nesterov: bool = False) -> Transformation:
    """Gradient descent: p - lr(t) * g; with momentum, g is replaced by t = momentum * t + g (see `trace`).

    ValueError for nesterov without momentum. Robbins and Monro (1951); Sutskever et al. (2013).
    """
    if momentum == 0.0:
        if nesterov:
            raise ValueError("optim.sgd: got nesterov=True with momentum=0, expected a momentum")
        return chain([scale_by_learning_rate(lr)])
    return chain([trace(momentum, nesterov=nesterov), scale_by_learning_rate(lr)])


def adam(lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """p - lr(t) * m / (sqrt(v) + eps), with the bias-corrected running means m of g and v of g**2.

    See `scale_by_adam`. Kingma and Ba, arXiv:1412.6980.
    """
    return chain([scale_by_adam(b1=b1, b2=b2, eps=eps), scale_by_learning_rate(lr)])


def adamw(
    lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
) -> Transformation:
    """Adam with decoupled weight decay: p - lr(t) * (m / (sqrt(v) + eps) + weight_decay * p).

    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101.
    """
    return chain(
        [scale_by_adam(b1=b1, b2=b2, eps=eps), add_decayed_weights(weight_decay), scale_by_learning_rate(lr)]
    )
