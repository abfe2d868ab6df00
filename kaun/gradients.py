"""Derivatives of Python functions over trees of tensors: grad, value_and_grad, vjp, stop_gradient, gradcheck.

A function is differentiated by calling it once on stand-ins for its arguments, which records what it computes, and
walking that graph backward. The results are lazy tensors like any other, so derivatives can be differentiated again,
and nothing is computed until something looks.

While the function runs its arguments have no values: `float(x)`, `x.numpy()` or `if x > 0:` on anything that depends
on them raises ValueError. Branch with `nx.where`, or on values that do not depend on the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaun import execution, nx, probes, ptree
from kaun.compiler.autodiff import vjp as reverse
from kaun.compiler.ir import Node, dtypes, full, substitute
from kaun.nested import replace_tensors, tensors_in
from kaun.nx import Tensor
from kaun.ptree import Structure, Tree

Function = Callable[..., Any]


def grad(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """The function that returns the gradient of the scalar `f` at its arguments.

    `grad(f)(x, ...)` has the structure, shapes and dtypes of the argument `x` (a float tensor or number, or a tree of
    float tensors): its entries are df/dx_i. With several `argnums`, a tuple of gradients. With `has_aux`, `f` returns
    `(scalar, aux)`, and the result is `(gradient, aux)`. Arguments that are not differentiated may be anything.

    Raises ValueError if `f` does not return a scalar, and TypeError if it or a differentiated leaf is not a float.
    """
    transformed = _value_and_grad("kn.grad", f, argnums, has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = transformed(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def value_and_grad(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """The function that returns `(f(x, ...), gradient)`; see `grad`. With `has_aux`, `((value, aux), gradient)`."""
    return _value_and_grad("kn.value_and_grad", f, argnums, has_aux)


def _value_and_grad(name: str, f: Function, argnums: int | Sequence[int], has_aux: bool) -> Function:
    several = not isinstance(argnums, int)
    positions = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        if not positions or not all(-len(args) <= position < len(args) for position in positions):
            raise ValueError(f"{name}: argnums {argnums} do not index the {len(args)} positional arguments given")
        stand_ins = _StandIns.of(name, [args[position] for position in positions])
        arguments = list(args)
        for position, tree in zip(positions, stand_ins.trees(), strict=True):
            arguments[position] = tree
        with probes.collecting() as seen:
            result = f(*arguments, **kwargs)
        output, aux = _with_aux(name, result) if has_aux else (result, None)
        _check_scalar(name, output)
        grads = reverse.gradients([output._node], [full(1, output.dtype)], stand_ins.nodes)
        shown = [probe.node for probe in seen]
        resolved = stand_ins.resolve([*shown, output._node, *grads, *(t._node for t in tensors_in(aux))])
        for probe in seen:
            probes.record(probe.resolved(resolved.pop(0)))
        value, trees = Tensor(resolved[0]), stand_ins.trees(resolved[1 : 1 + len(grads)])
        rest = map(Tensor, resolved[1 + len(grads) :])
        answer = (value, replace_tensors(aux, rest)) if has_aux else value
        return answer, trees if several else trees[0]

    return transformed


def vjp(f: Function, *primals: Tree) -> tuple[Any, Callable[[Tree], tuple[Any, ...]]]:
    """`(f(*primals), pullback)`, where `pullback(cotangents)` is the vector-Jacobian product.

    The primals are float tensors or trees of them; `f` returns a float tensor or a tree. `pullback` takes a tree like
    the output and returns a tuple of trees like the primals: the sum over outputs y of (dy/dx)^T times y's cotangent.
    It may be called any number of times.

    Raises TypeError for leaves that are not floats, ValueError for cotangents of another structure or shape.
    """
    stand_ins = _StandIns.of("kn.vjp", primals)
    with probes.collecting() as seen:
        leaves, structure = ptree.flatten(f(*stand_ins.trees()))
    for probe, node in zip(seen, stand_ins.resolve([probe.node for probe in seen]), strict=True):
        probes.record(probe.resolved(node))
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if not isinstance(leaf, Tensor) or not leaf.dtype.is_float:
            raise TypeError(f"kn.vjp: f returned {_describe(leaf)}{_at(path)}, expected float tensors")
    outputs = [leaf._node for leaf in leaves]

    def pullback(cotangents: Tree) -> tuple[Any, ...]:
        given, found = ptree.flatten(_as_leaf(cotangents))
        difference = None if found is structure else ptree.difference(structure, found)
        if difference is not None:
            raise ValueError(f"kn.vjp: the cotangents and the output of f differ at {difference}")
        nodes = []
        for path, leaf, output in zip(structure.paths, given, outputs, strict=True):
            node = nx.asarray(leaf, dtype=output.dtype)._node
            if node.shape != output.shape:
                raise ValueError(
                    f"kn.vjp: got a cotangent {_describe(leaf)}{_at(path)} for an output of shape {list(output.shape)}"
                )
            nodes.append(node)
        grads = reverse.gradients(outputs, nodes, stand_ins.nodes)
        return tuple(stand_ins.trees(stand_ins.resolve(grads)))

    return structure([Tensor(node) for node in stand_ins.resolve(outputs)]), pullback


def stop_gradient(tree: Tree) -> Any:
    """The same tensors, through which no gradient flows: d stop_gradient(x) / dx = 0. Takes a tensor or a tree."""
    return ptree.map(nx.stop_gradient, _as_leaf(tree))


def gradcheck(f: Function, *args: Any, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3) -> bool:
    """Compare the gradient of `f` at `args` with central differences in float64; True, or ValueError where they differ.

    `args` are tensors, numbers or trees; their float leaves are taken in float64 and differentiated, others held
    fixed. `f` returns a float tensor or a tree of them, of any shapes: what is checked is the gradient of their
    inner product with fixed weights. For every entry x_i, with e_i the i-th unit vector, it must hold that

        |grad_i - (g(x + eps e_i) - g(x - eps e_i)) / (2 eps)| <= atol + rtol |difference|

    `f` is called twice for every entry of its arguments.
    """
    leaves, structure = ptree.flatten(tuple(map(_as_leaf, args)))
    values = [nx.asarray(leaf).numpy() for leaf in leaves]
    varied = [i for i, value in enumerate(values) if dtypes.of(value.dtype).is_float]
    for i in varied:
        values[i] = values[i].astype(np.float64)

    def weighted(*floats: Any) -> Tensor:
        full_leaves = [nx.asarray(value) for value in values]
        for i, leaf in zip(varied, floats, strict=True):
            full_leaves[i] = nx.asarray(leaf)
        total = nx.zeros((), dtype=dtypes.float64)
        for output in ptree.leaves(f(*structure(full_leaves))):
            weights = np.cos(1.0 + np.arange(output.size)).reshape(output.shape)
            total = total + nx.sum(nx.astype(output, dtypes.float64) * nx.asarray(weights))
        return total

    floats = [values[i] for i in varied]
    grads = grad(weighted, argnums=tuple(range(len(varied))))(*map(nx.asarray, floats)) if varied else ()
    for position, (i, gradient) in enumerate(zip(varied, grads, strict=True)):
        _compare(weighted, floats, position, gradient.numpy(), structure.paths[i], (eps, atol, rtol))
    return True


def _compare(
    g: Function, floats: list[Any], position: int, gradient: Any, path: str, tolerances: tuple[float, float, float]
) -> None:
    """Check every entry of the gradient with respect to `floats[position]`."""
    eps, atol, rtol = tolerances
    for index in np.ndindex(floats[position].shape):
        ends = []
        for step in (eps, -eps):
            moved = floats[position].copy()
            moved[index] += step
            ends.append(g(*(moved if i == position else value for i, value in enumerate(floats))).item())
        difference = (ends[0] - ends[1]) / (2 * eps)
        if not abs(gradient[index] - difference) <= atol + rtol * abs(difference):
            raise ValueError(
                f"kn.gradcheck: at argument {path}, entry {index}: the gradient is {gradient[index]:.9g}, "
                f"the central difference {difference:.9g}"
            )


@dataclass(frozen=True)
class _StandIns:
    """Inputs without values that stand for the leaves of differentiated arguments.

    Every leaf gets its own, so that two leaves that are one tensor, or a leaf that the function also captured, have
    their gradients kept apart.
    """

    nodes: list[Node]
    actual: list[Node]
    structures: list[Structure]

    @classmethod
    def of(cls, name: str, trees: Sequence[Tree]) -> _StandIns:
        nodes, actual, structures = [], [], []
        for tree in trees:
            leaves, structure = ptree.flatten(_as_leaf(tree))
            structures.append(structure)
            for path, leaf in zip(structure.paths, leaves, strict=True):
                node = nx.asarray(leaf)._node
                if not node.dtype.is_float:
                    raise TypeError(f"{name}: got {_describe(leaf)}{_at(path)}; only floats can be differentiated")
                nodes.append(execution.placeholder(node.shape, node.dtype))
                actual.append(node)
        return cls(nodes, actual, structures)

    def trees(self, nodes: Sequence[Node] | None = None) -> list[Any]:
        """The nodes (the stand-ins themselves by default) as tensors in the structures of the arguments."""
        tensors = [Tensor(node) for node in (self.nodes if nodes is None else nodes)]
        result, start = [], 0
        for structure in self.structures:
            result.append(structure(tensors[start : start + structure.leaf_count]))
            start += structure.leaf_count
        return result

    def resolve(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes with every stand-in replaced by what it stands for."""
        return substitute(nodes, dict(zip(self.nodes, self.actual, strict=True)))


def _as_leaf(value: Any) -> Any:
    """A Python number as a tensor; anything else, which should be a tree, itself."""
    return nx.asarray(value) if isinstance(value, (bool, int, float)) else value


def _check_scalar(name: str, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(f"{name}: f returned {_describe(output)}, expected a float tensor without axes")
    if output.shape != ():
        raise ValueError(f"{name}: f returned {_describe(output)}, expected a scalar; take its mean or sum")
    if not output.dtype.is_float:
        raise TypeError(f"{name}: f returned {_describe(output)}, expected a float scalar")


def _with_aux(name: str, result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"{name}: f returned {_describe(result)}, expected (scalar, aux) because has_aux is set")
    return result


def _describe(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def _at(path: str) -> str:
    return f" at {path}" if path else ""
