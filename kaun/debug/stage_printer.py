"""Prints stages of the pipeline of every program that runs, each program once."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from typing import TextIO

from kaun.compiler.ir import Graph, key
from kaun.execution import Storage

NAMES = ("traced", "differentiated", "simplified", "fused", "scheduled", "llvm", "assembly")


def checked(caller: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names. ValueError for one that is no stage, and for none at all."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{caller}: got {name!r}, expected stages among {', '.join(NAMES)}")
    if not names:
        raise ValueError(f"{caller}: got no stage, expected some of {', '.join(NAMES)}")
    return tuple(names)


class Printer:
    """An observer that prints the stages `names` of each program, the first time that one of its structure runs."""

    def __init__(self, names: Sequence[str], file: TextIO | None):
        self._names, self._file = names, file
        self._graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self._keys: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, graph: Graph, inputs: Sequence[Storage] | None) -> None:
        if graph in self._graphs:
            return
        with self._lock:
            self._graphs.add(graph)
            text = hash(key(graph))
            if text in self._keys:
                return
            self._keys.add(text)
            self._print(graph, len(self._keys))

    def _print(self, graph: Graph, number: int) -> None:
        from kaun.compiled import Stages
        from kaun.debug.native import host_compilation

        made = Stages(host_compilation(graph))
        file = sys.stderr if self._file is None else self._file
        places = [node.source for node in graph.nodes if node.source.file]
        where = f", made at {places[-1]}" if places else ""
        for name in self._names:
            print(f"--- program {number}: {len(graph.nodes)} nodes{where}: {name} ---", file=file)
            try:
                text = made[name]
            except Exception as error:  # of a compiler that is being worked on: what comes before is worth reading
                text = f"(there is no such stage: {type(error).__name__}: {error})\n"
            print(text, end="", file=file, flush=True)
