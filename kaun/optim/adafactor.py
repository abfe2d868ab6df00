"""Adafactor: second moments of matrices kept as one row and one column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from kaun import nx, ptree
from kaun.compiler.ir.dtypes import float32, int32
from kaun.described import described
from kaun.nx import Tensor
from kaun.ptree import Tree

from .transformation import Transformation, map_trees, square


class ScaleByAdafactorState(NamedTuple):
    """The number of steps made, and for each parameter a Dict of its second moments: `row` and `column`, or `full`."""

    step: Tensor
    moments: Tree


def _factored_axes(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """(second longest axis, longest axis) if both have at least `least` places."""
    if len(shape) < 2:
        return None
    *_, second, first = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (second, first) if shape[second] >= least else None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


@described
def scale_by_adafactor(
    *,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    min_dim_size_to_factor: int = 128,
    eps: float = 1e-30,
    min_parameter_scale: float = 1e-3,
) -> Transformation:
    """u / sqrt(v), where v is a running mean of u**2 + eps whose decay at step t is 1 - t**-decay_rate.

    For a parameter whose two longest axes have at least `min_dim_size_to_factor` places, only the means of v along each
    of the two are kept, and v is row * column / mean(row). The result is divided by max(1, rms / clipping_threshold)
    with its own root mean square (not with None) and, with `multiply_by_parameter_scale`, multiplied by that of the
    parameter, but at least by `min_parameter_scale`. Shazeer and Stern, Adafactor, arXiv:1804.04235.

    ValueError unless 0 < decay_rate <= 1 and the threshold is positive.
    """
    if not 0.0 < decay_rate <= 1.0:
        raise ValueError(f"optim.scale_by_adafactor: got decay_rate={decay_rate}, expected 0 < decay_rate <= 1")
    if clipping_threshold is not None and not clipping_threshold > 0.0:
        raise ValueError(
            f"optim.scale_by_adafactor: got clipping_threshold={clipping_threshold}, expected a positive number or None"
        )

    def empty(parameter: Tensor) -> ptree.Dict:
        shape, wide = parameter.shape, parameter.dtype.compute
        axes = _factored_axes(shape, min_dim_size_to_factor)
        if axes is None:
            return ptree.Dict(full=nx.zeros(shape, dtype=wide))
        second, first = axes
        row, column = _without(shape, first), _without(shape, second)
        return ptree.Dict(row=nx.zeros(row, dtype=wide), column=nx.zeros(column, dtype=wide))

    def init(params: Tree) -> ScaleByAdafactorState:
        leaves, structure = ptree.flatten(params)
        moments = structure([empty(leaf) for leaf in leaves])
        return ScaleByAdafactorState(nx.zeros((), dtype=int32), moments)

    def scaled(u: Tensor, moments: ptree.Dict, decay: Tensor) -> tuple[Tensor, ptree.Dict]:
        """(u / sqrt(v), new moments), u being as wide as they are."""
        squared = square(u) + eps
        decay = nx.astype(decay, u.dtype)
        axes = _factored_axes(u.shape, min_dim_size_to_factor)
        if axes is None:
            full = decay * moments["full"] + (1.0 - decay) * squared
            return u / nx.sqrt(full), ptree.Dict(full=full)
        second, first = axes
        row = decay * moments["row"] + (1.0 - decay) * nx.mean(squared, axis=first)
        column = decay * moments["column"] + (1.0 - decay) * nx.mean(squared, axis=second)
        remaining = second - 1 if second > first else second
        share = row / nx.mean(row, axis=remaining, keepdims=True)
        root = nx.expand_dims(nx.sqrt(share), axis=first) * nx.expand_dims(nx.sqrt(column), axis=second)
        return u / root, ptree.Dict(row=row, column=column)

    def update(updates: Tree, state: ScaleByAdafactorState, params: Tree) -> tuple[Tree, ScaleByAdafactorState]:
        step = state.step + 1
        decay = 1.0 - nx.pow(nx.astype(step, float32), -decay_rate)
        leaves, structure = ptree.flatten(updates)
        results = [
            scaled(nx.astype(u, u.dtype.compute), moments, decay)
            for u, moments in zip(leaves, _grouped(leaves, state.moments), strict=True)
        ]
        directions = structure([direction for direction, _ in results])
        if clipping_threshold is not None:
            directions = ptree.map(lambda u: u / _at_least(_rms(u) / clipping_threshold, 1.0), directions)
        if multiply_by_parameter_scale:
            directions = map_trees(
                lambda u, p: u * _at_least(_rms(nx.astype(p, u.dtype)), min_parameter_scale), directions, params
            )
        moments = structure([new for _, new in results])
        return map_trees(lambda u, d: nx.astype(d, u.dtype), updates, directions), ScaleByAdafactorState(step, moments)

    def _grouped(leaves: list[Tensor], moments: Tree) -> Iterator[ptree.Dict]:
        """The moments of each leaf, in order."""
        rest = iter(ptree.leaves(moments))
        for leaf in leaves:
            names = ("full",) if _factored_axes(leaf.shape, min_dim_size_to_factor) is None else ("row", "column")
            yield ptree.Dict({name: next(rest) for name in names})

    return Transformation(init, update)


def _rms(x: Tensor) -> Tensor:
    """The root of the mean square; 0 for a tensor without elements."""
    return nx.sqrt(nx.sum(square(x)) / max(1, math.prod(x.shape)))


def _at_least(x: Tensor, least: float) -> Tensor:
    # NaN stays: it compares false.
    return nx.where(x < least, nx.full_like(x, least), x)
