"""Checkpoints: trees of tensors in safetensors files, whose keys are the trees' paths.

Files hold numbers and nothing that could run, load in any safetensors library, and are replaced as a whole: a save that
is interrupted leaves the old file as it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from kaun import nx, ptree
from kaun.compiler.ir import dtypes
from kaun.compiler.ir.dtypes import DType
from kaun.ptree import Tree
from kaun.runtime.saved_file import replace_file
from kaun.torch_names import from_torch, to_torch

if TYPE_CHECKING:
    from kaun.train import State

__all__ = ["from_torch", "load", "load_state", "save", "save_state", "to_torch"]

Path = str | os.PathLike[str]

# What the header of a file that holds a training state says.
_KIND, _STATE = "kaun.kind", "training state"

# The names of dtypes in the file format.
_FILE_DTYPES: dict[str, DType] = {
    "F64": dtypes.float64, "F32": dtypes.float32, "F16": dtypes.float16, "BF16": dtypes.bfloat16,
    "I64": dtypes.int64, "I32": dtypes.int32, "I16": dtypes.int16, "I8": dtypes.int8,
    "U64": dtypes.uint64, "U32": dtypes.uint32, "U16": dtypes.uint16, "U8": dtypes.uint8, "BOOL": dtypes.bool_,
}  # fmt: skip


def save(path: Path, tree: Tree, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the leaves of `tree` to `path`, each under its path ("0.weight"); `metadata` goes into the header.

    Atomic: written beside `path`, flushed to the disk, then moved there. Missing folders are made. ValueError for a
    tree that is itself a single tensor (its path, the empty string, is no name), TypeError for what is no tree; OSError
    if the file cannot be written, in which case whatever was at `path` is still there.
    """
    named = ptree.flatten_with_paths(tree)
    if any(not name for name, _ in named):
        raise ValueError("checkpoint.save: got a single tensor, which has no path; wrap it in a Dict to name it")
    tensors = [nx.asarray(leaf) for _, leaf in named]
    nx.realize(*tensors)
    arrays = {
        name: np.asarray(tensor.numpy(), order="C") for (name, _), tensor in zip(named, tensors, strict=True)
    }
    data = safetensors.numpy.save(arrays, metadata=dict(metadata) if metadata else None)
    replace_file(os.fspath(path), [data])


def load(path: Path, *, like: Tree) -> Tree:
    """The tree of `like`'s structure, shapes and dtypes with the values in the file.

    Keys of the file that `like` does not have are ignored, and are not read; tensors of another dtype are converted.
    ValueError that names the key if one is missing or has another shape, and for a file that is no safetensors file or
    is cut short; OSError (FileNotFoundError, PermissionError) if it cannot be read.
    """
    return _load("load", os.fspath(path), like)


def _load(function: str, name: str, like: Tree) -> Tree:
    template = ptree.flatten_with_paths(like)
    with _opened(function, name) as file:
        keys = set(file.keys())
        missing = [key for key, _ in template if key not in keys]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"checkpoint.{function}: {name} has no `{missing[0]}`{others}; it has {_some(keys)}")
        leaves = [_read(function, name, file, key, leaf) for key, leaf in template]
    return ptree.structure(like)(leaves)


def save_state(path: Path, st: State) -> None:
    """Write a whole training state: parameters, layer state, optimizer state, steps made and random key.

    A run continued from the file gives the same bits as one that was never interrupted, given the same data. Keys are
    the paths of `State.to_tree()`: `params.0.weight`, `optimizer.0.mu.0.weight`, `step`. Atomic, as `save` is, and the
    same errors. TypeError for what is no training state.
    """
    from kaun.training_state import State

    if not isinstance(st, State) or not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"checkpoint.save_state: got {type(path).__name__} and {type(st).__name__}, expected a path and a training "
            "state: save_state(path, st)"
        )
    save(path, st.to_tree(), metadata={_KIND: _STATE, "dtype": st.vars.dtype.name})


def load_state(path: Path, *, like: State) -> State:
    """The training state in the file, for the trainer that `like` comes from (`train.init` makes one).

    ValueError for a file that `save_state` did not write, and as in `load` for keys and shapes that do not fit the
    model and the optimizer; values keep the dtypes of `like`.
    """
    name = os.fspath(path)
    with _opened("load_state", name) as file:
        if (file.metadata() or {}).get(_KIND) != _STATE:
            raise ValueError(f"checkpoint.load_state: {name} holds no training state; load parameters with load")
    return like.with_tree(_load("load_state", name, like.to_tree()))


def _opened(function: str, name: str) -> Any:
    # The library reports a missing or unreadable file in ways that differ between its versions; opening it first
    # raises Python's own error.
    with open(name, "rb"):
        pass
    try:
        return safetensors.safe_open(name, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"checkpoint.{function}: {name} is not a whole safetensors file: {error}") from error


def _read(function: str, name: str, file: Any, key: str, like: Any) -> nx.Tensor:
    stored = file.get_slice(key)
    shape, dtype = tuple(stored.get_shape()), _FILE_DTYPES.get(stored.get_dtype())
    if shape != tuple(like.shape):
        raise ValueError(
            f"checkpoint.{function}: `{key}` in {name} has shape {list(shape)}, expected {list(like.shape)}"
        )
    if dtype is None:
        raise ValueError(f"checkpoint.{function}: `{key}` in {name} has the unsupported dtype {stored.get_dtype()}")
    tensor = nx.asarray(file.get_tensor(key))
    wanted = dtypes.of(like.dtype)
    return tensor if tensor.dtype is wanted else nx.astype(tensor, wanted)


def _some(keys: set[str]) -> str:
    shown = ", ".join(f"`{key}`" for key in sorted(keys)[:8])
    return (shown or "nothing") + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
