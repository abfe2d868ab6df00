"""Runs a program with a mistake planted in the compiler: what `kn.debug` makes of it, as a line of JSON.

    python tests/miscompiled.py tests/miscompilations/NAME.patch

A patch names a module of the package and a piece of its text, and what to put in its place. The module is imported with
that change, in this process alone, and the cache on disk is off: code of a broken compiler is kept nowhere.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


@dataclass(frozen=True)
class Patch:
    """A mistake. `run` is the expression of a function, `on` the shapes of its arguments.

    finds: the stage, the culprit and the op that have to be named.
    """

    path: Path
    comment: str
    module: str
    run: str
    on: str
    finds: str
    was: str
    becomes: str

    @classmethod
    def read(cls, path: Path) -> Patch:
        head, _, change = path.read_text().partition("\n--- was\n")
        was, separator, becomes = change.partition("\n--- becomes\n")
        assert separator, f"{path.name} has no line `--- becomes`"
        comment, *lines = head.splitlines()
        fields = dict(line.split(": ", 1) for line in lines)
        return cls(path, comment, **fields, was=was, becomes=becomes.removesuffix("\n"))

    def applied(self, text: str) -> str:
        """The module's text with the mistake."""
        assert text.count(self.was) == 1, f"{self.path.name} does not apply: {self.module} has changed, so must it"
        return text.replace(self.was, self.becomes)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed text, and neither reads nor writes bytecode."""

    def __init__(self, patch: Patch, path: str):
        super().__init__(patch.module, path)
        self.patch = patch

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.patch.applied(Path(self.path).read_text()), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, changed."""

    def __init__(self, patch: Patch):
        self.patch = patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.patch.module:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(fullname)
        assert found is not None and found.origin is not None
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=_Loader(self.patch, found.origin))


def _named(found: Any) -> str:
    fault = found.fault
    return "" if fault is None else f"{fault.stage} {fault.culprit} {fault.op}".strip()


def main(path: Path, reduce: bool = False) -> None:
    """Plant the mistake and look for it; with `reduce`, tell to what the failure was reduced."""
    patch = Patch.read(path)
    os.environ["KAUN_CACHE"] = "0"
    # The folder of this file holds one with the library's name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    sys.meta_path.insert(0, _Finder(patch))
    import numpy as np

    import kaun as kn
    from kaun import nx

    importlib.import_module(patch.module)
    draw = np.random.default_rng(0)
    shapes = eval(f"({patch.on},)")
    arguments = [nx.asarray(draw.normal(size=shape).astype(np.float32)) for shape in shapes]
    function = kn.jit(eval(patch.run, {"kn": kn, "nx": nx}))
    compared, bisected = kn.debug.compare(function, *arguments), kn.debug.bisect(function, *arguments)
    found: dict[str, Any] = {"compare": _named(compared), "bisect": _named(bisected), "text": repr(bisected)}
    if reduce:
        from kaun.tools.reduce import failure_of

        from kaun.debug.shrinking import shrink

        failure = failure_of(bisected.fault.reproducer)
        assert failure is not None
        small = shrink(bisected.fault.reproducer, failure.fails, 300)
        found["ops"] = [node.op.name for node in small.graph.nodes if node.op.name not in ("input", "constant")]
        found["elements"] = sum(node.size for node in small.graph.inputs)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), reduce="--reduce" in sys.argv)
