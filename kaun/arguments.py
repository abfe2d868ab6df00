"""What callers give a compiled function, held against what it was compiled for before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaun import execution, nx, ptree, tree_data
from kaun.compiler.ir import Node, ops
from kaun.ptree import Structure
from kaun.runtime.artifact import Leaf


@dataclass(frozen=True)
class Argument:
    """One argument of a compiled function: a tree of leaves.

    label: what errors call it, such as "argument 0 (`x`)".
    paths: of the leaves inside the argument.
    """

    label: str
    structure: Structure
    leaves: tuple[Leaf, ...]

    def nodes(self, where: str, tree: Any) -> list[Node]:
        """The leaves of the tree that a caller gave, in order.

        ValueError for another structure or shape and TypeError for another dtype, which name the argument, the path
        inside it, and what was got and expected.
        """
        if type(tree) is nx.Tensor and self.structure.kind is Structure:
            nodes = [tree._node]
        else:
            nodes = self._flattened(where, tree)
        for number, (node, leaf) in enumerate(zip(nodes, self.leaves, strict=True)):
            if node.shape != leaf.shape:
                raise ValueError(
                    f"{where}: {self.label}{self._at(number)}: got shape {list(node.shape)}, "
                    f"expected {list(leaf.shape)}"
                )
            if node.dtype is not leaf.dtype:
                raise TypeError(
                    f"{where}: {self.label}{self._at(number)}: got dtype {node.dtype}, expected {leaf.dtype}"
                )
        return nodes

    def _flattened(self, where: str, tree: Any) -> list[Node]:
        if self.structure.kind is Structure:
            if isinstance(tree, tuple) and any(hasattr(part, "shape") for part in tree):
                (leaf,) = self.leaves
                raise TypeError(f"{where}: {self.label}: got a tuple, expected {leaf.dtype}{list(leaf.shape)}")
            leaves, order = [tree], [0]
        else:
            try:
                leaves, structure = ptree.flatten(with_leaves(tree))
            except (TypeError, ValueError) as error:
                raise TypeError(f"{where}: {self.label}: {error}") from None
            found = tree_data.positions(self.structure, structure)
            if found is None:
                raise ValueError(
                    f"{where}: {self.label} differs from its spec at {ptree.difference(self.structure, structure)}"
                )
            order = list(found)
        try:
            return [node_of(leaves[position]) for position in order]
        except (TypeError, ValueError) as error:
            raise TypeError(f"{where}: {self.label}: {error}") from None

    def _at(self, number: int) -> str:
        path = self.structure.paths[number]
        return f" at `{path}`" if path else ""


def argument(label: str, name: str, structure: Structure, nodes: Sequence[Any]) -> Argument:
    """An argument of leaves with these shapes and dtypes, named `name` and the path inside it."""
    named = zip(structure.paths, nodes, strict=True)
    return Argument(label, structure, tuple(Leaf(joined(name, path), node.dtype, node.shape) for path, node in named))


def joined(name: str, path: str) -> str:
    """The path of what is at `path` inside of `name`."""
    return f"{name}.{path}" if path else name


def with_leaves(tree: Any) -> Any:
    """The tree with arrays in the place of its Python numbers."""
    if isinstance(tree, (bool, int, float)):
        return node_of(tree).value.array
    if isinstance(tree, (tuple, list)):
        parts = [with_leaves(part) for part in tree]
        return tree._make(parts) if hasattr(tree, "_make") else tuple(parts)
    if isinstance(tree, Mapping):
        return ptree.Dict({name: with_leaves(part) for name, part in tree.items()})
    return tree


def node_of(leaf: Any) -> Node:
    """The node of a tensor, an array, a number or nested lists of numbers, for which no program is needed."""
    node = leaf._node if type(leaf) is nx.Tensor else nx.asarray(leaf)._node
    if node.op is ops.constant:
        return execution.leaf(np.full(node.shape, node.attributes["value"], node.dtype.numpy))
    return node
