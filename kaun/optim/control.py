"""Transformations that decide when and from what the others step: accumulation, guards, noise, centring, trust."""

from __future__ import annotations

import functools
from typing import NamedTuple

from kaun import nx, ptree
from kaun.compiler.ir import ops
from kaun.compiler.ir.dtypes import float32, int32, uint32
from kaun.described import described
from kaun.nx import Tensor
from kaun.ptree import Tree

from .transformation import Transformation, chain, map_trees, norm, zeros


def fold_in(key: Tensor, step: Tensor) -> Tensor:
    """`nx.rng.fold_in(key, step)` for a number of steps that may be traced."""
    return Tensor(ops.random_bits(key._node, nx.astype(step, uint32)._node, shape=(2,)))


# --- gates -----------------------------------------------------------------------------------------------------------


class AccumulateState(NamedTuple):
    """How many gradients are in the sum, and that sum."""

    gathered: Tensor
    total: Tree


@described
def accumulate_gradients(k: int, inner: Transformation | None = None) -> Transformation:
    """One update for k gradients: the mean of k gradients at every k-th step, nothing at the others.

    In a chain, what comes after it steps only with each mean (moments, schedules and all); what comes before it sees
    every gradient. `accumulate_gradients(k, inner)` is `chain([accumulate_gradients(k), inner])`. ValueError unless
    k is a positive int.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"optim.accumulate_gradients: got k={k!r}, expected a positive int")

    def init(params: Tree) -> AccumulateState:
        return AccumulateState(nx.zeros((), dtype=int32), zeros(params))

    def update(updates: Tree, state: AccumulateState, params: Tree) -> tuple[Tree, AccumulateState]:
        count = state.gathered + 1
        full = count == k
        total = map_trees(lambda u, t: t + nx.astype(u, t.dtype), updates, state.total)
        mean = map_trees(lambda u, t: nx.astype(t * (1.0 / k), u.dtype), updates, total)
        rest = ptree.map(lambda t: nx.where(full, nx.zeros_like(t), t), total)
        return mean, AccumulateState(nx.where(full, nx.zeros_like(count), count), rest)

    return _gate(Transformation(init, update, is_open=lambda state: state.gathered == 0), inner)


class ApplyIfFiniteState(NamedTuple):
    """How many updates in a row, and how many in all, were not finite."""

    in_a_row: Tensor
    total: Tensor


@described
def apply_if_finite(
    inner: Transformation | None = None, *, max_consecutive_errors: int | None = None
) -> Transformation:
    """Nothing happens at steps whose updates hold NaN or infinity: parameters and states after it stay as they are.

    In a chain, it looks at what comes in and guards what comes after. `apply_if_finite(inner)` is
    `chain([apply_if_finite(), inner])`. After `max_consecutive_errors` in a row, updates are let through as they are,
    so that the failure shows; None never does. ValueError for a negative number.
    """
    limit = max_consecutive_errors
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise ValueError(
            f"optim.apply_if_finite: got max_consecutive_errors={limit!r}, expected None or an int of at least 0"
        )

    def init(params: Tree) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(nx.zeros((), dtype=int32), nx.zeros((), dtype=int32))

    def update(updates: Tree, state: ApplyIfFiniteState, params: Tree) -> tuple[Tree, ApplyIfFiniteState]:
        broken = ~finite(updates)
        in_a_row = nx.where(broken, state.in_a_row + 1, nx.zeros_like(state.in_a_row))
        return updates, ApplyIfFiniteState(in_a_row, state.total + nx.astype(broken, int32))

    def is_open(state: ApplyIfFiniteState) -> Tensor:
        good = state.in_a_row == 0
        return good if limit is None else good | (state.in_a_row > limit)

    return _gate(Transformation(init, update, is_open=is_open), inner)


def finite(tree: Tree) -> Tensor:
    """Whether every element of every leaf is finite: a bool scalar."""
    flags = [nx.all(nx.isfinite(leaf)) for leaf in ptree.leaves(tree)]
    return functools.reduce(lambda a, b: a & b, flags, nx.asarray(True))


def _gate(gate: Transformation, inner: Transformation | None) -> Transformation:
    return gate if inner is None else chain([gate, inner])


# --- changes to the gradient -----------------------------------------------------------------------------------------


@described
def centralize() -> Transformation:
    """u minus its mean over the inputs of each output: over axis 0 of a matrix (in, out), over all axes but the first

    of a tensor with more, such as a convolution's (out, in, *window). Vectors stay. Yong et al., arXiv:2004.01461.
    """

    def centred(update: Tensor) -> Tensor:
        if update.ndim < 2:
            return update
        axes = (0,) if update.ndim == 2 else tuple(range(1, update.ndim))
        return update - nx.mean(update, axis=axes, keepdims=True)

    return Transformation(lambda params: (), lambda updates, state, params: (ptree.map(centred, updates), state))


class AddNoiseState(NamedTuple):
    """The number of steps made, and the random key."""

    step: Tensor
    key: Tensor


@described
def add_noise(eta: float, *, gamma: float = 0.55, seed: int = 0) -> Transformation:
    """u + z with z normal of variance eta / t**gamma at step t, drawn from `seed` and the step alone.

    ValueError for a negative eta. Neelakantan et al., Adding gradient noise, arXiv:1511.06807.
    """
    if not eta >= 0.0:
        raise ValueError(f"optim.add_noise: got eta={eta}, expected 0 or a positive number")

    def init(params: Tree) -> AddNoiseState:
        return AddNoiseState(nx.zeros((), dtype=int32), nx.rng.key(seed))

    def update(updates: Tree, state: AddNoiseState, params: Tree) -> tuple[Tree, AddNoiseState]:
        step = state.step + 1
        deviation = nx.sqrt(eta * nx.pow(nx.astype(step, float32), -gamma))
        key = fold_in(state.key, step)
        leaves, structure = ptree.flatten(updates)
        noisy = []
        for position, leaf in enumerate(leaves):
            own = fold_in(key, nx.asarray(position, dtype=uint32))
            noise = nx.rng.normal(leaf.shape, dtype=leaf.dtype, key=own)
            noisy.append(leaf + noise * nx.astype(deviation, leaf.dtype))
        return structure(noisy), AddNoiseState(step, state.key)

    return Transformation(init, update)


@described
def scale_by_trust_ratio(
    *, min_norm: float = 0.0, trust_coefficient: float = 1.0, eps: float = 0.0
) -> Transformation:
    """u * trust_coefficient * |p| / (|u| + eps) for each tensor u and its parameter p; u where either norm is 0.

    Norms below `min_norm` count as that. You et al., Large batch training of convolutional networks, arXiv:1708.03888.
    """

    def scaled(update: Tensor, parameter: Tensor) -> Tensor:
        own, weight = (nx.maximum(norm([leaf]), min_norm) for leaf in (update, parameter))
        still = (own == 0.0) | (weight == 0.0)
        ratio = trust_coefficient * weight / (nx.where(still, nx.ones_like(own), own) + eps)
        return update * nx.astype(nx.where(still, nx.ones_like(ratio), ratio), update.dtype)

    return Transformation(lambda params: (), lambda updates, state, params: (map_trees(scaled, updates, params), state))
