"""Exports: a folder with a compiled training step, or function, that C and C++ programs link with.

    layout       where everything lies: state, workspace, what is copied            layout.py
    native       the functions around the programs, as LLVM IR                      native.py, ../one_object.py
    NAME.o       machine code; NAME.so and NAME.a where there is a C compiler       build.py
    NAME.h       what C and C++ programs include                                    header.py
    NAME.json    the same for other programs, and more                              description.py
    NAME.state   the state at the start, unless the object holds it                 state_file.py
    NAME.wasm    for WebAssembly, where its linker is there, and NAME.mjs           javascript.py
    main.c       a program that trains on raw data                                  main_c.py
    CMakeLists.txt                                                                  build.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaun.runtime import saved_file
from kaun.runtime.artifact import Artifact, Leaf
from kaun.runtime.export import build, names, state_file
from kaun.runtime.export.description import description
from kaun.runtime.export.header import header
from kaun.runtime.export.javascript import javascript
from kaun.runtime.export.layout import Layout, StateLayout, lay_out
from kaun.runtime.export.main_c import main_c
from kaun.runtime.export.native import functions, symbols
from kaun.runtime.one_object import one_object

__all__ = ["Exported", "export", "read_state", "write_state"]

# Up to this size the numbers at the start of training go into the object, where it has any; larger ones into a file.
EMBEDDED_BYTES = 4 << 20

# So many threads share a training step at most, unless another number is asked for.
MOST_THREADS = 64


@dataclass(frozen=True, repr=False)
class Exported:
    """What was written: the folder, and the files in it by name.

    missing: which files were not made, and which program, that is not installed, would make each.
    state_bytes, workspace_bytes: of the memory that a program brings, the workspace for one thread.
    """

    directory: Path
    files: tuple[str, ...]
    layout: Layout
    missing: tuple[str, ...] = ()

    @property
    def state_bytes(self) -> int:
        return self.layout.state.nbytes

    @property
    def workspace_bytes(self) -> int:
        return self.layout.workspace_bytes(1)

    def __repr__(self) -> str:
        text = "; ".join([", ".join(self.files), *self.missing])
        return f"<exported {self.layout.prefix} to {self.directory}: {text}>"


def export(
    artifact: Artifact,
    directory: str | Path,
    *,
    name: str | None = None,
    initial: str | None = None,
    threads: int | None = None,
) -> Exported:
    """Write the folder for an artifact, compiled for its target. Files of these names are replaced.

    name: of the files, and in every symbol: `kaun_NAME_run`. Default: "step", or the function's name. Two exports of
        different names go into one program.
    initial: where the state at the start of training is kept: "embedded" in the object, "file", a file beside it, or
        None: embedded if what is not zero of it is small.
    threads: the most that can share a call, 1 for code without threads. Default: 64 where the target has pthreads.

    ValueError for an argument that cannot be, RuntimeError if the system's linker fails.
    """
    layout = lay_out(artifact, names.checked(name or names.identifier(artifact.name)), _most_threads(artifact, threads))
    embedded = _embedded(artifact, initial)
    has_init = embedded is not None
    exported = symbols(layout, has_init)
    code = one_object(
        {entry.function.name: entry.function.program for entry in layout.entries},
        artifact.target,
        exported,
        pool=layout.most_threads > 1,
        modules=[functions(layout, embedded)],
    )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes | str] = {
        f"{layout.name}.o": code,
        f"{layout.name}.h": header(layout, has_init),
        f"{layout.name}.json": description(layout, has_init),
        "main.c": main_c(layout, has_init),
        "CMakeLists.txt": build.cmake_lists(layout),
    }
    if artifact.target.architecture == "wasm32":
        contents[f"{layout.name}.mjs"] = javascript(layout, has_init)
    if artifact.initial is not None and not has_init:
        contents[f"{layout.name}.state"] = state_file.packed(layout.state, artifact.initial)
    for ending in ("so", "dylib", "a", "state", "wasm", "mjs"):
        (folder / f"{layout.name}.{ending}").unlink(missing_ok=True)  # of an earlier export
    for file, content in contents.items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    linked = (
        build.shared_library(layout, folder),
        build.archive(layout, folder),
        build.webassembly(layout, folder, exported),
    )
    files = (*contents, *(made.name for made in linked if made))
    return Exported(folder, files, layout, build.missing(layout, files))


def read_state(leaves: Sequence[Leaf], path: str | Path) -> list[state_file.Numbers]:
    """The arrays of a state of these leaves, in order, of a file that an exported program saved, or `export` wrote.

    ValueError unless it is such a state, whole and undamaged.
    """
    return state_file.unpacked(StateLayout.of(leaves), Path(path).read_bytes())


def write_state(leaves: Sequence[Leaf], arrays: Sequence[state_file.Numbers], path: str | Path) -> None:
    """Write a file that an exported program of a step with such a state loads. Until it is whole, the old one stays."""
    saved_file.replace_file(str(path), [state_file.packed(StateLayout.of(leaves), arrays)])


def _most_threads(artifact: Artifact, threads: int | None) -> int:
    possible = MOST_THREADS if artifact.target.has_pthreads else 1
    if threads is None:
        return possible
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ValueError(f"export: got {threads!r} threads, expected 1 to 1024")
    if threads > 1 and possible == 1:
        raise ValueError(f"export: got {threads} threads, expected 1 for {artifact.target.triple}, which has none")
    return threads


def _embedded(artifact: Artifact, initial: str | None) -> list[bytes] | None:
    """The bytes of the leaves that go into the object; None if they do not."""
    if initial not in (None, "embedded", "file"):
        raise ValueError(f"export: got initial={initial!r}, expected 'embedded', 'file' or None")
    if artifact.initial is None:
        if initial is not None:
            raise ValueError(f"export: got initial={initial!r}, but there is no state to start from")
        return None
    leaves = [array.tobytes() for array in artifact.initial]
    small = sum(len(data) for data in leaves if any(data)) <= EMBEDDED_BYTES
    return leaves if initial == "embedded" or (initial is None and small) else None
