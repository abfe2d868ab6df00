"""A graph and its inputs in one file, from which a failure can be run again: an .npz of arrays that holds no code.

    graph       the graph's text, as bytes
    input_0 ... one array for each input of the graph, in order; bfloat16 as the uint16 with the same bits

Nothing in the file is trusted: every member's size is compared with what the graph asks for before it is read, and
NumPy reads it with pickles refused.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaun.compiler.ir import Graph, Node, dtypes, parse_graph, print_graph

Array = np.ndarray[Any, np.dtype[Any]]

# The longest text of a graph that is read, and how much longer than its numbers a member may be for its header.
_LONGEST_TEXT = 64 << 20
_HEADER = 4096


# What is raised for a damaged member: as it may say, encrypted, or compressed in ways that nobody knows, or huge.
_UNREADABLE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Reproducer:
    """A graph and one array for each of its inputs."""

    graph: Graph
    inputs: tuple[Array, ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file; `.npz` is added to a name without it. The path it has."""
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        text = np.frombuffer(print_graph(self.graph).encode(), np.uint8)
        arrays: dict[str, Any] = {f"input_{number}": storable(array) for number, array in enumerate(self.inputs)}
        part = path.with_name(f".{path.name}.{os.getpid()}.npz")
        try:
            np.savez(part, graph=text, **arrays)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


def load(path: str | os.PathLike[str]) -> Reproducer:
    """The graph and inputs of a file that `Reproducer.save` wrote. ValueError, naming the file, where it is another."""
    with _Archive(path) as archive:
        if "graph" not in archive.sizes:
            raise archive.error("it holds no `graph`, so it is no reproducer")
        text = archive.read("graph", _LONGEST_TEXT)
        try:
            graph = parse_graph(text.tobytes().decode())
        except (ValueError, IndexError, KeyError) as error:
            raise archive.error(f"its graph does not parse: {error}") from error
        found = tuple(archive.typed(f"input_{number}", node) for number, node in enumerate(graph.inputs))
    return Reproducer(graph, found)


def load_inputs(path: str | os.PathLike[str], graph: Graph) -> tuple[Array, ...]:
    """The inputs of `graph` from an .npz: named as in the graph, or `input_0`, or `arr_0` and so on.

    ValueError, naming the input, where one is missing or of another type.
    """
    names = graph.input_names or ("",) * len(graph.inputs)
    with _Archive(path) as archive:
        found = []
        for number, (node, name) in enumerate(zip(graph.inputs, names, strict=True)):
            known = [n for n in (name, f"input_{number}", f"arr_{number}") if n in archive.sizes]
            if not known:
                called = f"`{name}` or `input_{number}`" if name else f"`input_{number}`"
                there = ", ".join(sorted(archive.sizes)) or "nothing"
                raise archive.error(f"input {number} of the graph is missing: expected {called}, found {there}")
            found.append(archive.typed(known[0], node))
    return tuple(found)


def load_plain(
    path: str | os.PathLike[str], names: Sequence[str], types: Sequence[tuple[dtypes.DType, int]]
) -> list[Array]:
    """Arrays by name, each of a dtype and so many elements. ValueError, naming the array, where one does not fit."""
    with _Archive(path) as archive:
        found = []
        for name, (dtype, size) in zip(names, types, strict=True):
            if name not in archive.sizes:
                raise archive.error(f"`{name}` is missing, found {', '.join(sorted(archive.sizes)) or 'nothing'}")
            array = _restored(archive.read(name, size * dtype.itemsize), dtype)
            if array.dtype != dtype.numpy or array.size != size:
                raise archive.error(f"`{name}` is {array.dtype}[{array.size}], expected {dtype}[{size}]")
            found.append(array)
    return found


class _Archive:
    """An .npz whose members are read one by one, none longer than expected."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as listing:
                self.sizes = {i.filename.removesuffix(".npy"): i.file_size for i in listing.infolist()}
            self._file = np.load(self.path, allow_pickle=False)
        except (zipfile.BadZipFile, ValueError, RuntimeError) as error:  # NotImplementedError among them
            raise self.error("it is no .npz file, as `numpy.savez` writes them") from error

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {reason}")

    def read(self, name: str, most: int) -> Array:
        """The array `name`, of at most `most` bytes."""
        if self.sizes[name] > most + _HEADER:
            raise self.error(f"`{name}` takes {self.sizes[name]:,} bytes, expected at most {most:,}")
        try:
            return np.asarray(self._file[name])
        except _UNREADABLE as error:
            raise self.error(f"`{name}` cannot be read: {error}") from error

    def typed(self, name: str, node: Node) -> Array:
        """The array `name`, which has to have the node's type."""
        if name not in self.sizes:
            raise self.error(f"`{name}` is missing")
        array = _restored(self.read(name, node.nbytes), node.dtype)
        if array.dtype != node.dtype.numpy or array.shape != node.shape:
            raise self.error(
                f"`{name}` is {array.dtype}{list(array.shape)}, the graph's input is {node.dtype}{list(node.shape)}"
            )
        return array


def storable(array: Array) -> Array:
    """NumPy's own files know nothing of bfloat16."""
    return array.view(np.uint16) if array.dtype == dtypes.bfloat16.numpy else array


def _restored(array: Array, dtype: dtypes.DType) -> Array:
    return array.view(dtype.numpy) if dtype is dtypes.bfloat16 and array.dtype == np.uint16 else array
