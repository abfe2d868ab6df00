"""The machine code of an artifact as a flat image: made for a file, and found again in memory after loading one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kaun.runtime import cpu_features, threads
from kaun.runtime.artifact import Artifact
from kaun.runtime.flat_image import FlatImage, flat_image
from kaun.runtime.mapped_image import map_image
from kaun.runtime.target import Target

__all__ = ["LoadedCode", "code_of", "code_target"]

_POOL = "kaun_pool_functions"
_POOL_WORDS = 5


def code_target(target: Target) -> Target:
    """What saved code is compiled for: the target without what no loader can check, in objects of one format.

    ValueError for a target whose code is not loaded but exported.
    """
    if target.architecture not in ("x86_64", "aarch64") or not target.has_pthreads:
        raise ValueError(
            f"saved_code: got the target {target.name}, expected x86-64 or AArch64 with Linux or macOS: for others, "
            "export the functions"
        )
    checkable = cpu_features.checkable(target)
    if target.system == "linux":
        return checkable
    # The code is copied and not linked, so its objects may be those of another system; that one has a register less.
    reserved = ",+reserve-x18" if target.architecture == "aarch64" else ""
    return dataclasses.replace(
        checkable, triple=f"{target.architecture}-unknown-linux-gnu", features=checkable.features + reserved
    )


def code_of(artifact: Artifact) -> FlatImage:
    """The functions' code, compiled for the artifact's target. ValueError for a target as in `code_target`."""
    target = code_target(artifact.target)
    from kaun.runtime.one_object import one_object  # and with it LLVM

    names = [function.name for function in artifact.functions]
    symbols = [*map(_symbol, names), _POOL]
    programs = {function.name: function.program for function in artifact.functions}
    compiled = one_object(programs, target, symbols, pool=True, modules=[_callers(names)])
    return flat_image(compiled, symbols)


def _symbol(name: str) -> str:
    return f"kaun_run_{name}"


def _callers(names: Iterable[str]) -> str:
    """What the pool's `run` calls, for each entry: the entry itself, which takes no table of kernels."""
    from kaun.runtime.one_object import entry_symbol

    lines = []
    for name in names:
        entry = f'@"{entry_symbol(name)}"'
        lines += [
            f"declare void {entry}(ptr, ptr, ptr)",
            f'define void @"{_symbol(name)}"(ptr %arguments, ptr %kernels, ptr %pool, ptr %workspace) nounwind {{',
            f"  call void {entry}(ptr %arguments, ptr %pool, ptr %workspace)",
            "  ret void",
            "}",
        ]
    return "\n".join(lines) + "\n"


def check_code(image: FlatImage, names: Iterable[str]) -> None:
    """ValueError unless the image, which comes from a file, has the code of these functions and of a pool."""
    image.check()
    targets = dict(image.rebases)
    table = image.symbols.get(_POOL, -1)
    for name in names:
        entry = image.symbols.get(_symbol(name), -1)
        if not 0 <= entry < len(image.code):
            raise ValueError(f"saved_code: there is no code of the function {name!r}")
    functions = [targets.get(table + 8 * number, -1) for number in range(_POOL_WORDS)]
    if table < image.data_offset or not all(0 <= place < len(image.code) for place in functions):
        raise ValueError("saved_code: there is no code of the pool of threads")


class LoadedCode:
    """The code of an image in this process, mapped when it is first asked for."""

    def __init__(self, image: FlatImage):
        self.image = image
        self._base: int | None = None

    def entry(self, name: str) -> int:
        """The address of a function's entry, as `Executable.of_code` takes it. OSError if the system refuses memory."""
        if self._base is None:
            self._base = map_image(self.image)
            threads.provide(self._base + self.image.symbols[_POOL])
        return self._base + self.image.symbols[_symbol(name)]
