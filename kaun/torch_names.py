"""PyTorch's state dicts as variables, and back: the common layers' names, and which of their weights are transposed.

| PyTorch | here |
| --- | --- |
| Linear: weight (out, in), bias | linear: weight (in, out), bias |
| ConvNd: weight, bias | conv1d, conv2d: the same |
| BatchNormNd: weight, bias, running_mean, running_var | batch_norm: scale, bias, and the same in its state |
| LayerNorm: weight, bias | layer_norm: gamma, beta |
| RMSNorm: weight | rms_norm: scale |
| Embedding: weight | embedding: embedding (made with scale=False, as PyTorch does not scale) |
| Linear without bias, called q_proj, k_proj, v_proj, out_proj | those parameters of attention, (in, out) |

PyTorch itself is not needed: entries may be its tensors or NumPy arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kaun import nx, ptree
from kaun.compiler.ir.dtypes import DType, float32
from kaun.compiler.ir.dtypes import of as dtype_of
from kaun.layer import Vars

Array = npt.NDArray[Any]
# A module's entries, by the name of the module.
Modules = dict[str, dict[str, Array]]

# A number in a name stands for that many entries of a tuple; a damaged file must not make us build millions.
_LARGEST_INDEX = 65_535
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class _Kind:
    """A kind of layer: which of PyTorch's entries are which of ours, and whether `weight` is transposed."""

    parameters: Mapping[str, str]
    transposed: bool = False


_KINDS = {
    "linear": _Kind({"weight": "weight", "bias": "bias"}, transposed=True),
    "convolution": _Kind({"weight": "weight", "bias": "bias"}),
    "batch_norm": _Kind({"weight": "scale", "bias": "bias"}),
    "layer_norm": _Kind({"weight": "gamma", "bias": "beta"}),
    "rms_norm": _Kind({"weight": "scale"}),
    "embedding": _Kind({"weight": "embedding"}),
    "projection": _Kind({"weight": ""}, transposed=True),
}


def from_torch(state_dict: Mapping[str, Any], *, like: Vars | None = None) -> Vars:
    """The variables with the values of a PyTorch module's `state_dict()`.

    With `like` (from `layer.init`), they have its structure, shapes and dtypes. Modules are matched by name where the
    names are the same (those of `Sequential` and `sequential` are), else in order. Without, the names make the tree and
    the entries tell the layers: a matrix without a bias is an embedding unless it is called q_proj, k_proj, v_proj or
    out_proj, a vector without one an rms_norm.

    ValueError that names the entry for one that is missing, left over, or of a shape that does not fit.
    """
    modules = _modules(state_dict)
    return _inferred(modules) if like is None else _fitted(modules, like)


def to_torch(vars: Vars, *, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state dict for PyTorch: NumPy arrays under its names and in its layouts.

    With `like` (from the module's `state_dict()`), its names, order and dtypes, and PyTorch tensors if it holds those,
    so that `module.load_state_dict(to_torch(vars, like=module.state_dict()))` works. Modules are matched as in
    `from_torch`, with the same errors.
    """
    made = {prefix: _to_module(kind, entries) for prefix, (kind, entries) in _layers(vars).items()}
    if like is None:
        return {_join(prefix, name): array for prefix, module in made.items() for name, array in module.items()}
    result: dict[str, Any] = {}
    wanted = _modules(like, keep_counters=True)
    names = _matched("to_torch", list(wanted), list(made))
    for prefix, entries in wanted.items():
        module = made[names[prefix]]
        for name, old in entries.items():
            key = _join(prefix, name)
            if name == _COUNTER:
                result[key] = like[key]
                continue
            if name not in module:
                raise ValueError(
                    f"checkpoint.to_torch: nothing for `{key}` at `{names[prefix]}`; it has {sorted(module)}"
                )
            if module[name].shape != old.shape:
                raise ValueError(
                    f"checkpoint.to_torch: `{key}` has shape {list(old.shape)}, expected {list(module[name].shape)}"
                )
            result[key] = _as_kind_of(like[key], module[name].astype(old.dtype))
    return result


# --- PyTorch's side --------------------------------------------------------------------------------------------------


def _modules(state_dict: Mapping[str, Any], keep_counters: bool = False) -> Modules:
    """The entries as arrays, grouped by module, in order."""
    modules: Modules = {}
    for key, value in state_dict.items():
        prefix, _, name = key.rpartition(".")
        if name != _COUNTER or keep_counters:
            modules.setdefault(prefix, {})[name] = _array(key, value)
    return modules


def _array(key: str, value: Any) -> Array:
    if hasattr(value, "detach"):
        tensor = value.detach().cpu().contiguous()
        if str(tensor.dtype) == "torch.bfloat16":  # which NumPy does not know
            return np.asarray(tensor.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16))
        return np.asarray(tensor.numpy())
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"checkpoint.from_torch: got {type(value).__name__} for `{key}`, expected a tensor or an array")
    return np.asarray(value)


def _as_kind_of(old: Any, array: Array) -> Any:
    """The array as a PyTorch tensor if `old` is one."""
    if not hasattr(old, "detach"):
        return array
    torch = sys.modules["torch"]
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _join(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name) if part)


# --- this library's side ---------------------------------------------------------------------------------------------

_Entries = dict[str, Any]


def _layers(vars: Vars) -> dict[str, tuple[str, _Entries]]:
    """The kind and the entries (state included) of every layer with parameters, by path, in order."""
    layers: dict[str, _Entries] = {}
    for path, leaf in ptree.flatten_with_paths(vars.params):
        prefix, _, name = path.rpartition(".")
        if name in _PROJECTIONS:
            layers[path] = {"": leaf}
        else:
            layers.setdefault(prefix, {})[name] = leaf
    for path, leaf in ptree.flatten_with_paths(vars.state):
        prefix, _, name = path.rpartition(".")
        layers.setdefault(prefix, {})[name] = leaf
    return {prefix: (_kind_of_layer(entries), entries) for prefix, entries in layers.items()}


def _kind_of_layer(entries: _Entries) -> str:
    names = set(entries)
    if "running_mean" in names:
        return "batch_norm"
    if names == {"weight", "bias"}:
        return "linear" if len(entries["weight"].shape) == 2 else "convolution"
    for kind in ("layer_norm", "rms_norm", "embedding", "projection"):
        if names == set(_KINDS[kind].parameters.values()):
            return kind
    return "other"


def _to_module(kind: str, entries: _Entries) -> dict[str, Array]:
    """A layer's entries under PyTorch's names and in its layouts; those of unknown layers as they are."""
    if kind == "other":
        return {name: nx.asarray(leaf).numpy() for name, leaf in entries.items()}
    spec = _KINDS[kind]
    names = {ours: theirs for theirs, ours in spec.parameters.items()}
    arrays = {names.get(name, name): nx.asarray(leaf).numpy() for name, leaf in entries.items()}
    if spec.transposed:
        arrays["weight"] = np.ascontiguousarray(arrays["weight"].T)
    return arrays


def _from_module(kind: str, module: Mapping[str, Array]) -> dict[str, Array]:
    """A module's entries under our names and in our layouts."""
    if kind == "other":
        return dict(module)
    spec = _KINDS[kind]
    return {
        spec.parameters.get(name, name): array.T if spec.transposed and name == "weight" else array
        for name, array in module.items()
    }


# --- from one to the other -------------------------------------------------------------------------------------------


def _matched(function: str, theirs: list[str], ours: list[str]) -> dict[str, str]:
    """The path of the layer for each module: the same name, or, if the names differ, the same position."""
    if set(theirs) == set(ours):
        return {name: name for name in theirs}
    if len(theirs) != len(ours):
        raise ValueError(
            f"checkpoint.{function}: got {len(theirs)} modules with entries ({_some(theirs)}) for {len(ours)} layers "
            f"({_some(ours)}), expected one for each"
        )
    return dict(zip(theirs, ours, strict=True))


def _some(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:6]) + (" and more" if len(names) > 6 else "")


def _fitted(modules: Modules, like: Vars) -> Vars:
    layers = _layers(like)
    leaves: dict[str, nx.Tensor] = {}
    for prefix, path in _matched("from_torch", list(modules), list(layers)).items():
        kind, entries = layers[path]
        given = _from_module(kind, modules[prefix])
        for name, leaf in entries.items():
            key = _join(path, name)
            if name not in given:
                raise ValueError(
                    f"checkpoint.from_torch: nothing for `{key}` in module `{prefix}`; it has {sorted(modules[prefix])}"
                )
            array = given.pop(name)
            if array.shape != tuple(leaf.shape):
                raise ValueError(
                    f"checkpoint.from_torch: module `{prefix}` gives shape {list(array.shape)} for `{key}`, expected "
                    f"{list(leaf.shape)}"
                )
            leaves[key] = _tensor(array, dtype_of(leaf.dtype))
        if given:
            raise ValueError(f"checkpoint.from_torch: `{path}` has no place for {sorted(given)} of module `{prefix}`")
    params, state = (
        ptree.structure(tree)([leaves[path] for path, _ in ptree.flatten_with_paths(tree)])
        for tree in (like.params, like.state)
    )
    return Vars(params, state, like.dtype)


def _tensor(array: Array, dtype: DType) -> nx.Tensor:
    tensor = nx.astype(nx.asarray(array), dtype)
    nx.realize(tensor)
    return tensor


def _kind_of_module(prefix: str, module: Mapping[str, Array]) -> str:
    if "running_mean" in module:
        return "batch_norm"
    if "weight" not in module or not set(module) <= {"weight", "bias"}:
        return "other"
    rank, has_bias = module["weight"].ndim, "bias" in module
    if rank == 1:
        return "layer_norm" if has_bias else "rms_norm"
    if rank == 2 and not has_bias:
        return "projection" if prefix.rpartition(".")[2] in _PROJECTIONS else "embedding"
    return "linear" if rank == 2 else "convolution"


def _inferred(modules: Modules) -> Vars:
    """The variables that the modules' names and shapes alone tell."""
    params, state, dtype = _Branch(), _Branch(), None
    for prefix, module in modules.items():
        entries = _from_module(_kind_of_module(prefix, module), module)
        for name, array in entries.items():
            tensor = _tensor(array, dtype_of(array.dtype))
            if dtype is None and tensor.dtype.is_float:
                dtype = tensor.dtype
            (state if name in _STATISTICS else params).put(_join(prefix, name), tensor)
        # Both trees have the same tuples, so that the layers of a `sequential` find their parts.
        params.node(prefix)
        state.node(prefix)
    return Vars(params.tree(), state.tree(), dtype or float32)


class _Branch:
    """A tree under construction: names to branches or tensors."""

    def __init__(self) -> None:
        self.children: dict[str, _Branch | nx.Tensor] = {}

    def node(self, path: str) -> _Branch:
        branch = self
        for step in filter(None, path.split(".")):
            child = branch.children.setdefault(step, _Branch())
            if not isinstance(child, _Branch):
                return branch  # a parameter of its own name, as attention's are
            branch = child
        return branch

    def put(self, path: str, tensor: nx.Tensor) -> None:
        prefix, _, name = path.rpartition(".")
        self.node(prefix).children[name] = tensor

    def tree(self) -> ptree.Tree:
        if not self.children:
            return ()
        build: Callable[[_Branch | nx.Tensor], Any] = lambda x: x.tree() if isinstance(x, _Branch) else x  # noqa: E731
        trees = {name: build(child) for name, child in self.children.items()}
        if all(name.isascii() and name.isdecimal() for name in trees):
            if max(map(int, trees)) > _LARGEST_INDEX:
                raise ValueError(f"checkpoint.from_torch: got a module numbered {max(map(int, trees))}")
            return tuple(trees.get(str(position), ()) for position in range(max(map(int, trees)) + 1))
        return ptree.Dict(trees)
