"""What tests of exports share: a C compiler, programs built with it, raw data, and exports called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaun.runtime.export import Exported

Array = Any

STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
STRICT_CPLUSPLUS = ("-std=c++11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-x", "c++")


def tool(*names: str) -> str:
    """The first of these programs that is there; the test is skipped if none is."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{' or '.join(names)} is not installed")
    return found


def c_compiler() -> str:
    return tool("cc", "gcc", "clang")


def run(*command: object, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints. The test fails if the program does."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(exported: Exported, *flags: str, name: str = "main", compiler: str = "", sources: Sequence[str] = ()) -> Path:
    """The program of main.c, or of other sources in the folder."""
    program = exported.directory / name
    strict = () if "c++" in flags else STRICT
    # `-x none`: the objects after `-x c++` are objects.
    objects = ["-x", "none", f"{exported.layout.name}.o"]
    sources = sources or ["main.c"]
    run(
        compiler or c_compiler(), *strict, *flags, *sources, *objects, "-o", program, "-pthread",
        folder=exported.directory,
    )  # fmt: skip
    return program


def raw(batches: Sequence[Sequence[Array]]) -> bytes:
    """Batches one after the other, as main.c reads them."""
    return b"".join(np.ascontiguousarray(array).tobytes() for batch in batches for array in batch)


def printed_losses(text: str) -> Array:
    """The losses that a main.c printed, as float32."""
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {number}" for number in range(1, len(lines) + 1)]
    return np.array([np.float32(line.rpartition(" ")[2]) for line in lines])


class Memory:
    """Zeroed memory of exactly so many bytes at a multiple of 64."""

    def __init__(self, nbytes: int) -> None:
        self._owner = np.zeros(nbytes + 64, np.uint8)
        self.nbytes = nbytes
        self.address = -(-self._owner.ctypes.data // 64) * 64

    def bytes(self) -> bytes:
        return ctypes.string_at(self.address, self.nbytes)


class Library:
    """An export's shared library, with a state and a workspace of its own."""

    def __init__(self, exported: Exported, threads: int = 1) -> None:
        self.layout = exported.layout
        names = [name for name in exported.files if name.endswith((".so", ".dylib"))]
        if not names:
            pytest.skip("there is no C compiler, so no shared library was made")
        self.library = ctypes.CDLL(str(exported.directory / names[0]))
        self.state = Memory(self.layout.state.nbytes)
        self.workspace = Memory(self.layout.workspace_bytes(threads))
        if threads > 1:
            assert self.code("threads_start", self.workspace.address, threads) == threads

    def code(self, ending: str, *arguments: Any) -> int:
        """What a function returns; integers that are addresses have to be wider than C's int."""
        function = self.library[f"{self.layout.prefix}_{ending}"]
        function.restype = ctypes.c_int
        pointers = [ctypes.c_void_p(a) if isinstance(a, int) and a > 1 << 31 else a for a in arguments]
        return int(function(*pointers))

    def call(self, verb: str, *given: Array) -> list[Array]:
        """The results of a function for arrays."""
        entry = next(entry for entry in self.layout.entries if entry.verb == verb)
        arrays = [
            np.ascontiguousarray(array).astype(leaf.dtype.numpy, copy=False).reshape(leaf.shape)
            for leaf, array in zip(entry.inputs, given, strict=True)
        ]
        results = [np.empty(leaf.shape, leaf.dtype.numpy) for leaf in entry.outputs]
        tables = [(ctypes.c_void_p * max(1, len(each)))(*(a.ctypes.data for a in each)) for each in (arrays, results)]
        state = [self.state.address] if self.layout.state.slots else []
        assert self.code(verb, *state, *map(ctypes.addressof, tables), self.workspace.address) == 0
        return results

    def leaf(self, name: str) -> Array:
        """A leaf of the state."""
        slot = next(slot for slot in self.layout.state.slots if slot.leaf.name == name)
        data = self.state.bytes()[slot.offset : slot.offset + slot.leaf.nbytes]
        return np.frombuffer(data, slot.leaf.dtype.numpy).reshape(slot.leaf.shape)

    def close(self) -> None:
        assert self.code("threads_stop", self.workspace.address) == 0
