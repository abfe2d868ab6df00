"""Who looks on while programs run: the way in for `kaun.debug`, which costs one comparison where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kaun.compiler.ir import Graph

if TYPE_CHECKING:
    from kaun.execution import Storage

# Given a graph and its inputs, before its program runs; the inputs may be written over when it has. None in their place
# tells of a graph that could not be compiled.
Observer = Callable[[Graph, "Sequence[Storage] | None"], None]

observers: list[Observer] = []


def running(graph: Graph, inputs: Sequence[Storage] | None) -> None:
    """Tell everybody who looks on. Ask `observers` first, which is empty nearly always."""
    for observer in tuple(observers):
        observer(graph, inputs)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """What runs inside, in any thread, is shown to `observer`."""
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
