"""Using an optimizer: its first state, one step, and adding updates to parameters.

Outside a traced function every result is computed at once, so that a hand-written loop does not record its whole
history; inside one (`jit`, `grad`, `train.step`) the results are recorded like any operation.
"""

from __future__ import annotations

import numpy as np

from kaun import nx, ptree
from kaun.compiler.ir import ops, topological
from kaun.nx import Tensor
from kaun.ptree import Tree

from .transformation import Transformation, checked_update


def init(tx: Transformation, params: Tree) -> Tree:
    """The optimizer's first state for these parameters."""
    tensors = _tensors(params)
    state = tx.init(tensors)
    # Zeros do not depend on parameters that are being traced, and are a part of that trace all the same.
    return state if any(map(nx.is_traced, ptree.leaves(tensors))) else _settled(state)


def step(tx: Transformation, st: Tree, params: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """(updates, state): what to add to the parameters, and the next state.

    ValueError, naming the path, if the gradients differ from the parameters in structure or shape.
    """
    rates = host_rates(tx, st)
    updates, state = traced_step(tx, st, params, grads, rates)
    _settled((updates, state))
    return updates, state


def host_rates(tx: Transformation, st: Tree) -> tuple[Tensor, ...]:
    """The rates that the host has to compute for the next step, as float32 scalars."""
    return tuple(nx.asarray(np.asarray(rate, dtype=np.float32)) for rate in tx.rates(st))


def traced_step(
    tx: Transformation, st: Tree, params: Tree, grads: Tree, rates: tuple[Tensor, ...]
) -> tuple[Tree, Tree]:
    """`step` given the host's rates, recording only: what a compiled step is made of."""
    params = _tensors(params)
    return checked_update(tx, tx.update(_matched("step", params, grads), st, params, *rates))


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """p + u for every parameter p and its update u, in the dtype of p.

    ValueError, naming the path, if the two differ in structure or shape.
    """
    matched = _matched("apply_updates", params, updates)
    return _settled(ptree.map2(lambda p, u: p + nx.astype(u, p.dtype), _tensors(params), matched))


def update(tx: Transformation, st: Tree, params: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """(params, state) after one step: `step` and `apply_updates` together."""
    updates, state = step(tx, st, params, grads)
    return apply_updates(params, updates), state


def _tensors(tree: Tree) -> Tree:
    """The tree with every leaf a tensor: arrays and numbers are taken too."""
    return ptree.map(nx.asarray, tree)


def _matched(function: str, params: Tree, other: Tree) -> Tree:
    """`other` in the structure of `params`, leaf by leaf of its shape."""
    found = ptree.difference(ptree.structure(params), ptree.structure(other))
    if found is not None:
        raise ValueError(f"optim.{function}: parameters and updates differ at {found}")
    matched = ptree.map2(lambda p, u: nx.asarray(u), params, other)
    pairs = zip(ptree.flatten_with_paths(params), ptree.leaves(matched), strict=True)
    for (path, parameter), leaf in pairs:
        if parameter.shape != leaf.shape:
            raise ValueError(
                f"optim.{function}: got shape {list(leaf.shape)} at `{path}`, expected the parameter's "
                f"{list(parameter.shape)}"
            )
    return matched


def _settled(tree: Tree) -> Tree:
    """The tree, its leaves computed unless they depend on something traced."""
    leaves = ptree.leaves(tree)
    order = topological([leaf._node for leaf in leaves], stop=lambda node: node.value is not None)
    if not any(node.op is ops.input_ and node.value is None for node in order):
        nx.realize(*leaves)
    return tree
