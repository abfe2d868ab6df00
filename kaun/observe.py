"""Who looks on while programs run: the way in for `kaun.debug`, which costs one comparison where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kaun.compiler.ir import Graph

if TYPE_CHECKING:
    from kaun.execution import Storage

# Who wants to see the outputs of a program that has run, one for each of its graph's.
Results = Callable[["Sequence[Storage]"], None]
# Given a graph and its inputs, before its program runs; the inputs may be written over when it has. None in their place
# tells of a graph that could not be compiled. What it returns, if anything, is called when the program has run.
Observer = Callable[[Graph, "Sequence[Storage] | None"], "Results | None"]

observers: list[Observer] = []


def running(graph: Graph, inputs: Sequence[Storage] | None) -> Results:
    """Tell everybody who looks on; what it returns is to be told the results. Ask `observers` first, mostly empty."""
    waiting = [results for observer in tuple(observers) if (results := observer(graph, inputs)) is not None]

    def ran(outputs: Sequence[Storage]) -> None:
        for results in waiting:
            results(outputs)

    return ran


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """What runs inside, in any thread, is shown to `observer`."""
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
