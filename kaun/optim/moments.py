"""Transformations that keep running means of gradients: momentum, Adam and its relatives."""

from __future__ import annotations

import math
from typing import NamedTuple

from kaun import nx, ptree
from kaun.compiler.ir.dtypes import float64, int32
from kaun.described import described
from kaun.nx import Tensor
from kaun.ptree import Tree

from .transformation import Transformation, check_decay, map_trees, square, zeros


def _mean(decay: float, updates: Tree, means: Tree) -> Tree:
    """decay * m + (1 - decay) * u."""
    return map_trees(lambda u, m: decay * m + (1.0 - decay) * nx.astype(u, m.dtype), updates, means)


def _mean_square(decay: float, updates: Tree, means: Tree) -> Tree:
    """decay * m + (1 - decay) * u**2."""
    return map_trees(lambda u, m: decay * m + (1.0 - decay) * square(nx.astype(u, m.dtype)), updates, means)


def unbiased(mean: Tensor, decay: float, step: Tensor) -> Tensor:
    """mean / (1 - decay**step), with its relative precision kept where decay**step is close to 1."""
    exponent = nx.astype(step, mean.dtype) * (math.log(decay) if decay > 0.0 else -math.inf)
    return mean * (1.0 / -nx.expm1(exponent))


def _first_step() -> Tensor:
    return nx.zeros((), dtype=int32)


class TraceState(NamedTuple):
    """The decaying sum of past updates."""

    trace: Tree


@described
def trace(decay: float, *, nesterov: bool = False) -> Transformation:
    """Momentum: t = decay * t + u, giving t; with `nesterov`, giving decay * t + u.

    Sutskever et al., On the importance of initialization and momentum in deep learning (2013).
    """
    check_decay("trace", decay=decay)

    def update(updates: Tree, state: TraceState, params: Tree) -> tuple[Tree, TraceState]:
        moved = map_trees(lambda u, t: decay * t + nx.astype(u, t.dtype), updates, state.trace)
        result = map_trees(lambda u, t: decay * t + nx.astype(u, t.dtype), updates, moved) if nesterov else moved
        return map_trees(lambda u, r: nx.astype(r, u.dtype), updates, result), TraceState(moved)

    return Transformation(lambda params: TraceState(zeros(params)), update)


class ScaleByAdamState(NamedTuple):
    """The number of steps made, and the running means of the gradient (mu) and of its square (nu)."""

    step: Tensor
    mu: Tree
    nu: Tree


def _adam_state(params: Tree) -> ScaleByAdamState:
    return ScaleByAdamState(_first_step(), zeros(params), zeros(params))


@described
def scale_by_adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """mu = b1 * mu + (1 - b1) * u; nu = b2 * nu + (1 - b2) * u**2; at step t gives

    (mu / (1 - b1**t)) / (sqrt(nu / (1 - b2**t)) + eps). Kingma and Ba, Adam, arXiv:1412.6980.
    """
    check_decay("scale_by_adam", b1=b1, b2=b2)

    def update(updates: Tree, state: ScaleByAdamState, params: Tree) -> tuple[Tree, ScaleByAdamState]:
        step = state.step + 1
        mu, nu = _mean(b1, updates, state.mu), _mean_square(b2, updates, state.nu)

        def direction(u: Tensor, m: Tensor, n: Tensor) -> Tensor:
            mean, mean_square = unbiased(m, b1, step), unbiased(n, b2, step)
            return nx.astype(mean / (nx.sqrt(mean_square) + eps), u.dtype)

        return map_trees(direction, updates, mu, nu), ScaleByAdamState(step, mu, nu)

    return Transformation(_adam_state, update)


@described
def scale_by_radam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, threshold: float = 5.0) -> Transformation:
    """Adam with the variance of its early steps rectified. With mu and nu as in `scale_by_adam`, at step t,

    rho_inf = 2 / (1 - b2) - 1 and rho = rho_inf - 2 t b2**t / (1 - b2**t): where rho > threshold, gives r times Adam's
    direction with r**2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho); else mu / (1 - b1**t).
    Liu et al., On the variance of the adaptive learning rate, arXiv:1908.03265.
    """
    check_decay("scale_by_radam", b1=b1, b2=b2)
    limit = 2.0 / (1.0 - b2) - 1.0
    # Below 4, no step's rho is large enough to be rectified, and the constant is not used.
    constant = limit / ((limit - 4.0) * (limit - 2.0)) if limit > 4.0 else 1.0
    if not threshold >= 4.0:
        raise ValueError(f"optim.scale_by_radam: got threshold={threshold}, expected at least 4")

    def rectification(step: Tensor) -> tuple[Tensor, Tensor]:
        """(whether to rectify, r). rho is a small difference of large numbers, so it needs float64."""
        t = nx.astype(step, float64)
        power = nx.exp(t * (math.log(b2) if b2 > 0.0 else -math.inf))
        rho = limit - 2.0 * t * power / (1.0 - power)
        adaptive = rho > threshold
        safe = nx.where(adaptive, rho, nx.full_like(rho, 5.0))
        return adaptive, nx.sqrt((safe - 4.0) * (safe - 2.0) / safe * constant)

    def update(updates: Tree, state: ScaleByAdamState, params: Tree) -> tuple[Tree, ScaleByAdamState]:
        step = state.step + 1
        mu, nu = _mean(b1, updates, state.mu), _mean_square(b2, updates, state.nu)
        adaptive, factor = rectification(step)

        def direction(u: Tensor, m: Tensor, n: Tensor) -> Tensor:
            mean, mean_square = unbiased(m, b1, step), unbiased(n, b2, step)
            rectified = nx.astype(factor, m.dtype) * mean / (nx.sqrt(mean_square) + eps)
            return nx.astype(nx.where(adaptive, rectified, mean), u.dtype)

        return map_trees(direction, updates, mu, nu), ScaleByAdamState(step, mu, nu)

    return Transformation(_adam_state, update)


class ScaleByRmsState(NamedTuple):
    """The running mean of the squared gradient."""

    nu: Tree


@described
def scale_by_rms(*, decay: float = 0.9, eps: float = 1e-8) -> Transformation:
    """nu = decay * nu + (1 - decay) * u**2, giving u / (sqrt(nu) + eps).

    Tieleman and Hinton, RMSProp, lecture 6.5 of Neural networks for machine learning (2012).
    """
    check_decay("scale_by_rms", decay=decay)

    def update(updates: Tree, state: ScaleByRmsState, params: Tree) -> tuple[Tree, ScaleByRmsState]:
        nu = _mean_square(decay, updates, state.nu)
        return map_trees(lambda u, n: _over_root(u, n, eps), updates, nu), ScaleByRmsState(nu)

    return Transformation(lambda params: ScaleByRmsState(zeros(params)), update)


def _over_root(u: Tensor, total: Tensor, eps: float) -> Tensor:
    """u / (sqrt(total) + eps), in the dtype of u."""
    return nx.astype(nx.astype(u, total.dtype) / (nx.sqrt(total) + eps), u.dtype)


class ScaleByAdagradState(NamedTuple):
    """The sum of all squared gradients."""

    total: Tree


@described
def scale_by_adagrad(*, eps: float = 1e-8, initial_accumulator: float = 0.0) -> Transformation:
    """total = total + u**2, from `initial_accumulator`, giving u / (sqrt(total) + eps).

    ValueError for a negative start. Duchi et al., Adaptive subgradient methods, JMLR 12 (2011).
    """
    if not initial_accumulator >= 0.0:
        raise ValueError(
            f"optim.scale_by_adagrad: got initial_accumulator={initial_accumulator}, expected 0 or a positive number"
        )

    def init(params: Tree) -> ScaleByAdagradState:
        return ScaleByAdagradState(ptree.map(lambda zero: zero + initial_accumulator, zeros(params)))

    def update(updates: Tree, state: ScaleByAdagradState, params: Tree) -> tuple[Tree, ScaleByAdagradState]:
        total = map_trees(lambda u, t: t + square(nx.astype(u, t.dtype)), updates, state.total)
        return map_trees(lambda u, t: _over_root(u, t, eps), updates, total), ScaleByAdagradState(total)

    return Transformation(init, update)


class ScaleByLionState(NamedTuple):
    """The running mean of the gradient."""

    mu: Tree


@described
def scale_by_lion(*, b1: float = 0.9, b2: float = 0.99) -> Transformation:
    """Gives sign(b1 * mu + (1 - b1) * u); then mu = b2 * mu + (1 - b2) * u.

    Chen et al., Symbolic discovery of optimization algorithms, arXiv:2302.06675.
    """
    check_decay("scale_by_lion", b1=b1, b2=b2)

    def update(updates: Tree, state: ScaleByLionState, params: Tree) -> tuple[Tree, ScaleByLionState]:
        mixed = _mean(b1, updates, state.mu)
        direction = map_trees(lambda u, m: nx.astype(nx.sign(m), u.dtype), updates, mixed)
        return direction, ScaleByLionState(_mean(b2, updates, state.mu))

    return Transformation(lambda params: ScaleByLionState(zeros(params)), update)


class ScaleByAdanState(NamedTuple):
    """The number of steps made; running means of the gradient (m), of its change (v), and of the square (n) of the
    gradient looked ahead; and the last gradient."""

    step: Tensor
    m: Tree
    v: Tree
    n: Tree
    last: Tree


@described
def scale_by_adan(*, b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: float = 1e-8) -> Transformation:
    """With the change d = u - last (0 at the first step): m, v and n are the running means, with decays b1, b2 and b3,

    of u, d and (u + b2 * d)**2, bias-corrected as in Adam, giving (m + b2 * v) / (sqrt(n) + eps). The decays are those
    of the running means, one minus the paper's betas. Xie et al., Adan, arXiv:2208.06677.
    """
    check_decay("scale_by_adan", b1=b1, b2=b2, b3=b3)

    def init(params: Tree) -> ScaleByAdanState:
        return ScaleByAdanState(_first_step(), *(zeros(params) for _ in range(4)))

    def update(updates: Tree, state: ScaleByAdanState, params: Tree) -> tuple[Tree, ScaleByAdanState]:
        step = state.step + 1
        wide = map_trees(lambda u, m: nx.astype(u, m.dtype), updates, state.m)
        change = map_trees(lambda u, g: nx.where(step > 1, u - g, nx.zeros_like(g)), wide, state.last)
        m, v = _mean(b1, wide, state.m), _mean(b2, change, state.v)
        n = _mean_square(b3, map_trees(lambda u, d: u + b2 * d, wide, change), state.n)

        def direction(u: Tensor, *means: Tensor) -> Tensor:
            mean, trend, mean_square = (
                unbiased(x, decay, step) for x, decay in zip(means, (b1, b2, b3), strict=True)
            )
            return nx.astype((mean + b2 * trend) / (nx.sqrt(mean_square) + eps), u.dtype)

        return map_trees(direction, updates, m, v, n), ScaleByAdanState(step, m, v, n, wide)

    return Transformation(init, update)
