"""Pretrained models from the Hugging Face Hub: their files, their configuration, and their weights as trees.

Needs the package `huggingface_hub`: `pip install 'kaun[hf]'`. Files are kept in the hub's own cache, which other
libraries share. Weights are read from safetensors files only, never from pickles: nothing that is read can run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import safetensors

from kaun import nx, ptree
from kaun.compiler.ir import dtypes
from kaun.ptree import Tree

Path = str | os.PathLike[str]
Rename = Callable[[str], str | None]

_SINGLE = "model.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_INDEX = "model" + _INDEX_SUFFIX
# The index of a model of a hundred thousand tensors has 10 MB; json.loads needs many times the size of the text.
_LARGEST_JSON = 64 << 20
# Deeper names than any model's, and well below Python's limit of recursion.
_DEEPEST_NAME = 100
# The dtypes of the file format that tensors have.
_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"))


@dataclasses.dataclass(frozen=True)
class _Repository:
    """One revision of a model on the hub, and how to reach it."""

    model_id: str
    revision: str
    token: str | bool | None
    cache_dir: Path | None
    offline: bool

    def __str__(self) -> str:
        return f"{self.model_id} at revision {self.revision}"


def download_file(
    model_id: str,
    filename: str,
    *,
    revision: str = "main",
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> pathlib.Path:
    """The path of a file of a model, in the hub's cache, downloaded if the cache does not have it.

    model_id: the repository, "organization/name". filename: its path there, "config.json" or "folder/file.json".
    revision: a branch, a tag or a commit. token: for private and gated models; by default the one of
    `hf auth login` or HF_TOKEN. cache_dir: by default the hub's (HF_HUB_CACHE, HF_HOME).
    offline: use what the cache has and ask nobody; the environment's HF_HUB_OFFLINE=1 does the same everywhere.
    The file belongs to the cache and must not be written to.

    Raises ImportError without `huggingface_hub`; FileNotFoundError if the model has no such file, or the cache has not
    while the hub cannot be asked; ValueError for names that cannot be; and `huggingface_hub`'s own errors (OSErrors)
    when a repository or revision does not exist or the hub refuses.

    Reference: https://huggingface.co/docs/huggingface_hub/package_reference/file_download.
    """
    return _download("hf.download_file", _Repository(model_id, revision, token, cache_dir, offline), filename)


def load_config(
    model_id: str,
    *,
    filename: str = "config.json",
    revision: str = "main",
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """The configuration of a model: its JSON object as a dict. Options and errors as in `download_file`.

    ValueError if the file is not a JSON object.
    """
    function = "hf.load_config"
    path = _download(function, _Repository(model_id, revision, token, cache_dir, offline), filename)
    return _read_json(function, path)


def load_weights(
    model_id: str,
    *,
    like: Tree | None = None,
    rename: Rename | None = None,
    filename: str | None = None,
    revision: str = "main",
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> Tree:
    """The weights of a model as a tree. Options and errors of the download as in `download_file`.

    The weights are those of `model.safetensors`, or of the files that `model.safetensors.index.json` lists, all of one
    commit; `filename` names another safetensors file or index.

    The tensors' names, such as "encoder.layer.0.bias", are paths (see `ptree`): without `like` they make the tree,
    whole numbers becoming indices, so that it is `weights["encoder"]["layer"][0]["bias"]`, with shapes and dtypes as in
    the file; `dict(ptree.flatten_with_paths(weights))` has the names again. `rename` maps a name in the file to the
    path in the tree, and to None for a tensor to leave out.

    With `like`, the result has its structure, shapes and dtypes, as in `checkpoint.load`: tensors it does not have are
    not read, nor are files downloaded for them, and other dtypes are converted. Values are taken as they are: a linear
    layer of PyTorch stores its weight transposed, (out, in).

    ValueError that names the tensor if one is missing, given twice, of another shape than in `like` or of a dtype
    without counterpart, and for names that make no tree, an index that lists what is not there, and damaged files.

    References: https://huggingface.co/docs/safetensors (the files);
    https://huggingface.co/docs/huggingface_hub/package_reference/serialization (the index).
    """
    repository = _Repository(model_id, revision, token, cache_dir, offline)
    source = _locate(repository, filename)
    template = None if like is None else ptree.flatten_with_paths(like)
    names = _names_by_path(source, rename)
    if template is not None:
        missing = [path for path, _ in template if path not in names]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"hf.load_weights: {source} has no `{missing[0]}`{others}; it has {_some(names)}")
        names = {path: names[path] for path, _ in template}
    shapes = None if template is None else {path: tuple(leaf.shape) for path, leaf in template}
    tensors = _read(source, names, shapes)
    if template is not None:
        return ptree.structure(like)([_converted(tensors[path], leaf) for path, leaf in template])
    try:
        return ptree.unflatten_from_paths({path: tensors[path] for path in names})
    except ValueError as error:
        raise ValueError(
            f"hf.load_weights: the names in {source} make no tree, unless `rename` maps them: {error}"
        ) from error


# --- files ---------------------------------------------------------------------------------------------------------


def _hub(function: str) -> Any:
    # Imported by name when needed: it is optional, and takes longer to load than the rest of this package.
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise ImportError(
            f"{function}: needs the package huggingface_hub, which is not installed: pip install 'kaun[hf]'"
        ) from error


def _download(function: str, repository: _Repository, filename: str) -> pathlib.Path:
    """The file in the hub's cache; see `download_file`."""
    for name, value in (("model_id", repository.model_id), ("filename", filename), ("revision", repository.revision)):
        if not isinstance(value, str):
            raise TypeError(f"{function}: got {type(value).__name__} for {name}, expected str")
    if not all(_is_plain(step) for step in filename.split("/")):
        raise ValueError(f"{function}: got the filename {filename!r}, expected a path inside the repository")
    hub = _hub(function)
    errors = importlib.import_module("huggingface_hub.utils")
    from kaun import __version__

    try:
        path = hub.hf_hub_download(
            repository.model_id,
            filename,
            revision=repository.revision,
            token=repository.token,
            cache_dir=repository.cache_dir,
            local_files_only=repository.offline,
            library_name="kaun",
            library_version=__version__,
        )
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{function}: no `{filename}` of {repository}: {error}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{function}: got the model_id {repository.model_id!r}: {error}") from error
    return pathlib.Path(path)


def _is_plain(name: str) -> bool:
    """Whether `name` is the name of a file in a folder, on every system, and nothing that leads elsewhere."""
    return name not in ("", ".", "..") and not any(character in '/\\:\0' for character in name)


def _read_json(function: str, path: pathlib.Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        raise ValueError(f"{function}: {path} has {size:,} bytes, expected at most {_LARGEST_JSON:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{function}: {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{function}: {path} is a JSON {type(value).__name__}, expected an object")
    return value


# --- where the tensors are -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the weights are: the repository, the file asked for, and for each tensor's name the file that has it."""

    repository: _Repository
    filename: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"`{self.filename}` of {self.repository}"


def _locate(repository: _Repository, filename: str | None) -> _Source:
    """Find the weights, and where each tensor is; downloads the index or the single file."""
    function = "hf.load_weights"
    if filename is None:
        try:
            path, filename = _download(function, repository, _SINGLE), _SINGLE
        except FileNotFoundError as no_single:
            try:
                path, filename = _download(function, repository, _INDEX), _INDEX
            except FileNotFoundError as no_index:
                raise FileNotFoundError(
                    f"{function}: {repository} has neither `{_SINGLE}` ({no_single.__cause__}) "
                    f"nor `{_INDEX}` ({no_index.__cause__})"
                ) from no_index
    else:
        if not isinstance(filename, str) or not filename.endswith((".safetensors", _INDEX_SUFFIX)):
            raise ValueError(
                f"{function}: got the filename {filename!r}, expected one that ends in .safetensors or {_INDEX_SUFFIX}"
            )
        path = _download(function, repository, filename)
    # The files of an index belong together, but a branch may move on between two downloads.
    pinned = dataclasses.replace(repository, revision=_commit(path, filename) or repository.revision)
    if filename.endswith(_INDEX_SUFFIX):
        return _Source(pinned, filename, _weight_map(path, filename))
    with _opened(path) as file:
        return _Source(pinned, filename, dict.fromkeys(file.keys(), filename))


def _commit(path: pathlib.Path, filename: str) -> str | None:
    """The commit that a file in the hub's cache is of: it lies at `snapshots/<commit>/<filename>`."""
    folder = path.parents[filename.count("/")]
    found = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if found else None


def _weight_map(path: pathlib.Path, filename: str) -> dict[str, str]:
    """The `weight_map` of an index, from tensors' names to files in the repository, checked.

    Its `metadata.total_size` is not: files in use count in it the tensors, or the files, or shared tensors twice. That
    every tensor is there in full is known from its own file.
    """
    weight_map = _read_json("hf.load_weights", path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"hf.load_weights: {path} has no `weight_map`, the object from tensors' names to files")
    folder = filename[: filename.rfind("/") + 1]
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise ValueError(
                f"hf.load_weights: {path} says that `{name}` is in {shard!r}, expected the name of a .safetensors file "
                "beside the index"
            )
    return {name: folder + shard for name, shard in weight_map.items()}


def _names_by_path(source: _Source, rename: Rename | None) -> dict[str, str]:
    """For each path in the tree the tensor's name in the file, in the file's order."""
    names: dict[str, str] = {}
    for name in source.files:
        path = name if rename is None else rename(name)
        if path is None:
            continue
        if not isinstance(path, str):
            raise TypeError(f"hf.load_weights: rename({name!r}) gave {type(path).__name__}, expected str or None")
        if path.count(".") >= _DEEPEST_NAME:
            raise ValueError(f"hf.load_weights: `{path[:80]}...` has more than {_DEEPEST_NAME} steps")
        if path in names:
            raise ValueError(f"hf.load_weights: `{names[path]}` and `{name}` are both renamed to `{path}`")
        names[path] = name
    return names


# --- reading -------------------------------------------------------------------------------------------------------


def _opened(path: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(os.fspath(path), framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"hf.load_weights: {path} is not a whole safetensors file: {error}; remove the model from the cache to "
            "download it again"
        ) from error


def _read(source: _Source, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, Any]:
    """The tensors by path, each file downloaded and opened once; `shapes` by path, if they are known, are demanded."""
    by_file: dict[str, list[str]] = {}
    for path, name in names.items():
        by_file.setdefault(source.files[name], []).append(path)
    tensors: dict[str, Any] = {}
    for filename, paths in by_file.items():
        with _opened(_download("hf.load_weights", source.repository, filename)) as file:
            there = set(file.keys())
            for path in paths:
                name = names[path]
                if name not in there:
                    raise ValueError(f"hf.load_weights: {source} says that `{name}` is in {filename}, which has none")
                tensors[path] = _tensor(file, name, filename, None if shapes is None else shapes[path])
    return tensors


def _tensor(file: Any, name: str, filename: str, expected: tuple[int, ...] | None) -> nx.Tensor:
    stored = file.get_slice(name)
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if expected is not None and shape != expected:
        raise ValueError(
            f"hf.load_weights: `{name}` in {filename} has shape {list(shape)}, expected {list(expected)}"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"hf.load_weights: `{name}` in {filename} has the unsupported dtype {dtype}")
    # The array is new and nobody else's, so its memory becomes the tensor's.
    return nx.asarray(file.get_tensor(name), copy=False)


def _converted(tensor: nx.Tensor, like: Any) -> nx.Tensor:
    wanted = dtypes.of(like.dtype)
    return tensor if tensor.dtype is wanted else nx.astype(tensor, wanted)


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    listed = ", ".join(f"`{name}`" for name in shown[:8]) or "nothing"
    return listed + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
