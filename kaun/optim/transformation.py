"""Gradient transformations: the small pure functions that optimizers are chains of.

A `Transformation` is `init(params) -> state` and `update(updates, state, params) -> (updates, state)` over parameter
trees. What goes in at the first are gradients; what comes out at the last is added to the parameters.

A learning rate that is a `schedule.Schedule` is computed inside the compiled step from the transformation's own count
of steps. Any other Python function is called on the host before each step: `rates(state)` gives its values, and
`update` is handed them as scalar tensors after `params`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from kaun import nx, probes, ptree
from kaun.compiler.ir.dtypes import float32, int32
from kaun.described import Described, described, remember
from kaun.nx import Tensor
from kaun.ptree import Tree

from . import schedule as schedules
from .schedule import Schedule, ScheduleLike


@dataclass(frozen=True, repr=False)
class Transformation(Described):
    """`init(params) -> state`; `update(updates, state, params, *rates) -> (updates, state)`, both pure.

    `rates(state)` gives the `rate_count` numbers that have to be computed on the host for the next update.
    `is_open(state)`, of the state that `update` returned, is a bool scalar: where it is false, the transformations
    after this one in a chain keep their states and the chain's updates are zero. None means always open.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]
    rate_count: int = 0
    rates: Callable[[Tree], tuple[float, ...]] = lambda state: ()
    is_open: Callable[[Tree], Tensor] | None = None


def chain(transformations: Sequence[Transformation]) -> Transformation:
    """Each transformation applied to the updates of the one before. The state is the tuple of their states.

    After one that is closed at a step (see `Transformation.is_open`), nothing happens in that step.
    """
    members = tuple(transformations)
    for position, member in enumerate(members):
        if not isinstance(member, Transformation):
            raise TypeError(
                f"optim.chain: got {type(member).__name__} at position {position}, expected a Transformation"
            )
    gates = tuple((position, member.is_open) for position, member in enumerate(members) if member.is_open is not None)

    def init(params: Tree) -> Tree:
        return tuple(member.init(params) for member in members)

    def paired(state: Tree) -> Iterable[tuple[Transformation, Tree]]:
        if not isinstance(state, tuple) or len(state) != len(members):
            found = f"of {len(state)} transformations" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(
                f"optim.chain: got a state {found} for {len(members)} transformations, expected the one that "
                "optim.init gave for this optimizer"
            )
        return zip(members, state, strict=True)

    def update(updates: Tree, state: Tree, params: Tree, *rates: Tensor) -> tuple[Tree, Tree]:
        states, first, opened = [], 0, None
        for member, old_state in paired(state):
            last = first + member.rate_count
            given = member.update(updates, old_state, params, *rates[first:last])
            updates, new_state = checked_update(member, given)
            first = last
            states.append(new_state if opened is None else _chosen(opened, new_state, old_state))
            if member.is_open is not None:
                own = member.is_open(states[-1])
                opened = own if opened is None else opened & own
        if opened is not None:
            updates = _chosen(opened, updates, ptree.map(nx.zeros_like, updates))
        return updates, tuple(states)

    def rates(state: Tree) -> tuple[float, ...]:
        return tuple(rate for member, own in paired(state) for rate in member.rates(own))

    def is_open(state: Tree) -> Tensor:
        return functools.reduce(lambda a, b: a & b, (of(state[position]) for position, of in gates))

    rate_count = sum(member.rate_count for member in members)
    made = Transformation(init, update, rate_count, rates, is_open if gates else None)
    return remember(made, "chain", members)


def checked_update(member: Transformation, given: object) -> tuple[Tree, Tree]:
    """What the update of a transformation, which may be a user's, returned. TypeError unless (updates, state)."""
    if not isinstance(given, tuple) or len(given) != 2:
        kind = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise TypeError(f"optim: the update of {member!r} returned {kind}, expected a pair (updates, state)")
    return given


def _chosen(condition: Tensor, first: Tree, second: Tree) -> Tree:
    """The leaves of `first` where the condition holds, else those of `second`."""
    return map_trees(lambda a, b: nx.where(condition, a, b), first, second)


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


def zeros(tree: Tree) -> Tree:
    """Zeros for running means: as wide as arithmetic is, since narrow ones would lose small increments."""
    return ptree.map(lambda leaf: nx.zeros(leaf.shape, dtype=leaf.dtype.compute), tree)


def square(x: Tensor) -> Tensor:
    """x * x."""
    return x * x


def check_decay(function: str, **decays: float) -> None:
    """ValueError unless every decay is in [0, 1)."""
    for name, decay in decays.items():
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"optim.{function}: got {name}={decay}, expected 0 <= {name} < 1")


# --- scaling ---------------------------------------------------------------------------------------------------------


class StepState(NamedTuple):
    """How many steps were made: int32, shape ()."""

    step: Tensor


@described
def scale(factor: float) -> Transformation:
    """u * factor."""
    return _elementwise(lambda update: update * factor)


@described
def scale_by_schedule(schedule: ScheduleLike) -> Transformation:
    """u * schedule(step), with step counted from 1."""
    return _scheduled(schedule, 1.0)


@described
def scale_by_learning_rate(lr: ScheduleLike) -> Transformation:
    """u * -lr(step), with step counted from 1: the sign turns a direction of ascent into one of descent."""
    return _scheduled(lr, -1.0)


def _scheduled(given: ScheduleLike, sign: float) -> Transformation:
    schedule = schedules.as_schedule(given)
    if isinstance(schedule, Schedule):
        if schedule.name == "constant":
            return _constant(schedule(1), sign)
        return _traced_schedule(schedule, sign)
    return _host_schedule(schedule, sign)


def _noted(rate: Tensor, sign: float) -> None:
    """A factor with which descent is made is the learning rate, for whoever keeps a log."""
    if sign < 0:
        probes.note("learning_rate", rate._node)


def _constant(rate: float, sign: float) -> Transformation:
    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        if probes.is_noting():
            _noted(nx.asarray(rate, dtype=float32), sign)
        return ptree.map(lambda leaf: leaf * (sign * rate), updates), state

    return Transformation(lambda params: (), update)


def _scaled(updates: Tree, factor: Tensor) -> Tree:
    return ptree.map(lambda update: update * nx.astype(factor, update.dtype), updates)


def _before_the_first(params: Tree) -> StepState:
    return StepState(nx.zeros((), dtype=int32))


def _traced_schedule(schedule: Schedule, sign: float) -> Transformation:
    def update(updates: Tree, state: StepState, params: Tree) -> tuple[Tree, StepState]:
        step = state.step + 1
        rate = schedule(nx.astype(step, float32))
        _noted(rate, sign)
        return _scaled(updates, sign * rate), StepState(step)

    return Transformation(_before_the_first, update)


def _host_schedule(schedule: Callable[[int], float], sign: float) -> Transformation:
    def update(updates: Tree, state: StepState, params: Tree, rate: Tensor) -> tuple[Tree, StepState]:
        _noted(rate, sign)
        return _scaled(updates, sign * rate), StepState(state.step + 1)

    def rates(state: StepState) -> tuple[float, ...]:
        if nx.is_traced(state.step):
            raise ValueError(
                "optim.scale_by_schedule: a Python function cannot be asked for the rate inside a compiled function; "
                "use a schedule of kaun.optim.schedule there"
            )
        return (float(schedule(int(state.step) + 1)),)

    return Transformation(_before_the_first, update, 1, rates)


# --- decay and clipping ----------------------------------------------------------------------------------------------


@described
def add_decayed_weights(weight_decay: float) -> Transformation:
    """u + weight_decay * p for each parameter p. Loshchilov and Hutter, arXiv:1711.05101."""

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return map_trees(lambda u, p: u + weight_decay * nx.astype(p, u.dtype), updates, params), state

    return Transformation(lambda params: (), update)


@described
def clip_by_value(max_value: float) -> Transformation:
    """min(max(u, -max_value), max_value), elementwise. NaN stays. ValueError unless max_value is positive."""
    _check_limit("clip_by_value", max_value)
    return _elementwise(lambda update: nx.clip(update, -max_value, max_value))


@described
def clip_by_norm(max_norm: float) -> Transformation:
    """u * min(1, max_norm / |u|) for each tensor u of the tree, with its own Euclidean norm |u|."""
    _check_limit("clip_by_norm", max_norm)
    return _elementwise(lambda update: _limited(update, max_norm, norm([update])))


@described
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
        total = total + nx.sum(square(nx.astype(leaf, leaf.dtype.compute)))
    return nx.sqrt(total)


def _limited(leaf: Tensor, max_norm: float, total: Tensor) -> Tensor:
    factor = nx.where(total > max_norm, max_norm / total, nx.ones_like(total))
    # A norm that is NaN has no factor: the comparison is false, and the tensor that holds the NaN keeps it.
    return leaf * nx.astype(factor, leaf.dtype)


def _check_limit(function: str, limit: float) -> None:
    if isinstance(limit, bool) or not (isinstance(limit, Real) or getattr(limit, "shape", None) == ()):
        raise TypeError(f"optim.{function}: got a limit of type {type(limit).__name__}, expected a number")
    if not limit > 0:
        raise ValueError(f"optim.{function}: got a limit of {limit}, expected a positive number")
