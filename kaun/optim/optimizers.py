"""The optimizers, each a chain of transformations."""

from __future__ import annotations

from kaun.described import described

from .adafactor import scale_by_adafactor
from .control import scale_by_trust_ratio
from .moments import (
    scale_by_adagrad,
    scale_by_adam,
    scale_by_adan,
    scale_by_lion,
    scale_by_radam,
    scale_by_rms,
    trace,
)
from .schedule import ScheduleLike
from .transformation import Transformation, add_decayed_weights, chain, scale_by_learning_rate


@described
def sgd(lr: ScheduleLike, *, momentum: float = 0.0, nesterov: bool = False) -> Transformation:
    """Gradient descent: p - lr(t) * g; with momentum, g is replaced by t = momentum * t + g (see `trace`).

    ValueError for nesterov without momentum. Robbins and Monro (1951); Sutskever et al. (2013).
    """
    if momentum == 0.0:
        if nesterov:
            raise ValueError("optim.sgd: got nesterov=True with momentum=0, expected a momentum")
        return chain([scale_by_learning_rate(lr)])
    return chain([trace(momentum, nesterov=nesterov), scale_by_learning_rate(lr)])


@described
def adam(lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """p - lr(t) * m / (sqrt(v) + eps), with the bias-corrected running means m of g and v of g**2.

    See `scale_by_adam`. Kingma and Ba, arXiv:1412.6980.
    """
    return chain([scale_by_adam(b1=b1, b2=b2, eps=eps), scale_by_learning_rate(lr)])


@described
def adamw(
    lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
) -> Transformation:
    """Adam with decoupled weight decay: p - lr(t) * (m / (sqrt(v) + eps) + weight_decay * p).

    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101.
    """
    return chain(
        [scale_by_adam(b1=b1, b2=b2, eps=eps), add_decayed_weights(weight_decay), scale_by_learning_rate(lr)]
    )


@described
def rmsprop(lr: ScheduleLike, *, decay: float = 0.9, momentum: float = 0.0, eps: float = 1e-8) -> Transformation:
    """p - lr(t) * g / (sqrt(v) + eps), with the running mean v of g**2; with momentum, that direction through `trace`.

    See `scale_by_rms`. Tieleman and Hinton (2012).
    """
    scaled = scale_by_rms(decay=decay, eps=eps)
    return chain([scaled, *([trace(momentum)] if momentum else []), scale_by_learning_rate(lr)])


@described
def adagrad(lr: ScheduleLike, *, eps: float = 1e-8) -> Transformation:
    """p - lr(t) * g / (sqrt(s) + eps), with the sum s of all g**2 so far; see `scale_by_adagrad`.

    Duchi et al., Adaptive subgradient methods, JMLR 12 (2011).
    """
    return chain([scale_by_adagrad(eps=eps), scale_by_learning_rate(lr)])


@described
def radam(
    lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, threshold: float = 5.0
) -> Transformation:
    """Adam whose early steps are rectified; see `scale_by_radam`. Liu et al., arXiv:1908.03265."""
    return chain([scale_by_radam(b1=b1, b2=b2, eps=eps, threshold=threshold), scale_by_learning_rate(lr)])


@described
def lamb(
    lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.0
) -> Transformation:
    """p - lr(t) * d * |p| / |d| for each parameter tensor p, with AdamW's direction d (see `scale_by_trust_ratio`).

    You et al., Large batch optimization for deep learning, arXiv:1904.00962.
    """
    return chain([
        scale_by_adam(b1=b1, b2=b2, eps=eps), add_decayed_weights(weight_decay), scale_by_trust_ratio(),
        scale_by_learning_rate(lr),
    ])  # fmt: skip


@described
def lars(
    lr: ScheduleLike,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
) -> Transformation:
    """Momentum over lr(t) * d * trust_coefficient * |p| / (|d| + eps), with d = g + weight_decay * p.

    The learning rate is inside the momentum, as in the paper. You et al., arXiv:1708.03888.
    """
    return chain([
        add_decayed_weights(weight_decay), scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
        scale_by_learning_rate(lr), trace(momentum, nesterov=nesterov),
    ])  # fmt: skip


@described
def lion(lr: ScheduleLike, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 1e-3) -> Transformation:
    """p - lr(t) * (sign(b1 * m + (1 - b1) * g) + weight_decay * p); see `scale_by_lion`.

    Chen et al., Symbolic discovery of optimization algorithms, arXiv:2302.06675.
    """
    return chain([scale_by_lion(b1=b1, b2=b2), add_decayed_weights(weight_decay), scale_by_learning_rate(lr)])


@described
def adan(
    lr: ScheduleLike,
    *,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Transformation:
    """Adam with Nesterov momentum from the change of the gradient; see `scale_by_adan`.

    Xie et al., Adan: adaptive Nesterov momentum algorithm, arXiv:2208.06677.
    """
    return chain(
        [scale_by_adan(b1=b1, b2=b2, b3=b3, eps=eps), add_decayed_weights(weight_decay), scale_by_learning_rate(lr)]
    )


@described
def adafactor(
    lr: ScheduleLike,
    *,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    min_dim_size_to_factor: int = 128,
    eps: float = 1e-30,
    weight_decay: float = 0.0,
) -> Transformation:
    """Steps relative to the parameters' size, second moments of matrices in little memory; see `scale_by_adafactor`.

    Shazeer and Stern, arXiv:1804.04235.
    """
    scaled = scale_by_adafactor(
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        min_dim_size_to_factor=min_dim_size_to_factor,
        eps=eps,
    )
    decayed = [add_decayed_weights(weight_decay)] if weight_decay else []
    return chain([scaled, *decayed, scale_by_learning_rate(lr)])
