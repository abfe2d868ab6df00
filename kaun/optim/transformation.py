"""Gradient transformations: the small pure functions that optimizers are chains of.

A `Transformation` is `init(params) -> state` and `update(updates, state, params) -> (updates, state)` over parameter
trees. What goes in at the first are gradients; what comes out at the last is added to the parameters.

A learning rate that is a `schedule.Schedule` is computed inside the compiled step from the transformation's own count
of steps. Any other Python function is called on the host before each step: `rates(state)` gives its values, and
`update` is handed them as scalar tensors after `params`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kaun import nx, ptree
from kaun.compiler.ir.dtypes import float32, int32
from kaun.nx import Tensor
from kaun.ptree import Tree

from . import schedule as schedules
from .schedule import Schedule, ScheduleLike


@dataclass(frozen=True)
class Transformation:
    """`init(params) -> state`; `update(updates, state, params, *rates) -> (updates, state)`, both pure.

    `rates(state)` gives the `rate_count` numbers that have to be computed on the host for the next update.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]
    rate_count: int = 0
    rates: Callable[[Tree], tuple[float, ...]] = lambda state: ()


def chain(transformations: Sequence[Transformation]) -> Transformation:
    """Each transformation applied to the updates of the one before. The state is the tuple of their states."""
    members = tuple(transformations)
    for position, member in enumerate(members):
        if not isinstance(member, Transformation):
            raise TypeError(
                f"optim.chain: got {type(member).__name__} at position {position}, expected a Transformation"
            )

    def init(params: Tree) -> Tree:
        return tuple(member.init(params) for member in members)

    def update(updates: Tree, state: Tree, params: Tree, *rates: Tensor) -> tuple[Tree, Tree]:
        states, first = [], 0
        for member, member_state in zip(members, state, strict=True):
            last = first + member.rate_count
            updates, new_state = member.update(updates, member_state, params, *rates[first:last])
            states.append(new_state)
            first = last
        return updates, tuple(states)

    def rates(state: Tree) -> tuple[float, ...]:
        return tuple(rate for member, own in zip(members, state, strict=True) for rate in member.rates(own))

    return Transformation(init, update, sum(member.rate_count for member in members), rates)


def map_trees(f: Callable[..., Any], first: Tree, *others: Tree) -> Tree:
    """The tree of `f` over the leaves of trees of one structure; ValueError naming the first differing path."""
    structure = ptree.structure(first)
    rows = [ptree.leaves(first)]
    for other in others:
        found = ptree.difference(structure, ptree.structure(other))
        if found is not None:
            raise ValueError(f"optim: the optimizer state or parameters do not match the gradients at {found}")
        rows.append(ptree.leaves(other))
    return structure([f(*leaves) for leaves in zip(*rows, strict=True)])


def _elementwise(f: Callable[[Tensor], Tensor]) -> Transformation:
    """The transformation without state that applies `f` to every leaf."""

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return ptree.map(f, updates), state

    return Transformation(lambda params: (), update)


def _zeros(tree: Tree) -> Tree:
    """Zeros for running means: as wide as arithmetic is, since narrow ones would lose small increments."""
    return ptree.map(lambda leaf: nx.zeros(leaf.shape, dtype=leaf.dtype.compute), tree)


# --- scaling ---------------------------------------------------------------------------------------------------------


class StepState(NamedTuple):
    """How many steps were made: int32, shape ()."""

    step: Tensor


def scale(factor: float) -> Transformation:
    """u * factor."""
    return _elementwise(lambda update: update * factor)


def scale_by_schedule(schedule: ScheduleLike) -> Transformation:
    """u * schedule(step), with step counted from 1."""
    return _scheduled(schedule, 1.0)


def scale_by_learning_rate(lr: ScheduleLike) -> Transformation:
    """u * -lr(step), with step counted from 1: the sign turns a direction of ascent into one of descent."""
    return _scheduled(lr, -1.0)


def _scheduled(given: ScheduleLike, sign: float) -> Transformation:
    schedule = schedules.as_schedule(given)
    if isinstance(schedule, Schedule):
        if schedule.name == "constant":
            return scale(sign * schedule(1))
        return _traced_schedule(schedule, sign)
    return _host_schedule(schedule, sign)


def _scaled(updates: Tree, factor: Tensor) -> Tree:
    return ptree.map(lambda update: update * nx.astype(factor, update.dtype), updates)


def _before_the_first(params: Tree) -> StepState:
    return StepState(nx.zeros((), dtype=int32))


def _traced_schedule(schedule: Schedule, sign: float) -> Transformation:
    def update(updates: Tree, state: StepState, params: Tree) -> tuple[Tree, StepState]:
        step = state.step + 1
        return _scaled(updates, sign * schedule(nx.astype(step, float32))), StepState(step)

    return Transformation(_before_the_first, update)


def _host_schedule(schedule: Callable[[int], float], sign: float) -> Transformation:
    def update(updates: Tree, state: StepState, params: Tree, rate: Tensor) -> tuple[Tree, StepState]:
        return _scaled(updates, sign * rate), StepState(state.step + 1)

    def rates(state: StepState) -> tuple[float, ...]:
        if nx.is_traced(state.step):
            raise ValueError(
                "optim.scale_by_schedule: a Python function cannot be asked for the rate inside a compiled function; "
                "use a schedule of kaun.optim.schedule there"
            )
        return (float(schedule(int(state.step) + 1)),)

    return Transformation(_before_the_first, update, 1, rates)


# --- momentum and moments --------------------------------------------------------------------------------------------


class TraceState(NamedTuple):
    """The decaying sum of past updates."""

    trace: Tree


def trace(decay: float, *, nesterov: bool = False) -> Transformation:
    """Momentum: t = decay * t + u, giving t; with `nesterov`, giving decay * t + u.

    Sutskever et al., On the importance of initialization and momentum in deep learning (2013).
    """
    _check_decay("trace", decay=decay)

    def update(updates: Tree, state: TraceState, params: Tree) -> tuple[Tree, TraceState]:
        moved = map_trees(lambda u, t: decay * t + nx.astype(u, t.dtype), updates, state.trace)
        result = map_trees(lambda u, t: decay * t + nx.astype(u, t.dtype), updates, moved) if nesterov else moved
        return map_trees(lambda u, r: nx.astype(r, u.dtype), updates, result), TraceState(moved)

    return Transformation(lambda params: TraceState(_zeros(params)), update)


class ScaleByAdamState(NamedTuple):
    """The number of steps made, and the running means of the gradient (mu) and of its square (nu)."""

    step: Tensor
    mu: Tree
    nu: Tree


def scale_by_adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """mu = b1 * mu + (1 - b1) * u; nu = b2 * nu + (1 - b2) * u**2; at step t gives

    (mu / (1 - b1**t)) / (sqrt(nu / (1 - b2**t)) + eps). Kingma and Ba, Adam, arXiv:1412.6980.
    """
    _check_decay("scale_by_adam", b1=b1, b2=b2)

    def init(params: Tree) -> ScaleByAdamState:
        return ScaleByAdamState(nx.zeros((), dtype=int32), _zeros(params), _zeros(params))

    def update(updates: Tree, state: ScaleByAdamState, params: Tree) -> tuple[Tree, ScaleByAdamState]:
        step = state.step + 1
        mu = map_trees(lambda u, m: b1 * m + (1.0 - b1) * nx.astype(u, m.dtype), updates, state.mu)
        nu = map_trees(lambda u, n: b2 * n + (1.0 - b2) * _square(nx.astype(u, n.dtype)), updates, state.nu)
        mean_factor, square_factor = (1.0 / bias_correction(decay, step) for decay in (b1, b2))

        def direction(u: Tensor, m: Tensor, n: Tensor) -> Tensor:
            mean, square = m * nx.astype(mean_factor, m.dtype), n * nx.astype(square_factor, n.dtype)
            return nx.astype(mean / (nx.sqrt(square) + eps), u.dtype)

        return map_trees(direction, updates, mu, nu), ScaleByAdamState(step, mu, nu)

    return Transformation(init, update)


def bias_correction(decay: float, step: Tensor) -> Tensor:
    """1 - decay**step in float32, with its relative precision kept where decay**step is close to 1."""
    return -nx.expm1(nx.astype(step, float32) * (math.log(decay) if decay > 0.0 else -math.inf))


def _square(x: Tensor) -> Tensor:
    return x * x


def _check_decay(function: str, **decays: float) -> None:
    for name, decay in decays.items():
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"optim.{function}: got {name}={decay}, expected 0 <= {name} < 1")


# --- decay and clipping ----------------------------------------------------------------------------------------------


def add_decayed_weights(weight_decay: float) -> Transformation:
    """u + weight_decay * p for each parameter p. Loshchilov and Hutter, arXiv:1711.05101."""

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return map_trees(lambda u, p: u + weight_decay * nx.astype(p, u.dtype), updates, params), state

    return Transformation(lambda params: (), update)


def clip_by_value(max_value: float) -> Transformation:
    """min(max(u, -max_value), max_value), elementwise. NaN stays. ValueError unless max_value is positive."""
    _check_limit("clip_by_value", max_value)
    return _elementwise(lambda update: nx.clip(update, -max_value, max_value))


def clip_by_norm(max_norm: float) -> Transformation:
    """u * min(1, max_norm / |u|) for each tensor u of the tree, with its own Euclidean norm |u|."""
    _check_limit("clip_by_norm", max_norm)
    return _elementwise(lambda update: _limited(update, max_norm, norm([update])))


def clip_by_global_norm(max_norm: float, grads: Tree | None = None) -> Any:
    """u * min(1, max_norm / norm), with the Euclidean norm of all tensors of the tree together (`global_norm`).

    `clip_by_global_norm(max_norm)` is the transformation; `clip_by_global_norm(max_norm, grads)` the clipped tree.
    ValueError unless max_norm is positive. Pascanu et al., arXiv:1211.5063.
    """
    _check_limit("clip_by_global_norm", max_norm)

    def clipped(tree: Tree) -> Tree:
        total = global_norm(tree)
        return ptree.map(lambda leaf: _limited(leaf, max_norm, total), tree)

    if grads is not None:
        return clipped(grads)
    return Transformation(lambda params: (), lambda updates, state, params: (clipped(updates), state))


def global_norm(tree: Tree) -> Tensor:
    """sqrt of the sum of the squares of all elements of all leaves: a scalar, at least float32. 0 without leaves."""
    return norm(ptree.leaves(tree))


def norm(leaves: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of the tensors together."""
    total = nx.zeros((), dtype=float32)
    for leaf in leaves:
        total = total + nx.sum(_square(nx.astype(leaf, leaf.dtype.compute)))
    return nx.sqrt(total)


def _limited(leaf: Tensor, max_norm: float, total: Tensor) -> Tensor:
    factor = nx.where(total > max_norm, max_norm / total, nx.ones_like(total))
    # A norm that is NaN has no factor: the comparison is false, and the tensor that holds the NaN keeps it.
    return leaf * nx.astype(factor, leaf.dtype)


def _check_limit(function: str, limit: float) -> None:
    if not limit > 0:
        raise ValueError(f"optim.{function}: got a limit of {limit}, expected a positive number")
